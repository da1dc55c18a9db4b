"""Which label stands above which, and where a label that no class lists is taken."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shared.diagnosis_vocabularies import VOCABULARIES


@dataclass(frozen=True, slots=True)
class Placed:
    """The class of a label, and the label that the class lists: the label itself, or its nearest ancestor."""

    index: int
    listed: str


def spelled(label: str) -> str:
    """As labels are compared: case and blanks around don't matter."""
    return label.strip().lower()


def written_out(value: Any) -> Any:
    """A hierarchy by name as what it holds, so that a study's digest covers it; anything else as it is. Raises ValueError."""
    if not isinstance(value, str):
        return value
    if value in VOCABULARIES:
        return dict(VOCABULARIES[value])
    close = difflib.get_close_matches(value, VOCABULARIES, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"there is {', '.join(sorted(VOCABULARIES))}"
    raise ValueError(f"unknown hierarchy '{value}'; {hint}, or write it as label: label above it")


def ordered(hierarchy: Mapping[str, str]) -> dict[str, str]:
    """Spelled alike and sorted. Raises ValueError where a label has two parents, is empty, or stands above itself."""
    parents: dict[str, str] = {}
    for child, parent in hierarchy.items():
        below, above = spelled(child), spelled(parent)
        if not below or not above:
            raise ValueError(f"a label is empty: '{child}' under '{parent}'")
        if parents.setdefault(below, above) != above:
            raise ValueError(f"label '{below}' stands under two labels, {parents[below]} and {above}")
    for label in parents:
        way = [label]
        while way[-1] in parents:
            way.append(parents[way[-1]])
            if way[-1] in way[:-1]:
                raise ValueError(f"label '{way[-1]}' stands above itself: {' < '.join(way)}")
    return dict(sorted(parents.items()))


def placed(label: str, listed: Mapping[str, int], hierarchy: Mapping[str, str]) -> Placed | None:
    """Where a label belongs: `listed` are the classes' labels as spelled; None where neither it nor an ancestor stands in a class."""
    name: str | None = spelled(label)
    while name is not None:
        if name in listed:
            return Placed(listed[name], name)
        name = hierarchy.get(name)
    return None
