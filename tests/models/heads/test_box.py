"""The box head: which regions the mean feature is of, probabilities that exempt the background, cascades."""

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


def mean_after(module, regions, labels, before=0.0):
    """The mean feature, all `before`, after a training batch, and the batch's features."""
    variables = module.init(jax.random.key(0), regions, train=False)
    variables["batch_stats"]["fc_cls"]["mean_feature"] = jnp.full(8, before)
    outputs, updated = module.apply(
        variables, regions, train=True, labels=jnp.array(labels), mu=0.5, mutable=["batch_stats"]
    )
    return updated["batch_stats"]["fc_cls"]["mean_feature"], outputs.features


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
    mean_feature, features = mean_after(create(**options), regions, labels, before=2.0)
    np.testing.assert_allclose(mean_feature, 1 + features[np.array(counted)].mean(axis=0), rtol=1e-5)


@pytest.mark.parametrize("background", box.BACKGROUNDS)
def test_a_batch_without_foreground_leaves_the_mean_feature(regions, background):
    row = box.background_row(background, CLASSES + 1)
    mean_feature, _ = mean_after(create(background=background), regions, [row] * 6, before=2.0)
    np.testing.assert_array_equal(mean_feature, np.full(8, 2.0))


@pytest.mark.parametrize("variant", box.VARIANTS)
def test_dead_regions_are_finite(regions, variant):
    """A region whose features are all zero, before any training: the factual prediction, and gradients."""
    module = create(**box.VARIANTS[variant])
    variables = module.init(jax.random.key(0), regions, train=False)

    def total(x):
        outputs = module.apply(variables, x, train=False)
        background = box.VARIANTS[variant]["background"]
        return box.background_exempt(outputs.factual, outputs.counterfactual, background=background)

    zeros = jnp.zeros_like(regions)
    np.testing.assert_allclose(total(zeros), np.full((6, CLASSES + 1), 1 / (CLASSES + 1)), rtol=1e-6)
    gradient = jax.grad(lambda x: (total(x) ** 2).sum())(zeros)
    assert np.isfinite(gradient).all()


def test_shapes_and_half_precision(regions):
    module = create(dtype=jnp.bfloat16)
    variables = module.init(jax.random.key(0), regions, train=False)
    outputs = module.apply(variables, jnp.asarray(regions, jnp.bfloat16), train=False)
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


def test_what_cannot_be(regions):
    variables = create().init(jax.random.key(0), regions, train=False)
    with pytest.raises(ValueError, match="needs the labels"):
        create().apply(variables, regions, train=True, mutable=["batch_stats"])
    with pytest.raises(ValueError, match="counted 'all' is not one of"):
        create(counted="all").apply(variables, regions, train=True, labels=jnp.zeros(6, int))
    with pytest.raises(ValueError, match="background 'none' is not one of first, last"):
        box.background_row("none", 5)
