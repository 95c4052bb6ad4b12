"""Estimated against true effects: hand values, invariances, intervals that know about images."""

import numpy as np
import pytest

from cfmlc_jax.metrics.agreement import agreement


def compare(estimated, true, **options):
    options = {"resamples": 200} | options
    return agreement(estimated, true, generator=np.random.default_rng(0), **options)


def test_values_computed_by_hand():
    result = compare([1.0, 2.0, 6.0], [0.0, 1.0, 2.0])
    assert result.effects == 3
    assert result.bias == 2
    assert result.mae == 2
    assert result.rmse == pytest.approx(np.sqrt((1 + 1 + 16) / 3))
    assert result.slope == pytest.approx(2.5)  # Σ (t − 1) e / Σ (t − 1)² = (6 − 1) / 2
    assert result.pearson.value == pytest.approx(5 / np.sqrt(2 * 14))
    assert result.spearman.value == pytest.approx(1)


def test_ties_share_their_mean_rank():
    # Ranks 1.5 1.5 3.5 3.5 and 1 2 3 4: covariance 4, variances 4 and 5.
    result = compare([1.0, 1.0, 2.0, 2.0], [1.0, 2.0, 3.0, 40.0])
    assert result.spearman.value == pytest.approx(4 / np.sqrt(20))


def test_exact_estimates():
    true = np.linspace(-2, 3, 30)
    result = compare(true, true)
    np.testing.assert_allclose([*result.pearson, *result.spearman, result.slope], 1, rtol=1e-12)
    assert result.bias == result.mae == result.rmse == 0


def test_correlations_ignore_shift_and_scale_and_follow_the_sign(rng):
    true, noise = rng.normal(size=(2, 50))
    plain = compare(true + noise, true)
    moved = compare(5 + 3 * (true + noise), true)
    turned = compare(-(true + noise), true)
    np.testing.assert_allclose(moved.pearson, plain.pearson, rtol=1e-9)
    np.testing.assert_allclose(moved.spearman, plain.spearman, rtol=1e-9)
    assert moved.slope == pytest.approx(3 * plain.slope)
    assert moved.bias == pytest.approx(5 + 3 * plain.bias + 2 * true.mean())
    assert turned.pearson.value == pytest.approx(-plain.pearson.value)
    assert turned.spearman.low < turned.spearman.value < turned.spearman.high < 0


def test_rank_correlation_ignores_a_monotone_change(rng):
    true, noise = rng.normal(size=(2, 50))
    plain, bent = compare(true + noise, true), compare(np.exp(true + noise), true)
    np.testing.assert_allclose(bent.spearman, plain.spearman, rtol=1e-12)
    assert bent.pearson.value != pytest.approx(plain.pearson.value, abs=0.01)


def test_values_equal_numpys_and_the_interval_equals_fishers(rng):
    true, noise = rng.normal(size=(2, 400))
    estimated = true + noise
    result = compare(estimated, true, resamples=2000)
    r = np.corrcoef(estimated, true)[0, 1]
    assert result.pearson.value == pytest.approx(r, rel=1e-12)
    assert result.slope == pytest.approx(np.polyfit(true, estimated, 1)[0])
    low, high = np.tanh(np.arctanh(r) + np.array([-1.96, 1.96]) / np.sqrt(397))
    assert result.pearson.low == pytest.approx(low, abs=0.02)
    assert result.pearson.high == pytest.approx(high, abs=0.02)


def test_effects_of_one_image_are_resampled_together(rng):
    true, noise = rng.normal(size=(2, 30))
    alone = compare(true + noise, true, resamples=1000)
    repeated = [np.repeat(x, 9) for x in (true + noise, true)]
    together = compare(*repeated, images=np.repeat(np.arange(100, 130), 9), resamples=1000)
    apart = compare(*repeated, resamples=1000)
    assert together.effects == 270
    np.testing.assert_allclose(together.pearson, alone.pearson, rtol=1e-9)
    np.testing.assert_allclose(together.spearman.value, alone.spearman.value, rtol=1e-9)
    # Nine copies taken for independent would seem to narrow the interval threefold.
    assert apart.pearson.high - apart.pearson.low < 0.5 * (alone.pearson.high - alone.pearson.low)


def test_the_order_of_effects_does_not_matter(rng):
    true, noise = rng.normal(size=(2, 40))
    one = compare(true + noise, true)
    for order in (rng.permutation(40), np.argsort(true), np.argsort(-true)):
        other = compare((true + noise)[order], true[order])
        assert other.pearson.value == pytest.approx(one.pearson.value)
        assert other.rmse == pytest.approx(one.rmse)
        assert other.slope == pytest.approx(one.slope)


def test_constants_have_no_correlation(rng):
    noise = rng.normal(size=20)
    flat = compare(np.full(20, 0.1), noise)
    assert np.isnan(flat.pearson).all()
    assert np.isnan(flat.spearman).all()
    assert flat.slope == pytest.approx(0, abs=1e-12)
    assert np.isnan(compare(noise, np.full(20, 0.1)).slope)
    assert np.isnan(compare([1.0], [2.0]).pearson.value)


@pytest.mark.parametrize(
    ("estimated", "true", "images", "match"),
    [
        ([1.0, 2.0], [1.0], None, "must both be"),
        ([[1.0]], [[1.0]], None, "must both be"),
        ([], [], None, "no effects"),
        ([1.0, np.nan], [1.0, 2.0], None, "1 estimated effects are not finite"),
        ([1.0, 2.0], [np.inf, 2.0], None, "1 true effects are not finite"),
        ([1.0, 2.0], [1.0, 2.0], [0], "one for each of 2"),
    ],
)
def test_invalid_inputs_are_refused(estimated, true, images, match):
    with pytest.raises(ValueError, match=match):
        compare(estimated, true, images=images)
