"""Heads of the classifiers for long tails inside a classifier of views: logits, effects, options."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfmlc_jax.causal import mean_feature as mean_features
from cfmlc_jax.errors import InputError
from cfmlc_jax.models import catalogue
from cfmlc_jax.models.backbones import resnet
from cfmlc_jax.models.classifier import Classifier
from cfmlc_jax.models.heads.pooled import CLASSIFIERS, PooledHead
from cfmlc_jax.models.layers.normalise import CIFAR, standardise

K = 3


def classifier(attention="none", name="causal_norm", **fields):
    backbone = resnet.ResNet(stage_sizes=(1,), block=resnet.BasicBlock, width=8, small_stem=True)
    head = PooledHead(K, attention, CLASSIFIERS[name])
    return Classifier(backbone=backbone, head=head, **fields)


@functools.cache
def initial(model):
    return jax.jit(functools.partial(model.init, train=False))(
        jax.random.key(0), jnp.zeros((1, 1, 32, 32, 3))
    )


@pytest.fixture
def views(rng):
    return jnp.asarray(rng.random((4, 5, 32, 32, 3)), jnp.float32)


def test_counterfactual_and_cosine_are_those_of_the_pooled_features(views):
    model = classifier()
    variables = jax.tree.map(lambda leaf: leaf + 0.1, initial(model))
    outputs = model.apply(variables, views[:, :1], train=False)
    kernel = variables["params"]["head"]["whole"]["kernel"]
    mean = variables["batch_stats"]["head"]["whole"]["mean_feature"]
    pooled = outputs.features["pooled"]
    factual, counterfactual = mean_features.logits(
        pooled, kernel, mean, num_heads=2, tau=16.0, weight_offset=1 / 32
    )
    np.testing.assert_allclose(outputs.whole, factual, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(outputs.counterfactual, counterfactual, rtol=1e-5, atol=1e-5)
    cosines = mean_features.cosines(pooled, mean, 2).mean(axis=-1)
    np.testing.assert_allclose(outputs.cosine, cosines, rtol=1e-5, atol=1e-6)


def test_pixels_are_standardised_inside(views):
    plain, standard = classifier(), classifier(normalisation=CIFAR)
    variables = initial(plain)
    apply = functools.partial(plain.apply, variables, train=False)
    expected = apply(standardise(views, CIFAR)).whole
    np.testing.assert_allclose(
        standard.apply(variables, views, train=False).whole, expected, rtol=1e-5, atol=1e-5
    )
    assert np.abs(apply(views).whole - expected).max() > 1e-2


def test_options_reach_the_classifier():
    def create(**fields):
        return catalogue.create(catalogue.Model("resnet_small", **fields), K, 32)

    model = create(head="causal_norm", cosine=catalogue.Cosine(4, 8.0, 0.5), frozen=("backbone/.*",))
    assert dict(model.head.options) == {"num_heads": 4, "tau": 8.0, "gamma": 0.5}
    assert model.frozen == ("backbone/.*",)
    assert create(head="lws").frozen == (r"backbone/.*", r"head/whole/(kernel|bias)")
    with pytest.raises(InputError, match="128 features cannot be split into 3 heads of equal size"):
        jax.eval_shape(
            functools.partial(create(head="cosine", cosine=catalogue.Cosine(3)).init, train=False),
            jax.random.key(0),
            jnp.zeros((1, 1, 32, 32, 3)),
        )
