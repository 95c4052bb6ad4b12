"""The command that chooses a strength: what it scores, prints and refuses."""

from types import SimpleNamespace

import numpy as np
import pytest

from cfmlc_jax import config as configs
from cfmlc_jax.results.scores import Scores
from scripts import choose_strength


@pytest.fixture
def checkpoint(monkeypatch):
    """A checkpoint of exclusive cells, whose scores are random and whose context is what the labels say."""
    config = configs.default()
    config.data.source, config.data.scenes.num_test = "scenes", 40
    config.patches.source, config.effect.kinds, config.views.image_size = "map", ("whole",), 64
    config = configs.validate(config)
    opened = SimpleNamespace(path="runs/cells", config=config, parts=None, model=None)
    monkeypatch.setattr(choose_strength.opening, "open", lambda path, config=None: opened)
    asked = []

    def score_readable(parts, score, model, split, **options):
        random = np.random.default_rng(0).normal(size=split.labels.shape).astype(np.float32)
        return {"average": Scores({"combined": random, "null_owner": 2 * random}, split.labels)}, split

    monkeypatch.setattr(
        choose_strength.scoring, "score_step", lambda config, parts, kinds: asked.append(config)
    )
    monkeypatch.setattr(choose_strength.scoring, "score_readable", score_readable)
    return SimpleNamespace(config=config, asked=asked)


def test_a_strength_is_chosen_and_printed(checkpoint, capsys):
    flags = [
        "--owners=runs/lender",
        "--classes=6",
        "--effective_share=0.5",
    ]  # less would take the solver long
    assert choose_strength.main(["--checkpoint=runs/cells", *flags]) == 0
    out = capsys.readouterr().out
    assert "correlation of labels" in out
    assert out.count("\n| 0.") == 9
    chosen = out.splitlines()[-1]
    # What the strength was chosen for is printed with it.
    assert chosen.startswith("chosen: --config.effect.kinds='(")
    assert "--config.effect.owners=runs/lender --config.effect.classes=6 --config.effect.alphas='(" in chosen
    assert [(config.effect.owners, config.effect.classes) for config in checkpoint.asked] == [
        ("runs/lender", 6)
    ]


def test_without_flags_the_effect_is_the_checkpoints(checkpoint, capsys):
    assert choose_strength.main(["--checkpoint=runs/cells", "--effective_share=0.5"]) == 0
    out = capsys.readouterr().out
    assert "--config.effect.owners='' --config.effect.classes=10 " in out
    assert [config.effect.classes for config in checkpoint.asked] == [10]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--effective_share=2"], "effective_share 2.0 must be above 0 and at most 1"),
        (["--kind=pivot"], "cells of a map cannot be removed from the image"),
        (["--kind=whole", "--classes=6"], "--owners and --classes are for --kind=owner"),
        (["--classes=0"], "--classes"),
    ],
)
def test_what_cannot_be_chosen_is_refused(checkpoint, capsys, flags, message):
    assert choose_strength.main(["--checkpoint=runs/cells", *flags]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_single_label_checkpoint_is_refused(checkpoint, capsys):
    checkpoint.config.unlock()
    checkpoint.config.task = "single_label"
    assert choose_strength.main(["--checkpoint=runs/cells"]) == 1
    assert "its labels exclude each other" in capsys.readouterr().err
