"""Trains a classifier by a configuration in a workdir, then evaluates it in full."""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cfmlc_jax import config as configs
from cfmlc_jax.checkpoint import read_model
from cfmlc_jax.classify import build, decide, evaluate, finetune, memory, plan, scoring, tasks
from cfmlc_jax.classify.evaluate import Classifier, Output, TrainingSplit
from cfmlc_jax.classify.update import Validation
from cfmlc_jax.config.schedule import schedule
from cfmlc_jax.config.workdir import require_own
from cfmlc_jax.data.identity import changed_classes, changed_images, identity
from cfmlc_jax.data.pipeline import train_batches
from cfmlc_jax.data.sources.checks import class_counts, num_unknown
from cfmlc_jax.data.unreadable import Unreadable
from cfmlc_jax.data.workers import Standing
from cfmlc_jax.engine import hooks, parameters, report_lock
from cfmlc_jax.engine.instruments import Instruments
from cfmlc_jax.engine.memory import compile_within_memory
from cfmlc_jax.engine.plan import Memory
from cfmlc_jax.engine.run import Run, RunOptions
from cfmlc_jax.errors import BucketError, InputError, RunError, WriteError
from cfmlc_jax.optim import ema, frozen

NO_IMAGES = np.array([], np.int32)


def train(
    config, workdir: Path, print_line: Callable[[str], None], instruments: Instruments | None = None
) -> dict:
    """The results of `evaluate.full_evaluation` after training, or resuming, in a workdir.

    The evaluation is of the best checkpoint, or of the last one by `evaluate.checkpoint`.

    Args:
        config: validated and locked.
        workdir: an existing folder, empty or of the same configuration, that no other process trains in.
        print_line: prints a line for the user, on the first process.
        instruments: what observes the run; None: metrics.jsonl alone.

    Raises:
        InputError: the data or the configuration cannot be used, or the data has changed since the checkpoint.
        RunError: a non-finite value, a full disk, not enough memory, or no readable checkpoint.
        Preempted: the process received SIGTERM.
    """
    splits = ("train", config.data.val_split, *config.data.test_splits)
    sources = build.open_sources(config, splits, print_line)
    generated = build.open_counterfactuals(config, sources["train"], print_line)
    with hooks.Preemption() as preemption:
        training = _Training(config, sources["train"], sources[config.data.val_split], generated)
        run = training.run(workdir, preemption, print_line, instruments or Instruments())
        try:
            with memory.needed_for("training", config, "train", training.step_memory):
                run.resume()
                training.compile_scores(run, print_line)
                run.fit()
            folder = workdir / "report"
            output = Output.of_this_process(
                folder,
                print_line,
                lambda: preemption.raise_if_requested(
                    "training is done and saved, its evaluation comes next"
                ),
            )
            return _evaluate_in_full(config, run, training, sources, folder, output)
        except (WriteError, BucketError) as error:
            raise RunError(f"{error}; {run.last_saved()}") from error
        finally:
            training.standing.close()
            run.close()


def _evaluate_in_full(config, run, training, sources, folder, output: Output):
    latest, best = run.checkpoints.latest_step(), run.checkpoints.best_step()
    last = config.evaluate.checkpoint == "last"
    chosen = run.checkpoints.path(latest if last else best)
    which = "the last step" if last else f"the best step by val {training.task.selection}"
    output.print_line(f"training is done; evaluating {chosen.name}, {which}")
    with report_lock.held_in_turn(folder, output.print_line, output.poll):
        model = read_model(chosen, training.system.split(run.abstract.learned)[0])
        thresholds = decide.after_training(
            config, training.parts, training.evaluation, model, sources, output.poll
        )
        decide.keep(chosen, thresholds, output.print_line)
        return evaluate.full_evaluation(
            config,
            Classifier(training.parts, model, sources["train"].class_names, chosen.name, thresholds),
            {split: sources[split] for split in config.data.test_splits},
            TrainingSplit(sources["train"].labels, class_counts(sources["train"])),
            output,
            score=training.evaluation,
        )


class _Training:
    """The system, the batches and the run options of a classifier in training."""

    def __init__(self, config, train_source, val_source, generated=None):
        self._config, self._train_source, self._val_source = config, train_source, val_source
        self._generated = generated
        self._weighting, self._decorrelation = build.weighting(config, train_source)
        self._epoch_source = build.epoch_source(config, train_source)
        self._steps_per_epoch = build.steps_per_epoch(config, self._epoch_source, generated)
        counts = class_counts(train_source)
        num_classes = len(train_source.class_names)
        parts = build.create(config, num_classes)
        self.standing = Standing()
        self.parts = dataclasses.replace(
            parts, reading=dataclasses.replace(parts.reading, standing=self.standing)
        )
        self.task = tasks.create(config, training_labels=None, class_counts=counts, num_classes=num_classes)
        self.evaluation = scoring.for_evaluation(config, self.parts)
        # Without counterfactuals one program is enough for both.
        self.validation = (
            scoring.for_validation(config, self.parts) if config.effect.kinds else self.evaluation
        )
        self._unreadable = {
            "train": Unreadable(self._epoch_source, self.parts.transforms["train"]),
            "val": Unreadable(val_source, self.parts.transforms["evaluate"]),
        }
        self._data = {"train": identity(train_source), config.data.val_split: identity(val_source)}
        if generated is not None:
            self._unreadable[build.COUNTERFACTUALS] = Unreadable(
                generated.source, self.parts.transforms["train"]
            )
            self._data[build.COUNTERFACTUALS] = identity(generated.source)
        self.system = build.system(
            config,
            self.parts,
            steps_per_epoch=self._steps_per_epoch,
            class_counts=counts,
            validation=Validation(self.task.selection, self._measure),
            partial=num_unknown(train_source.labels) > 0,
        )

    def run(self, workdir, preemption, print_line, instruments) -> Run:
        """The run that trains the system in a workdir."""
        config = self._config
        options = RunOptions(
            meta=self._meta(),
            print_line=print_line,
            preemption=preemption,
            require_same=self._require_same,
            start=lambda state: self._start(state, print_line),
            notes=self._notes,
            instruments=instruments,
        )
        patience = config.train.patience if config.train.early_stop else None
        planned = schedule(
            config, self._steps_per_epoch, patience=patience, validate_every=config.evaluate.every
        )
        batches = functools.partial(self._batches, print_line=print_line)
        if slow := ema.slowness(config.optim.ema_decay, self._steps_per_epoch * config.train.epochs):
            print_line(slow)
        if self._decorrelation is not None:
            print_line(self._decorrelation.summary())
        run = Run(self.system, batches, planned, workdir, self.parts.mesh, options)
        params = run.abstract.learned["variables"]["params"]
        mask = frozen.trainable_mask(params, self.parts.model.frozen)
        for line in parameters.write(workdir, [parameters.Network(config.model.name, params, mask)]):
            print_line(line)
        return run

    def compile_scores(self, run, print_line) -> None:
        """Compile what the run will validate and evaluate with: a lack of memory shows now, not after the training."""
        start = time.perf_counter()
        model, _ = self.system.split(run.abstract.learned)
        views = scoring.views_of(self.parts, self._config.evaluate.batch_size)
        scores = {"evaluation": self.evaluation}
        if not run.finished:
            scores["validation"] = self.validation
        for activity, score in scores.items():
            with memory.needed_for(activity, self._config, "evaluate"):
                traced = score.trace(model["average"], model["mean_colour"], views)
                compile_within_memory(traced.lower())
        seconds = time.perf_counter() - start
        print_line(f"compiled {' and '.join(reversed(scores))} in {seconds:.1f} s")

    def step_memory(self) -> Memory:
        """What the training step needs on each device."""
        num_classes = len(self._train_source.class_names)
        return plan.step_memory(self._config, self.parts, self.system, num_classes, self._steps_per_epoch)

    def _batches(self, from_step, print_line):
        batches = train_batches(
            self._epoch_source,
            self.parts.transforms["train"],
            batch_size=self._config.train.batch_size,
            epochs=self._config.train.epochs,
            seed=self._config.seed,
            reading=self.parts.reading,
            reshuffle=self._config.data.reshuffle,
            start_step=from_step,
            generated=self._generated,
            weighting=self._weighting,
        )
        if batches.workers:
            print_line(f"reading with {batches.workers} worker processes (config.data.workers)")
        for batch in batches:
            replaced = batch.pop("replaced", NO_IMAGES)
            if self._generated is not None and len(replaced):
                drawn = batch["counterfactual"]
                self._unreadable[build.COUNTERFACTUALS].add(replaced[drawn])
                replaced = replaced[~drawn]
            self._unreadable["train"].add(replaced)
            yield batch

    def _measure(self, model, poll):
        need = functools.partial(plan.scoring_memory, self._config, self.parts, self.validation)
        with memory.needed_for("validation", self._config, "evaluate", need):
            scores, _ = scoring.score_readable(
                self.parts,
                self.validation,
                model,
                self._val_source,
                batch_size=self._config.evaluate.batch_size,
                unreadable=self._unreadable["val"],
                poll=poll,
                attention=False,
            )
        return {
            name: self.task.validation(scored.logits["combined"], scored.labels)
            for name, scored in scores.items()
        }

    def _notes(self):
        return [f"{split}: {line}" for split, images in self._unreadable.items() for line in images.report()]

    def _meta(self):
        meta = {
            "config": configs.to_json(self._config),
            "class_names": list(self._train_source.class_names),
            "data": self._data,
        }
        if self._config.task == "single_label":
            # For accuracy by shots when the training split is not available.
            meta["class_counts"] = class_counts(self._train_source).tolist()
        return meta

    def _start(self, state, print_line):
        if not self._config.init_from:
            return state
        return finetune.start_from(
            self._config.init_from,
            state,
            config=self._config,
            class_names=self._train_source.class_names,
            print_line=print_line,
        )

    def _require_same(self, path, meta):
        require_own(path, meta, configs.to_json(self._config))
        self._require_same_data(path, meta)

    def _require_same_data(self, path, meta):
        names = list(self._train_source.class_names)
        changes = changed_classes(meta["class_names"], names)
        # Checkpoints of older versions have no "data", and no generated records.
        trained_on = meta.get("data", {})
        changes += changed_images(trained_on, self._data, same_classes=not changes)
        before, now = (build.COUNTERFACTUALS in data for data in (trained_on, self._data))
        if before != now:
            changes.append(
                f"generated records were {'added' if now else 'removed'}, by config.data.counterfactuals"
            )
        if changes:
            raise InputError(
                f"checkpoint {path} was trained on other data ({'; '.join(changes)}); restore the data, or use "
                "another --workdir, with --config.init_from to initialise it from this checkpoint"
            )
