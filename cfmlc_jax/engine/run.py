"""A run: a system trained in a workdir, from its first or its last checkpoint to its end."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from cfmlc_jax.checkpoint import Checkpoints
from cfmlc_jax.engine import hooks, writers
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.engine.progress import Progress
from cfmlc_jax.engine.state import State, from_items, plan, to_items
from cfmlc_jax.engine.step import TrainStep
from cfmlc_jax.engine.system import System


@dataclass(frozen=True)
class Schedule:
    """The numbers of a run.

    seed: of initial values, and of every step's randomness.
    epochs, steps_per_epoch: a validation follows each epoch.
    batch_size: images of a step, over all devices; for the rate that is shown.
    log_every: steps from one log of values to the next; at least one an epoch.
    checkpoint_every: steps between checkpoints, besides the one after every epoch; 0: only that.
    patience: epochs without a better validation before the run stops; None: it never stops early.
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
        """Of the whole run."""
        return self.epochs * self.steps_per_epoch


@dataclass(frozen=True)
class Surroundings:
    """What a run has to do with the world beside its system.

    meta: JSON values that are written beside every checkpoint: what one needs to use it.
    require_same: raises where the path and meta of a checkpoint are not of this run.
    start: the first state of a new run, from the system's own.
    notes: lines that the user should see, asked for after every epoch.
    hparams: the run's settings, flat, for the metric writers.
    say: prints a line for the user.
    preemption: whether the run has been asked to end.
    tensorboard: write event files too.
    """

    meta: dict[str, Any]
    say: Callable[[str], None]
    preemption: hooks.Preemption
    require_same: Callable[[Path, dict], None] = lambda path, meta: None
    start: Callable[[State], State] = lambda state: state
    notes: Callable[[], list[str]] = list
    hparams: Mapping[str, Any] = field(default_factory=dict)
    tensorboard: bool = False


class Run:
    """Trains a system from batches, and keeps metrics and checkpoints in a workdir.

    Call `resume`, then `fit`, and `close` in any case.

    Args:
        system: what is trained.
        batches: from a step on, every later batch: host arrays, this process's share.
        schedule: the run's numbers.
        workdir: metrics.jsonl and checkpoints/ are there, or will be.
        mesh: of the devices.
        surroundings: what else it deals with.

    Attributes:
        abstract: shapes and shardings of the state.
        checkpoints: those of the workdir.
    """

    def __init__(
        self,
        system: System,
        batches: Callable[[int], Iterator[dict]],
        schedule: Schedule,
        workdir: Path,
        mesh: jax.sharding.Mesh,
        surroundings: Surroundings,
    ):
        self._system, self._batches, self._schedule = system, batches, schedule
        self._workdir, self._mesh, self._outside = workdir, mesh, surroundings
        self._log_every = min(schedule.log_every, schedule.steps_per_epoch)
        self._first_state, self.abstract = plan(system, seed=schedule.seed, mesh=mesh)
        self._early_stop = hooks.EarlyStop(schedule.patience, {})
        self._finished = self._validation_due = False
        self.checkpoints = Checkpoints(workdir / "checkpoints")
        self._writer: writers.MetricWriter = writers.MultiWriter(())

    def resume(self) -> None:
        """Take the state of the latest readable checkpoint, or start.

        Raises:
            InputError: the checkpoint is another run's.
            RunError: no checkpoint is readable.
        """
        model, training = to_items(self.abstract, self._system)
        restored = self.checkpoints.restore_latest(
            model=model,
            training=training,
            check=self._outside.require_same,
            warn=self._outside.say,
        )
        if restored is None:
            self._state = self._outside.start(self._first_state())
        else:
            model, training, meta = restored
            self._state = from_items(model, training)
            self._early_stop.best = meta["best"]
            self._finished = meta["finished"]
            at_end = int(self._state.step) % self._schedule.steps_per_epoch == 0
            self._validation_due = at_end and "rank" not in meta
            self._outside.say(f"resuming at step {int(self._state.step)} of {self._schedule.steps}")
        self._step = int(self._state.step)
        self._writer = writers.create(
            self._workdir,
            last_step=self._step,
            validated=not self._validation_due,
            tensorboard=self._outside.tensorboard,
            primary=jax.process_index() == 0,
        )
        if restored is None:
            self._writer.write_hparams(self._outside.hparams)

    def fit(self) -> None:
        """Train to the last step, an early stop, or a SIGTERM.

        Raises:
            RunError: a value that is not finite.
            Preempted: SIGTERM came.
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

    def safe(self) -> str:
        """Which checkpoint is left, for an error."""
        latest = self.checkpoints.latest_step()
        return "no checkpoint was written yet" if latest is None else f"checkpoint {latest} is intact"

    def close(self) -> None:
        """Flush and release files."""
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
        train_step = _reporting_first(compiled, progress)
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
            if self._outside.preemption.reached():
                watch.flush()
                if self.checkpoints.latest_step() != self._step:
                    self._save()
                raise hooks.Preempted(f"asked to end; {self._done()}")
            if self._finished:
                break

    def _wants_checkpoint(self):
        every = self._schedule.checkpoint_every
        return every > 0 and self._step % every == 0

    def _log(self, progress):
        values = hooks.host_values(self._state.tally)
        first = self._system.values[0]
        readings = {name: float(value) for name, value in self._system.readings(self._state.learned).items()}
        epoch = 1 + (self._step - 1) // self._schedule.steps_per_epoch
        text = f"epoch {epoch}/{self._schedule.epochs}  {first} {values[first]:.4g}"
        if "lr" in readings:
            text += f"  lr {readings['lr']:.2e}"
        speed = progress.report(self._step, text)
        scalars = {f"train/{name}": value for name, value in (values | readings).items()}
        self._writer.write_scalars(self._step, scalars | {f"time/{name}": v for name, v in speed.items()})

    def _done(self):
        return f"saved step {self._step} of {self._schedule.steps}"

    def _validate(self, progress):
        """Score the step that ended an epoch, and was saved; rank its checkpoint."""
        epoch = self._step // self._schedule.steps_per_epoch
        metrics = self._system.validate(
            self._state.learned,
            lambda: self._outside.preemption.end(f"{self._done()}, its validation comes next"),
        )
        for line in self._outside.notes():
            progress.note(line)
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
        self.checkpoints.rank(self._step, max(chosen.values()), self._ranked())
        best_epoch, best = max(self._early_stop.best.values(), key=lambda entry: entry[1])
        shown = ", ".join(f"{weights} {value:.2f}" for weights, value in chosen.items())
        progress.note(
            f"epoch {epoch}: val {selection} {shown} (best {best:.2f} in epoch {best_epoch})"
            + ("; no improvement, stopping early" if stop else "")
        )

    def _ranked(self):
        """What validations decide, and nothing else in a checkpoint says."""
        return {"best": self._early_stop.best, "finished": self._finished}

    def _save(self):
        model, training = to_items(self._state, self._system)
        meta = self._outside.meta | self._ranked()
        self.checkpoints.save(self._step, model=model, training=training, meta=meta)


def _reporting_first(train_step, progress):
    """The same step, whose first call is reported: it compiles, which may take minutes, and is left out of rates."""
    calls = 0

    def reported(state, batch):
        nonlocal calls
        calls += 1
        if calls > 1:
            return train_step(state, batch)
        progress.note("compiling the training step")
        start = time.perf_counter()
        with progress.paused():
            result = train_step(state, batch)
        compiled = time.perf_counter()
        jax.block_until_ready(result)
        progress.note(
            f"compiled in {compiled - start:.1f} s; the first step took {time.perf_counter() - compiled:.1f} s"
        )
        return result

    return reported
