"""Lines of CSV: whatever a class or a file is called, a spreadsheet sees text and a program the same fields."""

import csv
import io

import numpy as np
import pytest
from fuzzing import cases
from hypothesis import given
from hypothesis import strategies as st

from cfmlc_jax.predict.formats import Csv, ImageLabels, Label
from cfmlc_jax.results import scores, single_label
from cfmlc_jax.results.tables import FORMULA_STARTS, csv_line

FORMULAS = ("=1+2", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "＝1")


def fields(text):
    return list(csv.reader(io.StringIO(text, newline="")))


@pytest.mark.parametrize("text", FORMULAS)
def test_formulas_are_text(text):
    assert fields(csv_line([text, 1]))[0] == [f"'{text}", "1"]


@pytest.mark.parametrize("text", ["a\rb", "a\nb", 'a"b'])
def test_line_breaks_and_quotes_stay_within_their_field(text):
    assert fields(csv_line([text, 1])) == [[text, "1"]]


@pytest.mark.parametrize("text", ["-5", "+1.5", "-1e3", "dog", "a=b", "", "traffic light, red"])
def test_numbers_and_names_stay_as_they_are(text):
    assert fields(csv_line([text])) == [[text]]


@cases(40)
@given(st.lists(st.text(), min_size=1, max_size=4))
def test_no_field_begins_like_a_formula(texts):
    (read,) = fields(csv_line(texts))
    assert [value.removeprefix("'") for value in read] == [text.removeprefix("'") for text in texts]
    for value in read:
        assert not value.startswith(FORMULA_STARTS) or float(value) is not None


def test_predictions_name_the_same_file():
    line = Csv().lines(ImageLabels("=1+2.jpg", [Label("@x", 0, 0.5)]))
    assert fields(line)[0][:2] == ["./=1+2.jpg", "'@x"]
    assert fields(Csv().lines(ImageLabels("-a.jpg", [])))[0][0] == "./-a.jpg"
    assert fields(Csv().lines(ImageLabels("a.jpg", [])))[0][0] == "a.jpg"


def test_tables_of_classes():
    names = ["=1+2", "dog"]
    logits = {"whole": np.array([[1.0, -1.0], [-1.0, 1.0]], np.float32)}
    of_two = scores.Scores(logits=logits | {"combined": logits["whole"]}, labels=np.eye(2, dtype=np.uint8))
    for table in (
        scores.per_class_csv(of_two, (), names),
        single_label.per_class_csv(of_two, (), np.array([1, 1]), names),
    ):
        assert [row[0] for row in fields(table)] == ["class", "'=1+2", "dog"]
