"""Charts: what is drawn lies where the axis says, gaps stay gaps, and no series is told apart by colour alone."""

from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.report.charts import (
    ALL,
    COLOURS,
    Bar,
    Interval,
    Series,
    bar_chart,
    hatchings,
    interval_chart,
    line_chart,
    roc_chart,
    signed,
    swatch,
    ticks,
    whole_ticks,
)


def lines(svg: str) -> list[list[tuple[float, float]]]:
    root = ElementTree.fromstring(svg)
    return [
        [(float(x), float(y)) for x, y in (pair.split(",") for pair in line.attrib["points"].split())]
        for line in root.iter("polyline")
    ]


def labels(svg: str, anchor: str) -> dict[str, tuple[float, float]]:
    return {
        text.text or "": (float(text.attrib["x"]), float(text.attrib["y"]))
        for text in ElementTree.fromstring(svg).iter("text")
        if text.attrib["text-anchor"] == anchor and "transform" not in text.attrib
    }


def test_points_lie_at_the_axis_labels_of_their_values() -> None:
    svg = line_chart(
        [Series("a", 0, [(0, 0.0), (2, 0.4), (4, 1.0)])], label="x", x_label="round", y_label="y", y_range=(0, 1)
    )
    [line] = lines(svg)
    across, up = labels(svg, "middle"), labels(svg, "end")
    for (x, y), at, value in zip(line, ("0", "2", "4"), ("0", "0.4", "1"), strict=True):
        assert x == pytest.approx(across[at][0], abs=0.1)
        assert y == pytest.approx(up[value][1] - 4, abs=0.1)


def test_a_missing_or_infinite_value_is_a_gap() -> None:
    points = [(0, 1.0), (1, 0.9), (2, None), (3, 0.8), (4, 0.7), (5, float("nan")), (6, 0.5), (7, 0.4)]
    assert [len(line) for line in lines(line_chart([Series("a", 0, points)], label="", x_label="", y_label=""))] == [
        2,
        2,
        2,
    ]


def test_a_chart_without_any_value_is_still_a_drawing() -> None:
    ElementTree.fromstring(line_chart([Series("a", 0, [(1, None)])], label="l", x_label="x", y_label="y"))


def test_names_are_escaped() -> None:
    svg = interval_chart(
        [Interval("<b>&", 0, 0.5, 0.4, 0.6, "<i>")], label='"<', x_label="x", x_range=(0, 1), reference=0.5, says="s"
    )
    assert "<b>&" in [text.text for text in ElementTree.fromstring(svg).iter("text")]


def test_styles_differ_without_colour() -> None:
    """Dash and marker of every site colour, and the curve of all hospitals, are a pair of their own."""
    seen = set()
    for style in (ALL, *range(COLOURS)):
        svg = swatch(style)
        dash = re.search(r'stroke-dasharray="([^"]*)"', svg)
        marker = re.search(r'<path d="([^"]*)"', svg)
        assert dash is not None
        seen.add((dash[1], marker[1] if marker else ""))
    assert len(seen) == COLOURS + 1
    patterns = re.findall(r"<pattern.*?</pattern>", hatchings())
    assert len({re.sub(r"h\d|--p\d", "", pattern) for pattern in patterns}) == len(patterns) == 6


def test_roc_runs_from_the_lower_left_to_the_upper_right_corner() -> None:
    [line] = lines(roc_chart([Series("a", 1, [(0, 0), (0.2, 0.7), (1, 1)])], label="roc"))
    (x0, y0), _, (x1, y1) = line
    assert x1 - x0 == pytest.approx(y0 - y1)
    assert x1 > x0 and y1 < y0


def test_an_interval_is_drawn_from_low_to_high_on_the_axis() -> None:
    row = Interval("a", 0, 0.6, 0.4, 0.8, "t")
    svg = interval_chart([row], label="l", x_label="x", x_range=(0, 1), reference=0.5, says="chance")
    across = labels(svg, "middle")
    bar = next(one for one in ElementTree.fromstring(svg).iter("line") if one.attrib.get("stroke-width") == "2.5")
    assert float(bar.attrib["x1"]) == pytest.approx(across["0.4"][0], abs=0.1)
    assert float(bar.attrib["x2"]) == pytest.approx(across["0.8"][0], abs=0.1)


def test_bar_lengths_are_in_proportion_and_adjoin() -> None:
    svg = bar_chart([Bar("a", [1.0, 0.0, 3.0])], ["x", "y", "z"], label="l", x_label="s")
    blocks = [
        (float(rect.attrib["x"]), float(rect.attrib["width"]), rect.attrib["fill"])
        for rect in ElementTree.fromstring(svg).iter("rect")
    ]
    (x0, w0, first), (x1, w1, second) = blocks
    assert w1 / w0 == pytest.approx(3.0, rel=1e-2)
    assert x0 + w0 == pytest.approx(x1, abs=0.1)
    assert (first, second) == ("url(#h0)", "url(#h2)")


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_enclose_the_range_with_a_few_even_steps(low: float, width: float) -> None:
    marks = ticks(low, low + width)
    steps = [after - before for before, after in pairwise(marks)]
    assert marks[0] <= low + 1e-6 * width and marks[-1] >= low + width * (1 - 1e-6)
    assert 3 <= len(marks) <= 8
    assert max(steps) - min(steps) < 1e-6 * max(1.0, abs(low), width)


@given(st.integers(0, 1000), st.integers(1, 100_000))
def test_whole_ticks_are_few_and_inside(low: int, width: int) -> None:
    marks = whole_ticks(low, low + width)
    assert 1 <= len(marks) <= 9
    assert low <= marks[0] and marks[-1] <= low + width


def test_signs() -> None:
    assert [signed(value) for value in (0.2, -0.1, 0.0)] == ["+0.2", "−0.1", "0"]
