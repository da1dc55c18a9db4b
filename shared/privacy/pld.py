"""Privacy loss distributions by dp-accounting: the tight figure, never below the true one.

Pessimistic "connect the dots" estimate of Doroshenko et al. 2022 (https://arxiv.org/abs/2207.04380). It is claimed for one run whose
events were all fixed before the first of them; a lifetime of studies adds up in `shared.privacy.rdp`.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

from shared.privacy.mechanisms import Event, Events, Geometric, SubsampledGaussian, require_delta
from shared.privacy.rdp import rdp_epsilon

if TYPE_CHECKING:
    import dp_accounting

#: Width of the grid on which losses are rounded, natural logarithm: dp-accounting's own, and bounds where it would not serve.
_INTERVAL, _FINEST = 1e-4, 2e-6
#: Most grid points for the range that RDP proves; larger epsilons get a coarser grid.
_POINTS = 300_000


def pld_epsilon(events: Events, delta: float) -> float:
    """Epsilon of all `events` together. Raises MechanismError for delta.

    About 0.7 s for 220 steps with noise multiplier 1; kept in this process, since a run's report, documents and audit ask for the same.
    """
    require_delta(delta)
    counted = [event for event in events if not (isinstance(event, SubsampledGaussian) and event.steps == 0)]
    return _composed(tuple(counted), delta) if counted else 0.0


@lru_cache(maxsize=256)
def _composed(counted: tuple[Event, ...], delta: float) -> float:
    from dp_accounting.pld import PLDAccountant  # takes most of a second, which plain runs need not wait

    accountant = PLDAccountant(value_discretization_interval=_interval(counted, rdp_epsilon(counted, delta)))
    for event in counted:
        accountant.compose(_dp_event(event))
    return float(accountant.get_epsilon(delta))


def _dp_event(event: Event) -> dp_accounting.DpEvent:
    import dp_accounting
    from dp_accounting.dp_event import DiscreteLaplaceDpEvent

    if isinstance(event, Geometric):
        return DiscreteLaplaceDpEvent(noise_parameter=event.epsilon, sensitivity=1)
    step = dp_accounting.PoissonSampledDpEvent(
        event.sampling_rate, dp_accounting.GaussianDpEvent(event.noise_multiplier)
    )
    return dp_accounting.SelfComposedDpEvent(step, event.steps)


def _interval(events: Events, rdp: float) -> float:
    """Fine enough for the narrowest loss of a step, and coarse enough for the range of all of them."""
    widths = [_width(event) for event in events if isinstance(event, SubsampledGaussian)]
    fine = max(_FINEST, min([_INTERVAL, *(width / 20 for width in widths)]))
    return max(fine, rdp / _POINTS)


def _width(event: SubsampledGaussian) -> float:
    """Standard deviation of one step's likelihood ratio, q * sqrt(exp(1 / sigma²) - 1)."""
    return event.sampling_rate * math.sqrt(math.expm1(event.noise_multiplier**-2))
