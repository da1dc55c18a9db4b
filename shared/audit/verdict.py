"""How each check ends, and what the whole comes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["proven", "not checkable", "violated"]

#: As many contradictions are told in full; the others are counted.
_TOLD = 3


@dataclass(frozen=True, slots=True)
class Check:
    """One question to the files. `why` says what it rests on, what is absent, or what contradicts what."""

    name: str
    outcome: Outcome
    why: str


@dataclass(slots=True)
class Findings:
    """Of one question that is asked of several hospitals: what contradicts what, what is absent, and notes for the reader."""

    name: str
    violated: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def check(self, proof: str) -> Check:
        """Proven by `proof` where nothing was found."""
        if self.violated:
            return Check(self.name, "violated", _told(self.violated))
        if self.absent:
            return Check(self.name, "not checkable", _told(self.absent))
        return Check(self.name, "proven", "; ".join([proof, *self.notes]))


def exit_status(checks: Sequence[Check]) -> int:
    """0 where everything is proven, 1 where anything is violated, else 2."""
    outcomes = {check.outcome for check in checks}
    if "violated" in outcomes:
        return 1
    return 2 if "not checkable" in outcomes else 0


def _told(found: Sequence[str]) -> str:
    more = [f"and {len(found) - _TOLD} more"] if len(found) > _TOLD else []
    return "; ".join([*found[:_TOLD], *more])
