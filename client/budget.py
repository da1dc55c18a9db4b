"""The lifetime budget: what each patient was charged so far, and whether a run may be added to it.

A patient is known again by the keyed tag of the id, and by the keyed digests of the images' pixels: a dataset that was renamed, copied
or given new ids has no new budget. Tags that share an image, directly or over others, are one patient. What overlapping cohorts were
charged adds up, patient by patient, as Rényi divergences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from client.cohort_list import CohortList, read_list
from client.ledger import OpenLedger
from client.site_folder import SiteFolder
from client.withdrawn import Tags
from shared.errors import BudgetError
from shared.exact import as_float, exact
from shared.ledger.entries import Budget, Lifetime
from shared.ledger.rules import Rules, RunOnLedger
from shared.ledger.spending import charged_events, vector_of
from shared.privacy.mechanisms import Event
from shared.privacy.orders import ORDERS
from shared.privacy.rdp import epsilon_of_vector
from shared.profile import Profile
from shared.study import Study
from shared.study_cost import study_events


@dataclass(frozen=True, slots=True)
class Group:
    """Patients with the same history: `patients` of them, in these runs. `vector` are Rényi divergences at ORDERS."""

    runs: tuple[str, ...]
    unbounded: tuple[str, ...]
    vector: NDArray[np.float64]
    patients: int

    def epsilon(self, delta: float) -> float:
        """Of the runs with a bound together."""
        return epsilon_of_vector(self.vector, delta)


def lifetime_of(ledger: OpenLedger, profile: Profile) -> Lifetime | None:
    """The budget that counts now; entered in the ledger where the profile sets one, or a lower one, for the first time.

    Raises BudgetError where the profile's is higher than the ledger's.
    """
    asked = profile.policy.lifetime
    fixed = ledger.rules.lifetime
    if asked is None:
        return fixed
    wanted = asked.entry()
    if wanted == fixed:
        return fixed
    if fixed is not None and not wanted.within(fixed):
        raise BudgetError(
            f"policy.lifetime of the profile is epsilon {wanted.epsilon}, delta {wanted.delta} (unbounded: {wanted.unbounded}), but the "
            f"ledger has fixed epsilon {fixed.epsilon}, delta {fixed.delta} (unbounded: {fixed.unbounded}): a budget for life can be "
            "lowered, never raised; put the profile back"
        )
    ledger.add(Budget(**ledger.place(), lifetime=wanted))
    ledger.write()
    return wanted


def require_bounded(study: Study, lifetime: Lifetime | None) -> None:
    """Before any data is opened: whether this hospital takes part in such a study at all. Raises BudgetError."""
    if study.privacy is None:
        if lifetime is not None and lifetime.unbounded == "refuse":
            raise BudgetError(
                "the study has no differential privacy, so nothing bounds what it says of a patient, and this hospital has a lifetime "
                "budget; policy.lifetime.unbounded: allow would let such studies pass uncounted"
            )
        return
    if lifetime is None:
        raise BudgetError(
            "the study is private, but this hospital has set no lifetime budget: policy.lifetime of the profile (epsilon and delta)"
        )
    alone = epsilon_of_vector(vector_of(study_events(study)), as_float(lifetime.delta))
    if _beyond(alone, lifetime):
        raise BudgetError(
            f"the run alone costs epsilon {alone:.4f} (RDP, delta {lifetime.delta}), but the lifetime budget is {lifetime.epsilon}"
        )


def require_budget(
    rules: Rules,
    folder: SiteFolder,
    lifetime: Lifetime,
    patients: Mapping[str, frozenset[str]],
    events: list[Event],
    *,
    apart_from: str | None = None,
) -> str:
    """Epsilon, as an exact string, of whoever of `patients` (tags, with digests of images) has most when `events` are added.

    `apart_from` is a run that `events` stand for as a whole. Raises BudgetError where it is more than the lifetime's, LedgerError where
    nobody can know what was spent.
    """
    delta = as_float(lifetime.delta)
    added = vector_of(events)
    worst = epsilon_of_vector(added, delta)
    history: tuple[str, ...] = ()
    for group in groups(rules, folder, patients, apart_from=apart_from):
        reached = epsilon_of_vector(group.vector + added, delta)
        if reached > worst:
            worst, history = reached, group.runs
    if _beyond(worst, lifetime):
        spent = f"; what was spent before is of {_named(history)}" if history else ""
        raise BudgetError(
            f"this would bring a patient to epsilon {worst:.4f} (RDP, delta {lifetime.delta}), but the lifetime budget is "
            f"{lifetime.epsilon}{spent}"
        )
    return exact(worst)


def groups(
    rules: Rules,
    folder: SiteFolder,
    patients: Mapping[str, frozenset[str]],
    *,
    apart_from: str | None = None,
    events_of: Callable[[RunOnLedger], list[Event] | None] = charged_events,
) -> list[Group]:
    """`patients` by the runs that they were in, each patient once. Raises LedgerError where a cohort's list is missing or damaged.

    `events_of` a run are what it is charged with; None where it has no bound.
    """
    key = Tags.of(folder)
    runs = {name: run for name, run in rules.runs.items() if name != apart_from}
    lists = {root: read_list(folder, root, key) for root in dict.fromkeys(run.reserve.cohort for run in runs.values())}
    known = _Persons([*lists.values(), CohortList(patients)])
    members = {root: {known.person(tag) for tag in one.patients} for root, one in lists.items()}
    histories: dict[str, list[str]] = {known.person(tag): [] for tag in patients}
    for name, run in runs.items():
        for person in members[run.reserve.cohort] & histories.keys():
            histories[person].append(name)
    events = {name: events_of(run) for name, run in runs.items()}
    vectors = {name: vector_of(found) for name, found in events.items() if found is not None}
    counts: dict[tuple[str, ...], int] = {}
    for history in histories.values():
        counts[tuple(history)] = counts.get(tuple(history), 0) + 1
    nothing = np.zeros(len(ORDERS))
    return [
        Group(
            runs=history,
            unbounded=tuple(name for name in history if name not in vectors),
            vector=sum((vectors[name] for name in history if name in vectors), nothing),
            patients=count,
        )
        for history, count in counts.items()
    ]


class _Persons:
    """Who is one patient: tags and images that hang together over any list."""

    def __init__(self, lists: Iterable[CohortList]) -> None:
        self._above: dict[str, str] = {}
        for one in lists:
            for tag, images in one.patients.items():
                for image in images:
                    self._join(tag, image)

    def person(self, name: str) -> str:
        """One of the tags and images that hang together with `name`, the same for all of them."""
        top = name
        while (above := self._above.get(top, top)) != top:
            top = above
        while (above := self._above.get(name, name)) != top:  # the next search is a short one
            self._above[name], name = top, above
        return top

    def _join(self, one: str, other: str) -> None:
        first, second = self.person(one), self.person(other)
        if first != second:
            self._above[second] = first


def everybody(rules: Rules, folder: SiteFolder) -> dict[str, frozenset[str]]:
    """All patients of all cohorts on the ledger. Raises LedgerError."""
    key = Tags.of(folder)
    found: dict[str, frozenset[str]] = {}
    for root in {run.reserve.cohort for run in rules.runs.values()}:
        for tag, images in read_list(folder, root, key).patients.items():
            found[tag] = found.get(tag, frozenset()) | images
    return found


def _beyond(epsilon: float, lifetime: Lifetime) -> bool:
    """As the ledger's rules compare: what would be written, as a fraction."""
    return not math.isfinite(epsilon) or Fraction(repr(epsilon)) > Fraction(lifetime.epsilon)


def _named(runs: Iterable[str]) -> str:
    names = list(runs)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
