"""Ablations: studies and their errors, a tiny study that is gone on with, tables by hand."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cfmlc_jax.errors import InputError

ROOT = Path(__file__).parents[1]
STUDY = """
def get_study(quick):
    tiny = {"data.scenes.num_train": 32, "train.epochs": 1, "train.checkpoint_every": 0}
    variant = {"zeros, too": {"effect.null": "zeros"}}
    run = {"text": "tiny run", "fields": tiny, "variants": variant, "shown": ("combined",), "effects": 6}
    return {"base": "tests/configs/tiny.py", "seeds": (0, 1), "runs": {"tiny": run}}
"""


# One device: eight take eight times as long.
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_backend_optimization_level=1"}


def ablate(*arguments):
    return subprocess.run(
        [sys.executable, "scripts/ablate.py", *map(str, arguments)],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "study.py"
    path.write_text(STUDY)
    return path


def test_a_study_is_run_once_and_gone_on_with(study, tmp_path):
    done = ablate(f"--study={study}", f"--workdir={tmp_path}", "--seeds=0")
    assert done.returncode == 0, done.stderr
    assert "[1/1] tiny, seed 0" in done.stdout
    rows = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    assert {row["split"] for row in rows} == {"test_iid", "test_conflict"}
    assert {row["variant"] for row in rows} == {"", "zeros, too"}
    assert {row["prediction"] for row in rows if not row["variant"]} == {
        "combined", "tde_whole_0.5", "tde_pivot_0.5"
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
    assert {(row["null"], row["prediction"]) for row in effects} == {
        (null, f"tde_{kind}_0.5") for null in ("zeros", "mean", "blur") for kind in ("whole", "pivot")
    }
    assert all(int(row["objects"]) > 6 and float(row["mae"]) > 0 for row in effects)
    assert "## Effects of objects" in (tmp_path / "results.md").read_text()
    assert "tiny run: zeros, too" in (tmp_path / "results.md").read_text()
    assert (tmp_path / "figures" / "training_cost.svg").read_text().count("tiny run") >= 1

    again = ablate(f"--study={study}", f"--workdir={tmp_path}", "--seeds=0")
    assert again.returncode == 0, again.stderr
    assert "cfmlc_jax.main" not in again.stdout  # nothing is trained or evaluated anew
    assert list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines())) == rows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --study=FILE or --checkpoint=RUN"),
        (["--study=nowhere.py"], "--study=nowhere.py is not a Python file"),
        (["--study=tests/configs/tiny.py"], "has no get_study(quick)"),
        (["--study=STUDY", "--only=tinny"], "the study has no run 'tinny'; it has tiny"),
        (["--study=STUDY", "--seeds=a"], "give whole numbers separated by commas"),
        (["--checkpoint=nowhere"], "nowhere"),
        (["--checkpoint=nowhere", "--quick"], "are of a --study"),
    ],
)
def test_bad_arguments(arguments, message, study, tmp_path):
    arguments = [argument.replace("STUDY", str(study)) for argument in arguments]
    done = ablate(*arguments, f"--workdir={tmp_path / 'out'}")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_study_of_one_label(study, tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text(STUDY.replace("tests/configs/tiny.py", "configs/longtail_digits.py"))
    done = ablate(f"--study={bad}", f"--workdir={tmp_path / 'out'}")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "longtail_digits.py has one label an image" in done.stderr


def test_a_study_with_an_unknown_field(study, tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text(STUDY.replace("train.epochs", "train.epoks"))
    done = ablate(f"--study={bad}", f"--workdir={tmp_path / 'out'}")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "config.train.epoks, which is not a field" in done.stderr


def test_the_study_of_evidence_is_valid(monkeypatch):
    """Every run and variant is a configuration that the package takes."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import ablate as script

    for quick in (True, False):
        flags = script._parse(
            [f"--study={ROOT}/configs/studies/evidence.py", *(["--quick"] if quick else [])]
        )
        for run in script._study(flags)["runs"].values():
            for fields in ({}, *run["variants"].values()):
                config = script._with(script._base(ROOT / "configs/scenes.py"), run["fields"] | fields)
                assert config.train.epochs >= 1


def test_mean_and_deviation(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import ablate_tables

    assert ablate_tables.spread([1.0, 2.0, 3.0]) == "2.0 ± 1.0"
    assert ablate_tables.spread([4.25]) == "4.2"
    assert ablate_tables.spread([None, None]) == "–"
    with pytest.raises(InputError, match="no runs"):
        ablate_tables.write(Path("nowhere"), [], [])
