"""Charts as inline SVG. Colours and fonts come from the page's CSS variables, so that one drawing serves paper and dark rooms.

No series is told apart by colour alone: each has its own marker and dash, each phase of a bar its own hatching.
Coordinates are in the units of the `viewBox`; the page scales the drawing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

#: Site colours in the style sheet: --s0 ... --s6.
COLOURS = 7
#: Hatchings of bars: pattern ids h0 ... h5 in `hatchings`.
HATCHES = 6
#: Style of a curve over all hospitals: ink, full, heavier, without markers.
ALL = -1
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "12 4", "1 2")


@dataclass(frozen=True, slots=True)
class Series:
    """A line: `style` picks colour, dash and marker; points are (x, y) in data units, y None where there is no value."""

    name: str
    style: int
    points: Sequence[tuple[float, float | None]]


@dataclass(frozen=True, slots=True)
class Interval:
    """A row of an interval chart. `filled` draws a full marker, `pooled` a diamond; `text` stands at the right end."""

    name: str
    style: int
    value: float | None
    low: float | None
    high: float | None
    text: str
    filled: bool = True
    pooled: bool = False


@dataclass(frozen=True, slots=True)
class Bar:
    """A stacked bar: one length a phase, in the order of the phases' names."""

    name: str
    lengths: Sequence[float]


def colour(style: int) -> str:
    """CSS colour of a series."""
    return "var(--ink)" if style == ALL else f"var(--s{style % COLOURS})"


def swatch(style: int) -> Markup:
    """A short piece of a series' line with its marker, for legends."""
    return _svg(34, 14, "", _polyline([(0, 7), (34, 7)], style), _marker(17, 7, style), css="swatch")


def hatch_swatch(phase: int) -> Markup:
    """A piece of a bar, for legends."""
    return _svg(22, 12, "", _block(0, 0, 22, 12, phase), css="swatch")


def line_chart(
    series: Sequence[Series],
    *,
    label: str,
    x_label: str,
    y_label: str,
    y_range: tuple[float, float] | None = None,
    whole: bool = True,
) -> Markup:
    """Lines over a shared x axis, of whole numbers unless `whole` is False. `label` is what a screen reader says."""
    width, height, left, right, top, bottom = 460, 250, 46, 12, 10, 40
    xs = [x for one in series for x, y in one.points if y is not None]
    ys = [y for one in series for _, y in one.points if y is not None and math.isfinite(y)]
    x_low, x_high = (min(xs), max(xs)) if xs else (0.0, 1.0)
    x_high = x_high if x_high > x_low else x_low + 1
    y_ticks = ticks(*(y_range or (min(ys, default=0.0), max(ys, default=1.0))))
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            left + (x - x_low) / (x_high - x_low) * (width - left - right),
            height - bottom - (y - y_low) / (y_high - y_low) * (height - top - bottom),
        )

    parts = [_grid_y(y_ticks, place(x_low, 0)[0], width - right, lambda y: place(x_low, y)[1])]
    for x in whole_ticks(x_low, x_high) if whole else ticks(x_low, x_high):
        parts.append(_text(place(x, y_low)[0], height - bottom + 16, f"{x:g}", anchor="middle"))
    parts.append(_text((left + width - right) / 2, height - 6, x_label, anchor="middle", css="axis"))
    parts.append(_vertical_text(12, (top + height - bottom) / 2, y_label))
    for one in series:
        for run in _unbroken(one.points):
            spots = [place(x, y) for x, y in run]
            if len(spots) > 1:
                parts.append(_polyline(spots, one.style))
            if len(xs) <= 40 * max(1, len(series)):
                parts += [_marker(x, y, one.style) for x, y in spots]
    return _svg(width, height, label, *parts)


def roc_chart(curves: Sequence[Series], *, label: str) -> Markup:
    """ROC curves in the unit square with the line of chance."""
    width, height, left, top, side = 380, 372, 52, 10, 316

    def place(x: float, y: float) -> tuple[float, float]:
        return left + x * side, top + (1 - y) * side

    marks = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    parts = [_grid_y(marks, left, left + side, lambda y: place(0, y)[1])]
    for x in marks:
        parts.append(_line(*place(x, 0), *place(x, 1), css="grid"))
        parts.append(_text(place(x, 0)[0], top + side + 16, f"{x:g}", anchor="middle"))
    parts.append(_line(*place(0, 0), *place(1, 1), css="chance"))
    parts.append(_text(*place(0.62, 0.53), "chance"))
    parts.append(_text(left + side / 2, height - 6, "1 − specificity (false alarms)", anchor="middle", css="axis"))
    parts.append(_vertical_text(14, top + side / 2, "sensitivity (found)"))
    for one in curves:
        spots = [place(x, y) for x, y in one.points if y is not None]
        parts.append(_polyline(spots, one.style))
        inner = spots[1:-1]
        parts += [_marker(x, y, one.style) for x, y in inner[:: max(1, len(inner) // 8)]]
    return _svg(width, height, label, *parts)


def interval_chart(
    rows: Sequence[Interval],
    *,
    label: str,
    x_label: str,
    x_range: tuple[float, float],
    reference: float | None,
    says: str,
) -> Markup:
    """A value with its interval a row, beside a reference line that `says` what it means, where there is one."""
    width, left, right, top, step = 760, 190, 176, 24, 25
    height = top + step * len(rows) + 40
    low, high = x_range
    bottom = top + step * len(rows)

    def place(x: float) -> float:
        return left + (min(max(x, low), high) - low) / (high - low) * (width - left - right)

    parts: list[Markup] = []
    for x in ticks(low, high):
        parts.append(_line(place(x), top - 4, place(x), bottom, css="grid"))
        parts.append(_text(place(x), bottom + 16, signed(x) if low < 0 else f"{x:g}", anchor="middle"))
    if reference is not None:
        parts.append(_line(place(reference), top - 6, place(reference), bottom, css="chance"))
        parts.append(_text(place(reference), 12, says, anchor="middle"))
    parts.append(_text((left + width - right) / 2, height - 6, x_label, anchor="middle", css="axis"))
    for index, row in enumerate(rows):
        y = top + step * (index + 0.5)
        parts.append(_text(left - 12, y + 4, row.name, anchor="end", css="strong" if row.pooled else ""))
        if row.low is not None and row.high is not None:
            parts.append(
                Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" stroke="{}" stroke-width="2.5"/>').format(
                    _n(place(row.low)), _n(y), _n(place(row.high)), _n(y), _row_colour(row)
                )
            )
        if row.value is not None:
            parts.append(_spot(place(row.value), y, row))
        parts.append(_text(width - right + 12, y + 4, row.text, css="strong" if row.pooled else ""))
    return _svg(width, height, label, *parts)


def bar_chart(bars: Sequence[Bar], phases: Sequence[str], *, label: str, x_label: str) -> Markup:
    """Horizontal stacked bars, one hatching a phase."""
    width, left, right, top, step = 760, 130, 66, 6, 30
    height = top + step * len(bars) + 40
    bottom = top + step * len(bars)
    marks = ticks(0.0, max((sum(bar.lengths) for bar in bars), default=1.0) or 1.0)

    def place(x: float) -> float:
        return left + x / marks[-1] * (width - left - right)

    parts = []
    for x in marks:
        parts.append(_line(place(x), top, place(x), bottom, css="grid"))
        parts.append(_text(place(x), bottom + 16, f"{x:g}", anchor="middle"))
    parts.append(_text((left + width - right) / 2, height - 6, x_label, anchor="middle", css="axis"))
    for index, bar in enumerate(bars):
        y = top + step * index + 4
        parts.append(_text(left - 10, y + 15, bar.name, anchor="end"))
        at = 0.0
        for phase, (length, _) in enumerate(zip(bar.lengths, phases, strict=True)):
            if length > 0:
                parts.append(_block(place(at), y, place(at + length) - place(at), step - 8, phase))
            at += length
        parts.append(_text(place(at) + 6, y + 15, f"{at:.1f} s"))
    return _svg(width, height, label, *parts)


def hatchings() -> Markup:
    """The pattern definitions that bars use; once a page."""
    patterns = Markup("")
    shapes = (
        '<path d="M0 4 H8" class="hatch"/>',
        '<path d="M0 8 L8 0" class="hatch"/>',
        "",
        '<circle cx="4" cy="4" r="1.4" class="dot"/>',
        '<path d="M4 0 V8" class="hatch"/>',
        '<path d="M0 0 L8 8 M0 8 L8 0" class="hatch"/>',
    )
    for index, shape in enumerate(shapes):
        patterns += Markup(
            '<pattern id="h{}" width="8" height="8" patternUnits="userSpaceOnUse">'
            '<rect width="8" height="8" fill="var(--p{})"/>{}</pattern>'
        ).format(index, index, Markup(shape))
    return Markup('<svg width="0" height="0" aria-hidden="true" class="defs"><defs>{}</defs></svg>').format(patterns)


def ticks(low: float, high: float) -> list[float]:
    """Four to seven round numbers that enclose [low, high]."""
    if not high > low:
        low, high = low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0)
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]


def whole_ticks(low: float, high: float) -> list[int]:
    """At most nine whole numbers in [low, high], evenly spaced."""
    step = max(1, math.ceil((high - low) / 8))
    return list(range(math.ceil(low), math.floor(high) + 1, step))


def signed(value: float) -> str:
    """With a sign: `+0.2`, `−0.1`, `0`."""
    return "0" if value == 0 else f"{value:+g}".replace("-", "−")


def _n(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")


def _svg(width: float, height: float, label: str, *parts: Markup, css: str = "chart") -> Markup:
    told = Markup('role="img" aria-label="{}"').format(label) if label else Markup('aria-hidden="true"')
    return Markup('<svg class="{}" viewBox="0 0 {} {}" width="{}" height="{}" {}>{}</svg>').format(
        css, _n(width), _n(height), _n(width), _n(height), told, Markup("").join(parts)
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start", css: str = "") -> Markup:
    return Markup('<text x="{}" y="{}" text-anchor="{}" class="{}">{}</text>').format(_n(x), _n(y), anchor, css, text)


def _vertical_text(x: float, y: float, text: str) -> Markup:
    return Markup(
        '<text x="{0}" y="{1}" text-anchor="middle" class="axis" transform="rotate(-90 {0} {1})">{2}</text>'
    ).format(_n(x), _n(y), text)


def _line(x1: float, y1: float, x2: float, y2: float, *, css: str) -> Markup:
    return Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>').format(_n(x1), _n(y1), _n(x2), _n(y2), css)


def _grid_y(marks: Iterable[float], left: float, right: float, place: Callable[[float], float]) -> Markup:
    rows = Markup("")
    for mark in marks:
        y = place(mark)
        rows += _line(left, y, right, y, css="grid") + _text(left - 6, y + 4, f"{mark:g}", anchor="end")
    return rows


def _polyline(spots: Sequence[tuple[float, float]], style: int) -> Markup:
    points = " ".join(f"{_n(x)},{_n(y)}" for x, y in spots)
    width, dash = ("3.2", "") if style == ALL else ("2", _DASHES[style % len(_DASHES)])
    return Markup('<polyline points="{}" fill="none" stroke="{}" stroke-width="{}" stroke-dasharray="{}"/>').format(
        points, colour(style), width, dash
    )


def _marker(x: float, y: float, style: int) -> Markup:
    """Circle, square, triangle, diamond, cross, plus or downward triangle, by style."""
    if style == ALL:
        return Markup("")
    r = 3.6
    shapes = (
        f"M{_n(x - r)} {_n(y)}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0Z",
        f"M{_n(x - r)} {_n(y - r)}h{2 * r}v{2 * r}h{-2 * r}Z",
        f"M{_n(x)} {_n(y - r - 1)}L{_n(x + r + 1)} {_n(y + r)}H{_n(x - r - 1)}Z",
        f"M{_n(x)} {_n(y - r - 1)}L{_n(x + r + 1)} {_n(y)}L{_n(x)} {_n(y + r + 1)}L{_n(x - r - 1)} {_n(y)}Z",
        f"M{_n(x - r)} {_n(y - r)}l{2 * r} {2 * r}m0 {-2 * r}l{-2 * r} {2 * r}",
        f"M{_n(x - r)} {_n(y)}h{2 * r}M{_n(x)} {_n(y - r)}v{2 * r}",
        f"M{_n(x)} {_n(y + r + 1)}L{_n(x + r + 1)} {_n(y - r)}H{_n(x - r - 1)}Z",
    )
    return Markup('<path d="{}" fill="{}" stroke="{}" stroke-width="1.6"/>').format(
        shapes[style % len(shapes)], colour(style), colour(style)
    )


def _row_colour(row: Interval) -> str:
    return "var(--ink)" if row.pooled else colour(row.style)


def _spot(x: float, y: float, row: Interval) -> Markup:
    r = 6.5 if row.pooled else 4.6
    shape = (
        f"M{_n(x)} {_n(y - r)}L{_n(x + r)} {_n(y)}L{_n(x)} {_n(y + r)}L{_n(x - r)} {_n(y)}Z"
        if row.pooled
        else f"M{_n(x - r)} {_n(y)}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0Z"
    )
    return Markup('<path d="{}" fill="{}" stroke="{}" stroke-width="2"/>').format(
        shape, _row_colour(row) if row.filled else "var(--paper)", _row_colour(row)
    )


def _block(x: float, y: float, width: float, height: float, phase: int) -> Markup:
    return Markup('<rect x="{}" y="{}" width="{}" height="{}" fill="url(#h{})" class="block"/>').format(
        _n(x), _n(y), f"{width:.2f}", _n(height), phase % HATCHES
    )


def _unbroken(points: Sequence[tuple[float, float | None]]) -> list[list[tuple[float, float]]]:
    """Runs of points without a gap; a value that is missing or not finite is a gap."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if y is not None and math.isfinite(y):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]
