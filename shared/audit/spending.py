"""What a private run cost at each hospital, computed again from ledger entries alone, and held against what was claimed and charged.

Two accountants that share no code answer for the run as it was reserved: privacy loss distributions by dp-accounting and by
`shared.audit.privacy_loss`. A run in which rounds were begun again was prolonged on the way; for such a run no such figure is claimed,
and Rényi divergences, which hospitals charge and which compose whatever was decided on the way, answer alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from shared.audit.entries import Shown, reserve_of
from shared.audit.epsilon import TOLERANCE, EpsilonCheck, check_epsilon
from shared.audit.records import RunFiles
from shared.audit.verdict import Check, Findings
from shared.errors import MechanismError
from shared.exact import as_float
from shared.ledger.entries import Lifetime, Reserve, Start
from shared.ledger.spending import charged_events
from shared.ledger.summary import mechanism_in_words
from shared.privacy.mechanisms import Event
from shared.privacy.rdp import rdp_epsilon
from shared.study_cost import events_of

AGREE = "two accountants that share no code find the same epsilon"
CLAIMED = "no hospital claims less than the run costs"
PROMISED = "the epsilon that the study states holds at every hospital"
UNBOUNDED = "the run stands in the ledgers as what it is: without differential privacy"

#: Of a table of costs.
COLUMNS = (
    "hospital",
    "rounds begun",
    "PLD by dp-accounting",
    "PLD, independent",
    "RDP",
    "delta",
    "claimed",
    "charged, of a lifetime's",
)
#: Claims may be this much below what is found here: the width to which the accountants' grids round an epsilon.
ROUNDING = 1e-3


@dataclass(frozen=True, slots=True)
class Cost:
    """Of the run at one hospital; epsilons at `delta` unless said otherwise.

    `accounted` is of the run as it was reserved, `spent_rdp` of what was begun or released when it was closed, `again` counts rounds that
    were begun again. `charged` is the largest charge on record, of whichever patient has most, at the lifetime's delta.
    """

    site: str
    cohort: str
    mechanism: str
    rounds: int
    begun: int
    again: int
    closed: bool
    delta: float
    accounted: EpsilonCheck
    spent_rdp: float
    claimed: float | None
    charged: float | None
    lifetime: Lifetime | None

    def as_json(self) -> dict[str, Any]:
        """Every field; epsilons as numbers."""
        lifetime = self.lifetime.model_dump() if self.lifetime is not None else None
        return {**asdict(self), "accounted": self.accounted.as_json(), "lifetime": lifetime}

    def row(self) -> tuple[str, ...]:
        """As COLUMNS name them."""
        again = f", {self.again} begun again" if self.again else ""
        budget = f"{self.lifetime.epsilon} at delta {self.lifetime.delta}" if self.lifetime is not None else "none"
        return (
            self.site,
            f"{self.begun} of {self.rounds}{again}",
            f"{self.accounted.pld:.4f}",
            f"{self.accounted.independent:.4f}",
            f"{self.spent_rdp:.4f}",
            f"{self.delta:g}",
            "nothing" if self.claimed is None else f"{self.claimed:.4f}",
            f"{'nothing' if self.charged is None else f'{self.charged:.4f}'} of {budget}",
        )


def costs_of(files: RunFiles, shown: Mapping[str, Shown]) -> list[Cost]:
    """Of every hospital with a RESERVE that has a bound. Raises MechanismError where an entry's constants can't be accounted for."""
    privacy = files.study.privacy
    if privacy is None:
        return []
    found = []
    for one in shown.values():
        run = one.run
        if run is None or not run.bounded:
            continue
        delta = as_float(run.reserve.claim.delta if run.reserve.claim is not None else privacy.delta)
        charges = [
            as_float(placed.entry.charged)
            for placed in one.entries
            if isinstance(placed.entry, Reserve | Start) and placed.entry.run == one.run_id and placed.entry.charged
        ]
        found.append(
            Cost(
                site=one.site,
                cohort=run.reserve.cohort,
                mechanism=" + ".join(map(mechanism_in_words, [run.reserve.mechanism, *run.reserve.releases])),
                rounds=run.reserve.rounds,
                begun=len(run.attempts),
                again=run.redone,
                closed=run.closed,
                delta=delta,
                accounted=_accounted(tuple(_reserved_events(run.reserve)), delta),
                spent_rdp=rdp_epsilon(charged_events(run) or [], delta),
                claimed=as_float(run.reserve.claim.epsilon) if run.reserve.claim is not None else None,
                charged=max(charges, default=None),
                lifetime=one.rules.lifetime,
            )
        )
    return found


def check_spending(files: RunFiles, shown: Mapping[str, Shown]) -> tuple[list[Check], list[Cost]]:
    """A plain run has one question, whether it is entered as plain."""
    if files.study.privacy is None:
        return [_unbounded(shown)], []
    try:
        costs = costs_of(files, shown)
        checks = [_agree(costs, shown), _claimed(costs, shown), *_promised(files, costs, shown)]
    except MechanismError as problem:
        why = f"the constants in the entries can't be accounted for: {problem}"
        return [Check(name, "violated", why) for name in (AGREE, CLAIMED)], []
    return checks, costs


@lru_cache(maxsize=64)
def _accounted(events: tuple[Event, ...], delta: float) -> EpsilonCheck:
    """Hospitals with the same constants are computed once."""
    return check_epsilon(events, delta)


def _reserved_events(reserve: Reserve) -> list[Event]:
    events = events_of(reserve.mechanism, reserve.rounds)
    for mechanism in reserve.releases:
        events += events_of(mechanism)
    return events


def _findings(name: str, costs: Sequence[Cost], shown: Mapping[str, Shown]) -> Findings:
    findings = Findings(name)
    for site in sorted(shown.keys() - {cost.site for cost in costs}):
        findings.absent.append(f"{site}: no reservation with a bound is among its entries")
    if not shown:
        findings.absent.append("nobody has answered")
    return findings


def _agree(costs: Sequence[Cost], shown: Mapping[str, Shown]) -> Check:
    findings, groups = _findings(AGREE, costs, shown), dict[EpsilonCheck, list[str]]()
    for cost in costs:
        groups.setdefault(cost.accounted, []).append(cost.site)
        if not cost.accounted.agree:
            findings.violated.append(
                f"{cost.site}: {cost.accounted.pld:.4f} by dp-accounting, {cost.accounted.independent:.4f} by the independent one"
            )
        if cost.again:
            findings.notes.append(
                f"{cost.site} began {cost.again} round(s) again, which this figure does not cover: with them {cost.spent_rdp:.4f} by RDP"
            )
    said = [
        f"{', '.join(sites)}: {one.pld:.4f} and {one.independent:.4f} at delta {one.delta:g}, within {TOLERANCE:g}"
        for one, sites in groups.items()
    ]
    return findings.check("; ".join(said))


def _claimed(costs: Sequence[Cost], shown: Mapping[str, Shown]) -> Check:
    findings = _findings(CLAIMED, costs, shown)
    for cost in costs:
        entry = f"{cost.site}, entry {_seq(shown[cost.site])} (RESERVE)"
        if cost.claimed is None:
            findings.violated.append(f"{entry}: claims nothing")
        elif cost.claimed < cost.accounted.pld - ROUNDING or cost.claimed < cost.accounted.independent - TOLERANCE:
            findings.violated.append(
                f"{entry}: claims {cost.claimed:.4f}, the accountants find {cost.accounted.pld:.4f} and {cost.accounted.independent:.4f}"
            )
        if not cost.accounted.charged_enough:
            findings.violated.append(f"{cost.site}: RDP, {cost.accounted.rdp:.4f}, is below the tight figures")
        if cost.again:
            findings.notes.append(
                f"the claim of {cost.site} is for the run as it was reserved, before rounds were begun again"
            )
    said = sorted({f"{cost.claimed:.4f} for {cost.accounted.pld:.4f}" for cost in costs if cost.claimed is not None})
    return findings.check(f"claimed {', '.join(said)} found by PLD (may differ by {ROUNDING:g}, the grids' rounding)")


def _promised(files: RunFiles, costs: Sequence[Cost], shown: Mapping[str, Shown]) -> list[Check]:
    privacy = files.study.privacy
    if privacy is None or privacy.epsilon is None:
        return []
    findings, stated = _findings(PROMISED, costs, shown), as_float(privacy.epsilon)
    for cost in costs:
        if cost.accounted.pld > stated + ROUNDING:
            findings.violated.append(f"{cost.site}: {cost.accounted.pld:.4f}, the study states {stated:g}")
        elif cost.again and cost.spent_rdp > stated:
            findings.absent.append(
                f"{cost.site}: {cost.again} round(s) were begun again; with them only {cost.spent_rdp:.4f} can be shown (RDP), "
                f"and the study states {stated:g}"
            )
    return [findings.check(f"{stated:g} at delta {privacy.delta}, stated for a whole run at one hospital")]


def _unbounded(shown: Mapping[str, Shown]) -> Check:
    findings = Findings(UNBOUNDED)
    for one in shown.values():
        run = one.run
        if run is None:
            findings.absent.append(f"{one.site}: no RESERVE of this run is among its entries")
        elif run.bounded:
            findings.violated.append(
                f"{one.site}, entry {run.reserve.seq} (RESERVE): claims a bound that the study does not have"
            )
    if not shown:
        findings.absent.append("nobody has answered")
    return findings.check(
        f"no bound: what the updates of {', '.join(shown)} say of a patient is not limited by any noise"
    )


def _seq(shown: Shown) -> int:
    placed = reserve_of(shown)
    return placed.entry.seq if placed is not None else -1
