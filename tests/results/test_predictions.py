"""Predictions: their names in files and for people, and their order."""

import pytest

from cfmlc_jax.results.predictions import (
    KINDS,
    Prediction,
    chief_effect,
    counterfactual_of,
    effect_of,
    null_name,
    one_of_each_kind,
)

# In their order.
NAMES = (
    *("whole", "patch", "combined", "tde_whole_0.5", "tde_whole_1.25", "tde_pivot_0", "tde_pivot_0.5"),
    *("tde_pivot_10", "tde_feature_1e-05"),
)


def test_names_are_parsed_and_written_alike():
    predictions = [Prediction.parse(name) for name in NAMES]
    assert [prediction.name for prediction in predictions] == list(NAMES)
    assert [str(prediction) for prediction in predictions] == list(NAMES)
    assert sorted(predictions[::-1]) == predictions
    assert len({*predictions, *map(Prediction.parse, NAMES)}) == len(NAMES)


def test_titles():
    assert [Prediction.parse(name).title for name in NAMES[:4]] == [
        "whole image", "patches", "combined", "TDE whole, α 0.5",
    ]  # fmt: skip
    assert Prediction("tde_feature", 1.5).title == "TDE feature, α 1.5"


def test_a_strength_is_one_to_the_digits_of_its_name():
    third = effect_of("pivot", 1 / 3)
    assert third.alpha == 1 / 3
    assert third.name == "tde_pivot_0.333333"
    assert third == Prediction.parse(third.name)
    assert hash(third) == hash(Prediction.parse(third.name))
    assert not third < Prediction.parse(third.name)
    assert third != effect_of("whole", 1 / 3)


@pytest.mark.parametrize("name", ["", "tde", "tde_pivot_", "tde_pivot_-1", "tde_pivot_nan", "tde_pivot_inf", "tde_pivot_x", "whole_1", "tde_other_1", "null_pivot"])  # fmt: skip
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match=f"'{name}' is not the name of a prediction"):
        Prediction.parse(name)
    with pytest.raises(ValueError, match=r"'tde_pivot' needs a strength, such as tde_pivot_0\.5"):
        Prediction.parse("tde_pivot")


@pytest.mark.parametrize(("kind", "alpha"), [("other", None), ("tde_pivot", None), ("whole", 0.5)])
def test_a_strength_belongs_to_an_effect(kind, alpha):
    with pytest.raises(ValueError, match=f"prediction '{kind}'"):
        Prediction(kind, alpha)


def test_counterfactuals():
    assert {Prediction(kind, 1.0).counterfactual for kind in KINDS if "tde" in kind} == {
        "whole",
        "pivot",
        "owner",
        "feature",
    }
    assert Prediction("whole").counterfactual is None
    assert counterfactual_of(null_name("pivot")) == "pivot"
    assert counterfactual_of("combined") is None


def test_one_prediction_of_each_kind():
    names = ["whole", "combined", "tde_whole_0.5", "tde_pivot_0.5", "tde_pivot_1"]
    predictions = [Prediction.parse(name) for name in names]
    assert one_of_each_kind(predictions) == predictions[:4]
    assert chief_effect(predictions) == Prediction("tde_pivot", 0.5)
    assert chief_effect(predictions[:3]) == Prediction("tde_whole", 0.5)
    assert chief_effect(predictions[:2]) is None
