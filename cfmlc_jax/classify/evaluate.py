"""The full evaluation: all metrics of all predictions on all splits, and the files that the report reads."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cfmlc_jax import config as configs
from cfmlc_jax import files, processes
from cfmlc_jax.classify import (
    boxes,
    build,
    decide,
    deconfound,
    examples,
    gallery,
    memory,
    opening,
    plan,
    scoring,
    tasks,
)
from cfmlc_jax.classify.build import Parts
from cfmlc_jax.classify.opening import Opened
from cfmlc_jax.classify.scoring import Score
from cfmlc_jax.classify.tasks import Task
from cfmlc_jax.data.identity import identity
from cfmlc_jax.data.sources import Source
from cfmlc_jax.data.sources.boxes import Boxes
from cfmlc_jax.data.sources.checks import class_rates
from cfmlc_jax.data.sources.selected import Selected
from cfmlc_jax.data.unreadable import Unreadable
from cfmlc_jax.engine import hooks
from cfmlc_jax.errors import InputError
from cfmlc_jax.metrics import average_precision
from cfmlc_jax.results import evidence, read
from cfmlc_jax.results.evidence import Evidence
from cfmlc_jax.results.scores import Scores
from cfmlc_jax.results.split import AVERAGE
from cfmlc_jax.results.thresholds import Thresholds

# More patches than a map of 16 × 16 cells has: the attention of every image is not kept, only its pivots.
MOST_KEPT = 256
# The reason that a single-label report gives for having no co-occurrence.
SINGLE_LABEL = "every image has one label"


@dataclass(frozen=True)
class Classifier:
    """The classifier to evaluate.

    parts: its parts.
    model: {"variables", "average", "mean_colour"}.
    class_names: in label order.
    checkpoint: the name of its checkpoint, for the report.
    thresholds: above which probabilities its classes count as present; None: 0.5.
    """

    parts: Parts
    model: dict
    class_names: Sequence[str]
    checkpoint: str
    thresholds: Thresholds | None = None


@dataclass(frozen=True)
class TrainingSplit:
    """What is known about the training split.

    labels: [n, k], for co-occurrence in training; None: it is not reported.
    class_counts: training images [k] of each class, for accuracy by shots; None: computed from `labels`.
    missing: the reason why `labels` is None.
    """

    labels: np.ndarray | None
    class_counts: Sequence[int] | np.ndarray | None = None
    missing: str = ""


@dataclass(frozen=True)
class Output:
    """Where an evaluation writes and prints.

    folder: of the files; None: write none.
    print_line: prints a line for the user.
    poll: called before each long part of the work; raises if the process must end.
    """

    folder: Path | None
    print_line: Callable[[str], None]
    poll: Callable[[], None] = lambda: None

    @classmethod
    def of_this_process(
        cls, folder: Path, print_line: Callable[[str], None], poll: Callable[[], None]
    ) -> "Output":
        """The output of one of several processes: only the first writes files."""
        return cls(folder if jax.process_index() == 0 else None, print_line, poll)


def evaluate_checkpoint(
    path: Path, config, folder: Path, print_line: Callable[[str], None]
) -> dict[str, read.Results]:
    """The results of a checkpoint on its test splits, by split (`full_evaluation`).

    Args:
        path: a checkpoint.
        config: the configuration to evaluate with; None: the checkpoint's own. Its `method` and
            `patches.branches` may ask for fewer branches than were trained.
        folder: of the report.
        print_line: prints a line for the user.

    Raises:
        InputError: the checkpoint cannot be read, or its model or classes differ from the configuration's.
    """
    keep_stored = config is None
    opened = opening.open(path, config)
    config = opened.config
    configs.require_splits(config.data)
    sources = build.open_sources(config, config.data.test_splits, print_line)
    class_names = _class_names(opened, sources, print_line)
    training = _training_split(opened, sources, class_names, print_line)
    # A single process ends at SIGTERM by itself. With several, `ending` catches the signal.
    preemption = hooks.Preemption()
    output = Output.of_this_process(
        folder,
        print_line,
        lambda: preemption.raise_if_requested(f"checkpoint {opened.path.name} is not evaluated"),
    )
    score = scoring.for_evaluation(config, opened.parts)
    thresholds = _thresholds(opened, sources, training, output, score, keep_stored=keep_stored)
    classifier = Classifier(opened.parts, opened.model, class_names, opened.path.name, thresholds)
    return full_evaluation(config, classifier, sources, training, output, score=score)


def _thresholds(
    opened: Opened, sources, training: TrainingSplit, output: Output, score: Score, *, keep_stored: bool
) -> Thresholds | None:
    """The thresholds of a checkpoint: those that it has, or else those that its configuration asks for, fitted now.

    `keep_stored`: also if they are by another rule than the configuration's.
    """
    config, stored = opened.config, opened.thresholds
    # All processes fit, or none: another command may be writing the file.
    is_wanted = processes.of_first(
        lambda: stored is not None and (keep_stored or decide.matches(config, stored))
    )
    if is_wanted or config.evaluate.thresholds == "fixed":
        for line in [] if stored is None else decide.lines(stored):
            output.print_line(line)
        return stored
    split = config.data.val_split
    source = sources.get(split) or build.open_sources(config, (split,), output.print_line)[split]
    if config.evaluate.thresholds == "rate" and training.labels is None:
        raise InputError(
            f"config.evaluate.thresholds 'rate' needs the labels of the training split, but {training.missing}; use 'f1'"
        )
    thresholds = decide.fit(
        config,
        opened.parts,
        score,
        opened.model,
        source,
        rates=None if training.labels is None else class_rates(training.labels),
        poll=output.poll,
    )
    if opened.predicts_as_trained and opened.effects_as_trained:
        decide.keep(opened.path, thresholds, output.print_line)
    else:
        output.print_line(
            f"thresholds: {thresholds.title}; not kept, because the configuration predicts otherwise than the checkpoint's"
        )
    return thresholds


def _training_split(opened: Opened, sources, class_names, print_line) -> TrainingSplit:
    """What the checkpoint and the available data tell about the training split."""
    counts = opened.class_counts
    if opened.config.task == "single_label" and counts is not None:
        return TrainingSplit(None, counts, SINGLE_LABEL)
    labels, missing = _training_labels(opened.config, sources, class_names, print_line)
    return TrainingSplit(labels, counts, missing)


def _training_labels(config, sources, class_names, print_line):
    """Labels [n, k] of the training split and ""; or None and the reason why they are not available."""
    try:
        source = sources.get("train") or build.open_sources(config, ("train",), print_line)["train"]
    except InputError as error:
        missing = f"the training split cannot be read: {error}"
    else:
        if list(source.class_names) == list(class_names):
            return source.labels, ""
        missing = f"the training split has other classes: {_brief(list(source.class_names))}"
    print_line(f"not reported: {_needs_training(config)}, because {missing}")
    return None, missing


def _needs_training(config):
    """The part of the report that needs the labels of the training split."""
    return "accuracy by shots" if config.task == "single_label" else "co-occurrence"


def _class_names(opened: Opened, sources, print_line):
    """The checkpoint's class names; those of the data for a converted checkpoint without class names."""
    known = opened.class_names
    if known is None:
        print_line(f"{opened.path} does not name its classes: assuming those of the data, in their order")
    for split, source in sources.items():
        names = list(source.class_names)
        if known is None and len(names) == opened.num_classes:
            known = names
        if names != known:
            expected = _brief(known) if known else opened.num_classes
            raise InputError(
                f"{split} has the classes {_brief(names)}, but checkpoint {opened.path} has {expected}; "
                "evaluate on data with the same classes"
            )
    return known


def _brief(names):
    return f"{len(names)} ({', '.join(names[:3])}, …)"


def full_evaluation(
    config,
    classifier: Classifier,
    sources: Mapping[str, Source],
    training: TrainingSplit,
    output: Output,
    *,
    score: Score | None = None,
) -> dict[str, read.Results]:
    """The results by split. Writes the report's files, and prints tables.

    Intervals, context, localisation and, for the single-label task, the rule of thumb for alpha are of the
    averaged weights. The files are results.json (all metrics), results.md (the tables),
    per_class_<split>_<weights>.csv, scores_<split>_<weights>.npz (the logits, so that a report can use other
    values of alpha; the attention of the patches, or with more than `MOST_KEPT` patches the pivots) and
    evidence.json (everything else that the report shows).

    Args:
        config: the configuration to evaluate with.
        classifier: the classifier to evaluate.
        sources: by split.
        training: the split that the classifier was trained on.
        output: where to write and print.
        score: of this configuration and these parts (`scoring.for_evaluation`), if it is compiled already.
    """
    task = tasks.create(
        config,
        training_labels=training.labels,
        class_counts=training.class_counts,
        num_classes=len(classifier.class_names),
        thresholds=classifier.thresholds,
    )
    evaluation = _Evaluation(config, classifier, task, output, score)
    results, shown = {}, _Shown()
    for split, source in sources.items():
        results[split] = evaluation.split(split, source, shown)
    summary = task.summary(results)
    if output.folder is not None:
        evidence.write(
            output.folder / evidence.FILE,
            _evidence(config, classifier, task, training.missing or _why_missing(config), shown),
        )
        by_split = {split: split_results.to_json() for split, split_results in results.items()}
        files.write_text(output.folder / read.RESULTS, json.dumps(by_split, indent=1) + "\n")
        text = f"# Results\n\n{summary}\n\n{task.details(results)}\n"
        files.write_text(output.folder / "results.md", text)
    output.print_line(f"\n{summary}")
    return results


@dataclass
class _Shown:
    """What the report shows of the splits, by split: fields of `Evidence`."""

    examples: dict[str, dict[str, list[evidence.Example]]] = field(default_factory=dict)
    gallery: dict[str, evidence.Gallery] = field(default_factory=dict)
    images: dict[str, dict[str, Any]] = field(default_factory=dict)


class _Evaluation:
    """Evaluates a classifier split by split."""

    def __init__(self, config, classifier: Classifier, task: Task, output: Output, score: Score | None):
        self._config, self._classifier, self._task, self._output = config, classifier, task, output
        self._score = scoring.for_evaluation(config, classifier.parts) if score is None else score
        boxes_of_patches = classifier.parts.boxes()
        self._keeps_attention = boxes_of_patches is not None and len(boxes_of_patches) <= MOST_KEPT
        self._model = deconfound.with_tau_norm(classifier.model, config.model.dot_product.tau_norm)

    def split(self, split: str, source: Source, shown: _Shown) -> Any:
        """The results of a split. Writes its scores and per-class tables, and adds what the report shows of it."""
        parts, config, class_names = self._classifier.parts, self._config, self._classifier.class_names
        scores, source = self._scores(split, source)
        self._write(split, scores)
        self._output.poll()
        split_boxes = self._boxes(split, source)
        results = self._task.results(config, scores, split_boxes, parts.boxes(), class_names)
        shown.examples[split] = examples.choose(
            scores[AVERAGE],
            source,
            split_boxes,
            attention=lambda images: self._attention(scores[AVERAGE], source, images),
            exif=config.data.exif,
            task=self._task,
        )
        shown.images[split] = identity(source)
        # Only the first process writes the report, and reads pictures for it.
        if config.task == "multi_label" and self._output.folder is not None:
            shown.gallery[split] = self._gallery(scores[AVERAGE], source)
        return results

    def _gallery(self, scores: Scores, source: Source) -> evidence.Gallery:
        combined = scores.logits["combined"]
        # The other processes have no gallery, and all must call `poll` equally often.
        poll = {"poll": self._output.poll} if jax.process_count() == 1 else {}
        return gallery.choose(
            self._task.probabilities(combined),
            scores.labels,
            average_precision(combined, scores.labels, "sklearn"),
            source,
            exif=self._config.data.exif,
            **poll,
        )

    def _scores(self, split, source) -> tuple[dict[str, Scores], Source]:
        print_line = self._output.print_line
        unreadable = Unreadable(source, self._classifier.parts.transforms["evaluate"])
        scores, source = self._score_readable(
            source, unreadable=unreadable, poll=self._output.poll, attention=self._keeps_attention
        )
        for line in unreadable.report():
            print_line(f"{split}: {line}")
        print_line(f"{split}: {len(source)} images scored, each once")
        return scores, source

    def _attention(self, scores, source, images) -> np.ndarray | None:
        """The attention logits [m, p, k] of some images; None without patches."""
        if scores.pivot is None or not len(images):
            return None
        if scores.attention is not None:
            return scores.attention[images]
        again, _ = self._score_readable(Selected(source, images), weights=(AVERAGE,))
        return again[AVERAGE].attention

    def _score_readable(self, source, **options):
        need = functools.partial(plan.scoring_memory, self._config, self._classifier.parts, self._score)
        with memory.needed_for("evaluation", self._config, "evaluate", need):
            return scoring.score_readable(
                self._classifier.parts,
                self._score,
                self._model,
                source,
                batch_size=self._config.evaluate.batch_size,
                **options,
            )

    def _boxes(self, split, source) -> Boxes | None:
        """The annotated boxes of a split; None if there are none."""
        threads = self._classifier.parts.reading.threads
        split_boxes = boxes.boxes_of(source, threads=threads, exif=self._config.data.exif)
        if split_boxes is None:
            return None
        if split_boxes.left_out:
            self._output.print_line(f"{split}: {split_boxes.left_out}")
        return split_boxes if len(split_boxes.images) else None

    def _write(self, split, scores):
        """Write a file of scores and a per-class table for each set of weights."""
        folder = self._output.folder
        if folder is None:
            return
        for weights, scored in scores.items():
            table = self._task.per_class_csv(scored, self._config.effect.alphas, self._classifier.class_names)
            files.write_text(folder / f"per_class_{split}_{weights}.csv", table)
            arrays = scored.logits | {"labels": scored.labels}
            if scored.attention is not None:
                arrays["attention"] = scored.attention
            elif scored.pivot is not None:
                arrays["pivot"] = scored.pivot
            files.write_npz(folder / read.scores_file(split, weights), **arrays)


def _why_missing(config):
    return SINGLE_LABEL if config.task == "single_label" else ""


def _evidence(config, classifier: Classifier, task: Task, missing: str, shown: _Shown) -> Evidence:
    return Evidence(
        config=configs.to_json(config),
        checkpoint=classifier.checkpoint,
        class_names=list(classifier.class_names),
        training=task.training,
        missing=missing,
        class_counts=task.class_counts,
        patch_boxes=_relative_boxes(classifier.parts),
        examples=shown.examples,
        gallery=shown.gallery,
        images=shown.images,
        thresholds=classifier.thresholds,
    )


def _relative_boxes(parts: Parts):
    """The boxes of the patches as fractions of the image's sides; None without patches."""
    boxes, size = parts.boxes(), parts.transforms["evaluate"].size
    return None if boxes is None else [[side / size for side in box] for box in boxes]
