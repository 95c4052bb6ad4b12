"""Shapes beside functions: what fits, what is refused and with which words, and that the rooms have them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfmlc_jax import losses, metrics
from cfmlc_jax.causal import effects, mechanisms, patches, views
from cfmlc_jax.shapes import shaped


@shaped("b p k, 1 ..., *, _ ... -> b k, ...")
def everything(x, y=None, anything=None, z=None):
    return x.sum(axis=1), y[0]


def test_letters_numbers_and_any_axes_fit():
    x, y = np.zeros((2, 3, 4)), np.zeros((1, 7, 8))
    assert [part.shape for part in everything(x, y, "text", np.zeros((9, 7, 8)))] == [(2, 4), (7, 8)]
    assert everything(x, y=y)[0].shape == (2, 4)
    assert everything.__name__ == "everything"


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 3), (1, 7)), r"everything: x has shape \(2, 3\), not \[b, p, k\]"),
        (((2, 3, 4), (2, 7)), r"everything: y has shape \(2, 7\), not \[1, \.\.\.\]"),
        (((2, 3, 4), ()), r"everything: y has shape \(\), not \[1, \.\.\.\]"),
        (
            ((2, 3, 4), (1, 7), (), (2, 8)),
            r"everything: z has shape \(2, 8\), not \[_, \.\.\.\] with \.\.\. = \(7,\)",
        ),
    ],
)
def test_mismatched_shapes_are_refused(shapes, message):
    with pytest.raises(ValueError, match=message):
        everything(*(np.zeros(shape) for shape in shapes))


def test_results_are_checked():
    @shaped("b k -> b")
    def wrong(x):
        return x.sum(axis=0)

    with pytest.raises(ValueError, match=r"wrong: result has shape \(3,\), not \[b\] with b = 2"):
        wrong(np.zeros((2, 3)))


def test_traced_arrays_and_lists_are_taken():
    assert jax.jit(patches.patch_logits)(jnp.zeros((2, 3, 4)), jnp.zeros((2, 3, 4))).shape == (2, 4)
    assert losses.class_weights([3, 2]).shape == (2,)
    with pytest.raises(ValueError, match="patch_logits: scores has shape"):
        jax.eval_shape(patches.patch_logits, jnp.zeros((2, 3, 4)), jnp.zeros((2, 1, 4)))


# Wrong shapes that broadcasting would let through.
@pytest.mark.parametrize(
    ("function", "shapes", "argument"),
    [
        (patches.patch_logits, [(2, 3, 4), (2, 1, 4)], "scores"),
        (effects.combine, [(2, 4), (1, 4)], "patch"),
        (effects.pivot_counterfactual, [(2, 3, 4), (2, 3, 1)], "removed"),
        (mechanisms.compose, [(2, 8, 8, 3), (2, 8, 8, 3), (2, 8, 8, 3)], "mask"),
        (views.without_one, [(2, 4, 8, 8, 3), (2, 4, 8, 1, 3), (2,)], "null_patches"),
        (losses.asymmetric_loss, [(2, 4), (4,)], "labels"),
        (losses.weighted_cross_entropy, [(2, 4), (2, 4), (1,)], "weights"),
        (losses.absolute_error, [(2, 8, 8, 3), (2, 8, 8, 1)], "targets"),
        (losses.critic_cost, [(2,), (3,)], "fake"),
        (metrics.precision_recall, [(5, 4), (5, 1)], "labels"),
    ],
)
def test_functions_of_each_room_refuse_silent_broadcasting(function, shapes, argument):
    arrays = [jnp.zeros(shape) for shape in shapes]
    extra = [2] if function is views.without_one else []
    with pytest.raises(ValueError, match=rf"^{function.__name__}: {argument} has shape"):
        function(*arrays, *extra)
