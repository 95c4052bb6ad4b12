"""Attention and layers by hand, their dropout, and heads made of them on eight devices."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from cfmlc_jax.models.heads.ml_decoder import MLDecoder
from cfmlc_jax.models.heads.query2label import Query2Label
from cfmlc_jax.models.layers import transformer

D = 8


def normal(rng, *shape):
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


def identity_attention(d):
    """Parameters that project nothing."""
    eye = jnp.eye(d)
    return {
        "in_proj_weight": jnp.concatenate([eye] * 3),
        "in_proj_bias": jnp.zeros(3 * d),
        "out_proj": {"kernel": eye, "bias": jnp.zeros(d)},
    }


def test_attention_by_hand():
    """Similarity ln 3 · √2 / √2 to the first of two keys, 0 to the second: weights 3/4 and 1/4."""
    query = jnp.array([math.sqrt(2) * math.log(3), 0.0]).reshape(1, 1, 1, 2)
    key = jnp.array([[1.0, 0], [0, 1]]).reshape(1, 1, 2, 2)
    value = jnp.array([[4.0, 0], [0, 8]]).reshape(1, 1, 2, 2)
    out = transformer.Attention(1).apply({"params": identity_attention(2)}, query, key, value, train=False)
    np.testing.assert_allclose(out[0, 0, 0], [3, 2], rtol=1e-6)


def test_heads_attend_by_themselves():
    """Each of two heads of one feature: the first is drawn to the first key, the second to the second."""
    query = jnp.full((1, 1, 1, 2), math.log(3))
    key = jnp.array([[1.0, 0], [0, 1]]).reshape(1, 1, 2, 2)
    value = jnp.array([[4.0, 4], [0, 0]]).reshape(1, 1, 2, 2)
    out = transformer.Attention(2).apply({"params": identity_attention(2)}, query, key, value, train=False)
    np.testing.assert_allclose(out[0, 0, 0], [3, 1], rtol=1e-6)


def test_attention_keeps_torchs_packing(rng):
    """Rows of the input's projection are the query's, the key's and the value's, in this order."""
    attention = transformer.Attention(2)
    x = normal(rng, 2, 3, 5, D)
    params = attention.init(jax.random.key(0), x, x, x, train=False)["params"]
    assert params["in_proj_weight"].shape == (3 * D, D)
    shown = {"in_proj_bias": jnp.arange(3.0 * D), "in_proj_weight": jnp.zeros((3 * D, D))}
    out = attention.apply({"params": identity_attention(D) | shown}, x, x, x, train=False)
    np.testing.assert_allclose(out, jnp.broadcast_to(jnp.arange(2.0 * D, 3 * D), x.shape), rtol=1e-6)


def test_initial_values_are_distributed_as_in_pytorch():
    x = jnp.zeros((1, 1, 1, 64))
    params = transformer.Attention(4).init(jax.random.key(0), x, x, x, train=False)["params"]
    bound = math.sqrt(6 / (4 * 64))  # Xavier over [3·64, 64]
    largest = float(jnp.abs(params["in_proj_weight"]).max())
    assert 0.98 * bound < largest <= bound
    assert not params["in_proj_bias"].any()
    assert not params["out_proj"]["bias"].any()


def test_positions_do_not_reach_values(rng):
    """One token gets all the attention, wherever it is."""
    layer = transformer.EncoderLayer(2, 16)
    x, position = normal(rng, 2, 3, 1, D), normal(rng, 1, 1, 1, D)
    variables = layer.init(jax.random.key(0), x, position=position, train=False)
    apply = jax.jit(functools.partial(layer.apply, train=False))
    here, there = (apply(variables, x, position=scale * position) for scale in (1, 7))
    np.testing.assert_allclose(here, there, rtol=1e-5, atol=1e-6)
    several, places = normal(rng, 2, 3, 4, D), normal(rng, 1, 1, 4, D)
    near, far = (apply(variables, several, position=scale * places) for scale in (1, 7))
    assert float(jnp.abs(near - far).max()) > 1e-2


def test_queries_of_all_views_at_once(rng):
    """Queries [1, 1, q, d] do what the same do in every view."""
    layer = transformer.DecoderLayer(2, 16)
    memory, position = normal(rng, 2, 3, 5, D), normal(rng, 1, 1, 5, D)
    target, queries = normal(rng, 1, 1, 4, D), normal(rng, 1, 1, 4, D)
    fields = {"position": position, "train": False}
    variables = layer.init(jax.random.key(0), target, memory, query_position=queries, **fields)
    shared = layer.apply(variables, target, memory, query_position=queries, **fields)
    each = layer.apply(
        variables, jnp.broadcast_to(target, (2, 3, 4, D)), memory, query_position=queries, **fields
    )
    assert shared.shape == (2, 3, 4, D)
    np.testing.assert_allclose(shared, each, rtol=1e-5, atol=1e-6)


def test_targets_do_not_see_each_other(rng):
    layer = transformer.DecoderLayer(2, 16)
    target, memory = normal(rng, 2, 3, 4, D), normal(rng, 2, 3, 5, D)
    variables = layer.init(jax.random.key(0), target, memory, train=False)
    before = layer.apply(variables, target, memory, train=False)
    after = layer.apply(variables, target.at[:, :, 1].add(1), memory, train=False)
    changed = jnp.abs(after - before).max(axis=(0, 1, 3)) > 1e-6
    np.testing.assert_array_equal(changed, [False, True, False, False])


def test_gradients(rng):
    layer = transformer.DecoderLayer(2, 16, dtype=jnp.float64)
    with jax.enable_x64(True):
        target, memory = (jnp.asarray(rng.standard_normal(s)) for s in ((1, 2, 3, D), (1, 2, 5, D)))
        variables = layer.init(jax.random.key(0), target, memory, train=False)
        variables = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), variables)

        @jax.jit
        def loss(variables, target, memory):
            return jnp.sin(layer.apply(variables, target, memory, train=False)).sum()

        assert loss(variables, target, memory).dtype == jnp.float64
        check_grads(loss, (variables, target, memory), order=1, modes=["rev"], rtol=1e-6, eps=1e-6)


def test_half_precision_is_close_to_full_precision(rng):
    x, position = normal(rng, 2, 3, 5, D), normal(rng, 1, 1, 5, D)
    variables = transformer.EncoderLayer(2, 16).init(jax.random.key(0), x, position=position, train=False)
    full, half = (
        transformer.EncoderLayer(2, 16, dtype).apply(variables, x, position=position, train=False)
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half, full, atol=0.05)


def test_attention_weights_are_dropped(rng):
    """A single key has weight 1 in each head: it is there, scaled up, or not."""
    attention = transformer.Attention(D)
    query, key = normal(rng, 1, 4, 100, D), jnp.ones((1, 4, 1, D))
    params = {"params": identity_attention(D)}
    rngs = {"dropout": jax.random.key(0)}
    out = attention.apply(params, query, key, key, train=True, rngs=rngs)
    np.testing.assert_allclose(jnp.unique(out.round(4)), [0, 1 / 0.9], rtol=1e-4)
    assert 0.08 < float((out == 0).mean()) < 0.12


HEADS = [Query2Label(3, "none"), MLDecoder(3, "none")]
by_head = pytest.mark.parametrize("head", HEADS, ids=["query2label", "ml_decoder"])


@functools.cache
def variables_of(head):
    init = jax.jit(functools.partial(head.init, train=False))
    return init(jax.random.key(0), {"map": jnp.zeros((1, 1, 2, 2, 16))})


def whole_logits(head, variables, features, dropout=None):
    """[b, v, k], in training with a key of dropout."""
    rngs = {} if dropout is None else {"dropout": dropout}
    return head.apply(variables, {"map": features}, train=dropout is not None, rngs=rngs)[0]


@by_head
def test_dropout_in_training_alone_and_another_in_every_step(rng, head):
    # Two views of the same pixels: their queries, too, are dropped each by itself.
    features = jnp.broadcast_to(normal(rng, 2, 1, 2, 2, 16), (2, 2, 2, 2, 16))
    logits = jax.jit(functools.partial(whole_logits, head))
    keys = [jax.random.fold_in(jax.random.key(0), step) for step in (0, 0, 1)]
    first, again, second = (logits(variables_of(head), features, key) for key in keys)
    evaluated = logits(variables_of(head), features)
    np.testing.assert_array_equal(first, again)
    for other in (second, evaluated):
        assert float((first != other).mean()) > 0.9
    assert float((first[:, 0] != first[:, 1]).mean()) > 0.9
    np.testing.assert_allclose(evaluated[:, 0], evaluated[:, 1], rtol=1e-5, atol=1e-6)


@by_head
def test_eight_devices_agree_with_one_and_gather_no_features(rng, head):
    variables, features = variables_of(head), normal(rng, 8, 2, 3, 3, 16)
    mesh = Mesh(np.array(jax.devices()), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    logits = functools.partial(whole_logits, head)

    def loss(variables, features):
        return jnp.sin(logits(variables, features, jax.random.key(0))).sum()

    on_mesh = jax.device_put(variables, whole), jax.device_put(features, split)
    evaluation = jax.jit(logits).lower(*on_mesh).compile()
    np.testing.assert_allclose(
        evaluation(*on_mesh), jax.jit(logits)(variables, features), rtol=1e-4, atol=1e-5
    )
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)), out_shardings=(whole, split))
    training = gradient.lower(*on_mesh).compile()
    for compiled in (evaluation, training):
        assert not re.search("all-gather|all-to-all|collective-permute", compiled.as_text())
    assert "all-reduce" in training.as_text()  # gradients of parameters do cross
