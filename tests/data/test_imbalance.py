import json
from pathlib import Path

import numpy as np
import pytest

from cfmlc_jax.data.sources.imbalance import class_counts, draw, one_hot
from cfmlc_jax.errors import InputError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "longtail_backbones" / "counts.json").read_text())
KINDS = {"exp": "exponential", "step": "step"}


@pytest.mark.parametrize("case", GOLDEN)
def test_counts_equal_the_references(case):
    name, kind, ratio = case.split("_")
    k = int(name.removeprefix("cifar"))
    assert class_counts(50_000 // k, k, KINDS[kind], float(ratio)).tolist() == GOLDEN[case]


def test_counts_by_hand():
    assert class_counts(100, 3, "exponential", 0.25).tolist() == [100, 50, 25]
    assert class_counts(100, 5, "step", 0.1).tolist() == [100, 100, 100, 10, 10]
    assert class_counts(7, 4, "exponential", 1.0).tolist() == [7] * 4
    assert class_counts(100, 4, "step", 0.5).dtype == np.int64


def test_ranks_may_be_drawn():
    ordered = class_counts(1000, 10, "exponential", 0.01)
    drawn = [class_counts(1000, 10, "exponential", 0.01, order_seed=seed) for seed in (0, 0, 1)]
    assert sorted(drawn[0].tolist()) == sorted(ordered.tolist())
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert drawn[0].tolist() != ordered.tolist()
    assert drawn[0].tolist() != drawn[2].tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((100, 10, "linear", 0.1), "imbalance 'linear' is not one of exponential, step"),
        ((100, 10, "step", 0.0), r"ratio 0.0 is not in \(0, 1\]"),
        ((100, 10, "step", 1.5), r"ratio 1.5 is not in \(0, 1\]"),
        ((100, 10, "step", float("nan")), r"ratio nan is not in \(0, 1\]"),
        (
            (100, 3, "exponential", 0.009),
            r"class 2 has no training image \(1 of 3 classes have none\): ratio 0.009 of 100 images is below 1; give a ratio of at least 0.01$",
        ),
        ((10, 4, "step", 0.05), r"class 2 has no training image \(2 of 4 classes have none\)"),
    ],
)
def test_invalid_tails_are_refused(arguments, message):
    with pytest.raises(InputError, match=message) as error:
        class_counts(*arguments)
    assert "\n" not in str(error.value)


def test_a_draw_has_its_counts_and_less_is_a_part_of_more(rng):
    classes = rng.integers(0, 3, 300)
    most, fewer = (draw(classes, np.array(counts), 5) for counts in ((60, 30, 10), (20, 30, 2)))
    assert np.bincount(classes[most]).tolist() == [60, 30, 10]
    assert np.bincount(classes[fewer]).tolist() == [20, 30, 2]
    assert set(fewer) <= set(most)
    assert (np.diff(most) > 0).all()


def test_a_draw_is_its_seeds_and_not_the_first_images(rng):
    classes = np.repeat([0, 1], 500)
    draws = [draw(classes, np.array([100, 100]), seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])
    # Uniform over the class: the mean place of 100 among 500 has a deviation of 13.
    assert abs(draws[0][:100].mean() - 249.5) < 60
    # Classes are drawn independently of each other.
    assert not np.array_equal(draws[0][:100], draws[0][100:] - 500)


def test_a_subset_larger_than_the_data_is_refused():
    with pytest.raises(InputError, match="class 1 has 2 images, wanted 3"):
        draw(np.array([0, 1, 1]), np.array([1, 3]), 0)


def test_one_hot():
    np.testing.assert_array_equal(one_hot(np.array([2, 0]), 3), [[0, 0, 1], [1, 0, 0]])
    assert one_hot(np.array([0]), 1).dtype == np.uint8
