"""PAT-I on a classifier with one head: the reference's probabilities, weights and inputs by rule."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from cfmlc_jax.causal.patches import POOLINGS
from cfmlc_jax.classify import pat
from cfmlc_jax.classify.patching import HostViews
from cfmlc_jax.models import catalogue
from cfmlc_jax.results.scores import probabilities
from cfmlc_jax.torch_weights import mlc_pat

SIZE, CLASSES = 64, 20


def weights(name, model):
    """Fill B: {"params", "batch_stats"}."""
    init = functools.partial(model.init, train=False)
    abstract = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 1, SIZE, SIZE, 3)))
    blank = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(1), leaf.shape), abstract)
    entries = mlc_pat.to_torch(name, blank, image_size=SIZE, in_place_norms=False)
    shapes = {key: array.shape for key, array in entries.items()}
    return mlc_pat.from_torch(name, reference.fill_all(shapes, variant="B"), in_place_norms=False)


@pytest.mark.parametrize("name", ["resnet101", pytest.param("tresnet_l_v2", marks=pytest.mark.slow)])
def test_probabilities(golden, name):
    views = reference.uniform(5 * 8, SIZE, seed=300).reshape(5, 8, SIZE, SIZE, 3).transpose(1, 0, 2, 3, 4)
    model = catalogue.create_model(name, CLASSES, attention="none", image_size=SIZE)
    outputs = jax.jit(functools.partial(model.apply, train=False))(weights(name, model), views)
    ours = probabilities(np.asarray(pat.predict(outputs, HostViews(2), POOLINGS["pivot"])["combined"]))
    np.testing.assert_allclose(ours, golden("pat_i.npz")[name], rtol=0, atol=1e-4)
