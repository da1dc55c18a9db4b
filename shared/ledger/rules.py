"""Which entry may follow which: the hospital asks before it writes, the auditor when reading."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from shared.ledger.entries import (
    Budget,
    Close,
    Cohort,
    Entry,
    Genesis,
    Lifetime,
    Release,
    Reserve,
    Revoke,
    Rotate,
    Settle,
    Start,
    Unbounded,
)


@dataclass(slots=True)
class RunOnLedger:
    """What a ledger says of one run so far. `updates` and `releases` are in the order in which they left."""

    reserve: Reserve
    attempts: dict[int, int] = field(default_factory=dict)
    updates: list[Settle] = field(default_factory=list)
    releases: list[Release] = field(default_factory=list)
    closed: bool = False

    @property
    def bounded(self) -> bool:
        """Whether it is a private run."""
        return not isinstance(self.reserve.mechanism, Unbounded)

    @property
    def redone(self) -> int:
        """How many rounds were begun again, each time counted."""
        return sum(self.attempts.values()) - len(self.attempts)

    def settled(self, number: int, attempt: int) -> bool:
        return any((one.round, one.attempt) == (number, attempt) for one in self.updates)

    def open_attempt(self, number: int) -> int | None:
        """The last attempt of that round, where it was begun and not settled."""
        last = self.attempts.get(number)
        return last if last is not None and not self.settled(number, last) else None


@dataclass(slots=True)
class Rules:
    """The state that entries build up, one after the other."""

    cohorts: dict[str, Cohort] = field(default_factory=dict)
    runs: dict[str, RunOnLedger] = field(default_factory=dict)
    genesis: Genesis | None = None
    lifetime: Lifetime | None = None

    def problem(self, entry: Entry) -> str | None:
        """Why `entry` may not come next, in a sentence; None where it may."""
        if isinstance(entry, Genesis) != (self.genesis is None):
            return "GENESIS comes first, and once"
        if isinstance(entry, Budget):
            lowered = self.lifetime is None or entry.lifetime.within(self.lifetime)
            return None if lowered else "BUDGET would raise the lifetime budget, which is never raised"
        if isinstance(entry, Genesis | Cohort | Rotate | Revoke):
            return None
        run = self.runs.get(entry.run)
        if isinstance(entry, Reserve):
            if run is not None:
                return f"run {entry.run} is reserved already"
            if entry.cohort not in self.cohorts:
                return f"run {entry.run} is of a cohort that has no COHORT before it"
            return _beyond(entry, self.lifetime)
        if run is None:
            return f"run {entry.run} has no RESERVE before it"
        if run.closed:
            return f"run {entry.run} is closed"
        return _problem_in_run(entry, run) or (_beyond(entry, self.lifetime) if isinstance(entry, Start) else None)

    def take(self, entry: Entry) -> None:
        """Go on as after `entry`, whether it may come or not."""
        if isinstance(entry, Genesis):
            self.genesis = self.genesis or entry
            self.lifetime = self.lifetime or entry.lifetime
        elif isinstance(entry, Budget):
            self.lifetime = entry.lifetime
        elif isinstance(entry, Cohort):
            self.cohorts.setdefault(entry.cohort, entry)
        elif isinstance(entry, Reserve):
            self.runs.setdefault(entry.run, RunOnLedger(entry))
        elif not isinstance(entry, Rotate | Revoke) and (run := self.runs.get(entry.run)) is not None:
            if isinstance(entry, Start):
                run.attempts[entry.round] = entry.attempt
            elif isinstance(entry, Settle):
                run.updates.append(entry)
            elif isinstance(entry, Release):
                run.releases.append(entry)
            else:
                run.closed = True


def _beyond(entry: Reserve | Start, lifetime: Lifetime | None) -> str | None:
    """Why the budget doesn't allow `entry`, by what it says itself."""
    if lifetime is None:
        return None
    if isinstance(entry, Reserve) and isinstance(entry.mechanism, Unbounded):
        return (
            f"run {entry.run} has no bound, which the lifetime budget refuses"
            if lifetime.unbounded == "refuse"
            else None
        )
    if entry.charged is not None and Fraction(entry.charged) > Fraction(lifetime.epsilon):
        return f"run {entry.run} would bring a patient to epsilon {entry.charged}, beyond the lifetime's {lifetime.epsilon}"
    return None


def _problem_in_run(entry: Start | Settle | Release | Close, run: RunOnLedger) -> str | None:
    if isinstance(entry, Start):
        if entry.round > run.reserve.rounds:
            return f"round {entry.round} of run {entry.run} is beyond the {run.reserve.rounds} that were reserved"
        expected = run.attempts.get(entry.round, 0) + 1
        if entry.attempt != expected:
            return f"attempt {entry.attempt} of round {entry.round} of run {entry.run}, where {expected} was next"
    elif isinstance(entry, Settle) and run.open_attempt(entry.round) != entry.attempt:
        return f"attempt {entry.attempt} of round {entry.round} of run {entry.run} has no open START before it"
    elif isinstance(entry, Release) and entry.round > run.reserve.rounds:
        return f"figures after round {entry.round} of run {entry.run}, of which {run.reserve.rounds} were reserved"
    elif isinstance(entry, Release) and run.bounded:
        if entry.what in {one.what for one in run.releases}:
            return f"a second release of {entry.what} of run {entry.run}: a private run has one"
        if entry.mechanism not in run.reserve.releases:
            return f"a release of {entry.what} of run {entry.run} through a mechanism that was not reserved"
    return None
