"""How each check ends, and what the whole comes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["proven", "not checkable", "violated"]


@dataclass(frozen=True, slots=True)
class Check:
    """One question to the files. `why` says what it rests on, what is absent, or what contradicts what."""

    name: str
    outcome: Outcome
    why: str


def exit_status(checks: Sequence[Check]) -> int:
    """0 where everything is proven, 1 where anything is violated, else 2."""
    outcomes = {check.outcome for check in checks}
    if "violated" in outcomes:
        return 1
    return 2 if "not checkable" in outcomes else 0
