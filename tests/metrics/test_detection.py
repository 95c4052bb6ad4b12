"""Detections and LVIS' average precision, against the official program and by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from cfmlc_jax.data.regions import lvis
from cfmlc_jax.metrics import detection
from cfmlc_jax.metrics.detection import Detections, GroundTruth
from cfmlc_jax.regions.files import read_detections

LONGTAIL = Path(__file__).parents[1] / "golden" / "longtail"


def found(rows):
    """Detections of (image, class, score, left, top, right, bottom)."""
    columns = np.array(rows, np.float64).reshape(-1, 7)
    return Detections(
        columns[:, 0].astype(int), columns[:, 1].astype(int), columns[:, 2], detection.sides(columns[:, 3:])
    )


def truth(boxes, *, classes=2, absent=(), incomplete=(), frequency="rf"):
    columns = np.array(boxes, np.float64).reshape(-1, 6)
    return GroundTruth(
        columns[:, 0].astype(int),
        columns[:, 1].astype(int),
        detection.sides(columns[:, 2:]),
        np.array(list(frequency[:classes])),
        np.array(absent, int).reshape(-1, 2),
        np.array(incomplete, int).reshape(-1, 2),
    )


def test_the_official_program(tmp_path):
    """113 boxes of 12 classes, and 300 detections: equal scores, classes that are absent, incomplete or unknown."""
    golden = json.loads((LONGTAIL / "lvis_ap.json").read_text())
    for most, expected in golden["expected"].items():
        require_equal(tmp_path, golden, int(most), expected)


@pytest.mark.parametrize("number", range(5))
def test_the_programs_of_lvis_and_coco(tmp_path, number):
    """Many equal scores, and overlaps of exactly a threshold, by their rounding; COCO's where all classes are known."""
    golden = json.loads((LONGTAIL / "box_ap.json").read_text())[number]
    assert golden["expected"].keys() == ({"lvis", "pycocotools"} if number < 2 else {"lvis"})
    for expected in golden["expected"].values():
        require_equal(tmp_path, golden, golden["most"], expected)


def require_equal(tmp_path, golden, most, expected):
    """Annotations and detections of a golden file are read, and have the expected metrics and precision by class."""
    (tmp_path / "truth.json").write_text(json.dumps(golden["annotations"]))
    (tmp_path / "detections.json").write_text(json.dumps(golden["detections"]))
    annotations = lvis.read(tmp_path / "truth.json")
    detections = read_detections(tmp_path / "detections.json", annotations)
    precision = detection.average_precision(annotations.truth, detections, most=most)
    summary = detection.summary(precision, annotations.truth.frequency)
    by_class = np.array(expected.pop("classes"))
    assert {name: summary[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    np.testing.assert_allclose(precision.mean(axis=0)[by_class >= 0], by_class[by_class >= 0], atol=1e-12)
    assert np.isnan(precision[:, by_class < 0]).all()


SQUARE = (0, 0, 10, 10)


def test_by_hand():
    """A hit, then a false one: precision 1 up to recall ½, then 0 (51 of 101 recalls)."""
    boxes = truth([(0, 0, *SQUARE), (1, 0, *SQUARE)])
    rows = [(0, 0, 0.9, *SQUARE), (1, 0, 0.5, 50, 50, 60, 60)]
    precision = detection.average_precision(boxes, found(rows))
    np.testing.assert_allclose(precision[:, 0], 51 / 101)
    assert np.isnan(precision[:, 1]).all()
    # Overlap .8 counts at the overlaps up to .8.
    rows = [(0, 0, 0.9, 0, 0, 10, 8), (1, 0, 0.8, *SQUARE)]
    precision = detection.average_precision(boxes, found(rows))[:, 0]
    np.testing.assert_allclose(precision[:7], 1)
    assert (precision[7:] < 0.6).all()


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({}, 1.0),  # nothing is known of class 0 in image 1: the detection there does not count
        ({"absent": [(1, 0)]}, 0.5),
        ({"incomplete": [(1, 0)]}, 1.0),
        ({"absent": [(1, 0)], "incomplete": [(1, 0)]}, 1.0),
    ],
)
def test_annotations_are_federated(known, expected):
    rows = [(1, 0, 0.9, *SQUARE), (0, 0, 0.5, *SQUARE)]
    precision = detection.average_precision(truth([(0, 0, *SQUARE)], **known), found(rows))
    np.testing.assert_allclose(precision[:, 0], expected)


def test_the_best_detections_of_an_image():
    best = found(
        [(1, 0, 0.5, *SQUARE), (0, 0, 0.1, *SQUARE), (1, 1, 0.9, *SQUARE), (1, 0, 0.7, *SQUARE)]
    ).best(2)
    assert best.scores.tolist() == [0.1, 0.9, 0.7]


def test_overlaps():
    shares = detection.overlaps([SQUARE, (5, 5, 5, 5)], [(0, 0, 10, 5), (20, 0, 30, 10), (5, 5, 5, 5)])
    np.testing.assert_allclose(shares, [[0.5, 0, 0], [0, 0, 0]])


def test_the_bounds_of_detections():
    """A score of `least` is dropped; a region that overlaps by exactly `overlap` is kept."""
    corners = [SQUARE, (0, 0, 10, 5), (50, 50, 60, 60)]
    scores = [[0.9], [0.75], [0.5]]
    regions, classes = detection.detect(scores, corners, least=0.5, overlap=0.5, most=9)
    assert (regions.tolist(), classes.tolist()) == ([0, 1], [0, 0])
    regions, _ = detection.detect(scores, corners, least=0.25, overlap=0.49, most=9)
    assert regions.tolist() == [0, 2]


def test_detect(rng):
    """As suppression class by class with all entries sorted, also if only the first of many are looked at."""
    starts = rng.uniform(0, 60, (40, 2))
    corners = np.concatenate([starts, starts + rng.uniform(10, 30, (40, 2))], axis=1)
    scores = rng.uniform(size=(40, 30))
    shared = detection.overlaps(corners, corners) > 0.5
    expected = []
    for label in range(30):
        kept: list[int] = []
        for region in np.argsort(-scores[:, label]):
            if scores[region, label] > 0.2 and not shared[region, kept].any():
                kept.append(region)
        expected += [(region, label) for region in kept]
    expected.sort(key=lambda entry: -scores[entry])
    for most in (5, 10_000):
        regions, classes = detection.detect(scores, corners, least=0.2, overlap=0.5, most=most)
        assert list(zip(regions.tolist(), classes.tolist())) == [tuple(map(int, e)) for e in expected[:most]]


def test_frequencies_without_a_class_are_left_out():
    precision = detection.average_precision(truth([(0, 0, *SQUARE)]), found([(0, 0, 1, *SQUARE)]))
    assert detection.summary(precision, ["r", "f"]) == pytest.approx(
        {"AP": 100, "AP50": 100, "AP75": 100, "APr": 100}
    )
