"""Query2Label by its properties, and its names in PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfmlc_jax.errors import InputError
from cfmlc_jax.models import catalogue
from cfmlc_jax.models.heads import query2label
from cfmlc_jax.models.heads.query2label import Query2Label
from cfmlc_jax.torch_weights import mlc_pat

K, D = 3, 16


@pytest.fixture(scope="module")
def features():
    x = np.random.default_rng(0).standard_normal((2, 2, 3, 3, D))
    return {"map": jnp.asarray(x, jnp.float32)}


@pytest.fixture(scope="module")
def variables(features):
    init = jax.jit(functools.partial(Query2Label(K, "cross").init, train=False))
    return init(jax.random.key(0), features)


@functools.cache
def applied(attention="cross", dtype=jnp.float32):
    return jax.jit(functools.partial(Query2Label(K, attention, dtype).apply, train=False))


def test_logits_of_every_branch(features, variables):
    cross = applied()(variables, features)
    assert all((x.shape, x.dtype) == ((2, 2, K), jnp.float32) for x in cross[:3])
    assert set(cross[3:]) == {None}
    params = variables["params"]
    trunk = {name: params[name] for name in params if name not in ("whole", "attention", "score")}
    alone = applied("none")({"params": trunk | {"whole": params["whole"]}}, features)
    assert set(alone[1:]) == {None}
    double = {"whole": params["whole"], "patch": params["score"]}
    both = applied("self")({"params": trunk | double}, features)
    np.testing.assert_array_equal(both[1], both[2])
    for ours, theirs in ((alone[0], cross[0]), (both[0], cross[0]), (both[1], cross[2])):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_permuting_the_classes_permutes_the_logits(features, variables):
    """Queries and linear maps in another order: logits in that order."""
    params = variables["params"]
    order = jnp.array([2, 0, 1])
    moved = dict(params, query_embed=params["query_embed"][order])
    for branch in ("whole", "attention", "score"):
        moved[branch] = {name: leaf[:, order] for name, leaf in params[branch].items()}
    ours, before = applied()({"params": moved}, features), applied()(variables, features)
    for a, b in zip(ours[:3], before[:3]):
        np.testing.assert_allclose(a, b[..., order], rtol=1e-4, atol=1e-5)


def test_the_place_of_a_feature_matters(features, variables):
    mirrored = applied()(variables, {"map": features["map"][:, :, :, ::-1]})
    assert float(jnp.abs(mirrored[0] - applied()(variables, features)[0]).max()) > 1e-3


def test_half_precision_is_close_to_full_precision(features, variables):
    full, half = applied()(variables, features), applied(dtype=jnp.bfloat16)(variables, features)
    for a, b in zip(half[:3], full[:3]):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, atol=0.1)
    assert float(jnp.abs(full[0]).max()) > 0.5


def test_group_wise_linear_by_hand():
    params = {"W": jnp.array([[[1.0, 2], [3, 4]]]), "b": jnp.array([[10.0, 20]])}
    x = jnp.array([[5.0, 6], [7, 8]]).reshape(1, 1, 2, 2)
    logits = query2label.GroupWiseLinear().apply({"params": params}, x)
    np.testing.assert_array_equal(logits, [[[27, 73]]])


def test_positions_by_hand():
    """One wavelength, 2 × 2 pixels: angles π and 2π, sine and cosine of the row, then of the column."""
    first, second = [0, -1], [0, 1]
    expected = [[first + first, first + second], [second + first, second + second]]
    np.testing.assert_allclose(query2label.sine_positions(2, 2, 4), expected, atol=1e-5)


def test_features_that_do_not_divide():
    with pytest.raises(InputError, match="maps of 18 features: their number must be a multiple of 4"):
        Query2Label(K, "none").init(jax.random.key(0), {"map": jnp.zeros((1, 1, 2, 2, 18))}, train=False)


@pytest.mark.parametrize(
    ("attention", "branches"),
    [("none", ("",)), ("self", ("fc1.", "fc2.")), ("cross", ("fc1.", "fc2.", "fc3."))],
)
def test_weights_to_torch_and_back(attention, branches):
    name = "q2l_resnet_small"
    model = catalogue.create_model(name, K, attention=attention, image_size=64)
    init = functools.partial(model.init, train=False)
    abstract = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 1, 64, 64, 3)))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), abstract)
    state_dict = mlc_pat.to_torch(name, variables, image_size=128)
    head = {key: array.shape for key, array in state_dict.items() if not key.startswith("backbone.0.")}
    attentions = (
        "encoder.layers.0.self_attn",
        "decoder.layers.0.multihead_attn",
        "decoder.layers.1.multihead_attn",
    )
    layers = tuple(attention.rpartition(".")[0] for attention in attentions)
    norms = ("layers.0.norm2", "layers.0.norm3", "layers.1.norm2", "layers.1.norm3", "norm")
    norms = ("encoder.layers.0.norm1", "encoder.layers.0.norm2", *(f"decoder.{norm}" for norm in norms))
    d = 128  # of the small backbone
    assert head == {
        "backbone.1.pe": (1, d, 4, 4),
        "query_embed.weight": (K, d),
        **{f"fc.{branch}W": (1, K, d) for branch in branches},
        **{f"fc.{branch}b": (1, K) for branch in branches},
        **{f"transformer.{name}.in_proj_weight": (3 * d, d) for name in attentions},
        **{f"transformer.{name}.in_proj_bias": (3 * d,) for name in attentions},
        **{f"transformer.{name}.out_proj.weight": (d, d) for name in attentions},
        **{f"transformer.{name}.out_proj.bias": (d,) for name in attentions},
        **{f"transformer.{name}.linear1.weight": (8192, d) for name in layers},
        **{f"transformer.{name}.linear1.bias": (8192,) for name in layers},
        **{f"transformer.{name}.linear2.weight": (d, 8192) for name in layers},
        **{f"transformer.{name}.linear2.bias": (d,) for name in layers},
        **{f"transformer.{name}.{leaf}": (d,) for name in norms for leaf in ("weight", "bias")},
    }
    back = mlc_pat.from_torch(name, state_dict)
    assert jax.tree.all(jax.tree.map(np.array_equal, back, variables))


def test_positions_in_a_checkpoint_follow_the_backbones_stride():
    query = {"query_embed.weight": np.zeros((K, 8))}
    for key, side in (
        ("backbone.0.body.conv1.weight", 12),
        ("backbone.0.stage0.patch_embed.proj.weight", 24),
    ):
        entries = query2label.TORCH.derived(query | {key: np.zeros(1)}, 384)
        assert entries["backbone.1.pe"].shape == (1, 8, side, side)
        expected = query2label.sine_positions(side, side, 8)[1, 2]
        np.testing.assert_array_equal(entries["backbone.1.pe"][0, :, 1, 2], expected)
