"""One figure with its interval, by hospital and for all: the chart above each table of figures."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from server.report import charts, words
from server.report.charts import Interval
from server.report.schema import Figure, Report


def figure_row(name: str, style: int, figure: Figure, *, filled: bool = True, pooled: bool = False) -> Interval:
    """The chart's row of one hospital, or of all together."""
    interval = words.span(figure)
    text = words.number(figure.value) + (f"  ({interval})" if interval else "  no interval")
    return Interval(name, style, figure.value, figure.low, figure.high, text, filled=filled, pooled=pooled)


def figure_chart(report: Report, rows: Sequence[Interval], *, title: str, chance: float | None = None) -> Markup | None:
    """None where no row has a figure. `chance` is what a model that learned nothing reaches, drawn as a line where it is given."""
    if all(row.value is None for row in rows):
        return None
    ends = [end for row in rows for end in (row.low, row.value) if end is not None]
    lowest = min(ends if chance is None else [chance, *ends])
    name = title[:1].upper() + title[1:]
    return charts.interval_chart(
        rows, label=f"{name} with {report.confidence * 100:g} % interval by hospital and for all; figures in the table below",
        x_label=title, x_range=(max(0.0, 0.1 * int(lowest * 10 - 0.5)), 1.0), reference=chance,
        says="" if chance is None else "chance",
    )  # fmt: skip
