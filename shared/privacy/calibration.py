"""The smallest noise multiplier that keeps a promise: epsilon at most a target, by privacy loss distribution."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from shared.errors import CalibrationError
from shared.privacy.mechanisms import NOISE_MULTIPLIERS, Events, SubsampledGaussian
from shared.privacy.pld import pld_epsilon
from shared.privacy.rdp import rdp_epsilon

#: Noise multipliers are whole multiples of this, rounded up.
GRID = 1e-4
_PER_UNIT = round(1 / GRID)
#: Below this share of the multiplier that RDP asks for, no search begins.
_FIRST_STEP = 0.98


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was found: with `noise_multiplier` the PLD epsilon is at most `target`, and with one grid step less it is not."""

    target: float
    noise_multiplier: float
    pld_epsilon: float
    rdp_epsilon: float
    pld_evaluations: int

    def sentence(self) -> str:
        return (
            f"noise multiplier {self.noise_multiplier:.4f} is the smallest, to 4 decimals, with epsilon at most {self.target:g}: "
            f"{self.pld_epsilon:.4f} by PLD, {self.rdp_epsilon:.4f} by RDP"
        )


def calibrate(
    *,
    sampling_rate: float,
    steps: int,
    delta: float,
    epsilon: float,
    besides: Events = (),
    tell: Callable[[int], object] = lambda evaluations: None,
) -> Calibration:
    """Search on the grid: RDP, which is quick and never lower, gives a multiplier that suffices; PLD then goes down from there.

    `besides` are other releases that the epsilon must cover too.

    `tell` is called with the number of PLD evaluations so far. Six to nine of them are usual.

    Raises CalibrationError where no multiplier that can be accounted for gives `epsilon`, or even the least gives it; MechanismError
    where a number is out of its range.
    """
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise CalibrationError(f"expected the epsilon to calibrate for to be above 0, but got {epsilon}")
    if steps == 0:
        raise CalibrationError("0 steps cost nothing with any noise multiplier; give the number of steps")

    def events(place: int) -> Events:
        return (SubsampledGaussian(sampling_rate, place / _PER_UNIT, steps), *besides)

    if besides and pld_epsilon(besides, delta) >= epsilon:
        raise CalibrationError(
            f"epsilon {epsilon:g} at delta {delta:g}: the releases beside training take {pld_epsilon(besides, delta):.4g} of it; "
            "ask for more, or let these cost less"
        )

    evaluated: dict[int, float] = {}

    def pld(place: int) -> float:
        if place not in evaluated:
            evaluated[place] = pld_epsilon(events(place), delta)
            tell(len(evaluated))
        return evaluated[place]

    least, most = (round(bound * _PER_UNIT) for bound in NOISE_MULTIPLIERS)
    asked = f"epsilon {epsilon:g} at delta {delta:g} with sampling rate {sampling_rate:g} and {steps} steps"
    enough = _suffices(lambda place: rdp_epsilon(events(place), delta), epsilon, least, most)
    if enough is None:
        raise CalibrationError(f"{asked}: not reachable, a noise multiplier of {most / _PER_UNIT:g} is not enough")
    low, high = _bracket(pld, epsilon, enough, least)
    if low is None:
        raise CalibrationError(
            f"{asked}: even the least noise multiplier that can be accounted for, {least / _PER_UNIT:g}, "
            f"gives {pld(high):.4g}; ask for less"
        )
    found = _narrow(pld, epsilon, low, high)
    return Calibration(
        target=epsilon,
        noise_multiplier=found / _PER_UNIT,
        pld_epsilon=pld(found),
        rdp_epsilon=rdp_epsilon(events(found), delta),
        pld_evaluations=len(evaluated),
    )


def _suffices(rdp: Callable[[int], float], epsilon: float, least: int, most: int) -> int | None:
    """A place at which RDP proves `epsilon`, within a thousandth of the smallest one; None where there is none."""
    if rdp(most) > epsilon:
        return None
    low, high = least - 1, most
    while high - low > 1 and high > low * 1.001:
        middle = min(max(round(math.sqrt(low * high)), low + 1), high - 1)
        if rdp(middle) <= epsilon:
            high = middle
        else:
            low = middle
    return high


def _bracket(pld: Callable[[int], float], epsilon: float, enough: int, least: int) -> tuple[int | None, int]:
    """Places (too little, enough); the first None where even `least` is enough. Steps down grow, beginning with a small one."""
    high, step = enough, _FIRST_STEP
    while pld(high) > epsilon:  # PLD is never above RDP but for the rounding of its grid
        high += max(1, high // 1000)
    while True:
        if high == least:
            return None, high
        low = max(least, min(high - 1, int(high * step * _aim(pld(high), epsilon))))
        if pld(low) > epsilon:
            return low, high
        high, step = low, step**2


def _aim(reached: float, epsilon: float) -> float:
    """Epsilon falls about as the multiplier's inverse power of 1.2: the share of the multiplier that would use up the target."""
    return max(0.5, min(1.0, (reached / epsilon) ** (1 / 1.2))) if reached > 0 else 0.5


def _narrow(pld: Callable[[int], float], epsilon: float, low: int, high: int) -> int:
    """The smallest place at which PLD is at most `epsilon`: false position in logarithms, and a look to either side of the guess."""
    while high - low > 1:
        at_low, at_high = math.log(pld(low) / epsilon), math.log(max(pld(high), 1e-12) / epsilon)
        guess = math.exp(math.log(low) + (math.log(high) - math.log(low)) * at_low / (at_low - at_high))
        place = min(max(math.ceil(guess), low + 1), high - 1)
        if pld(place) <= epsilon:
            high, low = _after(pld, epsilon, place, low, high)
        else:
            low = place
            ahead = min(high, place + max(1, round((high - place) * 0.02)))
            if ahead < high and pld(ahead) <= epsilon:
                high = ahead
    return high


def _after(pld: Callable[[int], float], epsilon: float, place: int, low: int, high: int) -> tuple[int, int]:
    """New (enough, too little) once `place` is known to be enough."""
    behind = max(low, place - max(1, round((place - low) * 0.02)))
    if behind > low and pld(behind) > epsilon:
        return place, behind
    return (behind, low) if behind > low else (place, low)
