"""What a run on the ledger costs each of its patients, as it stands: what was reserved, and what was begun again."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shared.ledger.entries import Unbounded
from shared.ledger.rules import RunOnLedger
from shared.privacy.mechanisms import Event
from shared.privacy.orders import ORDERS
from shared.privacy.rdp import rdp_vector
from shared.study_cost import events_of


def charged_events(run: RunOnLedger, *, begun_again: int = 0) -> list[Event] | None:
    """Of a private run; None for one without a bound.

    Until CLOSE all that was reserved counts, then what was begun or released. A round that was begun again counts each time; with
    `begun_again` so many more.
    """
    if run.closed or isinstance(run.reserve.mechanism, Unbounded):
        return spent_events(run)
    events = events_of(run.reserve.mechanism, run.reserve.rounds + run.redone + begun_again)
    for mechanism in run.reserve.releases:
        events += events_of(mechanism)
    return events


def spent_events(run: RunOnLedger) -> list[Event] | None:
    """What has begun or was released, whatever else is reserved: as after a CLOSE now. None for a run without a bound."""
    if isinstance(run.reserve.mechanism, Unbounded):
        return None
    events = events_of(run.reserve.mechanism, len(run.attempts) + run.redone)
    for release in run.releases:
        events += events_of(release.mechanism)
    return events


def vector_of(events: list[Event]) -> NDArray[np.float64]:
    """Their Rényi divergences at ORDERS together."""
    total = np.zeros(len(ORDERS))
    for event in events:
        total += rdp_vector(event)
    return total
