"""A run: training a system in a workdir, from the start or from the latest checkpoint."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cfmlc_jax.checkpoint import Checkpoints
from cfmlc_jax.engine import hooks, memory, peaks
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.engine.instruments import Instruments
from cfmlc_jax.engine.log import Log, Logged, with_compilation_reported
from cfmlc_jax.engine.progress import Progress
from cfmlc_jax.engine.state import State, from_items, plan, to_items
from cfmlc_jax.engine.step import TrainStep
from cfmlc_jax.engine.system import System
from cfmlc_jax.errors import InputError, WriteError


@dataclass(frozen=True)
class Schedule:
    """How long a run trains, and how often it logs, saves and validates.

    seed: of the initial values and of the random keys of all steps.
    epochs, steps_per_epoch: each epoch ends with a checkpoint, and with a validation as `validate_every` says.
    batch_size: images per step, over all devices; only for the printed rate.
    log_every: steps between two logs; a value above `steps_per_epoch` means one log per epoch.
    checkpoint_every: steps between two further checkpoints; 0: save at the end of epochs only.
    patience: epochs without improvement after which the run stops; None: never stop early.
    validate_every: epochs between two validations; the last epoch is always validated.
    """

    seed: int
    epochs: int
    steps_per_epoch: int
    batch_size: int
    log_every: int
    checkpoint_every: int = 0
    patience: int | None = None
    validate_every: int = 1

    @property
    def steps(self) -> int:
        """The number of steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    def validates(self, step: int) -> bool:
        """Whether a validation follows a step."""
        epoch, rest = divmod(step, self.steps_per_epoch)
        return rest == 0 and (epoch % self.validate_every == 0 or epoch == self.epochs)


@dataclass(frozen=True)
class RunOptions:
    """What a run writes besides its arrays, and the functions that it calls.

    meta: JSON values that are saved with every checkpoint, for whoever uses the checkpoint later.
    print_line: prints a line for the user.
    preemption: reports whether the run was asked to end.
    require_same: called with the path and the meta of a checkpoint before it is resumed; raises if the
        checkpoint belongs to other data, for instance.
    start: changes the initial state of a new run, to load pretrained weights for instance.
    notes: called after every validation; returns lines that are printed.
    keep: called on all processes with the number of every epoch that was validated, to write further files; a run
        that was killed before they were complete calls it again. Returns images for the metric writers.
    instruments: the metric writers, and what to trace.
    """

    meta: dict[str, Any]
    print_line: Callable[[str], None]
    preemption: hooks.Preemption
    require_same: Callable[[Path, dict], None] = lambda path, meta: None
    start: Callable[[State], State] = lambda state: state
    notes: Callable[[], list[str]] = list
    keep: Callable[[int], Mapping[str, np.ndarray]] = lambda epoch: {}
    instruments: Instruments = field(default_factory=Instruments)


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
        # Seconds that a step would take if the devices did all its operations at their peak rate.
        self._seconds_at_peak: float | None = None
        self.checkpoints = Checkpoints(workdir / "checkpoints")
        self._writer = options.instruments.reporting

    def resume(self) -> None:
        """Restore the latest readable checkpoint; without checkpoints, create the initial state.

        Raises:
            InputError: the checkpoint is of another model or step, or `require_same` refuses it.
            RunError: there are checkpoints, but none is readable.
        """
        model, training = to_items(self.abstract, self._system)
        restored = self.checkpoints.restore_latest(
            model=model,
            training=training,
            check=self._options.require_same,
            warn=self._options.print_line,
        )
        logged = None
        if restored is None:
            self._state = self._options.start(self._create_state())
        else:
            model, training, meta = restored
            self._state = from_items(model, training)
            self._require_step()
            self._early_stop.best = meta["best"]
            self._finished = meta["finished"]
            logged = meta.get("logged")  # checkpoints of older versions lack it
            # A validation gives its checkpoint a rank; without one, the run ended before it was done.
            self._validation_due = self._schedule.validates(int(self._state.step)) and "rank" not in meta
            self._options.print_line(f"resuming at step {int(self._state.step)} of {self._schedule.steps}")
        self._step = int(self._state.step)
        self._writer.open(
            self._workdir, last_step=self._step, validated=not self._validation_due, logged=logged
        )

    def _require_step(self):
        """Raise unless the state is of the step that its checkpoint's folder is named after."""
        step, named = int(self._state.step), self.checkpoints.latest_step()
        if named is not None and step != named:
            path = self.checkpoints.path(named)
            raise InputError(
                f"checkpoint {path} is of step {step}; put back the one of step {named}, or remove it"
            )

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
        self.checkpoints.wait()

    @property
    def finished(self) -> bool:
        """Whether the run has trained to its end."""
        return self._finished

    def last_saved(self) -> str:
        """The latest checkpoint, in words that end an error message; one that is being written is not waited for."""
        latest = self.checkpoints.last_complete()
        return "no checkpoint was written yet" if latest is None else f"checkpoint {latest} is intact"

    def close(self) -> None:
        """Flush the metric writers, which may have results to write, and close files."""
        with contextlib.suppress(
            WriteError
        ):  # a run that ends well has flushed; another one has its own error
            self._writer.flush()
        self.checkpoints.close()

    def _train(self, progress):
        traced = self._options.instruments.profiler(
            self._workdir, done=self._step, total=self._schedule.steps, progress=progress
        )
        with traced as profiler:
            self._train_observed(progress, profiler)

    def _train_observed(self, progress, profiler):
        compiled = TrainStep(
            self._system,
            self.abstract,
            seed=self._schedule.seed,
            log_every=self._log_every,
            mesh=self._mesh,
        )
        train_step = with_compilation_reported(compiled, progress)
        watch = hooks.NonFiniteWatch(compiled.watched)
        log = Log(self._mesh, lambda values: self._write(progress, values))
        progress.note(f"reading the first of {self._schedule.steps - self._step} batches")
        batches = iter(self._batches(self._step))
        peak = peaks.flops_per_second(self._mesh)
        while not self._finished:
            with profiler.step(self._step + 1, lambda: self._state):
                with progress.waiting("input"):
                    batch = next(batches, None)
                if batch is None:
                    break
                # The devices work on the step before until `watch.add`: the batch and the new step are sent meanwhile.
                on_devices = meshes.to_devices(batch, self._mesh)
                if peak is not None and self._seconds_at_peak is None:
                    self._seconds_at_peak = compiled.flops(self._state, on_devices) / peak
                self._state, first_bad = train_step(self._state, on_devices)
                self._step += 1
                with progress.waiting("device"):
                    log.flush()
                    watch.add(self._step, first_bad)
                if self._step % self._log_every == 0:
                    readings = self._system.readings(self._state.learned)
                    log.add(self._step, progress.waits(self._step), self._state.tally, readings)
            if self._step % self._schedule.steps_per_epoch == 0 or self._wants_checkpoint():
                self._settle(log, watch, progress)
                with progress.paused():
                    self._save()
                    if self._schedule.validates(self._step):
                        self._validate(progress)
            if self._options.preemption.requested():
                self._settle(log, watch, progress)
                if self.checkpoints.latest_step() != self._step:
                    self._save()
                    self.checkpoints.wait()
                raise hooks.Preempted(f"asked to end; {self._saved()}")

    def _settle(self, log, watch, progress):
        """Wait for all steps so far, log what is due, and raise if a value is not finite."""
        with progress.waiting("device"):
            log.flush()
            watch.flush()

    def _wants_checkpoint(self):
        every = self._schedule.checkpoint_every
        return every > 0 and self._step % every == 0

    def _write(self, progress, logged: Logged):
        values = hooks.mean_values(logged.tally)
        first = self._system.values[0]
        readings = {name: float(value) for name, value in logged.readings.items()}
        epoch = 1 + (logged.step - 1) // self._schedule.steps_per_epoch
        text = f"epoch {epoch}/{self._schedule.epochs}  {first} {values[first]:.4g}"
        if "lr" in readings:
            text += f"  lr {readings['lr']:.2e}"
        speed = progress.report(logged.step, text) | logged.waits
        if self._seconds_at_peak is not None:
            speed["mfu"] = self._seconds_at_peak * speed["steps_per_second"]
        by_section = {"train": values | readings, "time": speed, "memory": memory.peak_usage()}
        self._writer.write_scalars(
            logged.step,
            {
                f"{section}/{name}": v
                for section, scalars in by_section.items()
                for name, v in scalars.items()
            },
        )
        for line in self._writer.warnings():
            progress.note(line)

    def _saved(self):
        return f"saved step {self._step} of {self._schedule.steps}"

    def _end_if_requested(self):
        if self._options.preemption.requested():
            self.checkpoints.wait()
            raise hooks.Preempted(f"asked to end; {self._saved()}, its validation comes next")

    def _validate(self, progress):
        """Compute metrics after an epoch, whose checkpoint is saved or on its way, and rank that checkpoint by them."""
        epoch = self._step // self._schedule.steps_per_epoch
        metrics = self._system.validate(self._state.learned, self._end_if_requested)
        self.checkpoints.wait()
        for line in self._options.notes():
            progress.note(line)
        images = self._options.keep(epoch)
        scalars = {
            f"val/{weights}/{metric}": value
            for weights, by_metric in metrics.items()
            for metric, value in by_metric.items()
        }
        self._writer.write_scalars(self._step, {"epoch": epoch} | scalars)
        if images:
            self._writer.write_images(self._step, images)
        self._writer.flush()
        selection = self._system.selection
        chosen = {weights: by_metric[selection] for weights, by_metric in metrics.items()}
        stop = self._early_stop.update(epoch, chosen)
        self._finished = stop or self._step == self._schedule.steps
        self._validation_due = False
        # The last set is the one that predicts: the best of the others would choose a checkpoint that predicts worse.
        predicting = [*chosen][-1]
        self.checkpoints.rank(self._step, chosen[predicting], self._validation_meta())
        best_epoch, best = self._early_stop.best[predicting]
        shown = ", ".join(f"{weights} {value:.2f}" for weights, value in chosen.items())
        progress.note(
            f"epoch {epoch}: val {selection} {shown} (best {best:.2f} in epoch {best_epoch})"
            + ("; no improvement, stopping early" if stop else "")
        )

    def _validation_meta(self):
        """The part of a checkpoint's meta that a validation changes."""
        return {"best": self._early_stop.best, "finished": self._finished}

    def _save(self):
        # A run that resumes from the checkpoint keeps the lines before it: they must be there by then.
        self._writer.flush()
        model, training = to_items(self._state, self._system)
        meta = self._options.meta | self._validation_meta() | {"logged": self._writer.logged()}
        self.checkpoints.save(self._step, model=model, training=training, meta=meta)
