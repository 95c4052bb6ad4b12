"""What a report shows of decisions: thresholds, images of a class, and two runs compared."""

import json
import re

import numpy as np
import pytest
from html_reading import NAMES, Page

from cfmlc_jax import metrics
from cfmlc_jax.report import __main__ as command
from cfmlc_jax.report import page
from cfmlc_jax.results import evidence, read
from cfmlc_jax.results.predictions import COMBINED, Prediction
from cfmlc_jax.results.scores import probabilities
from cfmlc_jax.results.thresholds import Thresholds

VALUES = [0.25, 0.5, 0.75, 1.0, 0.5]


def change(workdir, **fields):
    path = workdir / "report" / evidence.FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def with_thresholds(workdir):
    fallbacks = {"no positive image in val: 0.5": [NAMES[4]]}
    thresholds = Thresholds(
        "f1", "val", 60, list(NAMES), {"average": {COMBINED: VALUES}}, fallbacks=fallbacks
    )
    change(workdir, thresholds=thresholds.to_json())
    return workdir


def with_gallery(workdir):
    example = json.loads((workdir / "report" / evidence.FILE).read_text())["examples"]["val"]["best"][0]
    picture = {"id": "<i>9</i>", "labels": [0], "width": 36, "height": 24, "jpeg": example["jpeg"]}
    shown = {"label": 0, "without": [], "with_class": [{"picture": 0, "probability": 0.3}]}
    other = {"label": 1, "without": [{"picture": 0, "probability": 0.9}], "with_class": []}
    change(workdir, gallery={"val": {"pictures": [picture], "classes": [shown, other]}})
    return workdir


def test_metrics_at_thresholds_are_there_for_every_prediction(made_run):
    workdir = made_run(splits=("val",))
    path = workdir / "report" / "results.json"
    results = json.loads(path.read_text())
    names = list(results["val"]["average"]["metrics"])
    values = dict.fromkeys(("CP", "CR", "CF1", "OP", "OR", "OF1"), 12.25)
    results["val"]["average"]["decisions"] = {
        "title": "best F1 on train", "split": "train", "predictions": {name: values for name in names},
    }  # fmt: skip
    path.write_text(json.dumps(results))
    report = Page(page.write(workdir).read_text(encoding="utf-8"))
    rows = [row for row in report.tables["Metrics by threshold on val, percent"] if "best F1" in row[0]]
    assert [row[0] for row in rows] == [f"{Prediction.parse(name).title}, best F1 on train" for name in names]
    assert all(row[1:] == ["12.25"] * 6 for row in rows)


def test_thresholds_are_in_the_table_of_classes(made_run):
    workdir = with_thresholds(made_run(splits=("val",)))
    report = Page(page.write(workdir).read_text(encoding="utf-8"))
    header, *rows = report.tables["Average precision by class on val"]
    assert header[1:5] == ["images", "threshold", "precision", "recall"]
    with np.load(workdir / "report" / "scores_val_average.npz") as arrays:
        predicted, labels = probabilities(arrays["combined"]) > np.float32(VALUES), arrays["labels"] > 0
    for name, _, threshold, precision, recall, *_ in rows:
        k = NAMES.index(name)
        hits = (predicted & labels)[:, k].sum()
        assert threshold == f"{VALUES[k]:.2f}"
        assert precision == (f"{100 * hits / predicted[:, k].sum():.2f}" if k != 3 else "–")
        assert recall == f"{100 * hits / labels[:, k].sum():.2f}"
    assert "best F1 on val" in report.text
    assert f"No positive image in val: 0.5: {NAMES[4]}" in report.text


def test_a_class_leads_to_its_images(made_run):
    workdir = with_thresholds(with_gallery(made_run()))
    text = page.write(workdir).read_text(encoding="utf-8")
    report = Page(text)
    links = [
        attributes["href"][1:]
        for tag, attributes in report.elements
        if tag == "a" and attributes["href"].startswith("#class-0")
    ]
    assert sorted(links) == ["class-0-0", "class-0-1"]
    assert set(links) <= set(report.ids())
    # 0.3 is above the first class's 0.25; 0.9 is above the second's 0.5.
    section = text[text.index('id="class-images"') :].partition("</section>")[0]
    assert re.findall(r"<em[^>]*>([^<]*)</em>", section) == ["true positive", "false positive"]
    assert "&lt;i&gt;9&lt;/i&gt;" in section
    assert "<i>9" not in text
    assert "<script>alert" not in text
    assert all(attributes["alt"] for tag, attributes in report.elements if tag == "img")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"classes": [{"label": 7, "without": [], "with_class": []}], "pictures": []}, "has class 7 of 5"),
        (
            {
                "classes": [{"label": 0, "without": [{"picture": 2, "probability": 1}], "with_class": []}],
                "pictures": [],
            },
            "has picture 2 of 0",
        ),
    ],
)
def test_a_damaged_gallery_is_one_line(made_run, capsys, fields, words):
    workdir = made_run()
    change(workdir, gallery={"val": fields})
    assert command.main([str(workdir)]) == 1
    err = capsys.readouterr().err
    assert words in err
    assert len(err.splitlines()) == 1


@pytest.fixture
def pair(made_run):
    """Two runs on the same images; the second has the labels' own logits for the first class."""
    first, second = (made_run(splits=("val", "test"), name=name) for name in ("a", "b"))
    for split in ("val", "test"):
        path = second / "report" / f"scores_{split}_average.npz"
        with np.load(path) as arrays:
            arrays = dict(arrays)
        arrays["combined"][:, 0] = arrays["labels"][:, 0]
        np.savez(path, **arrays)
    return first, second


def test_two_runs_are_compared(pair, tmp_path, capsys):
    first, second = pair
    with_thresholds(second)
    assert command.main([str(first), str(second)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[-1] == f"report {second / 'report' / 'comparison.html'}"
    report = Page((second / "report" / "comparison.html").read_text(encoding="utf-8"))
    for split, line in zip(("val", "test"), lines):
        with np.load(first / "report" / f"scores_{split}_average.npz") as arrays:
            labels, before = (
                arrays["labels"],
                100 * metrics.average_precision(arrays["combined"], arrays["labels"], "sklearn"),
            )
        after = before.copy()
        after[0] = 100
        table = {row[0]: row[1:] for row in report.tables[f"Mean average precision on {split}"][1:]}
        assert table["mAP (sklearn)"][:2] == [f"{before.mean():.2f}", f"{after.mean():.2f}"]
        assert table["mAP (sklearn)"][2].startswith(f"+{(after - before).mean():.2f} [")
        assert line.startswith(
            f"{split}: mAP (sklearn) {before.mean():.2f} and {after.mean():.2f}, difference +"
        )
        header, *rows = report.tables[f"Average precision by class on {split}"]
        assert header[-2:] == ["threshold, a", "threshold, b"]
        by_name = {row[0]: row[1:] for row in rows}
        changed = by_name.pop(NAMES[0])
        assert rows[0][0] == NAMES[0]
        assert changed[:4] == [
            str(labels[:, 0].sum()),
            f"{before[0]:.2f}",
            "100.00",
            f"+{100 - before[0]:.2f}",
        ]
        assert 0 < float(changed[4]) <= 100 - before[0] <= float(changed[5]) + 1e-2
        assert changed[-2:] == ["0.50", "0.25"]
        # The same scores on the same images: exactly no difference, in every resample.
        assert all(row[3:6] == ["+0.00", "+0.00", "+0.00"] for row in by_name.values())
    assert "1 of 5 classes are better than in a beyond their interval, 0 are worse" in report.text
    out = tmp_path / "page.html"
    assert command.main([str(second), str(first), f"--out={out}", "--prediction=whole"]) == 0
    assert "+0.00 [+0.00, +0.00]" in capsys.readouterr().out
    assert Page(out.read_text(encoding="utf-8")).tables


def damage(kind, first, second):
    report = second / "report"
    scores = report / "scores_val_average.npz"
    if kind == "labels":
        with np.load(scores) as arrays:
            arrays = dict(arrays)
        arrays["labels"] = arrays["labels"].copy()
        arrays["labels"][0, 0] ^= 1
        np.savez(scores, **arrays)
    elif kind == "images":
        for workdir in (first, second):
            change(workdir, images={"val": {"images": 60, "ids": workdir.name, "labels": "x"}})
    elif kind == "not evaluated":
        (report / read.RESULTS).unlink()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("labels", "a and b were evaluated on different data: split val has images with different labels"),
        ("images", "split val has different images"),
        ("not evaluated", "b has not been evaluated"),
    ],
)
def test_runs_that_cannot_be_compared(pair, capsys, kind, words):
    damage(kind, *pair)
    assert command.main([str(workdir) for workdir in pair]) == 1
    err = capsys.readouterr().err
    assert words in err
    assert len(err.splitlines()) == 1


def test_runs_on_other_classes_or_splits(made_run, capsys):
    first = made_run(name="a", splits=("val",))
    others = {
        "4 and": made_run(name="b", names=NAMES[:4], splits=("val",)),
        "no split of a (val) is one of c (test)": made_run(name="c", splits=("test",)),
    }
    for words, other in others.items():
        assert command.main([str(other), str(first)] if words[0] == "4" else [str(first), str(other)]) == 1
        err = capsys.readouterr().err
        assert words in err
        assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a", "--out=x.html"], "--out and --prediction are for the comparison"),
        (["a", "b", "--alphas=1"], "--alphas is for the report of one run"),
        (["a", "b", "--prediction=sum"], "'sum' is not the name of a prediction"),
    ],
)
def test_flags_that_do_not_fit(capsys, arguments, words):
    assert command.main(arguments) == 1
    assert words in capsys.readouterr().err
