"""A small, synthetic run, with the files that an evaluation writes."""

import base64
import io
import json

import numpy as np
import pytest
from html_reading import NAMES
from PIL import Image

from cfmlc_jax import config as configs
from cfmlc_jax import files
from cfmlc_jax.causal.views import patch_boxes
from cfmlc_jax.metrics import cooccurrence, localization
from cfmlc_jax.results import evidence, multi_label, scores
from cfmlc_jax.results.evidence import Evidence, Example, ExampleClass, Training
from cfmlc_jax.results.multi_label import Findings, Measures, MultiLabelResults

PATCH_BOXES = [[x, y, x + 0.5, y + 0.5] for x in (0.0, 0.5) for y in (0.0, 0.5)]
IMAGES = 60


@pytest.fixture
def made_run(tmp_path):
    """A function that writes a run into a folder, by default with two splits, and returns its path."""

    def write(method="pat_t", splits=("val", "test"), names=NAMES, name="my <run> & more", training=True):
        workdir = tmp_path / name
        (workdir / "report").mkdir(parents=True)
        config = _config(method)
        (workdir / "config.json").write_text(json.dumps(configs.to_json(config)))
        (workdir / "metrics.jsonl").write_text(_log())
        rng = np.random.default_rng(len(names))
        labels = _labels(rng, len(names))
        pairs = cooccurrence.strongest_pairs(labels, multi_label.PAIRS, min_images=5)
        brief = Training(IMAGES, cooccurrence.counts(labels).tolist(), pairs.tolist()) if training else None
        results = {
            split: _split(rng, workdir / "report", split, config, names, pairs if training else None)
            for split in splits
        }
        patches = method != "whole"
        content = Evidence(
            config=configs.to_json(config),
            checkpoint="40",
            class_names=list(names),
            training=brief,
            missing="" if training else "the training split cannot be read: data root x is not a folder",
            patch_boxes=PATCH_BOXES if patches else None,
            examples={split: {"best": [_example(patches)], "worst": [_example(patches)]} for split in splits},
        )
        evidence.write(workdir / "report" / evidence.FILE, content)
        files.write_text(
            workdir / "report" / "results.json",
            json.dumps({split: split_results.to_json() for split, split_results in results.items()}),
        )
        return workdir

    return write


def _config(method):
    config = configs.default()
    config.method = method
    if method == "whole":
        config.effect.kinds = ("whole",)
    config.effect.alphas = (0.5, 1.25)
    return configs.validate(config)


def _log():
    records = [
        {"step": s, "train/loss": 9.0 / s, "train/loss_whole": 5.0 / s, "train/lr": 1e-4} for s in (5, 10, 15)
    ]
    records.append({"step": 20, "train/loss": None, "train/lr": 1e-5})
    for step, epoch in ((10, 1), (20, 2)):
        values = {
            f"val/{w}/mAP_{d}": 10.0 * epoch + i
            for i, (w, d) in enumerate((w, d) for w in ("weights", "average") for d in ("sklearn", "voc"))
        }
        records.append({"step": step, "epoch": epoch} | values)
    return "".join(json.dumps(record) + "\n" for record in records)


def _labels(rng, classes):
    labels = (rng.random((IMAGES, classes)) < 0.35).astype(np.uint8)
    labels[:, 1] |= labels[:, 0]
    return labels


def _split(rng, folder, split, config, names, pairs):
    labels = _labels(rng, len(names))
    logits = {"whole": rng.normal(size=labels.shape) + labels, "null_whole": np.full(labels.shape, 0.25)}
    attention = None
    if config.method == "whole":
        logits["combined"] = logits["whole"]
    else:
        logits["patch"] = rng.normal(size=labels.shape) + labels
        logits["combined"] = (logits["whole"] + logits["patch"]) / 2
        logits["null_pivot"] = rng.normal(size=labels.shape)
        attention = rng.normal(size=(IMAGES, 4, len(names))).astype(np.float16)
    split_scores = scores.Scores(
        {name: x.astype(np.float32) for name, x in logits.items()}, labels, attention
    )
    alphas = config.effect.alphas
    plain = Measures(scores.summarise(split_scores, alphas), scores.sweep(split_scores, alphas))
    files.write_npz(folder / f"scores_{split}_average.npz", **split_scores.logits, labels=labels)
    intervals = multi_label.intervals(split_scores, alphas, np.random.default_rng(0))
    context, located = None, None
    if pairs is not None:
        context = multi_label.context(split_scores, alphas, pairs, np.random.default_rng(0))
    if attention is not None:
        images, classes = np.nonzero(labels)
        where = localization.localize(
            attention.argmax(axis=1),
            np.tile(np.float32([5, 5, 30, 30]), (len(images), 1)),
            classes,
            images,
            np.full((IMAGES, 2), 64),
            size=64,
            patch_boxes=patch_boxes(64, 2),
        )
        located = multi_label.localized(where, names, relative=True)
    return MultiLabelResults({"weights": plain, "average": plain}, Findings(intervals, context, located))


def _example(patches):
    data = io.BytesIO()
    Image.new("RGB", (36, 24), (120, 90, 60)).save(data, "JPEG")
    weights = [0.1, 0.2, 0.6, 0.1] if patches else None
    shown = [
        ExampleClass(0, True, 0.75, weights, 0.5 if patches else None, [[0.1, 0.1, 0.5, 0.6]]),
        ExampleClass(1, False, 0.625, weights, None, []),
        ExampleClass(2, True, 0.25, weights, -0.001 if patches else None, []),
    ]
    jpeg = base64.b64encode(data.getvalue()).decode("ascii")
    return Example("<b>7</b>", 0.123, [0, 2], 36, 24, jpeg, shown)
