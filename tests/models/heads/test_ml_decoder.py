"""ML-Decoder by its properties, and its names in PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfmlc_jax.errors import InputError
from cfmlc_jax.models import catalogue
from cfmlc_jax.models.backbones import tresnet
from cfmlc_jax.models.heads import ml_decoder
from cfmlc_jax.models.heads.ml_decoder import MLDecoder
from cfmlc_jax.optim import frozen
from cfmlc_jax.torch_weights import mlc_pat

K, QUERIES = 7, 3  # three queries of three classes, the last of one


@pytest.fixture(scope="module")
def features():
    x = np.random.default_rng(0).standard_normal((2, 2, 3, 3, 16))
    return {"map": jnp.asarray(x, jnp.float32)}


@pytest.fixture(scope="module")
def variables(features):
    init = jax.jit(functools.partial(MLDecoder(K, "none", queries=QUERIES).init, train=False))
    return init(jax.random.key(0), features)


@functools.cache
def applied(dtype=jnp.float32):
    return jax.jit(functools.partial(MLDecoder(K, "none", dtype, queries=QUERIES).apply, train=False))


def test_logits(features, variables):
    whole, attention, score, *_ = applied()(variables, features)
    assert (whole.shape, whole.dtype, attention, score) == ((2, 2, K), jnp.float32, None, None)
    assert variables["params"]["whole"]["duplicate_pooling"].shape == (QUERIES, 768, 3)


def test_a_query_scores_the_classes_of_its_group(features, variables):
    before = applied()(variables, features)[0]
    branch = variables["params"]["whole"]
    for query, classes in ((1, slice(3, 6)), (2, slice(6, 7))):
        other = dict(branch, query_embed=branch["query_embed"].at[query].multiply(-1))
        changed = jnp.abs(applied()({"params": {"whole": other}}, features)[0] - before).max(axis=(0, 1))
        expected = np.zeros(K, bool)
        expected[classes] = True
        np.testing.assert_array_equal(changed > 1e-5, expected)


def test_the_place_of_a_feature_does_not_matter(features, variables):
    turned = {"map": features["map"].swapaxes(2, 3)[:, :, ::-1]}
    np.testing.assert_allclose(
        applied()(variables, turned)[0], applied()(variables, features)[0], rtol=1e-4, atol=1e-5
    )


def test_half_precision_is_close_to_full_precision(features, variables):
    full, half = applied()(variables, features)[0], applied(jnp.bfloat16)(variables, features)[0]
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, full, atol=0.05)
    assert float(jnp.abs(full).max()) > 0.5


@pytest.mark.parametrize(
    ("asked", "classes", "queries"), [(3, 7, 3), (80, 80, 80), (100, 20, 20), (-1, 80, 80), (-1, 256, 100)]
)
def test_number_of_queries(asked, classes, queries):
    assert ml_decoder.number_of_queries(asked, classes) == queries


def test_no_queries():
    with pytest.raises(InputError, match="0 queries has no logits; set 1 or more"):
        ml_decoder.number_of_queries(0, 20)


@pytest.mark.parametrize(
    ("attention", "branches"),
    [
        ("none", ("fc.",)),
        ("self", ("fc.head1.", "fc.head2.")),
        ("cross", ("fc.head1.", "fc.head2.", "fc.head3.")),
    ],
)
def test_weights_to_torch_and_back(attention, branches):
    """Branches are whole decoders, and their queries, and nothing else, are not trained."""
    fields = catalogue.Model("resnet_small", head="ml_decoder", ml_decoder=catalogue.MLDecoderFields(QUERIES))
    patches = None if attention == "none" else catalogue.Patches(attention)
    model = catalogue.create(fields, K, 64, patches)
    init = functools.partial(model.init, train=False)
    abstract = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 1, 64, 64, 3)))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), abstract)
    state_dict = mlc_pat.to_torch("resnet_small", variables)
    head = {key: array.shape for key, array in state_dict.items() if key.startswith("fc.")}
    layer = {
        "multihead_attn.in_proj_weight": (2304, 768),
        "multihead_attn.in_proj_bias": (2304,),
        "multihead_attn.out_proj.weight": (768, 768),
        "multihead_attn.out_proj.bias": (768,),
        "linear1.weight": (2048, 768),
        "linear1.bias": (2048,),
        "linear2.weight": (768, 2048),
        "linear2.bias": (768,),
        **{f"norm{i}.{leaf}": (768,) for i in (1, 2, 3) for leaf in ("weight", "bias")},
    }
    decoder = {
        "duplicate_pooling": (QUERIES, 768, 3),
        "duplicate_pooling_bias": (K,),
        "embed_standart.weight": (768, 128),
        "embed_standart.bias": (768,),
        "query_embed.weight": (QUERIES, 768),
        **{f"layers.0.{name}": shape for name, shape in layer.items()},
    }
    assert head == {f"{path}decoder.{name}": shape for path in branches for name, shape in decoder.items()}
    assert mlc_pat.architecture("resnet_small", state_dict)[:4] == (K, attention, "ml_decoder", QUERIES)
    back = mlc_pat.from_torch("resnet_small", state_dict)
    assert jax.tree.all(jax.tree.map(np.array_equal, back, variables))

    trained = frozen.trainable_mask(variables["params"], model.frozen)
    for name, branch in trained["head"].items():
        assert not branch.pop("query_embed"), name
    assert jax.tree.all(trained)


def test_its_tensors_have_the_prefix_of_the_backbones_head():
    assert ml_decoder.TORCH.prefix(tresnet.TORCH) == "head"
