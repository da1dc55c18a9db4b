"""What happened, apart from what it costs: immutable events that any accountant can read.

The relation between neighbouring datasets is *add or remove one patient*: with everything that the hospital holds about that patient.
Noise multipliers are in multiples of the clipping norm; an epsilon is a natural logarithm; no number here has another unit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from shared.errors import MechanismError

#: Noise multipliers that the accountants answer for. Less noise gives an epsilon in the thousands: no privacy to account for.
NOISE_MULTIPLIERS = (0.05, 10_000.0)
#: Sampling rates that the accountants answer for.
SAMPLING_RATES = (1e-6, 1.0)
#: Steps of one event.
MOST_STEPS = 10_000_000
#: Epsilons of one release of counts.
GEOMETRIC_EPSILONS = (1e-6, 100.0)
#: Deltas; below, double precision can't tell the tail of a composed privacy loss from rounding.
DELTAS = (1e-10, 0.5)


@dataclass(frozen=True, slots=True)
class SubsampledGaussian:
    """`steps` steps of DP-SGD on Poisson samples of the patients.

    Each step draws every patient by itself with probability `sampling_rate`, adds up what the drawn patients contribute, each
    clipped to a norm C, and adds exact Gaussian noise of standard deviation `noise_multiplier` * C to every coordinate
    (Abadi et al. 2016, https://arxiv.org/abs/1607.00133).

    What invalidates the figures: batches of a fixed size or by shuffling; a patient with several images drawn independently;
    a rate or a normaliser that depends on the number of patients.

    Raises MechanismError, naming this event, where a number is out of its range.
    """

    sampling_rate: float
    noise_multiplier: float
    steps: int

    def __post_init__(self) -> None:
        _require_number(self, "sampling_rate", self.sampling_rate, *SAMPLING_RATES)
        _require_number(self, "noise_multiplier", self.noise_multiplier, *NOISE_MULTIPLIERS)
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or not 0 <= self.steps <= MOST_STEPS:
            raise MechanismError(
                f"{self}: expected steps to be a whole number from 0 to {MOST_STEPS}, but got {self.steps!r}"
            )


@dataclass(frozen=True, slots=True)
class Geometric:
    """One release under pure `epsilon`-differential privacy: counts with two-sided geometric noise (Ghosh et al. 2009).

    `epsilon` is of the whole release, for one patient: the noise's own parameter times the number of counts that one patient can
    change by one. Accountants charge the worst loss that any pure epsilon-DP mechanism can have (Kairouz et al. 2015).

    Raises MechanismError, naming this event, where the number is out of its range.
    """

    epsilon: float

    def __post_init__(self) -> None:
        _require_number(self, "epsilon", self.epsilon, *GEOMETRIC_EPSILONS)

    @property
    def variance(self) -> float:
        """Of the noise on one count, where one patient changes one count by one: 2 a / (1 - a)^2 with a = exp(-epsilon)."""
        return 0.5 / math.sinh(self.epsilon / 2.0) ** 2


Event = SubsampledGaussian | Geometric
Events = Sequence[Event]


def require_delta(delta: float) -> float:
    """Returns `delta`. Raises MechanismError where it is out of its range."""
    low, high = DELTAS
    if not low <= delta <= high:
        raise MechanismError(f"expected delta to be from {low:g} to {high:g}, but got {delta:g}")
    return delta


def sampling_rate(text: str) -> float:
    """A rate written as a number (`0.0914286`) or a fraction (`32/350`). Raises MechanismError where it is neither."""
    try:
        return float(Fraction(text.replace(" ", "")))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise MechanismError(
            f"expected the sampling rate to be a number such as 0.0914286 or a fraction such as 32/350, but got {text!r}"
        ) from None


def _require_number(event: object, name: str, value: float, low: float, high: float) -> None:
    if isinstance(value, bool) or not (math.isfinite(value) and low <= value <= high):
        raise MechanismError(f"{event}: expected {name} to be from {low:g} to {high:g}, but got {value!r}")
