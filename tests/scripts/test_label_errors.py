"""Labels that are flipped on purpose, and the table of what is found of them; cleanlab is replaced."""

import sys
from pathlib import Path

import numpy as np
import pytest

from cfmlc_jax.data.sources.scenes import Scenes
from cfmlc_jax.errors import InputError

SCRIPT = "label_errors"


def test_as_many_labels_are_added_as_removed(script):
    labels = (np.random.default_rng(1).random((100, 5)) < 0.3).astype(np.uint8)
    flipped = script.flip(labels, 0.1, np.random.default_rng(0))
    count = round(0.1 * labels.sum())
    assert (flipped & (labels == 1)).sum() == (flipped & (labels == 0)).sum() == count
    np.testing.assert_array_equal(script.flip(labels, 0.1, np.random.default_rng(0)), flipped)


def test_the_table_counts_what_is_found(script, monkeypatch):
    labels = np.array([[1, 0], [0, 1], [1, 1], [0, 0]], np.uint8)
    flipped = np.array([[True, False], [True, False], [False, False], [False, False]])
    scores = np.array([[0.1, 0.2], [0.6, 0.9], [0.9, 0.9], [0.3, 0.7]], np.float32)
    monkeypatch.setattr(script, "cleanlab_issues", lambda labels, scores: flipped | (scores == scores[3, 0]))
    *_, first, second = script.report(labels, scores, flipped).splitlines()
    # 3 shown, both found; the added label and the removed one.
    assert [cell.strip() for cell in first.split("|")[2:-1]] == ["3", "66.67", "100.00", "100.00", "100.00"]
    # The two largest differences are 0.9 and 0.7: one flipped label, and one that is right.
    assert [cell.strip() for cell in second.split("|")[2:-1]] == ["2", "50.00", "50.00", "0.00", "100.00"]


def test_the_last_step_scores_the_other_half(script, monkeypatch, tmp_path, capsys):
    """The best checkpoint is chosen by the labels of that half, some of which are flipped."""
    scored = []

    def run_here(module, *arguments):
        if module == "cfmlc_jax.main":
            run = Path(next(text for text in arguments if text.startswith("--workdir=")).partition("=")[2])
            for name in ("80", "400", "1200", "1200.orbax-checkpoint-tmp"):
                (run / "checkpoints" / name).mkdir(parents=True)
        else:
            _, checkpoint, _, out = arguments
            half = out[-len("a.npz")]
            rows = np.arange("ab".index(half), 40, 2)
            source = Scenes("train", num_scenes=40)
            noisy = source.labels ^ script.flip(source.labels, 0.1, np.random.default_rng(0))
            np.savez(out.partition("=")[2], labels=noisy[rows], scores=np.full((20, 10), 0.5))
            scored.append((half, Path(checkpoint).relative_to(tmp_path)))

    monkeypatch.setattr(script, "_python", run_here)
    monkeypatch.setattr(script, "cleanlab_issues", lambda labels, scores: labels > scores)
    assert script.main([f"--workdir={tmp_path}", "--scenes=40", "--flipped=0.1"]) == 0
    assert scored == [("b", Path("run_a/checkpoints/1200")), ("a", Path("run_b/checkpoints/1200"))]
    assert capsys.readouterr().out == (tmp_path / "table.md").read_text()
    assert script.main([f"--workdir={tmp_path}", "--scenes=40", "--flipped=0.2"]) == 1
    err = capsys.readouterr().err
    assert f"{tmp_path} was made with --scenes=40 --flipped=0.1, not with --scenes=40 --flipped=0.2" in err
    assert len(scored) == 2


def test_cleanlab_is_asked_for(script, monkeypatch):
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    with pytest.raises(InputError, match="pip install cleanlab"):
        script.cleanlab_issues(np.zeros((2, 2)), np.zeros((2, 2)))


def test_a_share_is_below_a_half(script, capsys):
    assert script.main(["--flipped=0.5"]) == 1
    assert "'0.5' is not a share above 0 and below 0.5" in capsys.readouterr().err
