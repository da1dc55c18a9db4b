"""Rényi differential privacy: what a hospital charges to its lifetime budget.

Mironov 2017 (https://arxiv.org/abs/1702.07476); the subsampled Gaussian after Mironov, Talwar and Zhang 2019
(https://arxiv.org/abs/1908.10530), by dp-accounting. Vectors of different studies on the same patients add up, order by order.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from shared.privacy.mechanisms import Event, Events, Geometric, require_delta
from shared.privacy.orders import ORDERS


def rdp_vector(event: Event) -> NDArray[np.float64]:
    """Rényi divergence of `event` at each of ORDERS, `(len(ORDERS),)`; infinite at an order where it can't be computed."""
    if isinstance(event, Geometric):
        return _pure(event.epsilon)
    if event.steps == 0:
        return np.zeros(len(ORDERS))
    return event.steps * _one_step(event.sampling_rate, event.noise_multiplier)


def epsilon_of_vector(vector: NDArray[np.float64], delta: float) -> float:
    """The smallest epsilon that the divergences at ORDERS prove at `delta` (Canonne, Kamath and Steinke 2020, proposition 12).

    Raises MechanismError where delta is out of its range.
    """
    require_delta(delta)
    if not vector.any():
        return 0.0
    from dp_accounting.rdp.rdp_privacy_accountant import (
        compute_epsilon,
    )  # takes most of a second, which plain runs need not wait

    return float(compute_epsilon(ORDERS, vector, delta)[0])


def rdp_epsilon(events: Events, delta: float) -> float:
    """Epsilon of all `events` together, adaptively composed. No events cost nothing. Raises MechanismError for delta."""
    total = np.zeros(len(ORDERS))
    for event in events:
        total += rdp_vector(event)
    return epsilon_of_vector(total, delta)


@lru_cache(maxsize=256)
def _one_step(sampling_rate: float, noise_multiplier: float) -> NDArray[np.float64]:
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(orders=ORDERS)
    with _without_warnings_of_orders():
        accountant.compose(
            dp_accounting.PoissonSampledDpEvent(sampling_rate, dp_accounting.GaussianDpEvent(noise_multiplier))
        )
    vector: NDArray[np.float64] = np.asarray(accountant.rdp, dtype=np.float64)
    vector.setflags(write=False)
    return vector


def _pure(epsilon: float) -> NDArray[np.float64]:
    """Of randomized response, the worst of all pure epsilon-DP mechanisms (Mironov 2017, proposition 5)."""
    orders = np.asarray(ORDERS)
    log_sum = np.logaddexp(orders * epsilon, (1 - orders) * epsilon) - np.logaddexp(0.0, epsilon)
    divergence: NDArray[np.float64] = log_sum / (orders - 1)
    return divergence


@contextmanager
def _without_warnings_of_orders() -> Iterator[None]:
    """dp-accounting warns of each order whose series does not converge; it is infinite in the vector, and that is enough."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
