"""Classifiers that are trained with and without a network's counterfactuals, and the table of their accuracies."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from cfmlc_jax import config as configs
from cfmlc_jax import files, processes
from cfmlc_jax.causal.mechanisms import MECHANISMS
from cfmlc_jax.classify import opening, scoring
from cfmlc_jax.classify import train as classify
from cfmlc_jax.config.reporting import reporting
from cfmlc_jax.config.workdir import claim
from cfmlc_jax.data import build as data
from cfmlc_jax.data.sources.counterfactuals import Counterfactuals
from cfmlc_jax.data.sources.selected import Selected
from cfmlc_jax.engine.instruments import Instruments
from cfmlc_jax.results.headline import headline
from cfmlc_jax.results.mechanisms import ACCURACIES
from cfmlc_jax.results.read import read_evidence, scores_file

# Share of counterfactuals in the training batches.
SHARES = {"plain": 0.0, "invariant": 1.0, "real_and_counterfactual": 0.5, "heads": 0.5, "decorrelated": 0.0}
TRAIN, IID, TEST = "train", "test_iid", "test"
# Training images of each kind whose accuracy is measured.
_MOST = 1000


def train(config, workdir: Path, records: Path, print_line: Callable[[str], None]) -> dict[str, dict]:
    """Train the configured classifiers one after the other, each in its own folder of the workdir; resume them.

    Returns the results by classifier (`measure`, and "train"), which are also written to report/mechanisms.json.

    Args:
        config: of the network.
        workdir: of the network.
        records: folder of the counterfactual records.
        print_line: prints a line for the user, on the first process.
    """
    results = {}
    for name in config.classifiers.names:
        print_line(f"\nclassifier {name}")
        own = configuration(config, name, records)
        folder = workdir / name
        (folder / "report").mkdir(parents=True, exist_ok=True)
        claim(folder, configs.to_json(own))
        with reporting(own, print_line) as writers:
            classify.train(own, folder, print_line, Instruments(writers))
            if jax.process_index() == 0:
                writers.write_results(headline(folder / "report"), folder / "report")
        labels = data.mechanism_source(config.data, TEST).mechanisms
        # By then the first process has written the report, which all of them read below.
        accuracy = processes.of_first(functools.partial(measure, folder, labels))
        results[name] = {TRAIN: training_accuracy(own, folder)} | accuracy
        if jax.process_index() == 0:
            files.write_text(workdir / "report" / ACCURACIES, json.dumps(results, indent=1) + "\n")
    if results:
        print_line(f"\n{table(results)}")
    return results


def configuration(config, name: str, records: Path) -> configs.ConfigDict:
    """The configuration of a classifier, validated: the reference's network and optimiser.

    Args:
        config: of the network that drew the records.
        name: a key of `SHARES`.
        records: folder of the counterfactual records.
    """
    own = configs.default()
    own.seed = config.seed
    own.task, own.method, own.loss.name = "single_label", "whole", "cross_entropy"
    own.model.name, own.model.dtype = "cnn_mnist", "float32"
    for field in ("source", "root", "threads", "workers"):
        own.data[field] = config.data[field]
    own.data.normalise = "half"
    if name == "heads":
        own.method, own.model.head = "invariant", "mechanisms"
    own.data.mechanisms.decorrelated = name == "decorrelated"
    own.data.test_splits = (IID, TEST)
    if SHARES[name]:
        own.data.counterfactuals.path = str(records)
        own.data.counterfactuals.share = SHARES[name]
    own.views.image_size = 32
    own.views.transform = "padded_crop"
    own.views.padded_crop.augment = False
    own.optim.name = "adadelta"
    own.optim.learning_rate = 1.0
    own.optim.weight_decay = 0.0
    own.optim.ema_decay = 0.0
    own.train.batch_size = config.classifiers.batch_size
    own.train.epochs = config.classifiers.epochs
    own.train.early_stop = False
    if name == "decorrelated":
        # As many steps as on the records, over which the learning rate falls as far.
        images = len(data.source(own.data, TRAIN))
        own.train.epochs = max(
            round(config.classifiers.epochs * config.counterfactuals.num_records / images), 1
        )
        own.optim.adadelta.drop **= config.classifiers.epochs / own.train.epochs
    own.evaluate.batch_size = config.evaluate.batch_size
    own.evaluate.checkpoint = "last"
    own.effect.kinds = ()
    own.mesh.fsdp = config.mesh.fsdp
    own.report.update(config.report)
    run = config.report.name or records.parent.name
    own.report.name, own.report.group = f"{run}/{name}", config.report.group or run
    return configs.validate(own)


def training_accuracy(config, folder: Path) -> float:
    """Top-1 accuracy of an evaluated classifier in percent on images that it was trained on.

    They are real, generated, or of both kinds in the ratio of the training batches.

    Args:
        config: of the classifier.
        folder: its workdir.
    """
    opened = opening.open(folder / "checkpoints" / read_evidence(folder / "report").checkpoint)
    score = scoring.score_step(config, opened.parts, ())
    generated, share = config.data.counterfactuals.path, config.data.counterfactuals.share
    sources = [] if generated and share == 1 else [data.source(config.data, "train")]
    sources += [Counterfactuals(Path(generated))] if generated else []
    percent = []
    for source in sources:
        few = Selected(source, np.linspace(0, len(source) - 1, min(_MOST, len(source))).astype(int))
        scores = scoring.score_split(
            opened.parts, score, opened.model, few, batch_size=config.evaluate.batch_size
        )["average"]
        percent.append(_percent(scores.logits["combined"].argmax(axis=1) == few.labels.argmax(axis=1)))
    return percent[0] if len(percent) == 1 else (1 - share) * percent[0] + share * percent[1]


def measure(folder: Path, mechanisms: np.ndarray) -> dict:
    """Accuracies of an evaluated classifier in percent, and which cue its predictions follow.

    {"test_iid": …, "test": …, "follows": {mechanism: …}, "errors_follow": {mechanism: …}}: "follows" is the percentage
    of images of the decorrelated test split whose predicted class is the label of a mechanism (chance is 10);
    "errors_follow" is the same among the wrongly classified images, of the other mechanisms.

    Args:
        folder: workdir of the classifier.
        mechanisms: labels int [n, 3] of the decorrelated test split.
    """
    accuracy = {}
    for split in (IID, TEST):
        with (folder / "report" / scores_file(split, "average")).open("rb") as file:
            scores = files.read_npz(file)
        predicted = scores["combined"].argmax(axis=1)
        accuracy[split] = _percent(predicted == scores["labels"].argmax(axis=1))
    agree = predicted[:, None] == mechanisms
    wrong = ~agree[:, 0]
    return accuracy | {
        "follows": {name: _percent(agree[:, i]) for i, name in enumerate(MECHANISMS)},
        "errors_follow": {name: _percent(agree[wrong, i]) for i, name in enumerate(MECHANISMS) if i},
    }


def table(results: dict[str, dict]) -> str:
    """A table in Markdown with one row per classifier."""
    head = [
        "top-1 %",
        TRAIN,
        "test_iid",
        "test, decorrelated",
        "errors follow texture",
        "errors follow background",
    ]
    rows = [
        [name, each[TRAIN], each[IID], each[TEST], *(each["errors_follow"][cue] for cue in MECHANISMS[1:])]
        for name, each in results.items()
    ]
    width = max(len(head[0]), *(len(row[0]) for row in rows))
    lines = [
        "| " + " | ".join([head[0].ljust(width), *head[1:]]) + " |",
        "| " + " | ".join(["-" * width, *("-" * (len(name) - 1) + ":" for name in head[1:])]) + " |",
    ]
    for name, *values in rows:
        cells = [f"{value:.2f}".rjust(len(title)) for value, title in zip(values, head[1:])]
        lines.append("| " + " | ".join([name.ljust(width), *cells]) + " |")
    return "\n".join(lines)


def _percent(condition) -> float:
    """The percentage of true entries; NaN if there are none."""
    return 100 * float(condition.mean()) if len(condition) else float("nan")
