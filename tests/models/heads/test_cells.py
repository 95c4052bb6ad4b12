"""Patches that are no views: cells of a map, and views of another size than the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfmlc_jax.causal import views as causal_views
from cfmlc_jax.errors import InputError
from cfmlc_jax.models import catalogue
from cfmlc_jax.models.heads import map_cells


def small(**patches):
    return catalogue.create(catalogue.Model("resnet_small"), 3, 32, catalogue.Patches(**patches))


@pytest.fixture
def images(rng):
    return jnp.asarray(rng.random((2, 32, 32, 3)), jnp.float32)


def test_cells_are_numbered_as_patches_are(rng):
    """Cell p of the map lies where patch p of the grid does."""
    grid, d = 3, 5
    cells_map = jnp.asarray(rng.normal(size=(2, 1, grid, grid, d)), jnp.float32)
    module = map_cells.MapCells(4, "cross", "layer1")
    variables = module.init(jax.random.key(0), {"layer1": cells_map}, train=False)
    attention, score = module.apply(variables, {"layer1": cells_map}, train=False)
    assert attention.shape == score.shape == (2, 1, grid**2, 4)
    for p, (x, y, _, _) in enumerate(causal_views.patch_boxes(grid, grid)):
        for logits, name in ((attention, "attention"), (score, "score")):
            weights = variables["params"][name]
            by_hand = cells_map[:, 0, y, x] @ weights["kernel"] + weights["bias"][None]
            np.testing.assert_allclose(logits[:, 0, p], by_hand, rtol=1e-5, atol=1e-5)


def test_one_branch_is_both_attention_and_score(rng):
    features = {"layer1": jnp.asarray(rng.normal(size=(1, 1, 2, 2, 5)), jnp.float32)}
    module = map_cells.MapCells(4, "self", "layer1")
    variables = module.init(jax.random.key(0), features, train=False)
    attention, score = module.apply(variables, features, train=False)
    assert list(variables["params"]) == ["patch"]
    np.testing.assert_array_equal(attention, score)


def test_scores_relative_to_the_background(rng):
    features = {"layer1": jnp.asarray(rng.normal(size=(1, 1, 2, 2, 5)), jnp.float32)}
    with_background = map_cells.MapCells(4, "self", "layer1", background=True)
    variables = with_background.init(jax.random.key(0), features, train=False)
    _, score = with_background.apply(variables, features, train=False)
    plain = {"params": {"patch": variables["params"]["patch"]}}
    _, alone = map_cells.MapCells(4, "self", "layer1").apply(plain, features, train=False)
    weights = variables["params"]["background"]
    cells = features["layer1"].swapaxes(2, 3).reshape(1, 1, 4, 5)
    nothing = cells @ weights["kernel"] + weights["bias"][None, None, None] + map_cells.BACKGROUND
    np.testing.assert_allclose(score, alone - nothing, rtol=1e-5, atol=1e-5)


def test_a_classifier_of_cells(images):
    model = small(source="map", map="layer1")
    views = images[:, None]
    outputs = model.apply(model.init(jax.random.key(0), views, train=False), views, train=False)
    assert outputs.whole.shape == (2, 1, 3)
    assert outputs.attention is None
    assert [logits.shape for logits in outputs.cells] == [(2, 1, 16, 3)] * 2


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"source": "map", "map": "layer7"},
            "patches.map 'layer7' is not a map of this backbone; choose one of layer1, layer2, map, stem",
        ),
        ({"source": "map", "map": "pooled"}, "patches.map 'pooled' is not a map"),
        ({"source": "map", "branches": "none"}, "need branches 'self' or 'cross', not 'none'"),
    ],
)
def test_invalid_maps_are_refused(options, match, images):
    with pytest.raises(InputError, match=match):
        small(**options).init(jax.random.key(0), images[:, None], train=False)


def test_views_of_two_sizes_are_those_of_each(images):
    model = small()
    whole, patches = images[:, None], causal_views.split(images, 2, size=16)
    variables = model.init(jax.random.key(0), whole, train=False)
    both = model.apply(variables, (whole, patches), train=False)
    first, second = (model.apply(variables, views, train=False) for views in (whole, patches))
    for name in ("whole", "attention", "score"):
        expected = jnp.concatenate([getattr(first, name), getattr(second, name)], axis=1)
        np.testing.assert_allclose(getattr(both, name), expected, rtol=1e-5, atol=1e-5)
    assert both.whole.shape == (2, 5, 3)
    np.testing.assert_array_equal(both.features["pooled"], first.features["pooled"])


def test_each_size_moves_the_running_statistics(images):
    model = small()
    whole, patches = images[:, None], causal_views.split(images, 2, size=16)
    variables = model.init(jax.random.key(0), whole, train=False)

    def trained(variables, views):
        return model.apply(variables, views, train=True, mutable=["batch_stats"])[1]

    one_by_one = trained(variables | trained(variables, whole), patches)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
        trained(variables, (whole, patches)),
        one_by_one,
    )
