"""Notes beside mAP, and boxes of real data sets in localisation."""

import json

import numpy as np
from PIL import Image

from cfmlc_jax.classify.boxes import boxes_of
from cfmlc_jax.classify.multi_label import MultiLabel
from cfmlc_jax.data.sources.coco import Coco
from cfmlc_jax.metrics import localization
from cfmlc_jax.results import multi_label
from cfmlc_jax.results.multi_label import Classes, Findings, MultiLabelResults
from cfmlc_jax.results.scores import Scores
from cfmlc_jax.results.split import Intervals


def results_of(rng, *, without):
    """Results of a split of 30 images and 5 classes, the first of which have no positive."""
    labels = (rng.random((30, 5)) < 0.4).astype(np.uint8)
    labels[:, :without] = 0
    logits = {name: rng.normal(size=labels.shape).astype(np.float32) for name in ("whole", "combined")}
    measured = multi_label.measures(Scores(logits, labels), ())
    present = {name: x[:, without:] for name, x in logits.items()}
    expected = multi_label.measures(Scores(present, labels[:, without:]), ()).metrics
    findings = Findings(Intervals(0.95, 0, {}), None, None)
    results = MultiLabelResults(dict.fromkeys(("weights", "average"), measured), findings)
    return results, {prediction.name: values for prediction, values in expected.items()}


def test_a_note_counts_classes_without_positives_that_lower_map(rng):
    lowered, expected = results_of(rng, without=2)
    plain, _ = results_of(rng, without=0)
    text = MultiLabel(None).summary({"val": lowered, "test": plain})
    assert lowered.measures["average"].classes == Classes(with_positives=3, all=5)
    header, _, *rows = [line for line in text.splitlines() if line.startswith("|")]
    titles = [cell.strip() for cell in header.split("|")[1:-1]]
    assert titles[1:] == [
        "val (sklearn)",
        "val (voc)",
        "test (sklearn)",
        "test (voc)",
        "val (sklearn, 3 classes)",
    ]
    assert len(rows) == 2
    for row in rows:
        name, *values = [cell.strip() for cell in row.split("|")[1:-1]]
        assert values[-1] == f"{expected[name]['mAP_sklearn']:.2f}"
        assert values[0] == f"{expected[name]['mAP_sklearn'] * 3 / 5:.2f}"
        assert values[1] == f"{expected[name]['mAP_voc']:.2f}"
    assert "val: 2 of 5 classes have no positive image. Each counts as 0 in mAP (sklearn)" in text
    assert "test: classes" not in text


def test_validation_by_decorrelated_images_is_of_weighted_images(rng):
    """Class 1 is beside class 0 in most images: a score that reports it there is good in these alone."""
    first = rng.random(400) < 0.4
    labels = np.stack([first, np.where(rng.random(400) < 0.9, first, ~first)], axis=1).astype(np.uint8)
    leaning = np.repeat(labels[:, :1], 2, axis=1) + 0.01 * rng.normal(size=labels.shape)
    plain, task = MultiLabel(None), MultiLabel(None, val_share=0.3)
    assert (plain.selection, task.selection) == ("mAP_voc", "mAP_decorrelated")
    expected = plain.validation(leaning, labels)
    metrics = task.validation(leaning, labels)
    assert {name: metrics[name] for name in expected} == expected
    assert metrics["mAP_decorrelated"] < expected["mAP_sklearn"] - 5
    np.testing.assert_allclose(task.validation(labels + 0.0, labels)["mAP_decorrelated"], 100)


def test_there_is_no_note_where_every_class_has_a_positive(rng):
    plain, _ = results_of(rng, without=0)
    text = MultiLabel(None).summary({"test": plain})
    assert "without a positive" not in text
    assert "classes)" not in text


def test_boxes_that_cannot_be_used_do_not_reach_localisation(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2014").mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "val2014" / "a.jpg")
    bad = ([30, 20, -10, -5], [1, 2, float("nan"), 4], [1], "box", [500, 500, 10, 10])
    document = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": box} for box in (*bad, [0, 0, 20, 20])],
        "categories": [{"id": 1, "name": "dog"}],
    }
    (tmp_path / "annotations" / "instances_val2014.json").write_text(json.dumps(document))
    boxes = boxes_of(Coco(tmp_path, "val"), threads=1, exif=False)
    pairs = localization.localize(
        np.zeros((1, 1), int),
        boxes.corners,
        boxes.classes,
        boxes.images,
        boxes.sizes,
        size=64,
        patch_boxes=[(0, 0, 32, 32), (32, 32, 64, 64)],
    )
    assert pairs.hit.tolist() == [True]
    # The annotations lack the image size, so that a box outside the image is only found here.
    assert pairs.boxes_without_area == 1
