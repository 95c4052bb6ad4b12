"""Logits of Query2Label and ML-Decoder heads against the reference's, weights and inputs by rule."""

import functools

import jax
import numpy as np
import pytest
import reference
from flax.traverse_util import flatten_dict, unflatten_dict

from cfmlc_jax.models import catalogue, torch_names
from cfmlc_jax.models.heads import ml_decoder, query2label
from cfmlc_jax.torch_weights import mlc_pat

SIZE, CLASSES = 128, 20
REFERENCE_NAMES = {
    "q2l_resnet101": "q2l_resnet101",
    "q2l_tresnet_l": "q2l_tresnetl",
    "q2l_tresnet_l_v2": "q2l_tresnetl_v2",
}


def create(name):
    return catalogue.create_model(name, CLASSES, attention="cross", image_size=SIZE)


def torch_shapes(name):
    """Shapes of the state_dict's entries by key."""
    init = functools.partial(create(name).init, train=False)
    abstract = jax.eval_shape(init, jax.random.key(0), np.zeros((1, 1, SIZE, SIZE, 3), np.float32))
    blank = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), abstract)
    state_dict = mlc_pat.to_torch(name, blank, image_size=SIZE, in_place_norms=False)
    return {key: array.shape for key, array in state_dict.items()}


def filled(name, variant):
    """Variables of a model by the rules."""
    # The weights were filled after what published checkpoints need.
    weights = reference.fill_all(torch_shapes(name), variant=variant)
    return mlc_pat.from_torch(name, weights, in_place_norms=False)


def stacked(outputs, view):
    """Logits of one view by branch, [3, b, k]."""
    return np.stack([x[:, view] for x in (outputs.whole, outputs.attention, outputs.score)])


@pytest.mark.parametrize(
    "name",
    [
        "q2l_resnet101",
        # The same head; half a minute each.
        pytest.param("q2l_tresnet_l", marks=pytest.mark.slow),
        pytest.param("q2l_tresnet_l_v2", marks=pytest.mark.slow),
    ],
)
def test_query2label(golden, name):
    """All branches on both inputs; the branch of a model with but one, on the same features.

    The branches of attention "self" are bit for bit the first two of "cross".
    """
    expected = golden("heads.npz")
    variables = filled(name, "A")
    apply = jax.jit(functools.partial(create(name).apply, train=False))
    views = np.stack([reference.uniform(2, SIZE), reference.waves(2, SIZE)], axis=1)
    outputs = apply(variables, views)
    golden_name = REFERENCE_NAMES[name]
    for view, run in enumerate("uw"):
        np.testing.assert_allclose(
            stacked(outputs, view), expected[f"{golden_name}/{run}"], rtol=0, atol=4e-5
        )

    head = variables["params"]["head"]
    shapes = {f"fc.{leaf}": array.shape for leaf, array in head["whole"].items()}
    alone = {key.removeprefix("fc."): array for key, array in reference.fill_all(shapes).items()}
    variables["params"]["head"] = head | {"whole": alone}
    whole = apply(variables, views).whole[:, 1]
    np.testing.assert_allclose(whole, expected[f"{golden_name}/w_none"][0], rtol=0, atol=4e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", REFERENCE_NAMES)
def test_query2label_that_depends_more_on_its_input(golden, name):
    apply = jax.jit(functools.partial(create(name).apply, train=False))
    outputs = apply(filled(name, "B"), reference.waves(2, SIZE)[:, None])
    expected = golden("heads.npz")[f"{REFERENCE_NAMES[name]}/w_fillB"]
    np.testing.assert_allclose(stacked(outputs, 0), expected, rtol=0, atol=4e-5)


@pytest.mark.parametrize("name", ["q2l_resnet101", "q2l_tresnetl"])
def test_positions(golden, name):
    expected = golden("heads.npz")[f"{name}/pe"]  # of every 64th channel, channels first
    positions = query2label.sine_positions(4, 4, 64 * len(expected))
    np.testing.assert_allclose(positions.transpose(2, 0, 1)[::64], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("classes", "groups", "attention", "run"),
    [
        (80, 80, "none", "80_80"),
        (256, 100, "none", "256_100"),
        (20, -1, "none", "20_-1"),
        (80, -1, "none", "80_-1"),
        (80, 80, "cross", "triple"),
    ],
)
def test_ml_decoder(golden, classes, groups, attention, run):
    """On a map of normal numbers; the head by itself, without the name of a backbone's last layer."""
    features = np.random.RandomState(0).standard_normal((2, 2048, 4, 4)).astype(np.float32)
    features = {"map": features.transpose(0, 2, 3, 1)[:, None]}
    head = ml_decoder.MLDecoder(classes, attention, queries=groups)
    shapes = jax.eval_shape(functools.partial(head.init, train=False), jax.random.key(0), features)
    table = ml_decoder.TORCH.table(attention, "")
    params = {
        path: of_shape(torch_names.torch_key(path, table), path[-1], leaf.shape)
        for path, leaf in flatten_dict(shapes["params"]).items()
    }
    apply = jax.jit(functools.partial(head.apply, train=False))
    logits = apply({"params": unflatten_dict(params)}, features)
    ours = np.stack([branch[:, 0] for branch in logits if branch is not None])
    np.testing.assert_allclose(ours, golden("heads.npz")[f"ml_decoder/{run}"], rtol=0, atol=2e-5)


def of_shape(key, leaf, shape):
    """A weight by the rules, with our axes."""
    torch_shape = torch_names.to_torch_layout(leaf, np.broadcast_to(np.float32(0), shape)).shape
    return torch_names.from_torch_layout(leaf, reference.fill(key, torch_shape))
