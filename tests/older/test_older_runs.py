"""Workdirs of the version before the restructuring (`record.py` wrote them): evaluated, resumed, predicted with, reported.

The expected numbers are that version's own, from the same checkpoints. On the machine that recorded them all are
bit-identical; the tolerances are for other processors and versions of JAX. Nearly equal logits of small networks
rank otherwise there: metrics of an evaluation are compared as those of the recorded logits, and metrics of a
resumed training only roughly.
"""

import dataclasses
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from record import RUNS, arrays, picture, samples

from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax.classify import scoring
from cfmlc_jax.predict import __main__ as predict
from cfmlc_jax.report import __main__ as report
from cfmlc_jax.results import read

HERE = Path(__file__).parent
TINY, DIGITS = HERE.parent / "configs" / "tiny.py", HERE.parents[1] / "configs" / "longtail_digits.py"
SCENES = {"data.scenes.num_train": 48, "data.scenes.num_test": 16, "data.test_splits": ("test_iid",)}
# What resumes the recorded trainings today, and what it says.
RESUMED = {
    "pat_t": (TINY, SCENES, "resuming at step 8 of 12"),
    "longtail": (
        f"{DIGITS}:smoke",
        {
            "data.longtail.largest": 60,
            "data.longtail.num_test": 8,
            "train.batch_size": 32,
            "evaluate.checkpoint": "last",
        },
        "resuming at step 5 of 20",
    ),
}
TOLERANCE = {"rtol": 2e-4, "atol": 2e-5}
# Of metrics of a resumed training, in percentage points: two of the 16 images change places in a ranking.
RANKS = 3
RANKED = {"metrics", "thresholds", "intervals", "context", "excess_fpr"}


@pytest.fixture
def unpacked(tmp_path):
    """Unpacks a recorded run: its workdir, and what was expected."""

    def unpack(name):
        with tarfile.open(HERE / f"{name}.tar.xz") as archive:
            archive.extractall(tmp_path / name, filter="data")
        return tmp_path / name / "workdir", tmp_path / name / "expected"

    return unpack


def checkpoint_of(workdir):
    return max((workdir / "checkpoints").iterdir(), key=lambda path: int(path.name))


def metrics_of(path):
    """What was logged, without times."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if not key.startswith(("time/", "memory/"))}
        for line in lines
    ]


def leaves(tree, place=()):
    """(place, value) of JSON's leaves, by today's names."""
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in entries:
        inner = (*place, "context" if key == "company" else key)
        if isinstance(value, dict | list):
            yield from leaves(value, inner)
        else:
            yield inner, value


def assert_same_json(ours, theirs, ranks=1e-3):
    """The same places and values; those that depend on ranks may differ by `ranks`."""
    ours, theirs = dict(leaves(ours)), dict(leaves(theirs))
    assert ours.keys() == theirs.keys()
    for place, value in theirs.items():
        if isinstance(value, float) and ours[place] is not None:
            ranked = RANKED.intersection(place) or str(place[-1]).startswith("val/")
            atol = ranks if ranked else 1e-3
            assert ours[place] == pytest.approx(value, rel=1e-3, abs=atol, nan_ok=True), place
        else:
            assert ours[place] == value, place


def take_recorded_logits(monkeypatch, evaluated):
    """Evaluations go on with the logits in a recorded report, which must be the same but for rounding."""
    score_readable = scoring.score_readable

    def with_recorded_logits(*args, **options):
        by_weights, source = score_readable(*args, **options)
        for weights, scores in by_weights.items():
            (file,) = evaluated.glob(f"scores_*{weights}.npz")
            with np.load(file) as theirs:
                recorded = {name: theirs[name] for name in scores.logits}
            for name, logits in recorded.items():
                np.testing.assert_allclose(scores.logits[name], logits, err_msg=name, **TOLERANCE)
            by_weights[weights] = dataclasses.replace(scores, logits=recorded)
        return by_weights, source

    monkeypatch.setattr(scoring, "score_readable", with_recorded_logits)


def loaded(path):
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", RUNS)
def test_an_older_checkpoint_is_evaluated(command, unpacked, name, monkeypatch):
    workdir, expected = unpacked(name)
    take_recorded_logits(monkeypatch, expected / "evaluated")
    code, _, err = command("--mode=evaluate", f"--checkpoint={checkpoint_of(workdir)}", "--workdir=own")
    assert code == 0, err
    assert_same_json(loaded(Path("own/report/results.json")), loaded(expected / "evaluated" / "results.json"))
    files = sorted(path.name for path in (expected / "evaluated").glob("scores_*.npz"))
    assert files
    for file in files:
        with np.load(Path("own/report") / file) as ours, np.load(expected / "evaluated" / file) as theirs:
            assert set(ours) == set(theirs)
            for array in theirs:
                tolerance = {"atol": 2e-3} if theirs[array].dtype == np.float16 else TOLERANCE
                np.testing.assert_allclose(ours[array], theirs[array], err_msg=array, **tolerance)


@pytest.mark.parametrize("name", RUNS)
def test_an_older_checkpoint_predicts(unpacked, name, tmp_path, monkeypatch):
    workdir, expected = unpacked(name)
    monkeypatch.chdir(tmp_path)
    picture().save("picture.png")
    flags = [f"--checkpoint={checkpoint_of(workdir)}", "--format=jsonl", "--output=ours.jsonl", "--top=10"]
    assert predict.main([*flags, "picture.png"]) == 0
    assert_same_json(loaded(Path("ours.jsonl")), loaded(expected / "predicted.jsonl"))


@pytest.mark.parametrize("name", RESUMED)
def test_an_older_training_is_resumed(command, unpacked, name):
    workdir, expected = unpacked(name)
    config, fields, resuming = RESUMED[name]
    flags = [f"--config.{field}={value}" for field, value in fields.items()]
    code, out, err = command(
        f"--config={config}", *flags, "--config.train.checkpoint_every=0", f"--workdir={workdir}"
    )
    assert code == 0, err
    assert resuming in out
    assert_same_json(
        metrics_of(workdir / "metrics.jsonl"), metrics_of(expected / "resumed" / "metrics.jsonl"), RANKS
    )
    names, values = samples(arrays(checkpoint_of(workdir)))
    theirs = loaded(expected / "resumed" / "arrays.json")
    assert set(names) == set(theirs)
    # Four steps of at most 1e-3, where Adam divides small gradients by their own size. The momentum of 15 steps of
    # SGD, with values up to 0.17, was found to differ by up to 4e-3 between two processors.
    for array, ours in zip(names, values, strict=True):
        atol = 6e-3 if "/trace/" in array else 3e-4
        np.testing.assert_allclose(ours, theirs[array], rtol=5e-3, atol=atol, err_msg=array)
    assert_same_json(
        loaded(workdir / "report" / "results.json"), loaded(expected / "resumed" / "results.json"), RANKS
    )


def test_an_older_training_of_other_fields_is_refused_by_todays_names(command, unpacked):
    workdir, _ = unpacked("longtail")
    before = (workdir / "config.json").read_text()
    code, _, err = command(f"--config={DIGITS}:smoke", f"--workdir={workdir}")
    assert code == 1
    assert "is a run of another configuration" in err
    assert "data.longtail.largest: 60 -> 400" in err
    assert "take another --workdir" in err
    assert (workdir / "config.json").read_text() == before


def test_the_best_older_checkpoint_is_chosen_by_its_rank(unpacked):
    workdir, _ = unpacked("pat_t")
    assert checkpoint_of(workdir).name == "8"
    assert checkpoints.find(workdir).name == "6"


@pytest.mark.parametrize(("name", "metric"), [("pat_t", "mAP_voc"), ("longtail", "top1")])
def test_an_older_evaluation_is_reported(unpacked, capsys, name, metric):
    workdir, expected = unpacked(name)
    (expected / "evaluated").rename(workdir / "report")
    assert report.main([str(workdir)]) == 0, capsys.readouterr().err
    page = (workdir / "report" / "index.html").read_text()
    stored = loaded(workdir / "report" / "results.json")
    for split in read.run(workdir).splits:
        assert_same_json(split.results.to_json(), stored[split.name])
        for metrics in stored[split.name]["average"]["metrics"].values():
            assert f"{metrics[metric]:.2f}" in page
