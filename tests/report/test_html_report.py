"""The HTML report: its numbers are those of the files, and users' names are shown as text."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from html_reading import NAMES, Page

from cfmlc_jax import metrics
from cfmlc_jax.errors import InputError
from cfmlc_jax.predict import overlay
from cfmlc_jax.report import __main__ as command
from cfmlc_jax.report import page
from cfmlc_jax.results import evidence
from cfmlc_jax.results import read as results_read
from cfmlc_jax.results.predictions import Prediction

WIDE = {"weights": "raw weights", "average": "averaged weights"}


def title(name):
    return Prediction.parse(name).title


def read(workdir):
    return Page(page.write(workdir).read_text(encoding="utf-8"))


def results_of(workdir):
    return json.loads((workdir / "report" / "results.json").read_text())


def shown(value, digits=2):
    return "–" if math.isnan(value) else f"{value:.{digits}f}".replace("-", "−")


def with_ends(value, low, high, digits=2, sign=False):
    first = f"{value:+.{digits}f}".replace("-", "−") if sign else shown(value, digits)
    return f"{first} [{shown(low, digits)}, {shown(high, digits)}]"


@pytest.mark.parametrize(
    ("method", "fields", "words"),
    [
        ("pat_t", {}, "resnet101 with cross attention"),
        ("pat_t", {"source": "map", "pooling": "exclusive"}, "resnet101 with exclusive pooling over cells"),
        ("whole", {}, "resnet101"),
        ("whole", {"head": "causal_norm"}, "resnet101 with head causal_norm"),
    ],
)
def test_the_page_header_names_the_trained_model(method, fields, words, made_run):
    workdir = made_run(method)
    path = workdir / "report" / evidence.FILE
    fields_in_file = json.loads(path.read_text())
    fields_in_file["config"]["model" if "head" in fields else "patches"].update(fields)
    path.write_text(json.dumps(fields_in_file))
    assert f" · {words} · " in read(workdir).text


def test_means_and_intervals_are_those_of_the_results(made_run):
    workdir = made_run()
    report, results = read(workdir), results_of(workdir)
    for split, split_results in results.items():
        table = report.tables[f"Mean average precision on {split}"]
        order = [
            "whole",
            "patch",
            "combined",
            "tde_whole_0.5",
            "tde_whole_1.25",
            "tde_pivot_0.5",
            "tde_pivot_1.25",
        ]
        assert [row[0] for row in table[1:]] == [title(name) for name in order]
        for row, name in zip(table[1:], order, strict=True):
            values = split_results["average"]["metrics"][name]
            ends = split_results["average"]["intervals"]["predictions"][name]
            assert row[1] == with_ends(values["mAP_sklearn"], *ends["mAP_sklearn"])
            assert row[3] == with_ends(values["mAP_voc"], *ends["mAP_voc"])
            gains = [with_ends(*ends[f"gain_{d}"], sign=True) for d in ("sklearn", "voc")]
            assert row[4:] == (["", ""] if name == "whole" else gains)


def test_classes_without_a_positive_image_are_noted_beside_the_mean(made_run):
    workdir = made_run()
    words = "classes that have no positive image, each 0 in it"
    assert words not in read(workdir).text  # results of a version that did not count them
    results = results_of(workdir)
    results["val"]["average"]["classes"] = {"with_positives": 4, "all": 5}
    results["test"]["average"]["classes"] = {"with_positives": 5, "all": 5}
    (workdir / "report" / "results.json").write_text(json.dumps(results))
    text = read(workdir).text
    assert text.count(words) == 1
    mean = results["val"]["average"]["metrics"]["combined"]["mAP_sklearn"]
    assert f"without the 1 of 5 {words}{shown(mean * 5 / 4)} %" in text


def test_unknown_labels_are_counted_and_left_out(made_run):
    workdir = made_run(splits=("val",))
    path = workdir / "report" / results_read.scores_file("val", "average")
    with np.load(path) as stored:
        arrays = dict(stored)
    arrays["labels"] = arrays["labels"].astype(np.int8)
    arrays["labels"][:7, 0] = -1
    np.savez(path, **arrays)
    results = results_of(workdir)
    results["val"]["average"]["classes"] = {"with_positives": 5, "all": 5, "unknown": 7}
    (workdir / "report" / "results.json").write_text(json.dumps(results))
    path = workdir / "report" / evidence.FILE
    fields = json.loads(path.read_text())
    counts = np.array(fields["training"]["counts"])
    fields["training"]["known"] = (2 * counts.diagonal() * np.ones_like(counts)).tolist()
    path.write_text(json.dumps(fields))

    report = read(workdir)
    assert "unknown labels, in no metric7" in report.text.replace("\n", "")
    (table,) = (
        table for name, table in report.tables.items() if name.startswith("Average precision by class")
    )
    unknown = {row[0]: row[table[0].index("unknown")] for row in table[1:]}
    assert unknown == {name: "7" if name == NAMES[0] else "0" for name in NAMES}
    precision = metrics.average_precision(arrays["combined"][7:, :1], arrays["labels"][7:, :1], "sklearn")
    assert shown(100 * precision[0]) in next(row for row in table if row[0] == NAMES[0])
    assert "that have the class, of those where it is known" in report.text

    fields["training"]["known"].pop()
    path.write_text(json.dumps(fields))
    with pytest.raises(InputError, match="not a table of 5 classes"):
        page.write(workdir)


def as_before(workdir):
    """Rewrite the files with the field names of the previous version."""
    path = workdir / "report" / "results.json"
    results = json.loads(path.read_text())
    for split_results in results.values():
        split_results["average"]["company"] = split_results["average"].pop("context")
        for measures in split_results.values():
            measures.pop("classes", None)
    path.write_text(json.dumps(results))
    path = workdir / "report" / evidence.FILE
    fields = json.loads(path.read_text())
    fields["exhibits"] = fields.pop("examples")
    fields["cells"] = fields.pop("patch_boxes")
    del fields["class_counts"]
    path.write_text(json.dumps(fields))


def test_files_of_the_previous_version_give_the_same_page(made_run):
    workdir = made_run()
    text = page.write(workdir).read_text(encoding="utf-8")
    as_before(workdir)
    assert page.write(workdir).read_text(encoding="utf-8") == text


def test_all_metrics_and_thresholds_are_those_of_the_results(made_run):
    workdir = made_run()
    report, results = read(workdir), results_of(workdir)
    for split, split_results in results.items():
        for weights, words in WIDE.items():
            table = report.tables[f"Metrics on {split}, {words}, percent"]
            assert {row[0] for row in table[1:]} == {title(n) for n in split_results[weights]["metrics"]}
            for row in table[1:]:
                name = next(n for n in split_results[weights]["metrics"] if title(n) == row[0])
                columns = [column.replace(" ", "_") for column in table[0][1:]]
                assert row[1:] == [
                    shown(split_results[weights]["metrics"][name][column]) for column in columns
                ]
        table = report.tables[f"Metrics by threshold on {split}, percent"]
        rows = {row[0]: row[1:] for row in table[1:]}
        assert {"whole", "combined"} <= split_results["average"]["thresholds"].keys()
        for name, by_threshold in split_results["average"]["thresholds"].items():
            assert {"0.50", "0.95", "top3"} <= by_threshold.keys()
            for threshold, values in by_threshold.items():
                threshold = threshold.replace("top3", "top 3")
                assert rows[f"{title(name)}, {threshold}"] == [shown(values[m]) for m in table[0][1:]]


def test_context_and_pivots_are_those_of_the_results(made_run):
    workdir = made_run()
    report, results = read(workdir), results_of(workdir)
    for split, split_results in results.items():
        context = split_results["average"]["context"]
        rows = report.tables[f"Dependence on context on {split}"][1:]
        assert {title(name) for name in context["predictions"]} == {row[0] for row in rows}
        for row in rows:
            use = next(use for n, use in context["predictions"].items() if title(n) == row[0])
            assert row[1:3] == [with_ends(*use["excess_fpr"], 1), with_ends(*use["context_auc"], 1)]
        table = report.tables[f"Strongest pairs on {split}, percent"]
        assert table[0][4:] == ["whole image", "combined", "TDE pivot, α 0.5"]
        low, high = re.fullmatch("(.+) to (.+) points", table[0][3].replace("−", "-")).groups()
        assert len(table) == 1 + context["pairs"]
        for i, row in enumerate(table[1:]):
            by_pair = [
                context["predictions"][n]["by_pair"][i] for n in ("whole", "combined", "tde_pivot_0.5")
            ]
            assert row[4:] == [shown(value) for value in by_pair]
            assert all(float(low) <= value <= float(high) for value in by_pair if not math.isnan(value))
        located = split_results["average"]["localization"]
        rows = {row[0]: row for row in report.tables[f"Pivots by class on {split}, percent"][1:]}
        assert rows.keys() == {name for name, rates in located["by_class"].items() if rates["pairs"]}
        rates = ("hit", "chance_hit", "best_hit", "share", "chance_share", "best_share")
        for name, row in rows.items():
            class_rates = located["by_class"][name]
            assert [row[1], *row[3:]] == [
                str(class_rates["pairs"]),
                *(shown(class_rates[rate]) for rate in rates),
            ]
        first = report.tables[f"Pivots and boxes on {split}, percent"][1]
        assert [first[0], *first[3:]] == ["all", *(shown(located["all"][rate]) for rate in rates)]


def test_classes_have_their_average_precision_the_best_first(made_run):
    workdir = made_run()
    report = read(workdir)
    with np.load(workdir / "report" / "scores_val_average.npz") as arrays:
        ap = 100 * metrics.average_precision(arrays["combined"], arrays["labels"], "sklearn")
        positives = arrays["labels"].sum(axis=0)
    rows = report.tables["Average precision by class on val"][1:]
    order = np.argsort(-ap)
    assert [row[0] for row in rows] == [NAMES[k] for k in order]
    assert [row[3] for row in rows] == [shown(ap[k]) for k in order]
    assert [row[1] for row in rows] == [str(positives[k]) for k in order]


def test_strengths_are_read_off_the_scores(made_run):
    workdir = made_run()
    results = results_of(workdir)
    report = read(workdir)
    rows = {row[0]: row[1:] for row in report.tables["Strengths on val, percent"][1:]}
    assert {f"TDE pivot, α {alpha:g}" for alpha in (0, 0.5, 1.25)} <= rows.keys()
    for name in ("tde_whole_0.5", "tde_whole_1.25", "tde_pivot_0.5", "tde_pivot_1.25"):
        average = results["val"]["average"]
        values = average["metrics"][name]
        auc = average["context"]["predictions"][name]["context_auc"][0]
        expected = [values["mAP_sklearn"], values["mAP_voc"], values["CF1"], values["OF1"], auc]
        assert rows[title(name)] == [shown(value) for value in expected]
    combined = results["val"]["average"]["metrics"]["combined"]
    assert rows["TDE pivot, α 0"][0] == shown(combined["mAP_sklearn"])
    assert command.main([str(workdir), "--alphas=0.3,0.1"]) == 0
    asked = Page((workdir / "report" / "index.html").read_text()).tables["Strengths on val, percent"]
    assert [row[0] for row in asked[1:3]] == ["TDE whole, α 0.1", "TDE whole, α 0.3"]


def test_the_page_is_self_contained_and_figures_have_labels(made_run):
    workdir = made_run()
    report = read(workdir)
    tags = {tag for tag, _ in report.elements}
    assert not tags & {"iframe", "object", "embed"}
    # The only script is our own, of the same text in every report.
    assert [attributes for tag, attributes in report.elements if tag == "script"] == [{}]
    script = (Path(page.__file__).parent / "page.js").read_text(encoding="utf-8")
    assert f"<script>{script}</script>" in (workdir / "report" / "index.html").read_text(encoding="utf-8")
    ids = report.ids()
    assert len(ids) == len(set(ids))
    for tag, attributes in report.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            target = attributes.get(name)
            assert target is None or target.startswith(("data:", "#"))
            if target and target.startswith("#"):
                assert target[1:] in ids
        if tag == "svg" and attributes.get("role") == "img":
            assert attributes["aria-label"]
    text = (workdir / "report" / "index.html").read_text()
    assert not re.search(r"url\(|@import|https?:", text)


def test_a_switch_of_splits_where_there_are_several(made_run):
    workdir = made_run(splits=("val", "test"))
    text = page.write(workdir).read_text(encoding="utf-8")
    chosen = [a for t, a in Page(text).elements if t == "input"]
    assert [(a["type"], a["name"], a["id"], "checked" in a) for a in chosen] == [
        ("radio", "split", "split-0", True), ("radio", "split", "split-1", False), ("radio", "split", "split-all", False),
    ]  # fmt: skip
    # Each section has a block of each split, and on paper none is hidden.
    assert text.count('class="block split split-0"') == text.count('class="block split split-1"') == 7
    (rules,) = re.findall(r"@media screen \{(.*)\}", text)
    assert rules.count("display: none") == 2
    assert text.count(":checked) .split") == 2


def test_one_split_needs_no_switch(made_run):
    text = page.write(made_run(splits=("val",))).read_text(encoding="utf-8")
    assert "<input" not in text
    assert "@media screen" not in text


def test_a_split_without_boxes_beside_one_with(made_run):
    workdir = made_run()
    results = results_of(workdir)
    results["test"]["average"]["localization"] = None
    (workdir / "report" / "results.json").write_text(json.dumps(results))
    report = read(workdir)
    assert "This split has no boxes" in report.text
    assert "Pivots and boxes on val, percent" in report.tables


@pytest.mark.parametrize(
    ("weights", "pivot"),
    [([0.26, 0.24, 0.24, 0.26], None), ([0.37, 0.35, 0.14, 0.14], None), ([0.2, 0.2, 0.2, 0.4], 3), ([0.5, 0.5], None), ([1.0], None)],
)  # fmt: skip
def test_a_pivot_has_a_frame_only_where_it_stands_out(made_run, weights, pivot):
    assert overlay.pivot_of(weights) == pivot
    if len(weights) != 4:
        return
    workdir = made_run(splits=("val",))
    path = workdir / "report" / evidence.FILE
    fields = json.loads(path.read_text())
    for kind_examples in fields["examples"]["val"].values():
        for shown_class in (shown_class for example in kind_examples for shown_class in example["classes"]):
            shown_class["weights"] = weights
    path.write_text(json.dumps(fields))
    report = read(workdir)
    frames = [a for t, a in report.elements if t == "rect" and a.get("class") == "pivot"]
    assert len(frames) == (0 if pivot is None else 6)
    words = f"no pivot, at most {max(weights):.2f}" if pivot is None else f"pivot weight {max(weights):.2f}"
    assert report.text.count(words) == 6


def test_names_are_shown_as_they_are(made_run):
    workdir = made_run(splits=("<i>val",))
    report = read(workdir)
    assert [a for t, a in report.elements if t == "i" and "class" not in a] == []
    assert "my <run> & more" in report.text
    for name in (*NAMES, "<b>7</b>", "<i>val"):
        assert name in report.text


def test_values_of_the_configuration_are_text(made_run):
    workdir = made_run()
    path = workdir / "report" / "evidence.json"
    fields = json.loads(path.read_text())
    fields["config"]["data"]["root"] = "</td><script>x</script>"
    path.write_text(json.dumps(fields))
    rows = read(workdir).tables["Fields that differ from the defaults"]
    assert ["data.root", "</td><script>x</script>", "“”"] in rows
    assert ["effect.alphas", "(0.5, 1.25)", "(0.5, 1.0)"] in rows


def test_without_patches(made_run):
    report = read(made_run("whole", splits=("val",)))
    assert "This method has no patches" in report.text
    assert [row[0] for row in report.tables["Mean average precision on val"][1:]] == [
        "whole image", "combined", "TDE whole, α 0.5", "TDE whole, α 1.25",
    ]  # fmt: skip
    assert report.tables["Strongest pairs on val, percent"][0][4:] == [
        "whole image",
        "combined",
        "TDE whole, α 0.5",
    ]


def test_patches_of_one_head(made_run):
    assert "Pivots and boxes on val, percent" in read(made_run("pat_i")).tables


def test_without_training_labels_the_reason_is_shown(made_run):
    report = read(made_run(training=False))
    assert "Not available: the training split cannot be read: data root x" in report.text
    assert not [name for name in report.tables if "context" in name]


def test_without_boxes(made_run):
    workdir = made_run()
    results = results_of(workdir)
    for split_results in results.values():
        split_results["average"]["localization"] = None
    (workdir / "report" / "results.json").write_text(json.dumps(results))
    assert "have no boxes" in read(workdir).text


def test_a_run_that_was_not_evaluated_yet(made_run):
    workdir = made_run()
    shutil.rmtree(workdir / "report")
    report = read(workdir)
    assert "has not been written yet" in report.text
    assert set(report.tables) == {
        "Validation mAP by epoch, percent", "Fields that differ from the defaults", "Fields at default",
    }  # fmt: skip
    rows = report.tables["Validation mAP by epoch, percent"][1:]
    assert rows == [
        ["1", "10", "11.00", "10.00", "13.00", "12.00"],
        ["2", "20", "21.00", "20.00", "23.00", "22.00"],
    ]


def test_a_truncated_last_log_line_is_ignored(made_run):
    workdir = made_run()
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "train/lo')
    assert len(results_read.run(workdir).log) == 6


def test_an_evaluation_without_training_has_a_report(made_run):
    workdir = made_run()
    (workdir / "metrics.jsonl").unlink()
    (workdir / "config.json").unlink()
    report = read(workdir)
    assert "it holds an evaluation only" in report.text
    assert "Fields that differ from the defaults" in report.tables


def test_many_classes_are_cut_to_those_of_the_strongest_pairs(made_run):
    names = [f"class {i}" for i in range(64)]
    workdir = made_run(splits=("val",), names=names)
    report = read(workdir)
    assert len(report.tables["Average precision by class on val"]) == 65
    pairs = json.loads((workdir / "report" / "evidence.json").read_text())["training"]["pairs"]
    kept = list(dict.fromkeys(k for pair in pairs for k in pair))[:30]
    assert len(kept) < 64
    assert f"The {len(kept)} of 64 classes with the strongest pairs." in report.text
    assert (workdir / "report" / "index.html").stat().st_size < 10e6


def damage(kind, workdir):
    report = workdir / "report"
    if kind == "results":
        (report / "results.json").write_text('{"val": ')
    elif kind == "results' parts":
        (report / "results.json").write_text('{"val": {"weights": {}}}')
    elif kind == "no split":
        (report / "results.json").write_text("{}")
    elif kind == "results' numbers":
        text = (report / "results.json").read_text()
        (report / "results.json").write_text(text.replace('"OF1": ', '"OF1": "high", "old": ', 1))
    elif kind == "evidence's classes":
        fields = json.loads((report / "evidence.json").read_text())
        fields["examples"]["val"]["best"][0]["labels"] = [5]
        (report / "evidence.json").write_text(json.dumps(fields))
    elif kind == "no evidence":
        (report / "evidence.json").unlink()
    elif kind == "evidence":
        (report / "evidence.json").write_text('{"config": 7}')
    elif kind == "no scores":
        (report / "scores_test_average.npz").unlink()
    elif kind == "scores":
        path = report / "scores_val_average.npz"
        path.write_bytes(path.read_bytes()[:900])
    elif kind == "empty scores":
        (report / "scores_val_average.npz").write_bytes(b"")
    elif kind == "other scores":
        np.savez(
            report / "scores_val_average.npz",
            **dict.fromkeys(("whole", "combined", "labels"), np.zeros((3, 2))),
        )
    elif kind == "fewer scores":
        zeros = np.zeros((3, len(NAMES)))
        np.savez(report / "scores_val_average.npz", whole=zeros, combined=zeros, labels=zeros)
    elif kind == "log":
        (workdir / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n')
    elif kind == "log's values":
        (workdir / "metrics.jsonl").write_text('{"step": 1, "train/loss": "low"}\n')
    elif kind == "no run":
        shutil.rmtree(workdir)
        workdir.mkdir()
    elif kind == "no folder":
        shutil.rmtree(workdir)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("results", ["results.json is damaged", "evaluate again"]),
        ("results' parts", ["results.json is damaged", "'metrics'"]),
        ("results' numbers", ["results.json is damaged", "OF1 is 'high', not a number"]),
        ("evidence's classes", ["evidence.json is damaged", "class 5 of 5"]),
        ("no split", ["results.json is damaged", "it has no split"]),
        ("no evidence", ["evidence.json is missing", "--mode=evaluate"]),
        ("evidence", ["evidence.json is damaged", "'training'"]),
        ("no scores", ["scores_test_average.npz is missing", "evaluate again"]),
        ("scores", ["scores_val_average.npz is damaged"]),
        ("empty scores", ["scores_val_average.npz is damaged"]),
        ("other scores", ["whole [3, 2]", "not [3, 5] as in evidence.json"]),
        ("fewer scores", ["lacks patch, tde_pivot_0.5, tde_pivot_1.25, tde_whole_0.5"]),
        ("log", ["metrics.jsonl is damaged", "line 2"]),
        ("log's values", ["line 1: train/loss is not a number"]),
        ("no run", ["has neither metrics.jsonl nor report/results.json"]),
        ("no folder", ["is not a folder"]),
    ],
)
def test_errors_are_one_line(made_run, capsys, kind, words):
    workdir = made_run()
    damage(kind, workdir)
    assert command.main([str(workdir)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    for word in words:
        assert word in captured.err


def test_the_command_says_where_the_report_is(made_run, capsys):
    workdir = made_run()
    assert command.main([str(workdir)]) == 0
    assert capsys.readouterr().out == f"report {workdir / 'report' / 'index.html'}\n"


@pytest.mark.parametrize("arguments", [[], ["a", "b", "c"], ["x", "--alphas=1,two"], ["x", "--alphas=-1"]])
def test_arguments_that_cannot_be_used(arguments, capsys):
    assert command.main(arguments) == 1
    assert capsys.readouterr().err.endswith("--help lists the arguments\n")
