"""Products with a kernel: chosen by the platform that is lowered for, differentiable in both modes."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfmlc_jax.models.layers.convolution import Conv
from cfmlc_jax.models.layers.images import IMAGES
from cfmlc_jax.models.layers.linear import Dense
from cfmlc_jax.models.layers.matrix_products import Depthwise, Rows, Tiles, Windows, product

PRODUCTS = {
    "rows": (Rows(), (2, 3, 4), (4, 5)),
    "1×1, strided": (Windows(1, 2, 0), (2, 5, 4, 4), (1, 1, 4, 5)),
    "small maps, strided": (Windows(3, 2, 1), (2, 4, 3, 4), (3, 3, 4, 5)),
    "mapped over images": (Windows(3, 1, 1), (3, 2, 2, 2, 4), (3, 3, 4, 5)),
    "tiles": (Tiles(2), (2, 4, 6, 3), (2, 2, 3, 5)),
    "tiles mapped over images": (Tiles(2), (3, 2, 2, 4, 3), (2, 2, 3, 5)),
    "depthwise": (Depthwise(3), (2, 4, 5, 3), (3, 3, 1, 3)),
    "depthwise mapped over images": (Depthwise(5), (3, 2, 4, 3, 2), (5, 5, 1, 2)),
}


def drawn(rng, *shapes):
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def run(contraction, kernel, x):
    """The product; of arrays with one axis more than the contraction's mapped over it."""
    one = functools.partial(product, contraction)
    if not isinstance(contraction, Rows) and x.ndim == 5:
        return jax.vmap(one, (0, None))(x, kernel)
    return one(x, kernel)


@pytest.mark.parametrize("name", PRODUCTS)
def test_every_derivative_is_that_of_plain_operations(rng, name):
    """Value, both gradients, a tangent, and a Hessian-vector product, whose tangents are of all three."""
    contraction, *shapes = PRODUCTS[name]
    x, kernel, x_dot, kernel_dot = drawn(rng, *shapes, *shapes)

    def loss(product, x, kernel):
        return jnp.sin(product(x, kernel)).sum()

    @functools.partial(jax.jit, static_argnums=0)
    def everything(product):
        f = functools.partial(loss, product)
        gradient = jax.grad(f, (0, 1))
        along = ((x, kernel), (x_dot, kernel_dot))
        mapped = jax.linearize(f, x, kernel)[1](x_dot, kernel_dot)
        reverse = jax.grad(lambda *at: sum((a * b).sum() for a, b in zip(gradient(*at), along[1])), (0, 1))
        return product(x, kernel), jax.jvp(f, *along), mapped, jax.jvp(gradient, *along), reverse(*along[0])

    ours = everything(lambda x, kernel: run(contraction, kernel, x))
    theirs = everything(contraction.plain)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), ours, theirs)


@pytest.mark.parametrize("axes", [(0, 0), (None, 0)])
@pytest.mark.parametrize("contraction", [Windows(3, 1, 1), Depthwise(3)])
def test_gradients_of_each_example(rng, axes, contraction):
    kernels = (3, 3, 3, 4, 5) if isinstance(contraction, Windows) else (3, 3, 3, 1, 4)
    x, kernel = drawn(rng, (2, 2, 2, 4) if axes[0] is None else (3, 2, 2, 2, 4), kernels)

    def gradients(product):
        return jax.vmap(jax.grad(lambda x, kernel: jnp.sin(product(x, kernel)).sum(), (0, 1)), axes)(
            x, kernel
        )

    ours, theirs = gradients(functools.partial(product, contraction)), gradients(contraction.plain)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), ours, theirs)


def lowered(layer, shape, platform):
    """The training step of a layer mapped over images, as lowered here for another platform."""
    x = jnp.zeros(shape)
    params = jax.eval_shape(layer.init, jax.random.key(0), x[0])

    def loss(params, x):
        return jax.vmap(lambda one: layer.apply(params, one), axis_name=IMAGES)(x).sum()

    step = jax.jit(jax.value_and_grad(loss, (0, 1))).trace(params, x)
    return step.lower(lowering_platforms=(platform,)).as_text()


def results(text, operation):
    """Shapes of what an operation gives, as 3x5x6."""
    return re.findall(rf"stablehlo\.{operation}.*-> tensor<([\dx]+)xf32>", text)


def test_on_cpus_the_weight_gradient_is_one_product_over_all_images():
    text = lowered(Conv(6, 1), (3, 2, 4, 4, 5), "cpu")
    assert "5x6" in results(text, "dot_general")
    assert "3x5x6" not in results(text, "dot_general")
    # And no matrix is transposed for it.
    assert "6x5" not in results(text, "dot_general")
    assert not results(text, "convolution")


def test_on_cpus_nothing_convolves_tiles_and_channels():
    """A depthwise kernel's gradient is a loop over its taps."""
    depthwise = lowered(Conv(5, 7, groups=5), (3, 2, 4, 4, 5), "cpu")
    assert not results(depthwise, "convolution")
    assert "stablehlo.while" in depthwise
    tiles = lowered(Conv(6, 2, 2, padding=0), (3, 2, 4, 4, 5), "cpu")
    assert not results(tiles, "convolution")
    assert "20x6" in results(tiles, "dot_general")


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_other_platforms_get_plain_operations(platform):
    assert "6x4x4x5" in results(lowered(Conv(5, 7, groups=5), (3, 2, 4, 4, 5), platform), "convolution")
    assert not results(lowered(Conv(6, 2, 2, padding=0), (3, 2, 4, 4, 5), platform), "dot_general")
    assert not results(lowered(Conv(6, 1), (3, 2, 4, 4, 5), platform), "dot_general")
    assert not results(lowered(Conv(6, 3), (3, 2, 2, 2, 5), platform), "dot_general")
    assert "3x2x4x6" in results(lowered(Dense(6), (3, 2, 4, 5), platform), "dot_general")


def test_one_program_for_several_platforms():
    exported = jax.export.export(
        jax.jit(lambda x: product(Windows(1, 1, 0), x, jnp.ones((1, 1, 4, 5)))), platforms=("cpu", "tpu")
    )(jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, 3, 3, 4"), jnp.float32))
    np.testing.assert_array_equal(exported.call(jnp.ones((2, 3, 3, 4))), jnp.full((2, 3, 3, 5), 4.0))


def test_without_jit(rng):
    x, kernel = drawn(rng, (2, 4), (4, 5))
    with jax.disable_jit():
        y = product(Rows(), x, kernel)
    np.testing.assert_allclose(y, x @ kernel, rtol=1e-6)


def test_operands_are_of_one_type():
    with pytest.raises(TypeError, match="product of bfloat16 and float32"):
        product(Rows(), jnp.ones((2, 4), jnp.bfloat16), jnp.ones((4, 5)))
