"""Lifetime budgets: whether what hospitals charged covers what their runs cost, and stays within what they have fixed for life.

A charge is of whichever patient of a cohort has most, over all runs of the hospital. The files of one run show what this run must have
added to it at least; a whole ledger shows more (`shared.audit.cohorts`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shared.audit.cohorts import SUMMATION
from shared.audit.entries import Placed, Shown
from shared.audit.verdict import Check, Findings
from shared.errors import MechanismError
from shared.exact import as_float, exact
from shared.ledger.entries import Budget, Genesis, Lifetime, Reserve, Start
from shared.ledger.rules import Rules
from shared.ledger.spending import charged_events, vector_of
from shared.privacy.mechanisms import Event
from shared.privacy.orders import ORDERS
from shared.privacy.rdp import epsilon_of_vector

CHARGED = "what was charged to each lifetime budget covers the run"
BUDGETS = "no lifetime budget was exceeded, and none was raised"


def check_budgets(shown: Mapping[str, Shown]) -> list[Check]:
    """Two questions to the entries of a private run."""
    try:
        return [_charged(shown), _budgets(shown)]
    except MechanismError as problem:
        why = f"the constants in the entries can't be accounted for: {problem}"
        return [Check(CHARGED, "violated", why), _budgets(shown)]


@dataclass(frozen=True, slots=True)
class _Charge:
    """An entry that names a charge, the budget at that moment, and what the run was to cost from there on."""

    placed: Placed
    charged: str | None
    lifetime: Lifetime | None
    events: list[Event]


def _charges(shown: Shown) -> list[_Charge]:
    rules, found = Rules(), []
    for placed in shown.entries:
        entry = placed.entry
        rules.take(entry)
        run = rules.runs.get(shown.run_id)
        if isinstance(entry, Reserve | Start) and entry.run == shown.run_id and run is not None and run.bounded:
            if isinstance(entry, Start) and entry.attempt == 1:
                continue
            found.append(_Charge(placed, entry.charged, rules.lifetime, charged_events(run) or []))
    return found


def _charged(shown: Mapping[str, Shown]) -> Check:
    findings = Findings(CHARGED)
    charges = [charge for one in shown.values() for charge in _charges(one)]
    for site in sorted(shown.keys() - {charge.placed.site for charge in charges}):
        findings.absent.append(f"{site}: no reservation with a bound is among its entries")
    if not shown:
        findings.absent.append("nobody has answered")
    orders = [exact(order) for order in ORDERS]
    said: dict[str, list[str]] = {}
    for charge in charges:
        genesis = shown[charge.placed.site].rules.genesis
        if charge.charged is None:
            findings.violated.append(f"{charge.placed}: charges nothing")
        elif charge.lifetime is None:
            shown[charge.placed.site].missing(
                findings, f"{charge.placed}: charges a budget that the ledger does not have"
            )
        elif genesis is not None and genesis.rdp_orders not in (None, orders):
            findings.absent.append(f"{charge.placed}: the ledger adds up at other Rényi orders than this release's")
        else:
            least = epsilon_of_vector(vector_of(charge.events), as_float(charge.lifetime.delta))
            if as_float(charge.charged) < least * (1 - SUMMATION):
                findings.violated.append(
                    f"{charge.placed}: charges {as_float(charge.charged):.4f}, the run alone costs {least:.4f}"
                )
            said.setdefault(f"{as_float(charge.charged):.4f} (this run alone {least:.4f})", []).append(
                charge.placed.site
            )
    proof = "; ".join(f"{', '.join(dict.fromkeys(sites))}: {what}" for what, sites in said.items())
    return findings.check(
        f"{proof}, by RDP at the lifetime's delta; what other runs cost the same patients is in the hospitals' ledgers"
    )


def _budgets(shown: Mapping[str, Shown]) -> Check:
    findings, said = Findings(BUDGETS), []
    for one in shown.values():
        lifetime: Lifetime | None = None
        for placed in one.entries:
            entry = placed.entry
            if isinstance(entry, Genesis | Budget) and entry.lifetime is not None:
                if lifetime is not None and not entry.lifetime.within(lifetime):
                    findings.violated.append(
                        f"{placed}: raises the budget from {lifetime.epsilon} to {entry.lifetime.epsilon}"
                    )
                lifetime = entry.lifetime
            elif (
                isinstance(entry, Reserve | Start)
                and entry.charged is not None
                and lifetime is not None
                and as_float(entry.charged) > as_float(lifetime.epsilon)
            ):
                findings.violated.append(
                    f"{placed}: brings a patient to {as_float(entry.charged):.4f}, beyond the lifetime's {lifetime.epsilon}"
                )
        if lifetime is None:
            one.missing(findings, f"{one.site}: its entries name no lifetime budget")
        else:
            said.append(f"{one.site} {lifetime.epsilon} at delta {lifetime.delta}")
    if not shown:
        findings.absent.append("nobody has answered")
    return findings.check(f"lifetime epsilon: {', '.join(said)}")
