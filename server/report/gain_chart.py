"""The chart of what the rounds changed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup

from server.report import charts
from server.report.charts import Interval
from server.report.schema import PooledDifference
from server.report.words import signed_number
from shared.results import Difference


@dataclass(frozen=True, slots=True)
class Change:
    """One row: whose figure changed, its style, and by how much; nothing is drawn where `gain` is None."""

    name: str
    style: int
    gain: Difference | PooledDifference | None
    filled: bool
    pooled: bool


def gain_chart(changes: Iterable[Change], *, of: str) -> Markup | None:
    """Each change since round 0 with its interval, about the line of no change; `of` names the figure. None without any change."""
    rows = [
        Interval(
            one.name,
            one.style,
            gain.value,
            gain.low,
            gain.high,
            f"{signed_number(gain.value)}  ({signed_number(gain.low)} to {signed_number(gain.high)})",
            filled=one.filled,
            pooled=one.pooled,
        )
        for one in changes
        if (gain := one.gain) is not None
    ]
    if not rows:
        return None
    low = min(0.0, *(row.low for row in rows if row.low is not None))
    high = max(0.0, *(row.high for row in rows if row.high is not None))
    marks = charts.ticks(low - 0.02, high + 0.02)
    return charts.interval_chart(
        rows, label=f"Change of {of} since round 0 with interval by hospital and for all; figures in the table below",
        x_label=f"change of {of} since round 0", x_range=(marks[0], marks[-1]), reference=0.0, says="no change",
    )  # fmt: skip
