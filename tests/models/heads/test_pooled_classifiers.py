"""Classifiers for long tails: the effect's identity, norms, zero vectors, the mean feature, alpha."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from cfmlc_jax.causal import effects
from cfmlc_jax.causal import mean_feature as mean_features
from cfmlc_jax.errors import InputError
from cfmlc_jax.models.heads import pooled as classifiers

D, K = 6, 4


@pytest.fixture
def case(rng):
    """Features [5, D], and variables with a kernel and a mean feature."""
    features = rng.normal(size=(5, D)).astype(np.float32)
    kernel = rng.normal(size=(D, K)).astype(np.float32)
    mean_feature = rng.normal(size=D).astype(np.float32)
    return features, {"params": {"kernel": kernel}, "batch_stats": {"mean_feature": mean_feature}}


def by_hand(features, kernel, mean_feature, alpha, feature_norm, weight_norm, num_heads=2, tau=16.0):
    """tau/K · Σ_j <x_j − alpha·<x_j, e_j>·e_j, w_cj> in float64, a head, an image and a class at a time."""
    y = np.zeros((len(features), kernel.shape[1]))
    width = features.shape[1] // num_heads
    for j in range(num_heads):
        part = slice(j * width, (j + 1) * width)
        e = np.float64(mean_feature[part])
        e /= np.sqrt((e**2).sum())
        for n, x in enumerate(np.float64(features[:, part])):
            x = x / feature_norm(np.sqrt((x**2).sum()))
            x = x - alpha * (x @ e) * e
            for c, w in enumerate(np.float64(kernel[part].T)):
                y[n, c] += tau / num_heads * (x @ w) / weight_norm(np.sqrt((w**2).sum()))
    return y


@pytest.mark.parametrize(
    ("norm", "feature_norm", "weight_norm"),
    [
        ("causal", lambda n: n, lambda n: n + 1 / 32),
        ("cosine", lambda n: n, lambda n: n),
        ("capsule", lambda n: 1 + n, lambda n: n),
    ],
)
@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.5])
def test_total_direct_effect_removes_the_part_along_the_mean_feature(
    case, norm, feature_norm, weight_norm, alpha
):
    features, variables = case
    logits = classifiers.CosineClassifier(K, norm=norm).apply(variables, features)
    effect = effects.total_direct_effect(logits.factual, logits.counterfactual, alpha)
    expected = by_hand(
        features,
        variables["params"]["kernel"],
        variables["batch_stats"]["mean_feature"],
        alpha,
        feature_norm,
        weight_norm,
    )
    np.testing.assert_allclose(effect, expected, rtol=0, atol=1e-5)


def test_values_computed_by_hand():
    # One head, x at 60° from the mean feature and w along it, of length 1 with gamma 1: tau · ½ · ½.
    features = jnp.array([[1.0, np.sqrt(3.0)]])
    factual, counterfactual = mean_features.logits(
        features, jnp.array([[1.0], [0.0]]), jnp.array([7.0, 0.0]), num_heads=1, tau=8.0, weight_offset=1.0
    )
    np.testing.assert_allclose(factual, [[2.0]], rtol=1e-6)
    np.testing.assert_allclose(counterfactual, [[2.0]], rtol=1e-6)


@pytest.mark.parametrize("name", classifiers.CLASSIFIERS)
def test_leading_axes_and_dtype(name, rng):
    module = classifiers.CLASSIFIERS[name](K)
    features = jnp.asarray(rng.normal(size=(2, 3, D)), jnp.bfloat16)
    variables = module.init(jax.random.key(0), features)
    assert all(np.abs(variables["params"]["kernel"]).ravel() <= D**-0.5)
    logits = module.apply(variables, features)
    flat = module.apply(variables, features.reshape(6, D))
    assert logits.factual.shape == (2, 3, K)
    assert logits.factual.dtype == jnp.float32
    np.testing.assert_allclose(logits.factual.reshape(6, K), flat.factual, rtol=0, atol=1e-6)
    assert (logits.counterfactual is None) == (name in ("dot_product", "lws"))


def test_length_of_features_matters_to_capsules_only(case):
    features, variables = case
    for norm, matters in [("causal", False), ("cosine", False), ("capsule", True)]:
        apply = functools.partial(classifiers.CosineClassifier(K, norm=norm).apply, variables)
        near, far = apply(features).factual, apply(3 * features).factual
        assert bool(np.abs(near - far).max() > 1e-2) == matters


def test_the_mean_feature_starts_at_zero(case):
    features, _ = case
    variables = classifiers.CosineClassifier(K).init(jax.random.key(0), features)
    np.testing.assert_array_equal(variables["batch_stats"]["mean_feature"], np.zeros(D))


def test_mean_over_a_batch_on_several_devices(case):
    """A batch split over devices counts as one, as the reference's does."""
    features = np.tile(case[0][:4], (2, 1)) * np.arange(1, 9, dtype=np.float32)[:, None]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.device_put(features, jax.sharding.NamedSharding(mesh, jax.P("data")))
    moved = jax.jit(mean_features.moving_sum)(jnp.ones(D), split, 0.9)
    np.testing.assert_allclose(moved, 0.9 + features.mean(axis=0), rtol=1e-5, atol=1e-6)


def test_only_counted_rows_are_in_the_mean(case):
    features, _ = case
    features[3] = np.nan
    counted = np.array([True, False, True, False, False])
    moved = mean_features.moving_sum(jnp.ones(D), features, 0.9, counted)
    np.testing.assert_allclose(moved, 0.9 + features[[0, 2]].mean(axis=0), rtol=1e-5)
    none = mean_features.moving_sum(jnp.full(D, 2.0), features, 0.9, np.zeros(5, bool))
    np.testing.assert_array_equal(none, np.full(D, 2.0))


def test_no_gradient_flows_through_the_mean_feature(case):
    features, _ = case
    gradient = jax.grad(lambda x: mean_features.moving_sum(jnp.zeros(D), x, 0.9).sum())(features)
    assert not gradient.any()


@pytest.mark.parametrize("norm", classifiers.NORMS)
@pytest.mark.parametrize("zero", ["features", "one head", "mean", "kernel", "all"])
def test_zero_vectors_have_finite_values_and_gradients(case, norm, zero):
    features, variables = case
    kernel, mean_feature = variables["params"]["kernel"], variables["batch_stats"]["mean_feature"]
    if zero in ("features", "all"):
        features[0] = 0
    if zero == "one head":
        features[:, :3] = 0
    if zero in ("mean", "all"):
        mean_feature[:] = 0
    if zero in ("kernel", "all"):
        kernel[:, 1] = 0
    module = classifiers.CosineClassifier(K, norm=norm)

    def effect(features, kernel, mean_feature):
        changed = {"params": {"kernel": kernel}, "batch_stats": {"mean_feature": mean_feature}}
        logits = module.apply(changed, features)
        return effects.total_direct_effect(logits.factual, logits.counterfactual, 1.5), logits

    (values, logits), pullback = jax.vjp(effect, features, kernel, mean_feature)
    for array in (values, *pullback((jnp.ones_like(values), jax.tree.map(jnp.zeros_like, logits)))):
        assert np.isfinite(array).all()
    if zero in ("mean", "all"):
        np.testing.assert_array_equal(values, logits.factual)
    if zero in ("features", "all"):
        np.testing.assert_array_equal(values[0], np.zeros(K))


def test_a_class_of_zero_weights_can_learn():
    """The offset of the causal norm gives a slope where there is no direction: 1/gamma."""
    gradient = jax.jacobian(lambda w: mean_features.normalise(w, 1 / 32))(jnp.zeros(2))
    np.testing.assert_allclose(gradient, 32 * np.eye(2))


def test_gradient_by_differences(rng):
    x = rng.normal(size=5)
    with jax.enable_x64(True):
        check_grads(lambda x: mean_features.normalise(x, 0.0), (jnp.asarray(x),), order=1)


@pytest.mark.parametrize("num_heads", [0, 4])
def test_heads_that_do_not_divide_the_features(num_heads):
    with pytest.raises(InputError, match=f"6 features cannot be split into {num_heads} heads"):
        classifiers.CosineClassifier(K, num_heads=num_heads).init(jax.random.key(0), jnp.ones((1, D)))


def test_an_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="norm 'l1' is not one of causal, cosine, capsule"):
        classifiers.CosineClassifier(K, norm="l1").init(jax.random.key(0), jnp.ones((1, D)))


def test_linear_with_a_bias(case):
    features, variables = case
    params = variables["params"] | {"bias": np.arange(K, dtype=np.float32)}
    logits = classifiers.LinearClassifier(K, use_bias=True).apply({"params": params}, features)
    np.testing.assert_allclose(
        logits.factual, features @ params["kernel"] + params["bias"], rtol=1e-5, atol=1e-6
    )


def test_scales_start_at_one(case):
    features, _ = case
    module = classifiers.ScaledClassifier(K)
    variables = module.init(jax.random.key(0), features)
    params = jax.tree.map(np.asarray, variables["params"])
    plain = features @ params["kernel"] + params["bias"]
    np.testing.assert_allclose(module.apply(variables, features).factual, plain, rtol=1e-5, atol=1e-6)


def test_tau_norm_evens_lengths_out(case):
    kernel = case[1]["params"]["kernel"]
    kernel[:, 2] = 0
    np.testing.assert_array_equal(classifiers.tau_norm(kernel, 0.0), kernel)
    lengths = np.linalg.norm(classifiers.tau_norm(kernel, 1.0), axis=0)
    np.testing.assert_allclose(lengths, [1, 1, 0, 1], rtol=1e-6)
    half = np.linalg.norm(classifiers.tau_norm(kernel, 0.5), axis=0)
    np.testing.assert_allclose(half, np.sqrt(np.linalg.norm(kernel, axis=0)), rtol=1e-6)
    gradient = jax.grad(lambda w: classifiers.tau_norm(w, 0.7).sum())(kernel)
    assert np.isfinite(gradient).all()


def test_rule_of_thumb_alpha(rng):
    features = np.abs(rng.normal(size=(20, D))).astype(np.float32)
    mean_feature = features.mean(axis=0)
    cosines = np.asarray(mean_features.cosines(features, mean_feature, 2), np.float64)
    alpha = mean_features.rule_of_thumb_alpha(cosines)
    assert alpha > 1
    np.testing.assert_allclose((alpha * cosines).mean(), 1, rtol=1e-6)


@pytest.mark.parametrize("mean_feature", [-np.ones(D), np.zeros(D), np.full(D, np.nan)])
def test_no_alpha_where_cosines_are_not_positive(mean_feature):
    with pytest.raises(ValueError, match="so no alpha makes"):
        mean_features.rule_of_thumb_alpha(
            mean_features.cosines(jnp.ones((2, D)), jnp.asarray(mean_feature), 2)
        )
