"""Dataclasses to JSON types and back, and errors that name their place."""

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import pytest

from cfmlc_jax.results import json_types
from cfmlc_jax.results.json_types import FormatError, Formerly
from cfmlc_jax.results.predictions import Prediction


class Span(NamedTuple):
    low: float
    high: float


@dataclass(frozen=True)
class Part:
    count: int
    span: Span


@dataclass(frozen=True)
class Whole:
    parts: dict[Prediction, Part]
    now: Annotated[list[float], Formerly("before")]
    name: str | None
    fits: bool
    config: dict[str, Any]
    later: int = 3


VALUE = Whole({Prediction("tde_pivot", 0.5): Part(1, Span(0.5, 2))}, [1, 2.5], None, True, {"a": [1]})
FIELDS = {
    "parts": {"tde_pivot_0.5": {"count": 1, "span": [0.5, 2]}},
    "now": [1, 2.5],
    "name": None,
    "fits": True,
    "config": {"a": [1]},
    "later": 3,
}


def test_values_survive_a_round_trip():
    assert json_types.to_json(VALUE) == FIELDS
    assert json_types.from_json(Whole, FIELDS, "it") == VALUE


def test_former_names_and_defaults_of_missing_fields():
    before = {name: value for name, value in FIELDS.items() if name not in ("now", "later")}
    assert json_types.from_json(Whole, before | {"before": [1, 2.5], "unknown": 1}, "it") == VALUE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"now": [1, "x"]}, "it.now.1 is 'x', not a number"),
        ({"now": [True]}, "it.now.0 is True, not a number"),
        ({"now": 1}, "it.now is 1, not a list"),
        ({"name": 1}, "it.name is 1, not text"),
        ({"fits": 1}, "it.fits is 1, not true or false"),
        ({"later": 1.5}, "it.later is 1.5, not a whole number"),
        ({"later": None}, "it.later is None, not a whole number"),
        ({"parts": []}, r"it.parts is \[\], not an object"),
        ({"parts": {"tde": {}}}, "it.parts: 'tde' is not the name of a prediction"),
        ({"parts": {"whole": {}}}, "it.parts.whole has no 'count', 'span'"),
        ({"parts": {"whole": {"count": 1, "span": [1]}}}, r"it.parts.whole.span is \[1\], not \[low, high\]"),
    ],
)
def test_mismatched_values_are_named_with_their_place(changes, message):
    with pytest.raises(FormatError, match=f"^{message}$"):
        json_types.from_json(Whole, FIELDS | changes, "it")
