"""Bootstrap intervals: weights against repeated images, known sampling errors, seeds and limits."""

import numpy as np
import pytest

from cfmlc_jax import metrics
from cfmlc_jax.metrics import bootstrap


def a_split(rng, images=60, classes=5):
    """Scores with ties and labels; class 0 has no positives, class 1 nothing else."""
    scores = rng.integers(0, 12, (images, classes)).astype(np.float32)
    labels = (rng.random((images, classes)) < 0.2).astype(np.uint8)
    labels[:, 0], labels[:, 1] = 0, 1
    return scores, labels


def mean(weights, values):
    return weights @ values / weights.sum(axis=1)


def precision_interval(scores, labels, definition, **options):
    """The interval of a mean average precision, of 200 resamples by default."""
    statistic = bootstrap.weighted_mean_average_precision(scores, labels, definition)
    options = {"resamples": 200, "bounds": bootstrap.PERCENT} | options
    return bootstrap.interval(statistic, len(scores), **options)


@pytest.mark.parametrize("definition", metrics.AP_DEFINITIONS)
def test_equal_weights_give_the_plain_definition(golden, rng, definition):
    z = golden("metrics.npz")
    for scores, labels in [(z["scores"], z["targets"]), a_split(rng)]:
        ap = bootstrap.weighted_average_precision(scores, labels, definition)(np.ones((1, len(scores))))
        np.testing.assert_allclose(
            ap[0], metrics.average_precision(scores, labels, definition), rtol=1e-12, atol=0
        )
        mean_ap = bootstrap.weighted_mean_average_precision(scores, labels, definition)
        np.testing.assert_allclose(
            mean_ap(np.ones((2, len(scores)))),
            metrics.mean_average_precision(scores, labels, definition),
            rtol=1e-12,
        )


@pytest.mark.parametrize("definition", metrics.AP_DEFINITIONS)
def test_weights_are_repeated_images(rng, definition):
    scores, labels = a_split(rng)
    weights = rng.integers(0, 3, (20, 60))
    weights[0] = labels[:, 2] == 0  # a sample without positives of class 2
    actual = bootstrap.weighted_average_precision(scores, labels, definition)(weights.astype(float))
    for row, w in zip(actual, weights, strict=True):
        drawn = np.repeat(np.arange(60), w)
        expected = metrics.average_precision(scores[drawn], labels[drawn], definition)
        np.testing.assert_allclose(row, expected, rtol=1e-12)


def test_hand_values_of_weighted_average_precision():
    scores, labels = np.array([[3.0], [2.0], [1.0]]), np.array([[0], [1], [1]])
    weights = np.array([[1.0, 2, 1], [0, 1, 1], [3, 0, 0]])
    sklearn = bootstrap.weighted_average_precision(scores, labels, "sklearn")(weights)
    # precisions 2/3 (two of the three positives) and 3/4; then perfect; then no positives.
    np.testing.assert_allclose(sklearn[:, 0], [2 / 3 * 2 / 3 + 1 / 3 * 3 / 4, 1, 0])
    voc = bootstrap.weighted_average_precision(scores, labels, "voc")(weights)
    np.testing.assert_allclose(voc[:, 0], [3 / 4, 1, np.nan])


def test_the_interval_of_a_mean_is_that_of_the_central_limit(rng):
    values = rng.normal(size=400)
    actual = bootstrap.interval(
        lambda w: mean(w, values), 400, generator=np.random.default_rng(1), resamples=4000
    )
    assert actual.value == pytest.approx(values.mean(), rel=1e-12)
    error = values.std() / 20
    # The quantile's own noise over 4000 resamples is about 0.04 errors.
    assert actual.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert actual.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def drawn_split(rng, images, separation, share, classes=4):
    """Labels of a share each, and normal scores that are higher where the class is."""
    labels = (rng.random((images, classes)) < share).astype(np.uint8)
    return rng.normal(size=labels.shape) + separation * labels, labels


@pytest.mark.parametrize("definition", metrics.AP_DEFINITIONS)
@pytest.mark.parametrize(
    ("images", "separation", "share"),
    [(200, 0.0, 0.1), (200, 0.3, 0.04), (400, 0.3, 0.2), (400, 1.2, 0.1), (300, 3.0, 0.3)],
    ids=["chance", "weak and rare", "weak", "medium", "strong"],
)
def test_intervals_cover_the_population_value(definition, images, separation, share):
    """Of 95 % intervals about 95 % hold the truth; percentiles alone of half of the weak cases."""
    rng = np.random.default_rng(3)
    truth = metrics.mean_average_precision(*drawn_split(rng, 60_000, separation, share), definition)
    hits = []
    for _ in range(100):
        scores, labels = drawn_split(rng, images, separation, share)
        actual = precision_interval(scores, labels, definition, generator=rng, resamples=100)
        assert actual.low <= actual.value <= actual.high
        hits.append(actual.low <= truth <= actual.high)
    assert np.mean(hits) >= 0.87  # 95 % less three standard errors of 100 tries, and a little


def test_intervals_of_gains_cover_the_population_gain():
    """Two predictions on the same images: the better one's gain, and nothing where they are as good."""
    rng = np.random.default_rng(4)

    def two(images):
        scores, labels = drawn_split(rng, images, 0.5, 0.1)
        return [scores, scores + 0.7 * rng.normal(size=scores.shape)], labels

    def mean_precision(each, labels):
        return bootstrap.weighted_mean_average_precision(each, labels, "sklearn")

    both, labels = two(60_000)
    truth = np.subtract(*(mean_precision(each, labels)(np.ones((1, 60_000)))[0] for each in both))
    hits = []
    for _ in range(80):
        both, labels = two(200)
        statistic, bounds = bootstrap.values_and_gains([mean_precision(each, labels) for each in both], 1)
        actual = bootstrap.interval(statistic, 200, generator=rng, resamples=100, bounds=bounds)
        assert (actual.low <= actual.value).all()
        assert (actual.value <= actual.high).all()
        np.testing.assert_array_equal([part[3] for part in actual], 0)
        hits.append(actual.low[2] <= truth <= actual.high[2])
    assert np.mean(hits) >= 0.88


def test_an_interval_contains_its_value_even_below_every_resample():
    """A weak classifier of many classes: repeated images alone raise mean average precision."""
    rng = np.random.default_rng(5)
    labels = np.zeros((60, 40), np.uint8)
    labels[rng.permuted(np.tile(np.arange(60), (40, 1)), axis=1)[:, :3].T, np.arange(40)] = 1
    scores = rng.normal(size=labels.shape)
    statistic = bootstrap.weighted_mean_average_precision(scores, labels, "voc")
    drawn = statistic(rng.multinomial(60, np.full(60, 1 / 60), 200).astype(float))
    actual = precision_interval(scores, labels, "voc", generator=rng)
    assert np.quantile(drawn, 0.025) > actual.value
    assert actual.low < actual.value <= actual.high


def test_a_higher_level_contains_the_lower(rng):
    values = rng.normal(size=50)
    narrow, wide = (
        bootstrap.interval(lambda w: mean(w, values), 50, generator=np.random.default_rng(1), level=level)
        for level in (0.5, 0.95)
    )
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def test_the_same_generator_gives_the_same_interval_in_any_chunks(rng, monkeypatch):
    scores, labels = a_split(rng)

    def actual():
        return precision_interval(scores, labels, "voc", generator=np.random.default_rng(7), resamples=30)

    at_once = actual()
    monkeypatch.setattr(bootstrap, "CHUNK", 4 * 60)
    np.testing.assert_allclose(actual(), at_once, rtol=1e-12)
    assert at_once.low < at_once.value < at_once.high


def test_every_resample_draws_as_many_images(monkeypatch):
    monkeypatch.setattr(bootstrap, "CHUNK", 30)
    seen = []

    def statistic(weights):
        seen.append(weights)
        return weights.sum(axis=1)

    actual = bootstrap.interval(statistic, 10, generator=np.random.default_rng(0), resamples=7)
    assert actual == (10, 10, 10)
    drawn = np.concatenate(seen[1:])
    assert drawn.shape == (7, 10)
    assert len(np.unique(drawn, axis=0)) == 7
    # Over all of them every image is drawn equally often, so that a mean has no bias.
    np.testing.assert_array_equal(drawn.sum(axis=0), 7)


def test_a_perfect_ranking_has_no_uncertainty_and_others_stay_in_bounds(rng):
    labels = (rng.random((80, 3)) < 0.4).astype(np.uint8)
    generator = np.random.default_rng(0)
    perfect = precision_interval(labels.astype(float), labels, "sklearn", generator=generator, resamples=50)
    np.testing.assert_allclose(perfect, 100)
    low, high = precision_interval(
        rng.normal(size=(80, 3)), labels, "sklearn", generator=generator, resamples=50
    )[1:]
    assert 0 <= low < high <= 100
    # Two positives: where a resample has neither, "sklearn" counts 0, and less that bias 100 would be passed.
    rare = np.eye(80, 3, dtype=np.uint8) + np.eye(80, 3, -40, dtype=np.uint8)
    actual = precision_interval(rare.astype(float), rare, "sklearn", generator=generator, resamples=50)
    assert actual.low < actual.value == actual.high == 100


def test_a_paired_difference_of_equal_rankings_is_exactly_zero(rng):
    scores, labels = a_split(rng)
    one = bootstrap.weighted_mean_average_precision(scores, labels, "sklearn")
    other = bootstrap.weighted_mean_average_precision(np.exp(scores), labels, "sklearn")
    actual = bootstrap.interval(lambda w: one(w) - other(w), 60, generator=np.random.default_rng(0))
    assert actual == (0, 0, 0)


def test_statistics_of_any_shape_and_an_undefined_one():
    def statistic(weights):
        return np.stack([weights[:, :2], np.full((len(weights), 2), np.nan)], axis=1)

    actual = bootstrap.interval(statistic, 5, generator=np.random.default_rng(0), resamples=20)
    assert actual.value.shape == actual.low.shape == (2, 2)
    assert np.isnan(actual.high[1]).all()
    assert not np.isnan(actual.high[0]).any()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"images": 0}, "must be at least 1"),
        ({"resamples": 0}, "must be at least 1"),
        ({"level": 95}, "level 95 is outside"),
    ],
)
def test_invalid_intervals_are_refused(changes, match):
    arguments = {"images": 3, "resamples": 2, "level": 0.9} | changes
    with pytest.raises(ValueError, match=match):
        bootstrap.interval(lambda w: w, generator=np.random.default_rng(0), **arguments)


@pytest.mark.parametrize(
    ("scores", "labels", "definition", "match"),
    [
        (np.zeros((2, 2)), np.zeros((2, 3)), "voc", "must both be"),
        (np.zeros((2, 2)), np.zeros((2, 2)), "coco", "not one of"),
        (np.full((2, 2), np.nan), np.zeros((2, 2)), "voc", "4 scores are NaN"),
    ],
)
def test_invalid_inputs_are_refused(scores, labels, definition, match):
    with pytest.raises(ValueError, match=match):
        bootstrap.weighted_average_precision(scores, labels, definition)
