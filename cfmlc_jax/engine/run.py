"""A run: training a system in a workdir, from the start or from the latest checkpoint."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from cfmlc_jax.checkpoint import Checkpoints
from cfmlc_jax.engine import compilation, hooks, writers
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.engine.progress import Progress
from cfmlc_jax.engine.state import State, from_items, plan, to_items
from cfmlc_jax.engine.step import TrainStep
from cfmlc_jax.engine.system import System


@dataclass(frozen=True)
class Schedule:
    """How long a run trains, and how often it logs, saves and validates.

    seed: of the initial values and of the random keys of all steps.
    epochs, steps_per_epoch: each epoch ends with a checkpoint and a validation.
    batch_size: images per step, over all devices; only for the printed rate.
    log_every: steps between two logs; a value above `steps_per_epoch` means one log per epoch.
    checkpoint_every: steps between two further checkpoints; 0: save at the end of epochs only.
    patience: epochs without improvement after which the run stops; None: never stop early.
    """

    seed: int
    epochs: int
    steps_per_epoch: int
    batch_size: int
    log_every: int
    checkpoint_every: int = 0
    patience: int | None = None

    @property
    def steps(self) -> int:
        """The number of steps of the whole run."""
        return self.epochs * self.steps_per_epoch


@dataclass(frozen=True)
class RunOptions:
    """What a run writes besides its arrays, and the functions that it calls.

    meta: JSON values that are saved with every checkpoint, for whoever uses the checkpoint later.
    print_line: prints a line for the user.
    preemption: reports whether the run was asked to end.
    require_same: called with the path and the meta of a checkpoint before it is resumed; raises if the
        checkpoint belongs to other data, for instance.
    start: changes the initial state of a new run, to load pretrained weights for instance.
    notes: called after every epoch; returns lines that are printed.
    keep: called on all processes with the number of every epoch after its validation, to write further files; a run
        that was killed before they were complete calls it again.
    hparams: the configuration as a flat dict, for the metric writers.
    tensorboard: write TensorBoard event files too.
    """

    meta: dict[str, Any]
    print_line: Callable[[str], None]
    preemption: hooks.Preemption
    require_same: Callable[[Path, dict], None] = lambda path, meta: None
    start: Callable[[State], State] = lambda state: state
    notes: Callable[[], list[str]] = list
    keep: Callable[[int], None] = lambda epoch: None
    hparams: Mapping[str, Any] = field(default_factory=dict)
    tensorboard: bool = False


class Run:
    """Trains a system, and writes metrics and checkpoints into a workdir.

    Call `resume`, then `fit`; call `close` also after an error.

    Args:
        system: the system to train.
        batches: a function of a step that yields the batch of that step and all later ones: numpy arrays, the
            images of this process.
        schedule: how long and how often.
        workdir: the folder of metrics.jsonl and checkpoints/.
        mesh: the devices.
        options: what else to write and to call.

    Attributes:
        abstract: shapes and shardings of the state.
        checkpoints: the checkpoints of the workdir.
    """

    def __init__(
        self,
        system: System,
        batches: Callable[[int], Iterator[dict]],
        schedule: Schedule,
        workdir: Path,
        mesh: jax.sharding.Mesh,
        options: RunOptions,
    ):
        self._system, self._batches, self._schedule = system, batches, schedule
        self._workdir, self._mesh, self._options = workdir, mesh, options
        self._log_every = min(schedule.log_every, schedule.steps_per_epoch)
        self._create_state, self.abstract = plan(system, seed=schedule.seed, mesh=mesh)
        self._early_stop = hooks.EarlyStop(schedule.patience, {})
        self._finished = self._validation_due = False
        self.checkpoints = Checkpoints(workdir / "checkpoints")
        self._writer: writers.MetricWriter = writers.MultiWriter(())

    def resume(self) -> None:
        """Restore the latest readable checkpoint; without checkpoints, create the initial state.

        Raises:
            InputError: the checkpoint is of another model, or `require_same` refuses it.
            RunError: there are checkpoints, but none is readable.
        """
        model, training = to_items(self.abstract, self._system)
        restored = self.checkpoints.restore_latest(
            model=model,
            training=training,
            check=self._options.require_same,
            warn=self._options.print_line,
        )
        if restored is None:
            self._state = self._options.start(self._create_state())
        else:
            model, training, meta = restored
            self._state = from_items(model, training)
            self._early_stop.best = meta["best"]
            self._finished = meta["finished"]
            epoch_ended = int(self._state.step) % self._schedule.steps_per_epoch == 0
            # A validation gives its checkpoint a rank; without one, the run ended before it was done.
            self._validation_due = epoch_ended and "rank" not in meta
            self._options.print_line(f"resuming at step {int(self._state.step)} of {self._schedule.steps}")
        self._step = int(self._state.step)
        self._writer = writers.create(
            self._workdir,
            last_step=self._step,
            validated=not self._validation_due,
            tensorboard=self._options.tensorboard,
            primary=jax.process_index() == 0,
        )
        if restored is None:
            self._writer.write_hparams(self._options.hparams)

    def fit(self) -> None:
        """Train until the last step, an early stop or SIGTERM.

        Raises:
            RunError: a value is not finite.
            Preempted: the process received SIGTERM; the state is saved.
        """
        if self._finished:
            return
        progress = Progress(
            self._schedule.steps,
            batch_size=self._schedule.batch_size,
            done=self._step,
            silent=jax.process_index() != 0,
        )
        if self._validation_due:
            with progress.paused():
                self._validate(progress)
        if not self._finished:
            self._train(progress)

    def last_saved(self) -> str:
        """The latest checkpoint, in words that end an error message."""
        latest = self.checkpoints.latest_step()
        return "no checkpoint was written yet" if latest is None else f"checkpoint {latest} is intact"

    def close(self) -> None:
        """Flush, and close files."""
        self._writer.close()
        self.checkpoints.close()

    def _train(self, progress):
        compiled = TrainStep(
            self._system,
            self.abstract,
            seed=self._schedule.seed,
            log_every=self._log_every,
            mesh=self._mesh,
        )
        train_step = _with_compilation_reported(compiled, progress)
        watch = hooks.NonFiniteWatch(compiled.watched)
        progress.note(f"reading the first of {self._schedule.steps - self._step} batches")
        for batch in self._batches(self._step):
            on_devices = meshes.to_devices(batch, self._mesh)
            self._state, first_bad = train_step(self._state, on_devices)
            self._step += 1
            watch.add(self._step, first_bad)
            epoch_ends = self._step % self._schedule.steps_per_epoch == 0
            if self._step % self._log_every == 0:
                self._log(progress)
            if epoch_ends or self._wants_checkpoint():
                watch.flush()
                with progress.paused():
                    self._save()
                    if epoch_ends:
                        self._validate(progress)
            if self._options.preemption.requested():
                watch.flush()
                if self.checkpoints.latest_step() != self._step:
                    self._save()
                raise hooks.Preempted(f"asked to end; {self._saved()}")
            if self._finished:
                break

    def _wants_checkpoint(self):
        every = self._schedule.checkpoint_every
        return every > 0 and self._step % every == 0

    def _log(self, progress):
        values = hooks.mean_values(self._state.tally)
        first = self._system.values[0]
        readings = {name: float(value) for name, value in self._system.readings(self._state.learned).items()}
        epoch = 1 + (self._step - 1) // self._schedule.steps_per_epoch
        text = f"epoch {epoch}/{self._schedule.epochs}  {first} {values[first]:.4g}"
        if "lr" in readings:
            text += f"  lr {readings['lr']:.2e}"
        speed = progress.report(self._step, text)
        scalars = {f"train/{name}": value for name, value in (values | readings).items()}
        self._writer.write_scalars(self._step, scalars | {f"time/{name}": v for name, v in speed.items()})

    def _saved(self):
        return f"saved step {self._step} of {self._schedule.steps}"

    def _validate(self, progress):
        """Compute metrics after an epoch, whose checkpoint is already saved, and rank that checkpoint by them."""
        epoch = self._step // self._schedule.steps_per_epoch
        metrics = self._system.validate(
            self._state.learned,
            lambda: self._options.preemption.raise_if_requested(
                f"{self._saved()}, its validation comes next"
            ),
        )
        for line in self._options.notes():
            progress.note(line)
        self._options.keep(epoch)
        scalars = {
            f"val/{weights}/{metric}": value
            for weights, by_metric in metrics.items()
            for metric, value in by_metric.items()
        }
        self._writer.write_scalars(self._step, {"epoch": epoch} | scalars)
        self._writer.flush()
        selection = self._system.selection
        chosen = {weights: by_metric[selection] for weights, by_metric in metrics.items()}
        stop = self._early_stop.update(epoch, chosen)
        self._finished = stop or self._step == self._schedule.steps
        self._validation_due = False
        self.checkpoints.rank(self._step, max(chosen.values()), self._validation_meta())
        best_epoch, best = max(self._early_stop.best.values(), key=lambda entry: entry[1])
        shown = ", ".join(f"{weights} {value:.2f}" for weights, value in chosen.items())
        progress.note(
            f"epoch {epoch}: val {selection} {shown} (best {best:.2f} in epoch {best_epoch})"
            + ("; no improvement, stopping early" if stop else "")
        )

    def _validation_meta(self):
        """The part of a checkpoint's meta that a validation changes."""
        return {"best": self._early_stop.best, "finished": self._finished}

    def _save(self):
        model, training = to_items(self._state, self._system)
        meta = self._options.meta | self._validation_meta()
        self.checkpoints.save(self._step, model=model, training=training, meta=meta)


def _with_compilation_reported(train_step, progress):
    """The same function; its first call, which compiles for seconds to minutes, is timed and not in the rates."""
    calls = 0

    def timed_once(state, batch):
        nonlocal calls
        calls += 1
        if calls > 1:
            return train_step(state, batch)
        progress.note("compiling the training step")
        start = time.perf_counter()
        with progress.paused(), compilation.counted() as compilations:
            result = train_step(state, batch)
        compiled = time.perf_counter()
        jax.block_until_ready(result)
        source = " (from the cache)" if compilations.loaded.total() else ""
        progress.note(
            f"compiled in {compiled - start:.1f} s{source}; the first step took {time.perf_counter() - compiled:.1f} s"
        )
        return result

    return timed_once
