"""What a run has left in its workdir, read back and checked."""

import functools
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cfmlc_jax import config as configs
from cfmlc_jax.errors import InputError, printable
from cfmlc_jax.results import evidence, single_label
from cfmlc_jax.results.evidence import Evidence
from cfmlc_jax.results.scores import Scores

AGAIN = "evaluate again: python -m cfmlc_jax.main --mode=evaluate --workdir=…"
_LOGITS = ("whole", "combined")


@dataclass(frozen=True)
class Split:
    """One evaluated split.

    name: of the split.
    results: of results.json: by weights, "metrics", "thresholds" and the findings of "average".
    scores: of the averaged weights.
    alphas: strengths of the evaluated effects.
    """

    name: str
    results: Mapping[str, Any]
    scores: Scores
    alphas: tuple[float, ...]

    @property
    def average(self) -> Mapping[str, Any]:
        """Results of the averaged weights."""
        return self.results["average"]

    @functools.cached_property
    def logits(self) -> dict[str, np.ndarray]:
        """Logits [n, k] of every prediction."""
        return self.scores.predictions(self.alphas)

    @property
    def predictions(self) -> list[str]:
        """Names of the predictions, simplest first."""
        return sorted(self.average["metrics"], key=_rank)


@dataclass(frozen=True)
class Run:
    """A run as far as it got.

    name: of its folder.
    config: as JSON types; None where the folder has none.
    log: lines of metrics.jsonl.
    splits: evaluated ones; empty before the evaluation.
    evidence: None before the evaluation.
    """

    name: str
    config: Mapping[str, Any] | None
    log: list[dict[str, Any]]
    splits: list[Split]
    evidence: Evidence | None

    @property
    def one_label(self) -> bool:
        """Whether images have one label each, and results are accuracies."""
        config = self.config or {}
        return isinstance(config.get("loss"), dict) and configs.is_one_label(config)


def read(workdir: Path) -> Run:
    """The run in a workdir.

    Raises:
        InputError: no run is there, or one of its files is damaged or does not belong to the others.
    """
    if not workdir.is_dir():
        raise InputError(f"{_shown(workdir)} is not a folder; give the workdir of a run")
    results = _json(workdir / "report" / "results.json", required=False)
    log = _log(workdir / "metrics.jsonl")
    if results is None and not log:
        raise InputError(
            f"{_shown(workdir)} has neither metrics.jsonl nor report/results.json; give the workdir of a run"
        )
    found = None if results is None else _evidence(workdir / "report" / evidence.FILE)
    config = _json(workdir / "config.json", required=False) if found is None else found.config
    _require_object(config, workdir / "config.json")
    splits = [] if found is None else _splits(workdir / "report", results, found)
    return Run(workdir.resolve().name, config, log, splits, found)


def _rank(prediction):
    order = ("whole", "patch", "combined", "tde_whole", "tde_pivot", "tde_feature")
    kind, _, alpha = prediction.rpartition("_")
    if kind in order:
        return order.index(kind), float(alpha)
    return order.index(prediction), 0.0


def _splits(folder, results, found):
    path = folder / "results.json"
    _require_object(results, path)
    if not results:
        raise _damaged(path, "it names no split")
    try:
        for name, of_split in results.items():
            if configs.is_one_label(found.config):
                _check_accuracies(of_split)
            else:
                _check_results(of_split)
            _check_numbers(of_split, name)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise _damaged(path, f"{type(error).__name__} {error}") from error
    return [
        Split(
            name,
            of_split,
            _scores(folder / f"scores_{name}_average.npz", of_split, found),
            tuple(found.config["effect"]["alphas"]),
        )
        for name, of_split in results.items()
    ]


def _check_accuracies(of_split):
    """As `_check_results`, of images of one label."""
    for weights in ("weights", "average"):
        for name in of_split[weights]["metrics"]:
            _rank(name)
            _ = [of_split[weights]["metrics"][name][metric] for metric in single_label.METRICS]
    for name in of_split["average"]["metrics"]:
        of = of_split["average"]["intervals"]["predictions"][name]
        for metric in single_label.MEASURED:
            _low, _high = of[metric]
            _value, _low, _high = of[f"gain_{metric}"]
    if "rule_of_thumb" in of_split["average"]:
        _ = of_split["average"]["rule_of_thumb"]["alpha"], of_split["average"]["rule_of_thumb"]["mean_cosine"]


def _check_results(of_split):
    """Nothing, if a split's results have the parts that the page is made of."""
    for weights in ("weights", "average"):
        for name in of_split[weights]["metrics"]:
            _rank(name)
            _ = of_split[weights]["thresholds"][name]["0.50"]["OF1"]
            _ = of_split[weights]["metrics"][name]["mAP_voc"]
    for name in of_split["average"]["metrics"]:
        _low, _high = of_split["average"]["intervals"]["predictions"][name]["mAP_voc"]
    if "classes" in of_split["average"]:  # not in older results
        _ = of_split["average"]["classes"]["all"] / of_split["average"]["classes"]["with_positives"]
    company, located = of_split["average"]["company"], of_split["average"]["localization"]
    if company is not None:
        for name in of_split["average"]["metrics"]:
            _ = len(company["predictions"][name]["excess_fpr"]), len(company["predictions"][name]["by_pair"])
            _value, _low, _high = company["predictions"][name]["context_auc"]
    if located is not None:
        for rates in (located["all"], *located["by_size"].values(), *located["by_class"].values()):
            _ = rates["hit"], rates["best_share"], located["by_span"], located["relative"]


def _scores(path, of_split, found) -> Scores:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            loaded = dict(arrays)
    except FileNotFoundError as error:
        raise InputError(f"{_shown(path)} is missing; {AGAIN}") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path, str(error)) from error
    missing = [name for name in (*_LOGITS, "labels") if name not in loaded]
    if missing:
        raise _damaged(path, f"it has no {', '.join(missing)}")
    labels = loaded.pop("labels")
    attention = loaded.pop("attention", None)
    shape = (len(labels), len(found.class_names))
    wrong = [
        f"{name} {list(x.shape)}" for name, x in {**loaded, "labels": labels}.items() if x.shape != shape
    ]
    if wrong:
        raise InputError(
            f"{_shown(path)} has {', '.join(wrong)}, not {list(shape)} as {evidence.FILE} says; {AGAIN}"
        )
    if any(np.isnan(x).any() for x in loaded.values()):
        raise InputError(f"{_shown(path)} has logits that are not numbers; evaluate an earlier checkpoint")
    scores = Scores(logits=loaded, labels=labels, attention=attention)
    absent = sorted(
        set(of_split["average"]["metrics"]) - set(scores.predictions(found.config["effect"]["alphas"]))
    )
    if absent:
        raise InputError(f"{_shown(path)} does not give {', '.join(absent)} of results.json; {AGAIN}")
    return scores


def _evidence(path) -> Evidence:
    fields = _json(path, required=True)
    try:
        found = evidence.parse(fields)
        _check_evidence(found)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise _damaged(path, f"{type(error).__name__} {error}") from error
    return found


def _check_evidence(found: Evidence):
    """Nothing, if indices and shapes fit each other."""
    classes, patches = len(found.class_names), len(found.cells or [])
    if not all(isinstance(name, str) for name in found.class_names):
        raise ValueError("class_names are not all text")
    _check_numbers(found.config["effect"]["alphas"], "alphas")
    if found.class_counts is not None:
        _check_numbers(found.class_counts, "class_counts")
        if len(found.class_counts) != classes:
            raise ValueError(f"{len(found.class_counts)} class_counts of {classes} classes")
    if found.training is not None:
        shape = np.array(found.training.counts, np.int64).shape
        if shape != (classes, classes) or found.training.images < 1:
            raise ValueError(f"training.counts {list(shape)} of {classes} classes")
        _check_indices([k for pair in found.training.pairs for k in pair], classes)
    for exhibit in (e for kinds in found.exhibits.values() for of in kinds.values() for e in of):
        _check_indices([*exhibit.labels, *(shown.label for shown in exhibit.classes)], classes)
        for shown in exhibit.classes:
            if shown.weights is not None and len(shown.weights) != patches:
                raise ValueError(f"{len(shown.weights)} weights of {patches} patches")
            _check_numbers([shown.probability, shown.weights, shown.effect, shown.boxes], "exhibits")


def _check_indices(indices, classes):
    wrong = [k for k in indices if not 0 <= k < classes]
    if wrong:
        raise ValueError(f"class {wrong[0]} of {classes}")


def _check_numbers(value, name):
    """Nothing, if every leaf is a number or null."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            _check_numbers(inner, f"{name}.{key}")
    elif not isinstance(value, int | float | None):
        raise ValueError(f"{name} is {value!r}, not a number")


def _log(path) -> list[dict[str, Any]]:
    """Whole lines; one that a crash cut off at the end is not a record."""
    if not path.exists():
        return []
    lines = _text(path).split("\n")[:-1]
    return [_line(path, number, line) for number, line in enumerate(lines, 1) if line]


def _line(path, number, line):
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise _damaged(path, f"line {number}: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        raise _damaged(path, f"line {number} is not an object with a step")
    wrong = [name for name, value in record.items() if not isinstance(value, int | float | None)]
    if wrong:
        raise _damaged(path, f"line {number}: {wrong[0]} is not a number")
    return record


def _json(path, *, required: bool):
    if not path.exists():
        if required:
            raise InputError(f"{_shown(path)} is missing; {AGAIN}")
        return None
    try:
        return json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise _damaged(path, str(error)) from error


def _text(path):
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path, str(error)) from error


def _require_object(fields, path):
    if fields is not None and not isinstance(fields, dict):
        raise _damaged(path, "it is not an object")


def _damaged(path, reason):
    return InputError(
        f"{_shown(path)} is damaged ({printable(' '.join(reason.split()))}); restore it, or {AGAIN}"
    )


def _shown(path):
    return printable(str(path))
