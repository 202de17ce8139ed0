"""Charts: the places of points and ticks, gaps, and texts that are harmless."""

import re

import pytest
from page_checker import EVIL, check_page

from cvtrain.report.chart import STYLE, Axis, Series, bar, chart
from cvtrain.runtime.html_page import render_page

UNIT = Axis("x", (0.0, 1.0)), Axis("y", (0.0, 1.0))


def path_of(drawn, color="a"):
    return re.search(rf'<path class="{color}" d="([^"]*)"', drawn)[1]


def test_points_and_ticks_are_where_they_belong():
    drawn = chart("t", *UNIT, [Series("line", [0, 0.5, 1], [0, 1, 0.5])])
    # The field goes from 48 to 360 and, downwards, from 26 to 214.
    assert path_of(drawn) == "M48.0 214.0L204.0 26.0L360.0 120.0"
    labels = re.findall(r'text-anchor="(?:end|middle)">([^<]*)<', drawn)
    assert labels == ["0", "0.2", "0.4", "0.6", "0.8", "1"] * 2 + ["x", "line"]


def test_a_gap_parts_a_line_and_a_point_alone_is_a_dot():
    drawn = chart("t", *UNIT, [Series("", [0, 0.25, 0.5, 0.75], [0, float("nan"), 1, 1])])
    assert path_of(drawn) == "M48.0 214.0h.1M204.0 26.0L282.0 26.0"


def test_long_lines_are_thinned_to_means():
    drawn = chart("t", Axis("x"), Axis("y", (0.0, 1.0)), [Series("", range(40_000), [0.25, 0.75] * 20_000)])
    assert set(re.findall(r" ([0-9.]+)", path_of(drawn))) == {"120.0"}
    assert len(drawn) < 5000


@pytest.mark.parametrize(
    ("axis", "values", "labels"),
    [
        (Axis("y", is_share=True), [0.5, 0.95], ["50 %", "60 %", "70 %", "80 %", "90 %"]),
        (Axis("y", may_be_log=True), [0.01, 1], ["0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1"]),
        (Axis("y", may_be_log=True), [0.1, 1], ["0.2", "0.4", "0.6", "0.8", "1"]),
        (Axis("y"), [7, 7], ["4", "6", "8", "10"]),
        (Axis("y"), [0, 0], ["-0.4", "-0.2", "0", "0.2", "0.4"]),
        (Axis("y"), [float("nan"), float("nan")], ["-0.4", "-0.2", "0", "0.2", "0.4"]),
    ],
)
def test_ticks_are_round_numbers(axis, values, labels):
    drawn = chart("t", UNIT[0], axis, [Series("", [0, 1], values)])
    assert re.findall(r'text-anchor="end">([^<]*)<', drawn)[: len(labels)] == labels


def test_intervals_are_drawn_as_bars():
    drawn = chart("t", *UNIT, [Series("", [0.5], [0.5], "b", low=[0.25], high=[1.0])], diagonal=True)
    assert path_of(drawn, "b") == "M204.0 167.0V26.0"
    assert "M48.0 214.0L360.0 26.0" in drawn


def test_charts_are_harmless():
    drawn = chart(EVIL, Axis(EVIL), Axis(EVIL), [Series(EVIL, [], [])])
    page = check_page(render_page(EVIL, [drawn, bar(0.5), bar(7)], generator="cvtrain report", style=STYLE))
    assert page.count("<script>alert('x')</script>\"\\x1b[31m") >= 5
