"""Functions of JAX as ONNX graphs: ONNX Runtime computes what JAX does, for any batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from jax import lax

import cfmlc_jax
from cfmlc_jax.causal.patches import exclusive_logits
from cfmlc_jax.errors import InputError
from cfmlc_jax.export import onnx_file
from cfmlc_jax.models.layers import matrix_products

SIDE = 8
KERNEL = np.random.default_rng(1).normal(size=(3, 3, 3, 4)).astype(np.float32)
MATRIX = np.random.default_rng(2).normal(size=(3, 5)).astype(np.float32)


def floats(images):
    return images.astype(jnp.float32) / 255


FUNCTIONS = {
    "arithmetic": lambda x: jnp.abs(x - 0.5) * x / (x + 2) - jnp.minimum(x, 0.3) + jnp.maximum(-x, -0.2),
    "powers": lambda x: jnp.square(x) + x**3 + lax.pow(x + 1, 2 * x) + jnp.sqrt(x) + lax.rsqrt(x + 1),
    "exponentials": lambda x: jnp.exp(-x) + jnp.log(x + 1) + jnp.tanh(x) + jax.nn.sigmoid(x),
    "gelu": lambda x: jax.nn.gelu(x - 0.5, approximate=False),
    "log1p": lambda x: jnp.log1p(-(x**9)[:, :, :, :1] * 0.99) + jnp.log1p(1e-7 * x[..., 1:2]) * 1e6,
    "expm1": lambda x: jnp.expm1(-2 * x) + jnp.expm1(-1e-6 * x) * 1e5 + jnp.expm1(-200 * x),
    "comparisons": lambda x: jnp.where((x > 0.2) & ~(x >= 0.9) | (x < 0.1) | (x == 0.5), x, 1 - x),
    "differing": lambda x: (jnp.floor(4 * x) != 2).astype(jnp.float32) + (x <= 0.5),
    "finite": lambda x: jnp.isfinite(1 / jnp.floor(2 * x)).astype(jnp.float32),
    "clip": lambda x: lax.clamp(0.2, x, 0.7),
    "logsumexp": lambda x: jax.nn.logsumexp(100 * x, axis=(1, 2)),
    "softmax": lambda x: jax.nn.softmax(x.reshape(x.shape[0], -1, 3), axis=1),
    "reductions": lambda x: x.max(axis=1) - x.min(axis=2) + x.sum(axis=(1, 2), keepdims=True)[:, 0],
    "argmax": lambda x: (x.argmax(axis=2) * 2).astype(jnp.float32),
    "shapes": lambda x: x.reshape(x.shape[0], 4, 2, 24).transpose(0, 2, 1, 3)[:, :, ::2],
    "one_of": lambda x: x[:, 3] + x[:, :, 0] + lax.index_in_dim(x, 2, 1, keepdims=False),
    "windows": lambda x: x[:, 1:5, 2:6] + lax.slice_in_dim(x, 0, 8, 2, axis=1)[:, :, 4:],
    "reversed": lambda x: x[:, ::-1] - jnp.flip(x, 2),
    "joined": lambda x: jnp.concatenate([x, 2 * x, jnp.stack([x[:, 0], x[:, 1]], axis=1)], axis=1),
    "split": lambda x: jnp.split(x, [1, 4], axis=1)[1],
    "rolled": lambda x: jnp.roll(x, (2, -1), (1, 2)),
    "padded": lambda x: jnp.pad(x, [(0, 0), (1, 2), (0, 1), (0, 0)], constant_values=-1.5),
    "broadcast": lambda x: x.mean(axis=(1, 2), keepdims=True) * jnp.ones((1, 4, 1, 3)) + jnp.arange(3.0).reshape(1, 1, 1, 3),
    "constant": lambda x: jnp.concatenate([x, jnp.broadcast_to(jnp.arange(3.0), x.shape)], axis=1),
    "table": lambda x: x * jnp.take(jnp.asarray(MATRIX), jnp.array([2, 0, 1]), axis=0)[:, 0].reshape(1, 1, 1, 3),
    "matrix": lambda x: x @ MATRIX,
    "transposed": lambda x: jnp.einsum("bhwc,dc->bdhw", x, MATRIX.T),
    "batched": lambda x: jnp.einsum("bhwc,bvwc->bwhv", x, x[:, :5]),
    "several": lambda x: jnp.einsum("bhwc,bhvd->bcvd", x, x[..., :2]),
    "outer": lambda x: jnp.einsum("c,bhwc->bhw", MATRIX[:, 0], x),
    "convolution": lambda x: lax.conv_general_dilated(
        x, KERNEL, (2, 1), [(1, 0), (2, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC"), rhs_dilation=(1, 2)
    ),
    "groups": lambda x: lax.conv_general_dilated(
        x, KERNEL[:, :, :1, :3], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=3
    ),
    "product": lambda x: matrix_products.product(matrix_products.Windows(3, 2, 1), x, KERNEL),
    "vmapped": lambda x: jax.vmap(lambda image: matrix_products.product(matrix_products.Rows(), image, MATRIX))(x),
    "unused": jax.vmap(lambda image: (lax.axis_index("i"), 2 * image)[1], axis_name="i"),
    "exclusive": lambda x: exclusive_logits(8 * (x.reshape(x.shape[0], 64, 3) - 0.6)),
}  # fmt: skip


def write(path, function, opset=onnx_file.DEFAULT):
    onnx_file.write(path, lambda images: {"y": function(floats(images))}, SIDE, {"model": "m"}, opset)
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_results_are_those_of_jax(tmp_path, rng, name):
    function = FUNCTIONS[name]
    session = write(tmp_path / "f.onnx", function)
    for batch in (1, 3):
        images = rng.integers(0, 256, (batch, SIDE, SIDE, 3), np.uint8)
        (y,) = session.run(None, {"images": images})
        with jax.numpy_rank_promotion("allow"):
            expected = np.asarray(function(floats(images)))
        assert y.shape == expected.shape
        np.testing.assert_allclose(y, expected, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize(
    ("name", "head"),
    [("q2l_resnet_small", "linear"), ("resnet_small", "ml_decoder"), ("resnet32_cifar", "mechanisms")],
)
def test_models_of_other_heads(tmp_path, name, head):
    model = cfmlc_jax.create_model(name, 5, image_size=32, head=head)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    variables = jax.jit(functools.partial(model.init, train=False))(
        jax.random.key(0), floats(images)[:, None]
    )

    def function(images):
        return {"whole": model.apply(variables, floats(images)[:, None], train=False).whole[:, 0]}

    onnx_file.write(tmp_path / "m.onnx", function, 32, {"model": name}, onnx_file.DEFAULT)
    outputs = onnx_file.Session(tmp_path / "m.onnx")(images)
    expected = jax.jit(function)(images)["whole"]
    np.testing.assert_allclose(outputs["whole"], expected, rtol=1e-5, atol=1e-5)


def test_an_unknown_operation_is_named(tmp_path):
    with pytest.raises(
        InputError, match=r"needs JAX's operation 'cumsum', which is not written as ONNX; export it as"
    ):
        write(tmp_path / "f.onnx", lambda x: jnp.cumsum(x, axis=1))
    assert not (tmp_path / "f.onnx").exists()


def test_weights_are_stored_once_and_computed_beforehand(tmp_path):
    # The sum with 1 is of weights alone; the matrix that only it needs is left out.
    matrix = jnp.asarray(MATRIX)
    session = write(tmp_path / "f.onnx", lambda x: x @ (matrix + 1) + jnp.exp(x) @ (matrix + 1))
    model = onnx.load(tmp_path / "f.onnx")
    assert sorted(tuple(each.dims) for each in model.graph.initializer if len(each.dims) == 2) == [
        (3, 5),
        (3, 5),
    ]
    assert session.get_outputs()[0].shape == ["b", 8, 8, 5]
