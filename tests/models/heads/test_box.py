"""The box head: which regions the mean feature is of, probabilities that exempt the background, cascades."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfmlc_jax.causal import effects
from cfmlc_jax.models.heads import box

CLASSES = 4


@pytest.fixture
def regions(rng):
    return rng.normal(size=(6, 2, 2, 3)).astype(np.float32)


def create(**options):
    return box.BoxHead(CLASSES, hidden=8, **options)


def mean_after(regions, labels, before=0.0, **options):
    """The mean feature, all `before`, after a training batch, and the batch's features."""
    module = create()
    features = module.apply(module.init(jax.random.key(0), regions), regions).features
    options = {"rows": CLASSES + 1, "momentum": 0.5} | options
    return box.mean_feature_after(jnp.full(8, before), features, jnp.array(labels), **options), features


@pytest.mark.parametrize(
    ("options", "labels", "counted"),
    [
        ({"background": "last"}, [0, 1, 4, 4, 3, -1], [0, 1, 4]),
        ({"background": "first"}, [0, 1, 4, 0, 3, -1], [1, 2, 4]),
        # The reference's rule, with the background last: class 0 is out, the background in.
        ({"background": "last", "counted": "positive_labels"}, [0, 1, 4, 4, 3, -1], [1, 2, 3, 4]),
    ],
)
def test_regions_in_the_mean_feature(regions, options, labels, counted):
    mean_feature, features = mean_after(regions, labels, before=2.0, **options)
    np.testing.assert_allclose(mean_feature, 1 + features[np.array(counted)].mean(axis=0), rtol=1e-5)


@pytest.mark.parametrize("background", box.BACKGROUNDS)
def test_a_batch_without_foreground_leaves_the_mean_feature(regions, background):
    row = box.background_row(background, CLASSES + 1)
    mean_feature, _ = mean_after(regions, [row] * 6, before=2.0, background=background)
    np.testing.assert_array_equal(mean_feature, np.full(8, 2.0))


@pytest.mark.parametrize("variant", box.VARIANTS)
def test_dead_regions_are_finite(regions, variant):
    """A region whose features are all zero, before any training: the factual prediction, and gradients."""
    module = create(epsilon=box.VARIANTS[variant].epsilon)
    variables = module.init(jax.random.key(0), regions)

    def total(x):
        outputs = module.apply(variables, x)
        background = box.VARIANTS[variant].background
        return box.background_exempt(outputs.factual, outputs.counterfactual, background=background)

    zeros = jnp.zeros_like(regions)
    np.testing.assert_allclose(total(zeros), np.full((6, CLASSES + 1), 1 / (CLASSES + 1)), rtol=1e-6)
    gradient = jax.grad(lambda x: (total(x) ** 2).sum())(zeros)
    assert np.isfinite(gradient).all()


def test_shapes_and_half_precision(regions):
    module = create(dtype=jnp.bfloat16)
    variables = module.init(jax.random.key(0), regions)
    outputs = module.apply(variables, jnp.asarray(regions, jnp.bfloat16))
    assert outputs.factual.shape == outputs.counterfactual.shape == (6, CLASSES + 1)
    assert outputs.deltas.shape == (6, 4)
    assert outputs.factual.dtype == outputs.deltas.dtype == jnp.float32
    assert np.abs(variables["params"]["fc_cls"]["kernel"]).max() <= 8**-0.5


@pytest.mark.parametrize("background", box.BACKGROUNDS)
def test_the_background_is_exempt(rng, background):
    factual, counterfactual = jnp.asarray(rng.normal(size=(2, 3, 5)), jnp.float32)
    row = box.background_row(background, 5)
    p = box.background_exempt(factual, counterfactual, background=background)
    plain = jax.nn.softmax(factual, axis=-1)
    np.testing.assert_allclose(p[:, row], plain[:, row], rtol=1e-6)
    np.testing.assert_allclose(p.sum(axis=-1), np.ones(3), rtol=1e-6)
    # Among the classes the effect decides, whatever it says of the background.
    effect = effects.total_direct_effect(factual, counterfactual, box.ALPHA)
    order = lambda x: np.argsort(np.delete(x, row, axis=-1), axis=-1)  # noqa: E731
    np.testing.assert_array_equal(order(p), order(effect))
    shifted = counterfactual.at[:, row].add(-100.0)
    np.testing.assert_allclose(box.background_exempt(factual, shifted, background=background), p, rtol=1e-6)


def test_alpha_zero_is_the_softmax(rng):
    factual, counterfactual = jnp.asarray(rng.normal(size=(2, 3, 5)), jnp.float32)
    p = box.background_exempt(factual, counterfactual, alpha=0.0, background="last")
    np.testing.assert_allclose(p, jax.nn.softmax(factual, axis=-1), rtol=1e-5)


def test_cascade():
    stages = [jnp.array([[0.2, 0.8]]), jnp.array([[0.4, 0.6]]), jnp.array([[0.9, 0.1]])]
    np.testing.assert_allclose(box.average_stages(stages), [[0.5, 0.5]], rtol=1e-6)
    quirk = box.average_stages(stages[:1], second_softmax=True)
    np.testing.assert_allclose(quirk[0, 1], 1 / (1 + np.exp(-0.6)), rtol=1e-6)


def test_invalid_arguments_are_refused(regions):
    with pytest.raises(ValueError, match="counted 'all' is not one of"):
        mean_after(regions, [0] * 6, background="last", counted="all")
    with pytest.raises(ValueError, match="background 'none' is not one of first, last"):
        box.background_row("none", 5)


def test_a_cascade_is_its_heads(rng):
    """Each stage classifies its own features with its own weights, without shared layers as they are."""
    features = rng.normal(size=(5, 2, 8)).astype(np.float32)
    head = functools.partial(box.BoxHead, CLASSES, shared_layers=0, boxes=False)
    cascade = box.Cascade(head, 2)
    variables = cascade.init(jax.random.key(0), features)
    outputs = cascade.apply(variables, features)
    assert set(variables["params"]["stage_1"]) == {"fc_cls"}
    for i, output in enumerate(outputs):
        own = jax.tree.map(lambda leaf: leaf, {name: tree[f"stage_{i}"] for name, tree in variables.items()})
        alone = head().apply(own, features[:, i])
        np.testing.assert_array_equal(output.factual, alone.factual)
        np.testing.assert_array_equal(output.features, features[:, i])
        assert output.deltas is None
    assert not np.allclose(outputs[0].factual, outputs[1].factual)


def test_a_linear_classifier(regions):
    """As in detectors: a dot product and a bias, without a counterfactual."""
    module = create(classifier=box.LINEAR)
    variables = module.init(jax.random.key(0), regions)
    outputs = module.apply(variables, regions)
    layer = variables["params"]["fc_cls"]
    np.testing.assert_allclose(
        outputs.factual, outputs.features @ layer["kernel"] + layer["bias"][None], rtol=1e-5
    )
    assert outputs.counterfactual is None
    assert "batch_stats" not in variables
