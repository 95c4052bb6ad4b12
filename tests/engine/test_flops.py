"""Floating-point operations by hand, and beside XLA's count."""

import jax
import jax.numpy as jnp
import pytest

from cfmlc_jax.engine import flops


def operations(function, *shapes):
    return flops.count(
        jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
    )


def convolution(stride=1, padding="SAME", groups=1):
    def function(x, w):
        return jax.lax.conv_general_dilated(
            x,
            w,
            (stride, stride),
            padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    return function


def test_products():
    assert operations(jnp.matmul, (5, 7), (7, 11)) == 2 * 5 * 7 * 11
    assert operations(jnp.matmul, (3, 5, 7), (3, 7, 11)) == 3 * 2 * 5 * 7 * 11
    assert operations(lambda x: jnp.exp(x) + x, (100,)) == 0


def test_convolutions_without_the_zeros_of_padding():
    assert operations(convolution(padding="VALID"), (2, 6, 5, 3), (3, 3, 3, 4)) == 2 * 2 * 4 * 3 * 4 * 9 * 3
    # Along one axis of 6 with padding, the first and the last output miss one of three inputs.
    assert operations(convolution(), (1, 6, 6, 3), (3, 3, 3, 4)) == 2 * 4 * 3 * (6 * 3 - 2) ** 2
    assert operations(convolution(groups=4), (1, 6, 6, 4), (1, 1, 1, 4)) == 2 * 4 * 36


def test_loops_and_branches():
    product = lambda x: x @ x  # noqa: E731
    once = 2 * 4**3
    assert operations(lambda x: jax.lax.fori_loop(0, 5, lambda _, x: x @ x, x), (4, 4)) == 5 * once
    assert operations(lambda x: jax.lax.cond(x[0, 0] > 0, product, lambda x: x, x), (4, 4)) == once
    assert operations(jax.jit(product), (4, 4)) == once
    # The gradient has two products; rematerialised, the first is computed again.
    squared = lambda x: jnp.sin(x @ x).sum()  # noqa: E731
    assert operations(jax.value_and_grad(squared), (4, 4)) == 3 * once
    assert operations(jax.value_and_grad(jax.checkpoint(squared)), (4, 4)) == 4 * once


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (2, 4)])
def test_gradients_of_convolutions_agree_with_xla(stride, groups):
    loss = lambda x, w: (convolution(stride, "SAME", groups)(x, w) ** 2).sum()  # noqa: E731
    shapes = (4, 16, 16, 8), (3, 3, 8 // groups, 16)
    gradient = jax.grad(loss, (0, 1))
    abstract = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    counted_by_xla = jax.jit(gradient).lower(*abstract).cost_analysis()["flops"]
    # XLA counts the squares and their gradients too.
    assert operations(gradient, *shapes) == pytest.approx(counted_by_xla, rel=0.03)


def test_what_no_output_depends_on_does_not_count():
    def function(x):
        unused = x @ x
        return jnp.tanh(x @ x), (unused @ unused)[0]

    used = operations(lambda x: function(x)[0], (5, 5))
    assert used == 2 * 5**3
    assert operations(function, (5, 5)) == 3 * used
