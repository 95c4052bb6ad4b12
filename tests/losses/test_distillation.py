"""Distillation: hand values, gradients, limits; and as a term of PAT's loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfmlc_jax.classify import pat
from cfmlc_jax.classify.patching import Whole
from cfmlc_jax.losses.distillation import distillation


def test_cross_entropy_and_its_gradient(rng):
    logits, teacher = rng.normal(size=(2, 4, 3)).astype(np.float32)
    p, q = 1 / (1 + np.exp(-teacher)), 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(
        distillation(logits, teacher), -p * np.log(q) - (1 - p) * np.log(1 - q), rtol=1e-5
    )
    by_logits, by_teacher = jax.grad(lambda *x: distillation(*x).sum(), argnums=(0, 1))(logits, teacher)
    np.testing.assert_allclose(by_logits, q - p, atol=1e-6)
    np.testing.assert_array_equal(by_teacher, 0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_extreme_logits(dtype):
    logits = jnp.asarray([[-1000.0, 1000.0, 1000.0]], dtype)
    teacher = jnp.asarray([[-1000.0, 1000.0, -1000.0]], dtype)
    entries = distillation(logits, teacher)
    assert entries.dtype == jnp.float32
    np.testing.assert_array_equal(entries, [[0, 0, 1000]])


class Patches(Whole):
    """Patches whose evidence is given."""

    def evidence(self, outputs):
        return outputs.evidence


class Outputs:
    def __init__(self, whole, patch):
        self.whole, self.evidence = whole[:, None], (patch[:, None], patch[:, None])


class Pooling:
    def logits(self, attention, score):
        return score[:, 0]


def test_the_whole_learns_from_the_patches_and_these_from_the_labels(rng):
    whole, patch = jnp.asarray(rng.normal(size=(2, 4, 3)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 2, (4, 3)), jnp.float32)
    ways = {"patching": Patches(2), "pooling": Pooling(), "loss": lambda x, y: (x * y).sum()}

    def parts(whole, patch, labels, distil):
        return pat.loss_parts(Outputs(whole, patch), labels, distil=distil, **ways)

    plain, distilled = (parts(whole, patch, labels, distil) for distil in (False, True))
    assert distilled["loss_patch"] == plain["loss_patch"] == (patch * labels).sum()
    assert plain["loss_whole"] == (whole * labels).sum()
    np.testing.assert_allclose(distilled["loss_whole"], distillation(whole, patch).sum())
    gradient = jax.grad(lambda patch: sum(parts(whole, patch, labels, True).values()))(patch)
    np.testing.assert_array_equal(gradient, labels)
