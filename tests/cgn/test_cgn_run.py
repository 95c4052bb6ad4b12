"""A run of a counterfactual network from the command line to the table of its classifiers."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cfmlc_jax import config as configs
from cfmlc_jax.cgn import __main__ as command
from cfmlc_jax.cgn import classifiers
from cfmlc_jax.classify import opening
from cfmlc_jax.data.sources.counterfactuals import Counterfactuals
from cfmlc_jax.errors import InputError
from cfmlc_jax.results import mechanisms

CONFIG = Path(__file__).parent.parent / "configs" / "cgn_tiny.py"


def tiny(**changes):
    config = runpy.run_path(str(CONFIG))["get_config"]()
    for name, value in changes.items():
        section, _, field = name.rpartition("__")
        configs.field(config, section)[field] = value
    return configs.validate(config)


def run(workdir):
    """The exit code and the output of the command. One device: eight would compile eight times as long."""
    command = [sys.executable, "-m", "cfmlc_jax.main", f"--config={CONFIG}", f"--workdir={workdir}"]
    environment = os.environ | {
        "PYTHONPATH": str(CONFIG.parents[2]),
        "XLA_FLAGS": "--xla_backend_optimization_level=1",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout + done.stderr


def written(workdir):
    """When the generator's records and sheets were written."""
    paths = [*workdir.rglob("*.array_record"), *(workdir / "sheets").iterdir()]
    return {path: path.stat().st_mtime_ns for path in paths}


@pytest.mark.parametrize(
    ("name", "group", "expected"),
    [
        ("", "", ("run/plain", "run")),
        ("digits", "", ("digits/plain", "digits")),
        ("", "all", ("run/plain", "all")),
    ],
)
def test_classifiers_are_runs_of_their_own_in_trackers(tmp_path, name, group, expected):
    config = tiny(report__writers=("mlflow",), report__name=name, report__group=group)
    own = classifiers.configuration(config, "plain", tmp_path / "run" / "counterfactuals")
    assert own.report.writers == ("mlflow",)
    assert (own.report.name, own.report.group) == expected


def test_the_first_process_measures_and_then_all_read_the_report(tmp_path, monkeypatch):
    calls = []
    accuracies = {"test_iid": 9.0, "test": 8.0, "errors_follow": {"texture": 1.0, "background": 2.0}}

    def of_first(action):
        calls.append("wait for the first")
        return accuracies

    def training_accuracy(config, folder):
        calls.append(f"read {folder.name}")
        return 10.0

    monkeypatch.setattr(classifiers.classify, "train", lambda *_: calls.append("train"))
    monkeypatch.setattr(classifiers, "headline", lambda _: {})
    monkeypatch.setattr(classifiers, "training_accuracy", training_accuracy)
    monkeypatch.setattr(classifiers.processes, "of_first", of_first)
    (tmp_path / "report").mkdir()
    results = classifiers.train(
        tiny(classifiers__names=("plain", "invariant")), tmp_path, tmp_path / "counterfactuals", print
    )
    assert results["plain"] == {"train": 10.0} | accuracies
    assert calls == [
        call for name in ("plain", "invariant") for call in ("train", "wait for the first", f"read {name}")
    ]


def test_a_run_ends_with_a_table_and_is_not_repeated(tmp_path, capsys):
    code, output = run(tmp_path)
    assert code == 0, output
    results = json.loads((tmp_path / "report" / "mechanisms.json").read_text())
    assert list(results) == ["plain", "invariant", "heads"]
    assert results["plain"]["test_iid"] > 50 > results["plain"]["test"]
    assert results["plain"]["train"] > 50 > results["invariant"]["train"]
    assert classifiers.table(results) in output
    of_heads = json.loads((tmp_path / "heads" / "report" / "results.json").read_text())["test"]["average"]
    assert {"shape", "texture", "background"} <= set(of_heads["metrics"])
    assert f"\nreport {tmp_path / 'report' / 'index.html'}\n" in output
    assert "Not here yet" not in (tmp_path / "report" / "index.html").read_text()
    for name in results:
        assert "not been written yet" not in (tmp_path / name / "report" / "index.html").read_text()
    log = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert any("val/average/shape_accuracy" in line for line in log)
    assert len(Counterfactuals(tmp_path / "counterfactuals")) == 600
    with pytest.raises(InputError, match="is of a generator, not of a classifier"):
        opening.open(tmp_path)
    drawn = tmp_path / "drawn"
    flags = ["generate", f"--checkpoint={tmp_path}", f"--out={drawn}", "--records=40", "--shard-size=20"]
    assert command.main(flags) == 0
    assert len(Counterfactuals(drawn)) == 40
    pictures = tmp_path / "pictures"
    flags = ["sheets", f"--checkpoint={tmp_path}", f"--out={pictures}"]
    assert command.main(flags) == 0
    for path in pictures.iterdir():
        # The run has one device and other optimisations: a pixel may be rounded otherwise.
        one, other = (np.asarray(Image.open(each), int) for each in (path, tmp_path / "sheets" / path.name))
        assert np.abs(one - other).max() <= 1
    names = [mechanisms.sheet_file(name) for name in mechanisms.SHEETS]
    assert capsys.readouterr().out.splitlines()[-5:] == [str(pictures / name) for name in names]
    assert command.main(flags) == 1
    assert capsys.readouterr().err == f"error: --out {pictures} is not empty; give a new folder\n"
    assert command.main(["sheets", f"--checkpoint={tmp_path / 'plain'}", f"--out={tmp_path / 'none'}"]) == 1
    assert "is of a classifier, which draws nothing" in capsys.readouterr().err
    before = written(tmp_path)
    code, output = run(tmp_path)
    assert code == 0, output
    assert classifiers.table(results) in output
    assert "compiling the training step" not in output
    assert before == written(tmp_path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "the following arguments are required: --checkpoint, --out"),
        (["--checkpoint=nowhere", "--out=drawn"], "nowhere is not a checkpoint"),
        (["--checkpoint=nowhere", "--out=drawn", "--seed=-1"], "'-1' is not a whole number of 0 or more"),
    ],
)
@pytest.mark.parametrize("name", ["generate", "sheets"])
def test_wrong_flags_are_told_in_a_line(tmp_path, monkeypatch, capsys, name, flags, message):
    monkeypatch.chdir(tmp_path)
    assert command.main([name, *flags]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_records_and_sheets_have_flags_of_their_own(capsys):
    flags = ["--checkpoint=nowhere", "--out=drawn"]
    assert command.main(["generate", *flags, "--records=0"]) == 1
    assert "'0' is not a whole number of 1 or more" in capsys.readouterr().err
    assert command.main(["sheets", *flags, "--scale=0"]) == 1
    assert "'0' is not a whole number of 1 or more" in capsys.readouterr().err


def test_sheets_are_not_drawn_into_a_file(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert command.main(["sheets", "--checkpoint=nowhere", f"--out={tmp_path / 'file'}"]) == 1
    assert capsys.readouterr().err == f"error: --out {tmp_path / 'file'} is a file; give a new folder\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss__style": (1.0,)}, "loss.style has 1 weights; give 4"),
        ({"loss__features": "vgg16"}, "'vgg16' needs the file of torchvision's weights"),
        ({"loss__features_from": "vgg"}, "'random' has none"),
        ({"counterfactuals__per_shape": 7}, "per_shape 7 must divide num_records 600"),
        ({"data__source": "coco"}, "config.data.source 'coco' is not one of colored_digits"),
        ({"classifiers__names": ("plain", "plain")}, "config.classifiers.names has plain twice"),
        ({"optim__learning_rate": 0.0}, "config.optim.learning_rate is 0.0; it must be above 0"),
        ({"train__on_collapse": "ask"}, "config.train.on_collapse 'ask' is not one of warn, stop"),
    ],
)
def test_contradictions_are_refused(changes, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        tiny(**changes)


def test_the_configuration_is_stored_and_read_again():
    config = tiny()
    stored = json.loads(json.dumps(configs.to_json(config)))
    assert configs.to_json(configs.from_json(stored)) == stored
    assert configs.system(stored) == "cgn"
    assert configs.differences(stored, stored) == []
    changed = configs.to_json(tiny(train__epochs=9, classifiers__epochs=9))
    assert configs.differences(stored, changed) == ["train.epochs: 1 -> 9"]


def test_an_unknown_system_is_refused():
    config = configs.default("cgn")
    config.system = "gan"
    with pytest.raises(InputError, match=r"config\.system 'gan' is not one of classifier, cgn"):
        configs.validate(config)


def test_fields_that_are_not_read_are_told():
    assert configs.unused(tiny(critic__name="conv", critic__dropout=0.1)) == ["critic.dropout"]


def test_errors_follow_the_cue_whose_label_they_have(tmp_path):
    labels = np.array([[0, 1, 2], [1, 1, 2], [2, 0, 1], [0, 2, 2]])
    predicted = [0, 2, 1, 2]
    (tmp_path / "report").mkdir()
    for split in ("test_iid", "test"):
        np.savez(
            tmp_path / "report" / f"scores_{split}_average.npz",
            combined=np.eye(3)[predicted],
            labels=np.eye(3)[labels[:, 0]],
        )
    results = classifiers.measure(tmp_path, labels)
    assert results["test"] == results["test_iid"] == 25
    assert results["follows"] == {"shape": 25, "texture": 25, "background": 75}
    assert results["errors_follow"] == pytest.approx({"texture": 100 / 3, "background": 100})
    table = classifiers.table({"plain": {"train": 75.0} | results})
    values = [value.strip() for value in table.splitlines()[2].strip("|").split("|")]
    assert values == ["plain", "75.00", "25.00", "25.00", "33.33", "100.00"]


def test_decorrelated_images_are_seen_for_as_many_steps_as_records(tmp_path):
    config = tiny(counterfactuals__num_records=14_000, classifiers__epochs=3)
    own = classifiers.configuration(config, "decorrelated", tmp_path)
    assert own.train.epochs == 12  # of 3,500 images
    assert own.optim.adadelta.drop**12 == pytest.approx(0.7**3)
    assert own.data.mechanisms.decorrelated
    assert classifiers.configuration(config, "plain", tmp_path).train.epochs == 3
