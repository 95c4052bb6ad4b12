"""Training: from a configuration and a workdir to checkpoints, metrics and a full evaluation."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from clu import parameter_overview

from cfmlc_jax import config as configs
from cfmlc_jax import lock
from cfmlc_jax.checkpoint import Checkpoints, read_model
from cfmlc_jax.classify import build, evaluate, finetune, step, tasks
from cfmlc_jax.data.identity import changed_classes, changed_images, identity
from cfmlc_jax.data.pipeline import train_batches
from cfmlc_jax.data.sources.checks import class_counts
from cfmlc_jax.data.unreadable import Unreadable
from cfmlc_jax.engine import hooks, memory, writers
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.engine.progress import Progress
from cfmlc_jax.engine.state import TrainState
from cfmlc_jax.errors import InputError, RunError, WriteError
from cfmlc_jax.optim.build import hyperparameters

NOTHING = np.array([], np.int32)


def train(config, workdir: Path, say: Callable[[str], None]) -> dict:
    """Train, or go on training, in a workdir; then evaluate its best checkpoint (or the last) in full.

    Args:
        config: validated and locked.
        workdir: an existing folder, fresh or of this same configuration, that no other process trains in.
        say: prints a line for the user (on the first process).

    Returns:
        The results of `evaluate.full_evaluation`.

    Raises:
        InputError: data or configuration that cannot be used, or other data than before.
        RunError: a value that is not finite, a full disk, too little memory, no readable checkpoint.
        Preempted: SIGTERM came.
    """
    splits = ("train", config.data.val_split, *config.data.test_splits)
    sources = build.open_sources(config, splits, say)
    with hooks.Preemption() as preemption:
        trainer = Trainer(config, workdir, sources["train"], sources[config.data.val_split], say, preemption)
        try:
            with memory.needed_for("training", config, "train"):
                trainer.resume()
                trainer.fit()
            return _evaluate_in_full(config, workdir, trainer, sources, say, preemption)
        except WriteError as error:
            raise RunError(f"{error}; {trainer.safe()}") from error
        finally:
            trainer.close()


def _evaluate_in_full(config, workdir, trainer, sources, say, preemption):
    latest, best = trainer.checkpoints.latest_step(), trainer.checkpoints.best_step()
    chosen = trainer.checkpoints.path(latest if config.evaluate.checkpoint == "last" else best)
    why = (
        "the last step"
        if config.evaluate.checkpoint == "last"
        else f"the best step by val {trainer.task.selection}"
    )
    say(f"training is done; evaluating {chosen.name}, {why}")
    primary = jax.process_index() == 0
    folder = workdir / "report" if primary else None
    # Another evaluation may be writing there: this run waits for it, since it has nothing else to do.
    with lock.held(folder, "evaluating", wait=_once(say)) if folder else contextlib.nullcontext():
        return evaluate.full_evaluation(
            config,
            trainer.setup,
            read_model(chosen, trainer.abstract.parts()[0]),
            {split: sources[split] for split in config.data.test_splits},
            sources["train"].class_names,
            folder,
            say,
            training_labels=sources["train"].labels,
            class_counts=class_counts(sources["train"]),
            checkpoint=chosen.name,
            poll=lambda: preemption.end("training is done and saved, its evaluation comes next"),
        )


def _once(say):
    """A function that says the first of its texts, and that the run waits."""
    said: list[str] = []

    def wait(text):
        if not said:
            said.append(text)
            say(f"waiting: {text}")

    return wait


class Trainer:
    """One run: its state, and what happens at steps, epochs, and when it is told to end."""

    def __init__(self, config, workdir: Path, train_source, val_source, say, preemption: hooks.Preemption):
        self._config, self._workdir, self._say, self._preemption = config, workdir, say, preemption
        self._train_source, self._val_source = train_source, val_source
        self._drawn_source = build.drawn(config, train_source)
        self._per_epoch = build.steps_per_epoch(config, self._drawn_source)
        self._total = self._per_epoch * config.train.epochs
        self._log_every = min(config.train.log_every, self._per_epoch)  # at least once an epoch
        counts = class_counts(train_source)
        self.setup = build.create_setup(config, len(train_source.class_names), counts)
        self.task = tasks.create(
            config, training_labels=None, class_counts=counts, num_classes=len(train_source.class_names)
        )
        self._optimizer = build.optimizer(config, self._total, self.setup.model.frozen)
        self._fresh, self.abstract = build.state_plan(config, self.setup, self._optimizer)
        self._early_stop = hooks.EarlyStop(config.train.patience, {})
        self._finished = self._validation_due = False
        self._data = {"train": identity(train_source), config.data.val_split: identity(val_source)}
        self._unreadable = {
            "train": Unreadable(self._drawn_source, self.setup.views_of["train"]),
            "val": Unreadable(val_source, self.setup.views_of["evaluate"]),
        }
        self.checkpoints = Checkpoints(workdir / "checkpoints")
        self._writer: writers.MetricWriter = writers.MultiWriter(())

    def resume(self) -> None:
        """Take the state of the latest readable checkpoint, or begin.

        Raises:
            InputError: the checkpoint was trained on other data.
            RunError: no checkpoint is readable.
        """
        model, training = self.abstract.parts()
        restored = self.checkpoints.restore_latest(
            model=model, training=training, check=self._require_same_data, warn=self._say
        )
        if restored is None:
            self._state = self._begin()
        else:
            model, training, meta = restored
            self._state = TrainState(**model, **training)
            self._early_stop.best = meta["best"]
            self._finished = meta["finished"]
            at_end = int(self._state.step) % self._per_epoch == 0
            self._validation_due = at_end and "rank" not in meta
            self._say(f"going on at step {int(self._state.step)} of {self._total}")
        self._step = int(self._state.step)
        count = parameter_overview.count_parameters(self._state.variables["params"])
        self._say(f"{self._config.model.name} with {count:,} parameters")
        self._writer = writers.create(
            self._workdir,
            last_step=self._step,
            validated=not self._validation_due,
            tensorboard=self._config.report.tensorboard,
            primary=jax.process_index() == 0,
        )
        if restored is None:
            self._writer.write_hparams(configs.flat(configs.to_json(self._config)))

    def _begin(self):
        state = self._fresh()
        if not self._config.init_from:
            return state
        return finetune.begin_with(
            Path(self._config.init_from),
            state,
            self.abstract,
            config=self._config,
            class_names=self._train_source.class_names,
            say=self._say,
        )

    def fit(self) -> None:
        """Train to the last step, an early stop, or a SIGTERM.

        Raises:
            RunError: a value that is not finite.
            Preempted: SIGTERM came.
        """
        if self._finished:
            return
        progress = self._progress()
        score = evaluate.score_step(self._config, self.setup, ())
        if self._validation_due:
            with progress.paused():
                self._validate(score, progress)
        if not self._finished:
            self._train(score, progress)

    def _train(self, score, progress):
        train_step = _reporting_first(self._train_step(), progress)
        watch = hooks.NonFiniteWatch(
            step.watched_names(self.abstract.variables, self.setup.method.loss_names)
        )
        progress.note(f"reading the first of {self._total - self._step} batches")
        for batch in self._batches():
            self._unreadable["train"].add(batch.pop("replaced", NOTHING))
            on_devices = meshes.to_devices(batch, self.setup.mesh)
            self._state, first_bad = train_step(self._state, on_devices)
            self._step += 1
            watch.add(self._step, first_bad)
            epoch_ends = self._step % self._per_epoch == 0
            if self._step % self._log_every == 0:
                self._log(progress)
            if epoch_ends or self._wants_checkpoint():
                watch.flush()
                with progress.paused():
                    self._save()
                    if epoch_ends:
                        self._validate(score, progress)
            if self._preemption.reached():
                watch.flush()
                if self.checkpoints.latest_step() != self._step:
                    self._save()
                raise hooks.Preempted(f"asked to end; {self._done()}")
            if self._finished:
                break

    def safe(self) -> str:
        """Which checkpoint is left, for an error."""
        latest = self.checkpoints.latest_step()
        return "no checkpoint was written yet" if latest is None else f"checkpoint {latest} is intact"

    def close(self) -> None:
        """Flush and release files."""
        self._writer.close()
        self.checkpoints.close()

    def _train_step(self):
        return step.train_step(
            self.setup.model,
            self._optimizer,
            self.setup.method,
            patches=self.setup.patches["train"],
            null=self._config.train.mask_with,
            null_rate=self._config.train.mask_rate,
            mean_rate=build.mean_rate(self._config, self._per_epoch),
            ema_decay=self._config.optim.ema_decay,
            log_every=self._log_every,
            seed=self._config.seed,
            mesh=self.setup.mesh,
            shardings=jax.tree.map(lambda leaf: leaf.sharding, self.abstract),
        )

    def _batches(self):
        return train_batches(
            self._drawn_source,
            self.setup.views_of["train"],
            batch_size=self._config.train.batch_size,
            epochs=self._config.train.epochs,
            seed=self._config.seed,
            reading=self.setup.reading,
            reshuffle=self._config.data.reshuffle,
            start_step=self._step,
        )

    def _progress(self):
        return Progress(
            self._total,
            batch_size=self._config.train.batch_size,
            done=self._step,
            silent=jax.process_index() != 0,
        )

    def _wants_checkpoint(self):
        every = self._config.train.checkpoint_every
        return every > 0 and self._step % every == 0

    def _log(self, progress):
        values = hooks.host_values(self._state.tally)
        values |= {name: float(value) for name, value in hyperparameters(self._state.opt_state).items()}
        epoch = 1 + (self._step - 1) // self._per_epoch
        text = f"epoch {epoch}/{self._config.train.epochs}  loss {values['loss']:.4g}  lr {values['lr']:.2e}"
        speed = progress.report(self._step, text)
        scalars = {f"train/{name}": value for name, value in values.items()}
        self._writer.write_scalars(self._step, scalars | {f"time/{name}": v for name, v in speed.items()})

    def _done(self):
        return f"saved step {self._step} of {self._total}"

    def _validate(self, score, progress):
        """Score the step that ended an epoch, and was saved; rank its checkpoint."""
        epoch = self._step // self._per_epoch
        model, _ = self._state.parts()
        with memory.needed_for("validation", self._config, "evaluate"):
            scores, _ = evaluate.score_readable(
                self.setup,
                score,
                model,
                self._val_source,
                batch_size=self._config.evaluate.batch_size,
                unreadable=self._unreadable["val"],
                poll=lambda: self._preemption.end(f"{self._done()}, its validation comes next"),
            )
        for split, images in self._unreadable.items():
            for line in images.report():
                progress.note(f"{split}: {line}")
        found = {name: self.task.validation(s.logits["combined"], s.labels) for name, s in scores.items()}
        self._writer.write_scalars(
            self._step,
            {"epoch": epoch}
            | {f"val/{name}/{metric}": value for name, of in found.items() for metric, value in of.items()},
        )
        self._writer.flush()
        metric = self.task.selection
        chosen = {name: of[metric] for name, of in found.items()}
        stop = self._early_stop.update(epoch, chosen) and self._config.train.early_stop
        self._finished = stop or self._step == self._total
        self._validation_due = False
        self.checkpoints.rank(self._step, max(chosen.values()), self._ranked())
        best_epoch, best = max(self._early_stop.best.values(), key=lambda entry: entry[1])
        progress.note(
            f"epoch {epoch}: val {metric} {chosen['weights']:.2f}, averaged weights {chosen['average']:.2f}"
            f" (best {best:.2f} in epoch {best_epoch})" + ("; no improvement, stopping early" if stop else "")
        )

    def _ranked(self):
        """What validations decide, and nothing else in a checkpoint tells."""
        return {"best": self._early_stop.best, "finished": self._finished}

    def _save(self):
        model, training = self._state.parts()
        meta = {
            "config": configs.to_json(self._config),
            "class_names": list(self._train_source.class_names),
            "data": self._data,
            **self._ranked(),
        }
        if self._config.task == "single_label":
            # For accuracy by shots where the training split is not at hand.
            meta["class_counts"] = class_counts(self._train_source).tolist()
        self.checkpoints.save(self._step, model=model, training=training, meta=meta)

    def _require_same_data(self, path, meta):
        names = list(self._train_source.class_names)
        changes = changed_classes(meta["class_names"], names)
        # Older versions did not write "data".
        changes += changed_images(meta.get("data", {}), self._data, same_classes=not changes)
        if changes:
            raise InputError(
                f"checkpoint {path} was trained on other data ({'; '.join(changes)}); restore the data, or take "
                "another --workdir, with --config.init_from to begin with its weights"
            )


def _reporting_first(train_step, progress):
    """The same step, whose first call is reported: it compiles, which may take minutes, and is left out of rates."""
    calls = 0

    def step(state, batch):
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

    return step
