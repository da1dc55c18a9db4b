"""Figures as the hospital's pages and its terminal say them: three places after the point, a dash where there is none."""

from __future__ import annotations

from shared.results import Difference, Estimate


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def interval(estimate: Estimate) -> str:
    """Empty where it has none."""
    return "" if estimate.low is None or estimate.high is None else f"{estimate.low:.3f} to {estimate.high:.3f}"


def sentence_part(estimate: Estimate) -> str:
    """The value, with its interval in brackets."""
    if estimate.value is None:
        return "not defined"
    between = interval(estimate)
    return f"{estimate.value:.3f} ({between})" if between else f"{estimate.value:.3f}"


def cell(estimate: Estimate) -> dict[str, str]:
    """`value` and `interval` of a table's cell."""
    return {"value": number(estimate.value), "interval": interval(estimate)}


def gain_cell(gain: Difference | None) -> dict[str, str]:
    """As `cell`, with signs."""
    if gain is None:
        return {"value": "–", "interval": ""}
    return {"value": _signed(gain.value), "interval": f"{_signed(gain.low)} to {_signed(gain.high)}"}


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")
