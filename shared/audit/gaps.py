"""Ranges of entry numbers: what lies between the entries that are shown. They can be longer than memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def spans(numbers: Iterable[range]) -> str:
    """1-3, 7."""
    return ", ".join(str(one.start) if one.stop - one.start == 1 else f"{one.start}-{one.stop - 1}" for one in numbers)


def split(gap: range, covered: Iterable[range]) -> tuple[list[range], list[range]]:
    """The parts of `gap` that are in one of `covered`, and those that are in none; both ascend. Ranges can be longer than memory."""
    inside: list[range] = []
    outside: list[range] = []
    start = gap.start
    for one in sorted(covered, key=lambda one: one.start):
        low, high = max(one.start, start), min(one.stop, gap.stop)
        if low >= high:
            continue
        if start < low:
            outside.append(range(start, low))
        inside.append(range(low, high))
        start = high
    if start < gap.stop:
        outside.append(range(start, gap.stop))
    return _joined(inside), outside


def _joined(parts: Sequence[range]) -> list[range]:
    found: list[range] = []
    for one in parts:
        if found and found[-1].stop == one.start:
            found[-1] = range(found[-1].start, one.stop)
        else:
            found.append(one)
    return found
