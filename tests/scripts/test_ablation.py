"""Ablations: studies and their errors, a tiny study that is gone on with, tables by hand."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cfmlc_jax import config as configs
from cfmlc_jax import main
from cfmlc_jax.errors import InputError, RunError
from cfmlc_jax.metrics import mean_average_precision
from scripts.ablation import __main__ as study_command
from scripts.ablation import figures, measure, tables

ROOT = Path(__file__).parents[2]
STUDY = """
def get_study(quick):
    tiny = {"data.scenes.num_train": 32, "train.epochs": 1, "train.checkpoint_every": 0}
    tiny |= {"effect.kinds": ("whole", "pivot", "owner"), "effect.classes": 2}
    variant = {"zeros, too": {"effect.null": "zeros"}}
    run = {"text": "tiny run", "fields": tiny, "variants": variant, "shown": ("combined",), "effects": 6}
    return {"base": "tests/configs/tiny.py", "seeds": (0, 1), "runs": {"tiny": run}}
"""


WHOLE = {"method": "whole", "effect.kinds": ("whole",)}
VARIANTS = {
    "pat_t": {},
    "whole": WHOLE,
    "exclusive": {"patches.source": "map", "patches.pooling": "exclusive", "effect.kinds": ("whole",)},
    "no effects": WHOLE | {"effect.kinds": ()},
}


@pytest.fixture
def ablate(monkeypatch, capsys):
    """Runs the command line in this process, in the repository: (exit code, stdout, stderr)."""
    monkeypatch.chdir(ROOT)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["ablation", *map(str, arguments)])
        code = study_command.main()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "study.py"
    path.write_text(STUDY)
    return path


def test_a_study_runs_once_and_resumes(study, tmp_path, ablate):
    flags = [f"--study={study}", f"--workdir={tmp_path}", "--seeds=0"]
    done = subprocess.run(
        [sys.executable, "-m", "scripts.ablation", *flags],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_backend_optimization_level=0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "[1/1] tiny, seed 0" in done.stdout
    rows = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    assert {row["split"] for row in rows} == {"test_iid", "test_conflict"}
    assert {row["variant"] for row in rows} == {"", "zeros, too"}
    assert {row["prediction"] for row in rows if not row["variant"]} == {
        "combined", "tde_whole_0.5", "tde_pivot_0.5", "tde_owner_0.5"
    }  # fmt: skip
    results = json.loads((tmp_path / "runs" / "tiny_seed0" / "report" / "results.json").read_text())
    for row in rows:
        if not row["variant"]:
            metrics = results[row["split"]]["average"]["metrics"][row["prediction"]]
            assert float(row["mAP_sklearn"]) == metrics["mAP_sklearn"]
        # The pivot's removals are forward passes more.
        factor = 1.5 if "pivot" in row["prediction"] else 0.0
        assert float(row["predict_mflops"]) > factor * float(rows[0]["predict_mflops"])
        assert float(row["train_gflops"]) > 0
        assert float(row["predict_images_per_second"]) > 0
    effects = list(csv.DictReader((tmp_path / "effects.csv").read_text().splitlines()))
    nulls = {(null, f"tde_{kind}_0.5") for null in ("zeros", "mean", "blur") for kind in ("whole", "pivot")}
    expected = nulls | {("surroundings", "tde_owner_0.5"), ("none", "combined")}
    for split in ("test_balanced", "test_conflict"):
        own = [row for row in effects if row["split"] == split]
        assert {(row["null"], row["prediction"]) for row in own} == expected
        # Only effects have estimates for classes without an object.
        assert all((row["absent_mae"] == "") == (row["prediction"] == "combined") for row in own)
    assert all(int(row["objects"]) > 6 and float(row["mae"]) > 0 for row in effects)
    assert "## Effects of objects" in (tmp_path / "results.md").read_text()
    assert "tiny run: zeros, too" in (tmp_path / "results.md").read_text()
    assert (tmp_path / "figures" / "cost.svg").read_text().count("tiny run") >= 1

    code, out, err = ablate(*flags)
    assert code == 0, err
    assert "cfmlc_jax.main" not in out  # nothing is trained or evaluated anew
    assert list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines())) == rows

    edited = tmp_path / "edited.py"
    edited.write_text(STUDY.replace('"train.epochs": 1', '"train.epochs": 2'))
    code, _, err = ablate(f"--study={edited}", *flags[1:])
    assert (code, err.count("\n")) == (1, 1)
    assert f"{tmp_path / 'runs' / 'tiny_seed0'} was made with config.train.epochs 1, not 2; remove it" in err


def test_results_of_another_configuration_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    commands = []
    monkeypatch.setattr(study_command, "_command", lambda log_file, arguments: commands.append(arguments))
    one, other = (
        study_command._with(study_command._base("tests/configs/tiny.py"), {"train.epochs": epochs})
        for epochs in (1, 2)
    )
    folder = tmp_path / "run"
    study_command._run(tmp_path, folder, one, "train")
    (folder / "log.txt").write_text("ended before it wrote anything")
    study_command._run(tmp_path, folder, other, "train")
    assert len(commands) == 2
    (folder / "checkpoints").mkdir()  # begun, not finished
    with pytest.raises(InputError, match=r"run was made with config.train.epochs 2, not 1"):
        study_command._run(tmp_path, folder, one, "train")
    study_command._run(tmp_path, folder, other, "train")
    assert len(commands) == 3
    (folder / "ablation_config.py").unlink()
    with pytest.raises(InputError, match=r"run has files, but no ablation_config.py"):
        study_command._run(tmp_path, folder, other, "train")


def test_measurements_are_kept_by_configuration(tmp_path, monkeypatch):
    """Costs are the same for all seeds; effects are those of the seed and the number of scenes."""
    measured = []
    monkeypatch.setattr(measure, "_training_gflops", lambda config: measured.append(config) or len(measured))
    monkeypatch.setattr(
        measure, "_measured_effects", lambda *arguments: measured.append(0) or [len(measured)]
    )
    own, seed, longer = (
        configs.replaced(configs.default(), fields) for fields in ({}, {"seed": 5}, {"train.epochs": 7})
    )
    path = tmp_path / "costs" / "asl_bias0.9_training.json"
    assert [measure.training_gflops(path, config) for config in (own, longer, seed, longer)] == [1, 2, 1, 2]
    asked = ((own, 6), (own, 8), (seed, 6), (longer, 6), (own, 6))
    effects = [measure.effects(tmp_path, config, scenes) for config, scenes in asked]
    assert effects == [[3], [4], [5], [6], [3]]


def test_a_checkpoint_is_evaluated_with_every_variant(tmp_path, monkeypatch, capsys):
    """Knobs that change nothing, or that its method lacks, are left out; weights of patches cost no evaluation.

    The commands run in this process.
    """
    monkeypatch.chdir(ROOT)

    def run_here(log_file, arguments):
        monkeypatch.setattr(sys, "argv", arguments)
        assert main.main() == 0

    run = tmp_path / "run"
    command = ["main", "--config=tests/configs/tiny.py", f"--workdir={run}"]
    run_here(None, [*command, "--config.data.scenes.num_train=32", "--config.train.epochs=1"])
    monkeypatch.setattr(study_command, "_command", run_here)
    knobs = ("attention none", "grid 3", "null mean")
    monkeypatch.setattr(study_command, "KNOBS", {name: study_command.KNOBS[name] for name in knobs})
    monkeypatch.setattr(study_command, "ALPHAS", (0.5, 1.0))
    flags = study_command._parse([f"--checkpoint={run}", f"--workdir={tmp_path / 'knobs'}"])
    rows, effects = study_command._of_checkpoint(flags)
    assert effects == []
    assert "null mean: skipped, because it is the checkpoint's own setting" in capsys.readouterr().out
    uses = ["as it is", "attention none", "grid 3", "patches weigh 0.25", "patches weigh 0.75"]
    assert list(dict.fromkeys(row.text for row in rows)) == uses
    by = {(row.text, row.prediction): row for row in rows if row.split == "test_iid"}
    results = json.loads((run / "report" / "results.json").read_text())["test_iid"]["average"]
    assert by["as it is", "combined"].mAP_voc == results["metrics"]["combined"]["mAP_voc"]
    with np.load(run / "report" / "scores_test_iid_average.npz") as arrays:
        mixed = 0.75 * arrays["whole"] + 0.25 * arrays["patch"]
        expected = mean_average_precision(mixed, arrays["labels"], "voc")
    assert by["patches weigh 0.25", "combined"].mAP_voc == pytest.approx(expected)
    assert by["patches weigh 0.25", "combined"].context_auc != by["as it is", "combined"].context_auc
    # Every evaluation has strengths and the whole image, whose score is the same in all.
    assert by["grid 3", "whole"].mAP_voc == by["attention none", "whole"].mAP_voc
    assert by["grid 3", "whole"].mAP_voc == by["as it is", "whole"].mAP_voc
    assert by["grid 3", "tde_pivot_1"].predict_mflops > by["as it is", "tde_pivot_1"].predict_mflops
    shutil.copytree(run, tmp_path / "another" / "run")
    flags.checkpoint = tmp_path / "another" / "run"
    with pytest.raises(
        InputError, match=r"knobs was made with --checkpoint=\S+, not with --checkpoint=\S+another"
    ):
        study_command._of_checkpoint(flags)


def test_steps_are_taken_once_in_order_where_a_run_needs_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "writes.py").write_text(
        "import pathlib, sys\npathlib.Path(sys.argv[1]).write_text(sys.argv[2])\n"
    )
    study = {
        "steps": {
            "generator": ("writes", "generator", "once"),
            "records": ("writes", "records", "once"),
            "unused": ("writes", "unused", "never"),
        },
        "runs": {"plain": {}, "removals": {"needs": ("generator", "records")}},
    }
    study_command._take_steps(tmp_path, study)
    assert (tmp_path / "records").read_text() == (tmp_path / "generator").read_text() == "once"
    assert not (tmp_path / "unused").exists()
    (tmp_path / "generator").write_text("kept")
    (tmp_path / "records").unlink()
    study_command._take_steps(tmp_path, study)
    assert (tmp_path / "generator").read_text() == "kept"
    assert (tmp_path / "records").exists()

    study["steps"] = {"generator2": ("no_such_module",)}
    study["runs"] = {"plain": {"needs": ("generator2",)}}
    with pytest.raises(RunError, match=r"-m no_such_module ended with exit code 1: .*no_such_module.*; see"):
        study_command._take_steps(tmp_path, study)


def test_variants_depend_on_the_method(monkeypatch):
    """Patches of a baseline make it PAT-I; cells of a map have no grids."""

    def knob(variant, name):
        own = study_command._with(study_command._base(ROOT / "configs/scenes.py"), VARIANTS[variant])
        return study_command._knob(own, study_command.KNOBS[name])

    assert knob("whole", "grid 4").method == "pat_i"
    assert knob("whole", "attention none").method == "pat_i"
    assert knob("whole", "null blur").method == "whole"
    with pytest.raises(InputError, match=r"method .whole. does not use config.patches.branches"):
        knob("whole", "attention self")
    assert knob("pat_t", "grid 4").method == "pat_t"
    with pytest.raises(InputError, match="cells of a map"):
        knob("exclusive", "grid 4")
    with pytest.raises(InputError, match="it is the checkpoint's own setting"):
        knob("pat_t", "null mean")
    with pytest.raises(InputError, match="no effects against a null image"):
        knob("no effects", "null blur")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --study=FILE or --checkpoint=RUN"),
        (["--study=nowhere.py"], "--study=nowhere.py is not a Python file"),
        (["--study=tests/configs/tiny.py"], "has no get_study(quick)"),
        (["--study=STUDY", "--only=tinny"], "the study has no run 'tinny'; it has tiny"),
        (["--study=STUDY", "--seeds=a"], "give whole numbers separated by commas"),
        (["--checkpoint=nowhere"], "nowhere"),
        (["--checkpoint=nowhere", "--quick"], "need a --study"),
        (["--study=STUDY", "--set=data.source"], "--set=data.source: give NAME=VALUE"),
    ],
)
def test_bad_arguments(arguments, message, study, tmp_path, ablate):
    arguments = [argument.replace("STUDY", str(study)) for argument in arguments]
    code, _, err = ablate(*arguments, f"--workdir={tmp_path / 'out'}")
    assert code == 1
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_single_label_study_is_refused(tmp_path, ablate):
    bad = tmp_path / "bad.py"
    bad.write_text(STUDY.replace("tests/configs/tiny.py", "configs/longtail_digits.py"))
    code, _, err = ablate(f"--study={bad}", f"--workdir={tmp_path / 'out'}")
    assert (code, err.count("\n")) == (1, 1)
    assert "longtail_digits.py is single-label" in err


def test_a_study_with_an_unknown_field(tmp_path, ablate):
    bad = tmp_path / "bad.py"
    bad.write_text(STUDY.replace("train.epochs", "train.epoks"))
    code, _, err = ablate(f"--study={bad}", f"--workdir={tmp_path / 'out'}")
    assert (code, err.count("\n")) == (1, 1)
    assert "config.train.epoks, which is not a field" in err


def test_a_field_is_set_for_all_runs(study, tmp_path, monkeypatch):
    """Every training and evaluation gets it, and the default workdir is named after it."""
    flags = study_command._parse(
        [f"--study={study}", "--set=data.source=photo_scenes", "--set=effect.alphas=(0.3,)"]
    )
    assert flags.fields == {"data.source": "photo_scenes", "effect.alphas": (0.3,)}
    assert flags.workdir == Path("runs", "study_data.source=photo_scenes_effect.alphas=(0.3,)")
    seen = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(study_command, "_run", lambda *arguments, **more: seen.append(arguments[2]))
    monkeypatch.setattr(study_command, "_rows", lambda *arguments: [])
    monkeypatch.setattr(measure, "effects", lambda folder, config, scenes: seen.append(config) or [])
    flags.workdir = tmp_path
    study_command._of_study(flags)
    assert len(seen) == 6  # two seeds of a training, its variant and its effects
    assert {(config.data.source, tuple(config.effect.alphas)) for config in seen} == {
        ("photo_scenes", (0.3,))
    }
    assert [config.effect.null for config in seen] == ["mean", "zeros", "mean"] * 2


def test_effects_are_measured_with_lent_owners_too(tmp_path, monkeypatch):
    lent = {"effect.kinds": ("whole", "owner"), "effect.owners": "runs/lender"}
    run = {"text": "tiny", "fields": {"train.epochs": 1}, "shown": ("combined",), "effects": 6}
    run["variants"] = {"lent": lent, "another null": {"effect.null": "zeros"}}
    study = {"base": "configs/scenes.py", "seeds": (0,), "runs": {"tiny": run}}
    measured = []

    def effects(folder, config, scenes, checkpoint=None):
        measured.append((folder.name, config.effect.owners, checkpoint and checkpoint.name))
        return []

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(study_command, "_study", lambda flags: study)
    monkeypatch.setattr(study_command, "_run", lambda *arguments, **more: None)
    monkeypatch.setattr(study_command, "_rows", lambda *arguments: [])
    monkeypatch.setattr(measure, "effects", effects)
    study_command._of_study(study_command._parse(["--study=unused.py", f"--workdir={tmp_path}"]))
    assert measured == [("lent", "runs/lender", "tiny_seed0"), ("tiny_seed0", "", None)]


def test_true_effects_need_scenes(tmp_path):
    with pytest.raises(InputError, match=r"need scenes \(scenes, photo_scenes\), not data.source 'coco'"):
        measure._measured_effects(tmp_path, configs.default(), 3)


def test_the_study_of_evidence_is_valid(monkeypatch):
    """Every run and variant is a configuration that the package takes."""
    for quick in (True, False):
        flags = study_command._parse(
            [f"--study={ROOT}/configs/studies/evidence.py", *(["--quick"] if quick else [])]
        )
        for run in study_command._study(flags)["runs"].values():
            for fields in ({}, *run["variants"].values()):
                config = study_command._with(
                    study_command._base(ROOT / "configs/scenes.py"), run["fields"] | fields
                )
                assert config.train.epochs >= 1


def _row(tables, run, *, accuracy, variant="", prediction="combined", bias=0.9, seed=0, cost=1.0):
    return [
        tables.Row(
            f"{run}_bias{bias:g}", f"{run}{variant and ': '}{variant}", f"bias {bias:g}", seed, variant,
            prediction, split, mAP_sklearn=accuracy - drop, excess_fpr=drop, train_gflops=cost,
            predict_mflops=cost, predict_images_per_second=100 / cost,
        )
        for split, drop in (("test_iid", 0.0), ("test_balanced", 10.0))
    ]  # fmt: skip


def _texts(svg):
    return re.findall(r">([^<]+)</text>", svg.read_text())


def test_figures(tmp_path):
    rows = []
    for seed in (0, 1):
        for bias in (0.9, 0.0):
            rows += _row(tables, "good", accuracy=90.0 + seed, bias=bias, seed=seed)
            rows += _row(tables, "dear", accuracy=80.0, bias=bias, seed=seed, cost=5.0)
        rows += _row(tables, "good", accuracy=70.0, variant="grid 3", seed=seed, cost=2.0)
        rows += _row(tables, "good", accuracy=90.0 + seed, variant="null zeros", seed=seed)
        for alpha in ("0.5", "1"):
            rows += _row(tables, "good", accuracy=85.0, prediction=f"tde_pivot_{alpha}", seed=seed)
    effect = tables.EffectRow(
        "good", "good", 0, "mean", "tde_pivot_1", 3, 0.9, 0.8, 1.0, 0.0, 0.1, 0.2, [0, 1, 2], [0, 1, 3]
    )
    written = figures.draw(tmp_path, rows, [effect])
    assert [path.stem for path in written] == ["accuracy", "cost", "bias", "strength", "effects"]
    # From the worst to the best upwards; a null that changes no prediction is no line of its own.
    names = [text for text in _texts(tmp_path / "accuracy.svg") if text[:4] in ("good", "dear")]
    assert names == ["good: grid 3", "dear", "good"]
    key = [text for text in _texts(tmp_path / "cost.svg") if text[1:].strip() in ("good", "dear")]
    assert key == ["1  good", "2  dear"]
    assert "bias of the training scenes" in _texts(tmp_path / "bias.svg")
    assert "effect: pivot" in _texts(tmp_path / "strength.svg")
    with Image.open(tmp_path / "effects.png") as drawn:
        assert min(drawn.size) > 300
        assert len(drawn.getcolors(1 << 20)) > 10
    again = [path.read_bytes() for path in written]
    assert [path.read_bytes() for path in figures.draw(tmp_path, rows, [effect])] == again

    one_bias = [row for row in rows if row.group == "bias 0.9" and not row.prediction.startswith("tde")]
    few = figures.draw(tmp_path / "few", one_bias, [])
    assert [path.stem for path in few] == ["accuracy", "cost"]


def test_mean_and_deviation():
    assert tables.spread([1.0, 2.0, 3.0]) == "2.0 ± 1.0"
    assert tables.spread([4.25]) == "4.2"
    assert tables.spread([None, None]) == "–"
    with pytest.raises(InputError, match="no runs"):
        tables.write(Path("nowhere"), [], [])
