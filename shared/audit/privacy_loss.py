"""A second accountant of privacy loss, that shares no code with the one the hospitals use: NumPy and SciPy only.

Method. The privacy loss of one event is put on a grid so that each cell keeps its probability under both neighbouring datasets
(the "dots" of Doroshenko et al. 2022, https://arxiv.org/abs/2207.04380): the hockey-stick curve that results lies on or above the true
one. Events are composed by a power in the Fourier domain (Koskela, Jälkö and Honkela 2020, https://arxiv.org/abs/1906.03049; Koskela,
Jälkö, Prediger and Honkela 2021, https://arxiv.org/abs/2006.07134; Gopi, Lee and Wutschitz 2021, https://arxiv.org/abs/2106.02848).
Both directions of the relation add-or-remove-one-patient are composed, each by itself, and the larger epsilon counts.

What is left out is added to delta: losses of one step beyond the grid, and, bounded by Chernoff, composed losses beyond the window of the
Fourier transform. Rounding of double precision is not bounded by proof; against the closed form of the Gaussian mechanism it stays
below 1e-3 in epsilon down to the smallest delta that is accepted (the tests hold it there).

What is assumed. Poisson sampling of patients, each with the same public probability and independent of the others; exact Gaussian noise
(not a discretised one) on a sum in which no patient's contribution exceeds the clipping norm; constants fixed before the run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft, rfft
from scipy.special import logsumexp, ndtr, ndtri

from shared.privacy.mechanisms import Event, Events, Geometric, SubsampledGaussian, require_delta

Floats = NDArray[np.float64]
Direction = Literal["add", "remove"]

#: Share of delta that each source of what is left out may take.
_LEFT_OUT = 1e-4
#: Cells of the first, coarse grid of one step, from which the window is found.
_COARSE_CELLS = 4096
#: Exponents at which Chernoff's bound is tried, in units of 1 / (range of one event's losses).
_EXPONENTS = np.geomspace(1e-4, 1e3, 141)
#: The window is wider than Chernoff asks for by this share: the fine grid's dots lie elsewhere than the coarse one's.
_MARGIN = 0.01
#: Length of the Fourier transform.
_SHORTEST, _LONGEST = 2**18, 2**21


@dataclass(frozen=True, slots=True)
class _Losses:
    """Losses of one event on a grid: probability `mass[i]` of the loss `(first + i) * width`, `infinite` beyond it; `count` times."""

    first: int
    width: float
    mass: Floats
    infinite: float
    count: int

    def values(self) -> Floats:
        return _dots(self.first, len(self.mass), self.width)

    def log_moment(self, exponent: float) -> float:
        """Logarithm of E[exp(exponent * loss)] over the losses on the grid."""
        kept = self.mass > 0
        return float(logsumexp(exponent * self.values()[kept], b=self.mass[kept]))


@dataclass(frozen=True, slots=True)
class _Repeated:
    """One step, or one release, done `count` times."""

    event: Event
    count: int


def composed_epsilon(events: Events, delta: float) -> float:
    """Epsilon of all `events` together, adaptively composed; infinite only where no finite epsilon holds.

    About 0.3 s for 220 steps. Raises MechanismError where delta is out of its range.
    """
    require_delta(delta)
    counted = _merged(events)
    if not counted:
        return 0.0
    return max(_epsilon(counted, delta, direction) for direction in ("add", "remove"))


def _merged(events: Events) -> list[_Repeated]:
    """Equal steps and equal releases counted together; what was done no time is left out."""
    counts: dict[Event, int] = {}
    for event in events:
        kind, times = (replace(event, steps=1), event.steps) if isinstance(event, SubsampledGaussian) else (event, 1)
        counts[kind] = counts.get(kind, 0) + times
    return [_Repeated(kind, times) for kind, times in counts.items() if times]


def _epsilon(events: Sequence[_Repeated], delta: float, direction: Direction) -> float:
    unlikely = _LEFT_OUT * delta
    coarse = [_losses(one, direction, _loss_range(one, direction, unlikely)[2], unlikely) for one in events]
    low, high, exponent = _window(coarse, unlikely)
    low, high = low - _MARGIN * (high - low), high + _MARGIN * (high - low)
    length = _transform_length(events)
    width = (high - low) / (length - 2)
    fine = [_losses(one, direction, width, unlikely) for one in events]
    first = math.floor(low / width)
    composed = _compose(fine, first, length)
    beyond = sum(losses.count * losses.infinite for losses in fine) + _chernoff(
        fine, exponent, (first + length) * width
    )
    return _epsilon_of(composed, _dots(first, length, width), delta - beyond)


def _losses(repeated: _Repeated, direction: Direction, width: float, unlikely: float) -> _Losses:
    if isinstance(repeated.event, Geometric):
        return _pure_losses(repeated.event.epsilon, repeated.count, width)
    low, high, _ = _loss_range(repeated, direction, unlikely)
    return _gaussian_losses(repeated.event, repeated.count, direction, low, high, width)


def _pure_losses(epsilon: float, count: int, width: float) -> _Losses:
    """Plus and minus epsilon, the dominating pair of every pure epsilon-DP mechanism; the same in both directions."""
    lowest = math.floor(-epsilon / width)
    cells = math.ceil(epsilon / width) - lowest
    own, other = np.zeros(cells), np.zeros(cells)
    for loss in (-epsilon, epsilon):
        cell = min(math.floor(loss / width) - lowest, cells - 1)
        own[cell] += 1 / (1 + math.exp(-loss))
        other[cell] += 1 / (1 + math.exp(loss))
    return _Losses(lowest, width, _on_dots(own, other, lowest, width), 0.0, count)


def _gaussian_losses(
    event: SubsampledGaussian, count: int, direction: Direction, low: float, high: float, width: float
) -> _Losses:
    """Losses of one step, in the output's first coordinate x (in units of the clipping norm): the patient adds 1 to it, or nothing."""
    lowest, highest = math.floor(low / width), math.ceil(high / width)
    edges = _dots(lowest, highest - lowest + 1, width)
    if direction == "remove":
        x = _output(edges, event)
        left, right = x[:-1], x[1:]
        under, over = (
            _probabilities(event, np.full(1, -np.inf), x[:1]),
            _probabilities(event, x[-1:], np.full(1, np.inf)),
        )
        own, other = 1, 0
    else:
        x = _output(-edges, event)
        left, right = x[1:], x[:-1]
        under, over = (
            _probabilities(event, x[:1], np.full(1, np.inf)),
            _probabilities(event, np.full(1, -np.inf), x[-1:]),
        )
        own, other = 0, 1
    cells = _probabilities(event, left, right)
    mass = _on_dots(cells[own], cells[other], lowest, width)
    mass[0] += under[own][0]  # losses below the grid are rounded up to its first dot
    return _Losses(lowest, width, mass, float(over[own][0]), count)


def _on_dots(own: Floats, other: Floats, lowest: int, width: float) -> Floats:
    """Share each cell's probability between its two dots so that its probability under the *other* dataset is kept too.

    `own`, `other`: `(cells,)`; returns `(cells + 1,)`. Of a loss l, the other dataset has exp(-l) times the probability.
    """
    starts = _dots(lowest, len(own), width)
    upper = np.clip((own - other * np.exp(starts)) / -math.expm1(-width), 0.0, own)
    mass = np.zeros(len(own) + 1)
    mass[:-1] = own - upper
    mass[1:] += upper
    return mass


def _probabilities(event: SubsampledGaussian, left: Floats, right: Floats) -> tuple[Floats, Floats]:
    """Of `left < x < right` without the patient, and with it."""
    sigma, rate = event.noise_multiplier, event.sampling_rate
    without = _normal(left / sigma, right / sigma)
    return without, (1 - rate) * without + rate * _normal((left - 1) / sigma, (right - 1) / sigma)


def _normal(left: Floats, right: Floats) -> Floats:
    """Of an interval, from the tail that is nearer, where differences keep their digits."""
    flip = left > 0
    difference: Floats = ndtr(np.where(flip, -left, right)) - ndtr(np.where(flip, -right, left))
    return np.maximum(difference, 0.0)


def _output(losses: Floats, event: SubsampledGaussian) -> Floats:
    """x at which the likelihood ratio with / without the patient is exp(loss); minus infinity where every x has more."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log1p(np.expm1(losses) / event.sampling_rate)
    ratio = np.where(np.isnan(ratio), -np.inf, ratio)
    x: Floats = event.noise_multiplier**2 * ratio + 0.5
    return x


def _loss_range(repeated: _Repeated, direction: Direction, unlikely: float) -> tuple[float, float, float]:
    """Lowest and highest loss of one event but for `unlikely` over all its repetitions, and the width of the coarse grid."""
    event = repeated.event
    if isinstance(event, Geometric):
        return -event.epsilon, event.epsilon, 2 * event.epsilon / _COARSE_CELLS
    sigma = event.noise_multiplier
    reach = -float(ndtri(unlikely / repeated.count)) * sigma
    ends = sorted(_log_ratio(event, x) for x in (-reach, reach + (1 if direction == "remove" else 0)))
    low, high = ends if direction == "remove" else (-ends[1], -ends[0])
    return low, high, max(high - low, abs(low) / 8, abs(high) / 8) / _COARSE_CELLS


def _log_ratio(event: SubsampledGaussian, x: float) -> float:
    """Logarithm of the likelihood ratio with / without the patient, at the output x."""
    drawn = math.log(event.sampling_rate) + (2 * x - 1) / (2 * event.noise_multiplier**2)
    if event.sampling_rate == 1:
        return drawn
    return float(np.logaddexp(math.log1p(-event.sampling_rate), drawn))


def _window(losses: Sequence[_Losses], unlikely: float) -> tuple[float, float, float]:
    """Composed losses outside [low, high] are `unlikely`, each side; the exponent with which the upper side is bounded."""
    spread = max(float(np.abs(one.values()).max()) for one in losses)
    exponents = _EXPONENTS / spread
    lows = [_log_moments(losses, -exponent) - math.log(unlikely) for exponent in exponents]
    highs = [_log_moments(losses, exponent) - math.log(unlikely) for exponent in exponents]
    best = int(np.argmin(highs / exponents))
    return -float(np.min(lows / exponents)), float(highs[best] / exponents[best]), float(exponents[best])


def _log_moments(losses: Sequence[_Losses], exponent: float) -> float:
    return sum(one.count * one.log_moment(exponent) for one in losses)


def _chernoff(losses: Sequence[_Losses], exponent: float, limit: float) -> float:
    """Bound of the probability that the composed loss is at least `limit`, with `exponent` or the tenth of it."""
    bounds = [_log_moments(losses, one) - one * limit for one in (exponent, exponent / 10)]
    return math.exp(min(0.0, *bounds))


def _transform_length(events: Sequence[_Repeated]) -> int:
    """Long enough that the grid is much finer than the loss of one step of many."""
    wanted = 4000 * math.sqrt(sum(one.count for one in events))
    return int(min(max(_SHORTEST, 2 ** math.ceil(math.log2(wanted))), _LONGEST))


def _compose(losses: Sequence[_Losses], first: int, length: int) -> Floats:
    """Probabilities of the composed losses `first`, `first + 1`, ... in units of the grid."""
    spectrum = np.ones(length // 2 + 1, dtype=np.complex128)
    for one in losses:
        places = (one.first + np.arange(len(one.mass))) % length
        spectrum *= rfft(np.bincount(places, weights=one.mass, minlength=length)) ** one.count
    composed: Floats = np.roll(irfft(spectrum, length), -(first % length))
    return np.maximum(composed, 0.0)


def _epsilon_of(mass: Floats, values: Floats, delta: float) -> float:
    """Smallest epsilon >= 0 at which the hockey-stick divergence is at most `delta`; between two dots it is linear in exp(epsilon)."""

    def divergence(index: int) -> float:
        return float(-(mass[index:] * np.expm1(values[index] - values[index:])).sum())

    if delta <= 0:
        return math.inf
    start = int(np.searchsorted(values, 0.0))
    positive = -(mass[start:] * np.expm1(-values[start:])).sum()
    if positive <= delta:
        return 0.0
    low, high = start - 1, len(mass) - 1  # the divergence exceeds delta just below `low + 1`, and not at `high`
    while high - low > 1:
        middle = (low + high) // 2
        if divergence(middle) > delta:
            low = middle
        else:
            high = middle
    kept, weights = mass[high:], np.exp(values[high] - values[high:])
    return max(0.0, float(values[high] + math.log((kept.sum() - delta) / (kept * weights).sum())))


def _dots(first: int, count: int, width: float) -> Floats:
    """Losses of `count` dots of the grid from the index `first` on, `(count,)`."""
    return np.arange(first, first + count, dtype=np.float64) * width
