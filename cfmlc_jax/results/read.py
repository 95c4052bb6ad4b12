"""Reads and checks the files that a run wrote into its workdir."""

import functools
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from cfmlc_jax import config as configs
from cfmlc_jax import files
from cfmlc_jax.data.sources.counterfactuals import INDEX
from cfmlc_jax.engine.writers import METRICS, read_lines
from cfmlc_jax.errors import BucketError, InputError
from cfmlc_jax.results import detection, json_types, mechanisms
from cfmlc_jax.results import evidence as evidences
from cfmlc_jax.results.detection import DetectionResults
from cfmlc_jax.results.evidence import Evidence
from cfmlc_jax.results.json_types import FormatError
from cfmlc_jax.results.mechanisms import Accuracies, Picture, Stages
from cfmlc_jax.results.multi_label import MultiLabelResults
from cfmlc_jax.results.predictions import KINDS, Prediction, counterfactual_of
from cfmlc_jax.results.scores import Scores
from cfmlc_jax.results.single_label import SingleLabelResults

Results = MultiLabelResults | SingleLabelResults
T = TypeVar("T")

RESULTS = "results.json"
# Broken JSON, a number of more than 4300 digits, or thousands of nested brackets.
_NO_JSON = (ValueError, RecursionError)
EVALUATE_AGAIN = "evaluate again: python -m cfmlc_jax.main --mode=evaluate --workdir=…"
_LOGITS = ("whole", "combined")


def scores_file(split: str, weights: str) -> str:
    """The name of the file of a split's scores."""
    return f"scores_{split}_{weights}.npz"


@dataclass(frozen=True)
class Split:
    """One evaluated split.

    name: of the split.
    results: of the raw and the averaged weights.
    scores: of the averaged weights.
    alphas: strengths of the effects.
    """

    name: str
    results: Results
    scores: Scores
    alphas: tuple[float, ...]

    @property
    def multi_label(self) -> MultiLabelResults:
        """The results, checked to be of the multi-label task."""
        assert isinstance(self.results, MultiLabelResults)
        return self.results

    @property
    def metrics(self) -> dict[Prediction, dict[str, float]]:
        """Metrics of the averaged weights by prediction."""
        return self.results.measures["average"].metrics

    @functools.cached_property
    def logits(self) -> dict[Prediction, np.ndarray]:
        """The logits [n, k] of every prediction."""
        return self.scores.predictions(self.alphas)

    @property
    def predictions(self) -> list[Prediction]:
        """The predictions in their order (`predictions.KINDS`)."""
        return sorted(self.metrics)


@dataclass(frozen=True)
class Run:
    """A run, finished or not.

    name: of its workdir.
    config: as JSON types; None if the workdir has none.
    log: the lines of metrics.jsonl.
    splits: the evaluated splits; empty before the evaluation.
    evidence: None before the evaluation.
    stages: of a counterfactual generative network; None for a classifier.
    detection: of an evaluated classifier of regions.
    """

    name: str
    config: Mapping[str, Any] | None
    log: list[dict[str, Any]]
    splits: list[Split]
    evidence: Evidence | None
    stages: Stages | None = None
    detection: DetectionResults | None = None

    @property
    def single_label(self) -> bool:
        """Whether the task is single_label, so that results are accuracies."""
        return self.config is not None and _is_single_label(self.config)


def _is_single_label(config: Mapping[str, Any]) -> bool:
    return config.get("task") == "single_label"


def run(workdir: Path) -> Run:
    """The run in a workdir, which may be of an older version.

    Raises:
        InputError: the folder has no run, or one of its files is damaged or does not fit the others.
    """
    if not workdir.is_dir():
        raise InputError(f"{workdir} is not a folder; give the workdir of a run")
    report = workdir / "report"
    log = [record for _, record in read_lines(workdir / METRICS)]
    evaluated = (report / RESULTS).exists()
    if not evaluated and not log and not (report / detection.FILE).exists():
        raise InputError(
            f"{workdir} has neither metrics.jsonl nor report/{RESULTS}; give the workdir of a run"
        )
    name = workdir.resolve().name
    if not evaluated:
        config = _config(workdir / "config.json")
        system = None if config is None else configs.system(config)
        return Run(
            *(name, config, log, [], None),
            stages=_stages(workdir, config) if system == configs.CGN else None,
            detection=detections(report) if (report / detection.FILE).exists() else None,
        )
    by_split, evidence = results(report)
    alphas = tuple(evidence.config["effect"]["alphas"])
    splits = [Split(each, by_split[each], scores(report, each, evidence), alphas) for each in by_split]
    for split in splits:
        _require_same_predictions(report, split)
    return Run(name, evidence.config, log, splits, evidence)


def has_run(workdir: Path) -> bool:
    """Whether a folder has a log or an evaluation, which a report can show.

    Raises:
        InputError: the log is damaged.
    """
    return (workdir / "report" / RESULTS).exists() or bool(read_lines(workdir / METRICS))


def _stages(workdir: Path, config) -> Stages:
    folder = workdir / mechanisms.FOLDER
    epochs = []
    for path in folder.iterdir() if folder.is_dir() else ():
        epoch = mechanisms.epoch_of(path.name)
        if epoch is not None:
            epochs.append((epoch, path))
    sheets = {name: folder / mechanisms.sheet_file(name) for name in mechanisms.SHEETS}
    report = workdir / "report"
    by_classifier = accuracies(report) if (report / mechanisms.ACCURACIES).exists() else {}
    classifiers = tuple(config["classifiers"]["names"])
    return Stages(
        num_epochs=config["train"]["epochs"],
        names=classifiers,
        epochs={epoch: _picture(path) for epoch, path in sorted(epochs)},
        sheets={name: _picture(path) for name, path in sheets.items() if path.exists()},
        generated=(workdir / mechanisms.RECORDS / INDEX).exists(),
        accuracies=by_classifier,
        classifiers=tuple(name for name in classifiers if has_run(workdir / name)),
    )


def accuracies(report: Path) -> dict[str, Accuracies]:
    """The accuracies of the classifiers of a generative network, from the folder of its report.

    Raises:
        InputError: the file is missing or damaged.
    """
    return _checked(report / mechanisms.ACCURACIES, _accuracies)


def detections(report: Path) -> DetectionResults:
    """The average precisions of a classifier of regions, from the folder of its report.

    Raises:
        InputError: the file is missing or damaged.
    """
    return _checked(report / detection.FILE, lambda value: DetectionResults.from_json(value, "it"))


def _accuracies(value):
    entries = json_types.require_object(value, "it")
    return {name: json_types.from_json(Accuracies, entry, name) for name, entry in entries.items()}


def _picture(path) -> Picture:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _damaged(path, str(error)) from error
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
            picture.verify()  # compares checksums, and decodes nothing
            return Picture(data, *picture.size)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} is not an intact PNG file; remove it") from error


def results(report: Path) -> tuple[dict[str, Results], Evidence]:
    """The results by split, and the evidence, from the folder of an evaluation.

    Raises:
        InputError: a file is missing or damaged, or does not fit the other.
    """
    # Read results first, so that damaged results are reported before missing evidence.
    _json(report / RESULTS)
    evidence = read_evidence(report)
    kind = SingleLabelResults if _is_single_label(evidence.config) else MultiLabelResults

    def read(value):
        entries = json_types.require_object(value, "it")
        if not entries:
            raise FormatError("it has no split")
        by_split = {split: kind.from_json(entry, split) for split, entry in entries.items()}
        for split, split_results in by_split.items():
            _require_same_pairs(split, split_results, evidence)
        return by_split

    return _checked(report / RESULTS, read), evidence


def read_evidence(report: Path) -> Evidence:
    """The evidence from the folder of an evaluation.

    Raises:
        InputError: the file is missing or damaged.
    """
    return _checked(report / evidences.FILE, Evidence.from_json)


def _require_same_pairs(split, results, evidence):
    context = results.findings.context if isinstance(results, MultiLabelResults) else None
    if context is None:
        return
    pairs = [] if evidence.training is None else evidence.training.pairs
    wrong = [p for p, use in context.predictions.items() if len(use.by_pair) != len(pairs)]
    if wrong:
        raise FormatError(
            f"{split}.average.context.predictions.{wrong[0]}.by_pair does not have the {len(pairs)} pairs of {evidences.FILE}"
        )


def scores(report: Path, split: str, evidence: Evidence) -> Scores:
    """The scores of the averaged weights on a split.

    Args:
        report: folder of the evaluation.
        split: name of the split.
        evidence: of the same evaluation.

    Raises:
        InputError: the file is missing or damaged, or has another number of classes.
    """
    path = report / scores_file(split, "average")
    arrays = _arrays(path)
    missing = [name for name in (*_LOGITS, "labels") if name not in arrays]
    if missing:
        raise _damaged(path, f"it has no {', '.join(missing)}")
    labels = arrays.pop("labels")
    attention, pivot = arrays.pop("attention", None), arrays.pop("pivot", None)
    unknown = [name for name in arrays if name not in KINDS and counterfactual_of(name) is None]
    if unknown:
        raise _damaged(path, f"it has {', '.join(unknown)}, which are not predictions")
    shape = (len(labels), len(evidence.class_names))
    wrong = [
        f"{name} {list(x.shape)}" for name, x in {**arrays, "labels": labels}.items() if x.shape != shape
    ]
    if wrong:
        raise InputError(
            f"{path} has {', '.join(wrong)}, not {list(shape)} as in {evidences.FILE}; {EVALUATE_AGAIN}"
        )
    if any(np.isnan(x).any() for x in arrays.values()):
        raise InputError(f"{path} has logits that are NaN; evaluate an earlier checkpoint")
    return Scores(logits=arrays, labels=labels, attention=attention, pivot=pivot)


def _arrays(path):
    try:
        with path.open("rb") as file:
            return files.read_npz(file)
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; {EVALUATE_AGAIN}") from error
    except BucketError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path, str(error)) from error


def _require_same_predictions(report, split: Split):
    missing = sorted(
        {p.name for p in split.metrics} - {p.name for p in split.scores.predictions(split.alphas)}
    )
    if missing:
        path = report / scores_file(split.name, "average")
        raise InputError(f"{path} lacks {', '.join(missing)}, which {RESULTS} has; {EVALUATE_AGAIN}")


def _config(path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    return _checked(path, lambda value: configs.translated(json_types.require_object(value, "it")))


def _checked(path: Path, parse: Callable[[Any], T]) -> T:
    """The result of a parser for a JSON file.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        return parse(_json(path))
    except FormatError as error:
        raise _damaged(path, str(error)) from error


def _json(path):
    if not path.exists():
        raise InputError(f"{path} is missing; {EVALUATE_AGAIN}")
    try:
        return json.loads(_text(path))
    except _NO_JSON as error:
        raise _damaged(path, str(error)) from error


def _text(path):
    try:
        return path.read_text(encoding="utf-8")
    except BucketError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path, str(error)) from error


def _damaged(path, reason):
    return InputError(f"{path} is damaged ({' '.join(reason.split())}); restore it, or {EVALUATE_AGAIN}")
