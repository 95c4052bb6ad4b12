"""Trains a classifier of regions in a workdir, then evaluates it in full."""

from collections.abc import Callable
from pathlib import Path

import jax

from cfmlc_jax import config as configs
from cfmlc_jax.checkpoint import read_model
from cfmlc_jax.config.schedule import schedule
from cfmlc_jax.config.workdir import require_own
from cfmlc_jax.data.regions import sampling
from cfmlc_jax.data.regions.records import RegionRecords
from cfmlc_jax.data.workers import Reading
from cfmlc_jax.engine import hooks, parameters, report_lock
from cfmlc_jax.engine.instruments import Instruments
from cfmlc_jax.engine.memory import explained
from cfmlc_jax.engine.run import Run, RunOptions
from cfmlc_jax.errors import BucketError, InputError, RunError, WriteError
from cfmlc_jax.metrics import detection
from cfmlc_jax.regions import build, scoring
from cfmlc_jax.regions.evaluate import full_evaluation
from cfmlc_jax.regions.scoring import ScoredSplit
from cfmlc_jax.results.detection import DetectionResults
from cfmlc_jax.results.predictions import WHOLE


def train(
    config, workdir: Path, print_line: Callable[[str], None], instruments: Instruments | None = None
) -> DetectionResults:
    """The results of `evaluate.full_evaluation` after training, or resuming, in a workdir.

    Args:
        config: validated and locked, of system "regions".
        workdir: an existing folder, empty or of the same configuration, that no other process trains in.
        print_line: prints a line for the user, on the first process.
        instruments: what observes the run; None: metrics.jsonl alone.

    Raises:
        InputError: the records or annotations cannot be used, or the records have changed since the checkpoint.
        RunError: a non-finite value, a full disk, not enough memory, or no readable checkpoint.
        Preempted: the process received SIGTERM.
    """
    records, split = build.open_training(config), build.open_scored(config)
    build.require_same_categories(records.categories, split.records.categories)
    for line in _summary(records, split):
        print_line(line)
    with hooks.Preemption() as preemption:
        training = _Training(config, records, split)
        run = training.run(workdir, preemption, print_line, instruments or Instruments())
        try:
            with explained("training", "make train.batch_size or train.regions smaller"):
                run.resume()
                run.fit()
            return training.evaluate(
                run,
                workdir / "report",
                print_line,
                lambda: preemption.raise_if_requested(
                    "training is done and saved, its evaluation comes next"
                ),
            )
        except (WriteError, BucketError) as error:
            raise RunError(f"{error}; {run.last_saved()}") from error
        finally:
            run.close()


def _summary(records: RegionRecords, split: ScoredSplit) -> list[str]:
    counts = records.class_counts()
    rare = sum(each.frequency == "r" for each in records.categories)
    return [
        f"train: {len(records):,} images, {records.counts.sum():,} regions in {records.stages} stage{'s' * (records.stages > 1)} with "
        f"{counts[:-1].sum():,} labels of classes and {counts[-1]:,} of the background; {len(records.categories):,} classes, "
        f"{rare} of them rare, {(counts[:-1] == 0).sum()} without a region",
        f"val: {len(split.records):,} images, {split.records.counts.sum():,} regions, "
        f"{len(split.annotations.truth.classes):,} annotated boxes",
    ]


class _Training:
    """The system, the batches and the run options of a classifier of regions in training."""

    def __init__(self, config, records: RegionRecords, split: ScoredSplit):
        self._config, self._records, self._split = config, records, split
        self._parts = build.create(config, len(records.categories))
        self._score = build.scorer(config, self._parts, [config.effect.alpha])
        self._steps_per_epoch = len(records) // config.train.batch_size
        self._data = {"train": records.content, "val": split.records.content}
        self._system = build.system(config, self._parts, self._steps_per_epoch, self._measure)

    def run(self, workdir, preemption, print_line, instruments) -> Run:
        """The run that trains the system in a workdir."""
        config, categories = self._config, self._records.categories
        options = RunOptions(
            meta={
                "config": configs.to_json(config),
                "class_names": [each.name for each in categories],
                "categories": [[each.id, each.name, each.frequency] for each in categories],
                "data": self._data,
            },
            print_line=print_line,
            preemption=preemption,
            require_same=self._require_same,
            instruments=instruments,
        )
        planned = schedule(config, self._steps_per_epoch, validate_every=config.evaluate.every)
        run = Run(self._system, self._batches, planned, workdir, self._parts.mesh, options)
        params = run.abstract.learned["variables"]["params"]
        for line in parameters.write(workdir, [parameters.Network("heads", params)]):
            print_line(line)
        return run

    def evaluate(self, run, folder, print_line, poll) -> DetectionResults:
        """The full evaluation of the checkpoint that config.evaluate.checkpoint names."""
        last = self._config.evaluate.checkpoint == "last"
        chosen = run.checkpoints.path(run.checkpoints.latest_step() if last else run.checkpoints.best_step())
        print_line(f"training is done; evaluating {chosen.name}")
        model = read_model(chosen, self._system.split(run.abstract.learned)[0])
        with report_lock.held_in_turn(folder, print_line, poll):
            return full_evaluation(
                self._config,
                self._parts,
                model["variables"],
                self._split,
                chosen.name,
                folder,
                print_line,
                poll,
            )

    def _batches(self, from_step):
        train = self._config.train
        return iter(
            sampling.train_batches(
                self._records,
                batch_size=train.batch_size,
                regions=train.regions,
                foreground=train.foreground,
                epochs=train.epochs,
                seed=self._config.seed,
                reading=Reading(jax.process_index(), jax.process_count(), threads=self._config.data.threads),
                start_step=from_step,
            )
        )

    def _measure(self, variables, poll):
        """Metrics of the effect, and of the factual prediction as "whole_AP", …"""
        config = self._config
        found = scoring.detections(self._score, variables, self._split, build.selecting(config), poll)
        precision = scoring.precisions(found, self._split.annotations, most=config.evaluate.most)
        frequency = self._split.annotations.truth.frequency
        metrics = {each: detection.summary(values, frequency) for each, values in precision.items()}
        *_, last = metrics.values()
        if len(metrics) == 1:
            return last
        return last | {f"{WHOLE}_{name}": value for name, value in metrics[WHOLE].items()}

    def _require_same(self, path, meta):
        require_own(path, meta, configs.to_json(self._config))
        self._require_same_data(path, meta)

    def _require_same_data(self, path, meta):
        changed = [split for split, content in self._data.items() if meta["data"][split] != content]
        if changed:
            raise InputError(
                f"checkpoint {path} was trained with other records in config.data.{changed[0]}; restore them, or use "
                "another --workdir"
            )
