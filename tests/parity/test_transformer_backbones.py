"""Query2Label on Swin transformers and CvT against the reference's numbers, weights and inputs by rule."""

import functools

import jax
import numpy as np
import pytest
import reference

from cfmlc_jax.models import catalogue
from cfmlc_jax.torch_weights import mlc_pat

CLASSES = 80


def create(name, size):
    return catalogue.create_model(name, CLASSES, attention="cross", image_size=size)


def torch_shapes(name, size):
    """Shapes of the state_dict's entries by key."""
    init = functools.partial(create(name, size).init, train=False)
    abstract = jax.eval_shape(init, jax.random.key(0), np.zeros((1, 1, size, size, 3), np.float32))
    blank = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), abstract)
    return {key: array.shape for key, array in mlc_pat.to_torch(name, blank, image_size=size).items()}


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("swin_b_224", 224),
        pytest.param("swin_l_384", 384, marks=pytest.mark.slow),
        pytest.param("cvt_w24", 384, marks=pytest.mark.slow),
    ],
)
def test_evaluation(golden, name, size):
    """Logits, the map's mean over positions, and its first channel."""
    arrays = golden("transformer_backbones.npz")
    query2label = catalogue.QUERY2LABEL + name
    weights = reference.fill_all(torch_shapes(query2label, size))
    variables = mlc_pat.from_torch(query2label, weights)
    apply = jax.jit(functools.partial(create(query2label, size).apply, train=False))
    outputs = apply(variables, reference.waves(1, size)[None])

    def assert_near(actual, expected):
        np.testing.assert_allclose(actual, arrays[f"{name}/{expected}"], rtol=0, atol=2e-5)

    assert_near(outputs.features["pooled"][0, 0], "mean")
    assert_near(outputs.features["map"][0, 0, ..., 0], "channel_0")
    assert_near(np.stack([x[0, 0] for x in (outputs.whole, outputs.attention, outputs.score)]), "logits")


# Some entries of Microsoft's checkpoints, which Query2Label starts from.
MICROSOFT = {
    "patch_embed.proj.weight": (128, 3, 4, 4),
    "patch_embed.norm.bias": (128,),
    "layers.0.blocks.1.attn_mask": (64, 49, 49),
    "layers.2.blocks.17.attn_mask": (4, 49, 49),
    "layers.0.blocks.0.attn.relative_position_bias_table": (169, 4),
    "layers.3.blocks.1.attn.relative_position_index": (49, 49),
    "layers.1.blocks.0.attn.qkv.weight": (768, 256),
    "layers.2.downsample.reduction.weight": (1024, 2048),
    "layers.3.blocks.1.mlp.fc2.weight": (1024, 4096),
    "norm.weight": (1024,),
    "head.weight": (CLASSES, 1024),
}


def test_weights_come_back():
    """With Microsoft's names; indices and masks are written, but not read."""
    name, size = "swin_b_224", 224
    model = catalogue.create_model(name, CLASSES, attention="none", image_size=size)
    init = functools.partial(model.init, train=False)
    abstract = jax.eval_shape(init, jax.random.key(0), np.zeros((1, 1, size, size, 3), np.float32))
    leaves, tree = jax.tree.flatten(abstract)
    variables = tree.unflatten(np.full(leaf.shape, i, np.float32) for i, leaf in enumerate(leaves))
    state_dict = mlc_pat.to_torch(name, variables, image_size=size)
    assert {key: state_dict[key].shape for key in MICROSOFT} == MICROSOFT
    assert len(state_dict) == 329 + 35  # weights, and 24 indices with 11 masks
    jax.tree.map(
        np.testing.assert_array_equal, mlc_pat.from_torch(name, state_dict)["params"], variables["params"]
    )
