"""The strength that a reweighted validation split chooses."""

import numpy as np
import pytest

from cfmlc_jax.classify import strength
from cfmlc_jax.errors import InputError
from cfmlc_jax.results.scores import Scores


def leaning(rng, n=4000):
    """Scores that see each of two partners well, and lean on the other; the counterfactual is what context gives."""
    first = rng.random(n) < 0.4
    second = np.where(rng.random(n) < 0.9, first, ~first)
    labels = np.stack([first, second], axis=1)
    context = 2.0 * labels[:, ::-1]
    evidence = 2.0 * labels + rng.normal(size=(n, 2))
    logits = {"combined": (evidence + context).astype(np.float32), "null_owner": context.astype(np.float32)}
    return Scores(logits, labels.astype(np.uint8))


def test_weights_uncover_what_context_hides(rng):
    """Biased images want context; with independent labels it is noise, which the full effect removes."""
    scores = leaning(rng)
    chosen = strength.choose(scores, "owner", (0.5, 1.0), 0.2)
    assert chosen.alphas == (0.0, 0.5, 1.0)
    assert int(np.argmax(chosen.biased)) == 0
    assert chosen.alpha == 1.0
    assert chosen.weighted[2] > chosen.weighted[0] + 5


def test_without_weights_no_strength_is_the_best(rng):
    chosen = strength.choose(leaning(rng), "owner", (0.5,), 1.0)
    assert chosen.alpha == 0
    assert chosen.weighted == chosen.biased


def test_one_counterfactual_for_all_images_is_as_good_at_every_strength(rng):
    scores = leaning(rng, 300)
    null = np.full_like(scores.logits["combined"], 1.5)
    fixed = Scores({"combined": scores.logits["combined"].round(2), "null_whole": null}, scores.labels)
    chosen = strength.choose(fixed, "whole", (0.5, 1.0, 2.0), 0.5)
    assert chosen.alpha == 0
    np.testing.assert_allclose(chosen.weighted, chosen.weighted[0], rtol=1e-3)


def test_bad_shares_are_refused(rng):
    with pytest.raises(InputError, match="effective_share 0 must be above 0"):
        strength.choose(leaning(rng, 20), "owner", (1.0,), 0)
