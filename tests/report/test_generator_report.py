"""The report of a generator, finished or not, from files that are written by hand."""

import io
import json
import re

import pytest
from html_reading import Page
from PIL import Image

from cfmlc_jax import config as configs
from cfmlc_jax.report import __main__ as command
from cfmlc_jax.report import page, single_label
from cfmlc_jax.results.evidence import Evidence
from cfmlc_jax.results.mechanisms import SHEETS, epoch_file, sheet_file
from cfmlc_jax.results.read import Run

ACCURACIES = {
    "plain": {
        "train": 100.0,
        "test_iid": 99.5,
        "test": 12.25,
        "follows": {"shape": 12.25, "texture": 11.0, "background": 80.0},
        "errors_follow": {"texture": 11.5, "background": float("nan")},
    },
    "invariant": {
        "test_iid": 70.0,
        "test": 61.5,
        "follows": {"shape": 61.5, "texture": 10.5, "background": 9.0},
        "errors_follow": {"texture": 12.0, "background": 13.0},
    },
}
SOUND = {
    "shape_accuracy": 75.0,
    "mask_iou": 71.0,
    "mask_mean": 18.0,
    "mask_deviation": 19.0,
    "mask_binary": 94.0,
    "critic_real": 0.6,
    "critic_generated": 0.4,
    "critic_magnitude": 0.5,
}


def png(size=(12, 8)):
    file = io.BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(file, "PNG")
    return file.getvalue()


def line(step, epoch=None, **metrics):
    record = {"step": step, "train/loss": 0.5, "train/adversarial": 0.4, "train/loss_critic": 0.2}
    if epoch is not None:
        measured = SOUND | metrics
        record |= {"epoch": epoch}
        record |= {f"val/{weights}/{k}": v for weights in ("weights", "average") for k, v in measured.items()}
    return json.dumps(record) + "\n"


@pytest.fixture
def run(tmp_path):
    """A function that writes a run of so many of four epochs, or all of it, and returns its workdir."""

    def write(epochs=4, *, finished=False, names=("plain", "invariant"), **last):
        workdir = tmp_path / "generator"
        (workdir / "sheets").mkdir(parents=True)
        config = configs.default(configs.CGN)
        config.train.epochs, config.classifiers.names = 4, names
        (workdir / "config.json").write_text(json.dumps(configs.to_json(configs.validate(config))))
        lines = [line(5)]
        for epoch in range(1, epochs + 1):
            lines.append(line(10 * epoch, epoch, **(last if epoch == epochs else {})))
            (workdir / "sheets" / epoch_file(epoch)).write_bytes(png((10 + epoch, 8)))
        (workdir / "metrics.jsonl").write_text("".join(lines))
        if finished:
            for sheet in SHEETS:
                (workdir / "sheets" / sheet_file(sheet)).write_bytes(png())
            (workdir / "counterfactuals").mkdir()
            (workdir / "counterfactuals" / "index.json").write_text("{}")
            (workdir / "report").mkdir()
            results = {name: ACCURACIES[name] for name in names}
            (workdir / "report" / "mechanisms.json").write_text(json.dumps(results))
        return workdir

    return write


def read(workdir):
    return Page(page.write(workdir).read_text(encoding="utf-8"))


def pictures(report):
    return [attributes for tag, attributes in report.elements if tag == "img"]


def test_a_finished_run_shows_sheets_and_classifiers(run):
    workdir = run(finished=True)
    (workdir / "plain").mkdir()
    classifier = configs.default()
    classifier.task, classifier.loss.name, classifier.effect.kinds = "single_label", "cross_entropy", ()
    classifier.method = "whole"
    (workdir / "plain" / "config.json").write_text(json.dumps(configs.to_json(configs.validate(classifier))))
    (workdir / "plain" / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.0}\n')
    report = read(workdir)
    assert "Counterfactual generative network" in report.text
    assert "Not here yet" not in report.text
    assert "has not been written yet" not in report.text
    shown = pictures(report)
    assert len(shown) == len(SHEETS) + 4
    assert all(re.fullmatch("data:image/png;base64,[A-Za-z0-9+/]+=*", each["src"]) for each in shown)
    assert all(each["alt"] for each in shown)
    assert [each["width"] for each in shown[-4:]] == ["11", "12", "13", "14"]
    assert report.tables["Accuracies of classifiers, percent"][1:] == [
        ["plain", "real images", "100.00", "99.50", "12.25"],
        ["invariant", "counterfactual images", "–", "70.00", "61.50"],
    ]
    assert [row[2:] for row in report.tables["Cues that predictions follow, percent"][1:]] == [
        ["12.25", "11.00", "80.00", "11.50", "–"],
        ["61.50", "10.50", "9.00", "12.00", "13.00"],
    ]
    assert report.tables["Validation of the generator by epoch"][-1][:5] == [
        "4",
        "40",
        "75.00",
        "75.00",
        "71.00",
    ]
    # The classifier that has a workdir is linked, and its report is written too.
    links = [attributes["href"] for tag, attributes in report.elements if tag == "a"]
    assert [link for link in links if not link.startswith("#")] == ["../plain/report/index.html"]
    plain = Page((workdir / "plain" / "report" / "index.html").read_text(encoding="utf-8"))
    assert "Single-label classification" in plain.text
    fields = [row[0] for row in report.tables["Fields that differ from the defaults"][1:]]
    assert fields == ["train.epochs"]


def test_the_report_of_an_interrupted_run_says_what_is_missing(run, capsys):
    workdir = run(2)
    assert command.main([str(workdir)]) == 0
    report = Page((workdir / "report" / "index.html").read_text(encoding="utf-8"))
    assert (
        "Not here yet: 2 of 4 epochs; the sheets at the end of training; the counterfactual records; "
        "the accuracies of the classifiers plain, invariant. To resume, run the same command again."
    ) in report.text
    assert "No classifier has been evaluated yet" in report.text
    assert "Masks after epoch 2" in report.text
    assert len(pictures(report)) == 2


def test_before_the_first_epoch_ends_there_is_a_page(run):
    report = read(run(0))
    assert "4 of 4 epochs" in report.text
    assert "The first epoch has not ended yet" in report.text
    assert pictures(report) == []


def test_a_generator_without_classifiers_has_no_section_of_them(run):
    report = read(run(finished=True, names=()))
    assert "Not here yet" not in report.text
    assert "Classifiers" not in report.text
    assert {"mechanisms", "training", "configuration"} <= set(report.ids())


def test_some_classifiers_are_evaluated(run):
    workdir = run(finished=True)
    results = {"plain": ACCURACIES["plain"]}
    (workdir / "report" / "mechanisms.json").write_text(json.dumps(results))
    report = read(workdir)
    assert "Not here yet: the accuracies of the classifiers invariant." in report.text
    assert len(report.tables["Accuracies of classifiers, percent"]) == 2


@pytest.mark.parametrize(
    ("last", "words"),
    [
        ({"mask_mean": 0.1}, "Epoch 4: the masks are empty: their mean is 0.001"),
        ({"mask_deviation": 0.2}, "Epoch 4: all masks are alike"),
        ({"critic_real": 0.99, "critic_generated": 0.01}, "Epoch 4: the critic tells all images apart"),
        ({}, None),
    ],
)
def test_warnings_of_a_collapse_are_shown(run, last, words):
    text = read(run(**last)).text
    assert text.count("Epoch 4") == (words is not None)
    assert words is None or words in text


def test_many_warnings_are_folded_and_many_epochs_thinned(run):
    workdir = run(0)
    log = [line(10 * epoch, epoch, mask_mean=99.9) for epoch in range(1, 31)]
    (workdir / "metrics.jsonl").write_text("".join(log))
    for epoch in range(1, 31):
        (workdir / "sheets" / epoch_file(epoch)).write_bytes(png())
    report = read(workdir)
    assert "27 warnings after earlier epochs" in report.text
    shown = [each["alt"] for each in pictures(report)]
    assert (len(shown), shown[0], shown[-1]) == (8, "Sheet after epoch 1", "Sheet after epoch 30")
    assert "8 of 30 epochs are shown" in report.text


def test_a_value_that_was_not_finite_is_a_dash(run):
    rows = read(run(2, mask_iou=None)).tables["Validation of the generator by epoch"]
    assert rows[-1][4] == "–"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("sheets/epoch-001.png", b"half a pic", "epoch-001.png is not an intact PNG file; remove it"),
        ("sheets/epoch-001.png", png().replace(b"IDAT", b"IDAT\x10", 1), "is not an intact PNG file"),
        ("report/mechanisms.json", b'{"plain": ', "mechanisms.json is damaged"),
        ("report/mechanisms.json", b'{"plain": {"test": 1.0}}', "has no 'test_iid'"),
        ("config.json", b'{"system": "gan"}', "system 'gan' is not one of classifier, cgn"),
    ],
)
def test_a_damaged_file_is_named(run, capsys, name, content, message):
    workdir = run(finished=True)
    (workdir / name).write_bytes(content)
    assert command.main([str(workdir)]) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert message in error


@pytest.mark.parametrize(
    ("data", "counts", "words"),
    [
        ({"source": "cifar10_lt"}, None, "Counterfactual long-tailed classification"),
        ({"source": "table"}, [100, 20], "Counterfactual long-tailed classification"),
        ({"source": "cifar10_lt"}, [100, 90], "Single-label classification"),
        ({"counterfactuals": {"path": "records"}}, None, "Classification with counterfactual images"),
        ({"source": "double_colored_digits"}, None, "Single-label classification"),
    ],
)
def test_a_single_label_report_is_named_after_its_data(data, counts, words):
    config = {"task": "single_label", "data": data}
    evidence = None
    if counts is not None:
        names = [str(k) for k in range(len(counts))]
        evidence = Evidence(config, "1", names, None, "", None, {}, class_counts=counts)
    assert single_label.TASK.kicker(Run("run", config, [], [], evidence)) == words
