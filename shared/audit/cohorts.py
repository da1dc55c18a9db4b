"""What all runs on the same patients cost together, from a whole ledger.

Of the same cohort in several runs the auditor adds up as the hospital did. What the overlap of two different cohorts adds up to, only the
hospital can see, which knows who is in them: its charge must be at least that of each cohort by itself.
"""

from __future__ import annotations

import numpy as np

from shared.audit.verdict import Check, Findings
from shared.errors import MechanismError
from shared.exact import as_float
from shared.ledger.chain import Chain
from shared.ledger.entries import Reserve, Start
from shared.ledger.rules import Rules
from shared.ledger.spending import charged_events, vector_of
from shared.privacy.orders import ORDERS
from shared.privacy.rdp import epsilon_of_vector

COHORTS = "every charge covers all runs on the same patients, and stays within the lifetime budget"

#: Charges may be this share below what is found here: other releases of NumPy add up in another order.
SUMMATION = 1e-6


def check_cohorts(chain: Chain) -> Check:
    """Of a whole ledger: at each charge, what all runs on the same cohort cost together until then."""
    findings, rules, count = Findings(COHORTS), Rules(), 0
    for link in chain.links:
        entry = link.entry
        rules.take(entry)
        if (
            not isinstance(entry, Reserve | Start)
            or entry.charged is None
            or (run := rules.runs.get(entry.run)) is None
        ):
            continue
        what, lifetime = f"entry {entry.seq} ({entry.type}, run {entry.run})", rules.lifetime
        if lifetime is None:
            findings.violated.append(f"{what}: charges a budget that the ledger does not have")
            continue
        total = np.zeros(len(ORDERS))
        try:
            for other in rules.runs.values():
                if other.reserve.cohort == run.reserve.cohort and (events := charged_events(other)) is not None:
                    total += vector_of(events)
            least = epsilon_of_vector(total, as_float(lifetime.delta))
        except MechanismError as problem:
            findings.violated.append(f"{what}: can't be accounted for: {problem}")
            continue
        charged, limit = as_float(entry.charged), as_float(lifetime.epsilon)
        count += 1
        if charged < least * (1 - SUMMATION):
            findings.violated.append(
                f"{what}: charges {charged:.4f}, but the runs on this cohort cost {least:.4f} together"
            )
        if charged > limit or least > limit * (1 + SUMMATION):
            findings.violated.append(f"{what}: {max(charged, least):.4f} is beyond the lifetime's {lifetime.epsilon}")
    return findings.check(
        f"{count} charges, by RDP; what two different cohorts that share patients add up to, only the hospital can see"
    )
