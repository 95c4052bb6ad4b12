"""The parts of the page: markup, axes, figures."""

import math
import re

import numpy as np
import pytest

from cfmlc_jax.report import scales, series, tables
from cfmlc_jax.report.heat_map import heat_map
from cfmlc_jax.report.line_chart import line_chart
from cfmlc_jax.report.markup import element, join
from cfmlc_jax.report.sections.context import shown_classes
from cfmlc_jax.report.sections.curves import precision_at
from cfmlc_jax.report.sections.strength import default_alphas
from cfmlc_jax.report.series import Series
from cfmlc_jax.results import tables as text_tables
from cfmlc_jax.results.evidence import Training
from cfmlc_jax.results.predictions import Prediction


def test_text_is_escaped_and_markup_is_not():
    inner = element("b", "1 < 2 & 3")
    assert (
        element("p", inner, " <i>", None, 1.5, class_="x")
        == '<p class="x"><b>1 &lt; 2 &amp; 3</b> &lt;i&gt;1.5</p>'
    )
    assert element("a", href='"><x', aria_label="a b", open=True, hidden=False, id=None) == (
        '<a href="&quot;&gt;&lt;x" aria-label="a b" open></a>'
    )
    assert element("br") == "<br>"
    # Python's own string operations on markup give text, which is escaped.
    assert join(inner + "") == "&lt;b&gt;1 &amp;lt; 2 &amp;amp; 3&lt;/b&gt;"


def test_control_characters_are_escaped():
    assert element("p", "a\x00b\nc\udc80") == "<p>a\\x00b\\nc\\udc80</p>"


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.0, 1.0], (0.0, 0.25, 0.5, 0.75, 1.0)),
        ([58.26, 73.86], (55.0, 60.0, 65.0, 70.0, 75.0)),
        ([-3.0, 3.0], (-4.0, -2.0, 0.0, 2.0, 4.0)),
        ([5.0, 5.0, float("nan")], (4.5, 4.75, 5.0, 5.25, 5.5)),
        ([], (0.0, 0.25, 0.5, 0.75, 1.0)),
    ],
)
def test_ticks_are_round_and_enclose_the_values(values, ticks):
    assert scales.fitted("x", values).ticks == ticks


def test_texts_of_ticks_differ():
    quarter = scales.fixed("x", 28.0, 29.0, 0.25)
    assert [quarter.tick_text(tick) for tick in quarter.ticks] == [
        "28.00",
        "28.25",
        "28.50",
        "28.75",
        "29.00",
    ]
    tiny = scales.fixed("x", 0.0, 2e-6, 1e-6)
    assert tiny.tick_text(1e-6) == "1e−06"
    assert scales.fixed("x", -20, 20000, 10010).tick_text(20000) == "20k"
    assert scales.spanning("x", [3, 750], ticks=5).ticks == (200, 400, 600)


def test_a_line_goes_through_its_points_and_breaks_where_there_is_none():
    points = [(0.0, 0.0), (1.0, math.nan), (2.0, 1.0), (4.0, 0.5)]
    figure = line_chart(
        "t", [Series("a", "combined", points)], scales.fixed("x", 0, 4, 1), scales.fixed("y", 0, 1, 1)
    )
    (path,) = re.findall(r'<path d="([^"]*)" class="line"', figure)
    # 44 to 370 across, 204 up to 26.
    assert path == "M44 204M207 26L370 115"


def test_long_lines_are_thinned_and_keep_their_ends():
    points = [(float(i), float(i % 7)) for i in range(5001)]
    figure = line_chart(
        "t", [Series("a", "combined", points)], scales.fixed("x", 0, 5000, 1000), scales.fixed("y", 0, 7, 7)
    )
    (path,) = re.findall(r'<path d="([^"]*)" class="line"', figure)
    assert path.startswith("M44 204L")
    assert path.endswith("L370 153.14")
    assert path.count("L") == 239


def test_numbers_in_tables():
    shown = tables.table(
        ["a", "b", "c", "d"], [["x", 0.5, 1234, tables.Change(-0.25)], ["y", math.nan, 7, tables.Change(2.0)]], caption="t"
    )  # fmt: skip
    assert re.findall(r'<td class="n">([^<]*)', shown) == ["0.50", "1,234", "−0.25", "–", "7", "+2.00"]
    assert shown.count('<th scope="col" class="n">') == 3


def test_marks_stay_on_their_track():
    assert 'style="left:100.0%' in tables.dot(130.0, "whole")
    assert 'style="width:0.0%' in tables.bar(-5.0, "whole")
    assert tables.tick(math.nan, "whole") is None


def test_a_heat_map_has_a_cell_for_every_number():
    matrix = np.array([[math.nan, 50.0], [-25.0, 0.2]])
    figure = heat_map("t", matrix, ["a<b", "c"], top=50.0, positive="tde-pivot", mark=[(0, 1)])
    assert re.findall(r"fill:var\(--([a-z-]*)\);fill-opacity:([0-9.]*)", figure) == [
        ("tde-pivot", "1.00"), ("combined", "0.50"), ("tde-pivot", "0.00"),
    ]  # fmt: skip
    assert re.findall(r'class="value \w*">([^<]*)', figure) == ["50", "−25", "0"]
    assert figure.count('class="empty"') == 1
    assert figure.count('class="mark"') == 1
    assert "a&lt;b with c: 50 %" in figure


def test_precision_at_least_recall():
    scores = np.array([4.0, 3.0, 2.0, 1.0])
    positive = np.array([True, False, True, False])
    # Thresholds give (recall, precision) (1/2, 1), (1/2, 1/2), (1, 2/3), (1, 1/2).
    precision = precision_at(scores, positive, np.array([0.0, 0.5, 0.51, 1.0]))
    np.testing.assert_allclose(precision, [1, 1, 2 / 3, 2 / 3])
    # Tied scores are one threshold.
    np.testing.assert_allclose(precision_at(np.zeros(4), positive, np.array([0.2])), [0.5])
    assert np.isnan(precision_at(scores, ~positive & positive, np.array([0.5]))).all()


def test_classes_of_the_strongest_pairs_stand_next_to_each_other():
    training = Training(9, [], [[40, 2], [2, 40], [7, 2]])
    assert shown_classes(training, 80) == [40, 2, 7]
    assert shown_classes(training, 30) == list(range(30))


def test_strengths_around_the_configured_ones():
    assert default_alphas([0.25]) == [0.0, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert default_alphas([2.0])[1:3] == [0.2, 0.4]
    assert default_alphas([])[-1] == 1.0


def test_a_prediction_has_a_colour():
    assert series.colour(Prediction.parse("tde_pivot_0.5")) == "tde-pivot"
    assert series.colour(Prediction.parse("combined")) == "combined"


def test_an_interval_without_ends_is_a_number():
    assert tables.with_interval(93.4, 92.1, 94.6, digits=1) == (
        '<span class="n">93.4 <small>[92.1, 94.6]</small></span>'
    )
    assert tables.with_interval(93.4, math.nan, math.nan, sign=True) == '<span class="n">+93.40</span>'
    assert text_tables.with_interval((93.4, 92.1, 94.6)) == "93.4 [92.1, 94.6]"
    assert text_tables.with_interval((93.4, math.nan, math.nan)) == "93.4"
    assert text_tables.with_interval((math.nan, math.nan, math.nan)) == "–"
