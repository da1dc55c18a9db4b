"""Figures from confusion counts that carry two-sided geometric noise (`client.private.counts`), with intervals that know of it.

Only the noised table and its epsilon are needed, so coordinator, hospital and auditor compute the very same figures.

- A figure's value is that of the noised sums: their noise has mean 0, so neither numerator nor denominator is biased (cells cut at 0
  would count errors that nobody made). It is cut to [0, 1], and None where the noised denominator is not above 0.
- Its interval is an equal-tailed Bayesian one. Each rate is A / (A + B) of two sums over cells that don't overlap (F1:
  2A / (2A + B)). The patients behind them are Poisson with unknown means under Jeffreys' prior, so a true sum c has the prior
  Gamma(c + 1/2) / c!; what noise can do to it has the exact distribution of a sum of independent two-sided geometrics, as many as the
  sum has cells, over all hospitals. This gives the posterior of the true A and B; given these, the rate is Beta(A + 1/2, B + 1/2).
  With no noise that is Jeffreys' interval of a binomial share (Brown, Cai, DasGupta, "Interval Estimation for a Binomial Proportion",
  2001). The interval always holds the value.
- Balanced accuracy is the mean of independent recalls. Of a class that the noise hides, the posterior is the prior, centred on 1/2,
  and a mean of several such would be sure of 1/2. So recalls whose own interval is wider than 0.8 rise and fall together in the draws.
- Hospitals are pooled by adding up their tables, noise and all; their test patients are taken for one sample of all their patients.

Percentiles are of Latin hypercube draws (McKay, Beckman, Conover, 1979) through inverse distribution functions; the seed comes from the
counts, only the generator's uniform numbers are used, and figures are rounded to 6 digits, so that other releases of NumPy and other
machines give the same ones. That cells can't be below 0 is used of the sums only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import fft, special

from shared.metrics.classification import Floats, Integers
from shared.privacy.mechanisms import Geometric
from shared.results import ClassRow, Estimate
from shared.seeds import derived_seed

Confusion = Sequence[Sequence[int]]
#: Figures by name (`shared.results.METRICS`), and one row a class.
Noised = tuple[dict[str, Estimate], list[ClassRow]]

_DRAWS = 2000
_DIGITS = 6
#: Jeffreys' prior.
_PRIOR = 0.5
#: Noise with a smaller epsilon is put on a coarser lattice: it is a thousand times wider than a patient.
_FINEST_EPSILON = 1e-3
#: How far noise is followed: exp(-36) and 9 standard deviations.
_TAIL, _DEVIATIONS = 36.0, 9.0
#: 95 % intervals of recalls that say next to nothing are wider.
_HIDDEN = 0.8


def figures_from_noised(confusion: Confusion, *, positive: int, epsilon: float, confidence: float) -> Noised:
    """Figures of one hospital: `pooled_noised` of a single table."""
    return pooled_noised([(confusion, epsilon)], positive=positive, confidence=confidence)


def pooled_noised(sites: Sequence[tuple[Confusion, float]], *, positive: int, confidence: float) -> Noised:
    """Figures of all hospitals together from their noised counts [true class][predicted class], each with its epsilon.

    `positive` is the index of the positive class, `confidence` the level of the intervals, in (0, 1). `auc` is None: no score is
    released. The mean of balanced accuracy is over the classes whose noised number of patients is above 0 (None for fewer than two).
    A row's `images` is that number, 0 where it is below.

    Raises ValueError where there is no table, or they are not square, at least 2 x 2 and of one size, or an argument is out of
    range; MechanismError for an epsilon that is.
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"expected a confidence between 0 and 1, but got {confidence}")
    total = _total([table for table, _ in sites])
    classes = len(total)
    if not 0 <= positive < classes:
        raise ValueError(f"expected a positive class below {classes}, but got {positive}")
    epsilons = [Geometric(float(epsilon)).epsilon for _, epsilon in sites]
    posterior = _Posterior(epsilons, np.random.Generator(np.random.PCG64(_seed(sites))))
    tail = (1.0 - confidence) / 2.0

    def estimate(share: _Share, factor: float = 1.0) -> tuple[Estimate, Floats]:
        """Of factor * A / (factor * A + B), with its draws (R,); None without draws where the denominator is not above 0."""
        value = share.value(factor)
        if value is None:
            return Estimate(value=None), np.empty(0)
        draws = posterior.draws(share)
        draws = factor * draws / (1.0 + (factor - 1.0) * draws)
        return _interval(value, draws, tail), draws

    cell, of_class, said = np.diagonal(total), total.sum(1), total.sum(0)
    others = classes - 1
    rows: list[ClassRow] = []
    recalls: list[tuple[float, Floats]] = []
    for c in range(classes):
        hits, missed, alarms = int(cell[c]), int(of_class[c] - cell[c]), int(said[c] - cell[c])
        rest = int(total.sum() - of_class[c])
        recall, draws = estimate(_Share(hits, 1, missed, others))
        if recall.value is not None:
            recalls.append((recall.value, draws))
        rows.append(
            ClassRow(
                images=max(0, int(of_class[c])),
                precision=estimate(_Share(hits, 1, alarms, others))[0],
                recall=recall,
                specificity=estimate(_Share(rest - alarms, others * others, alarms, others))[0],
                f1=estimate(_Share(hits, 1, missed + alarms, 2 * others), 2.0)[0],
                auc=Estimate(value=None),
            )
        )
    right = int(cell.sum())
    overall = {
        "accuracy": estimate(_Share(right, classes, int(total.sum()) - right, classes * others))[0],
        "balanced_accuracy": _balanced(recalls, posterior, tail),
        "sensitivity": rows[positive].recall,
        "specificity": rows[positive].specificity,
        "precision": rows[positive].precision,
        "f1": rows[positive].f1,
        "auc": Estimate(value=None),
    }
    return overall, rows


@dataclass(frozen=True, slots=True)
class _Share:
    """A and B of a rate: noised sums, and over how many cells of each hospital."""

    a: int
    a_cells: int
    b: int
    b_cells: int

    def value(self, factor: float) -> float | None:
        """factor * A / (factor * A + B) in [0, 1]; None where the denominator is not above 0."""
        whole = factor * self.a + self.b
        return min(1.0, max(0.0, factor * self.a / whole)) if whole > 0 else None


class _Posterior:
    """Draws of true sums and rates given noised ones. Asked twice for the same share it gives the same draws."""

    def __init__(self, epsilons: Sequence[float], rng: np.random.Generator) -> None:
        self._rng = rng
        self._step = max(1, math.ceil(_FINEST_EPSILON / min(epsilons)))
        self._epsilons = np.array(epsilons) * self._step
        self._noise: dict[int, Floats] = {}
        self._drawn: dict[_Share, Floats] = {}

    def draws(self, share: _Share) -> Floats:
        """(R,) draws of A / (A + B)."""
        if share not in self._drawn:
            a, b = self._sums(share.a, share.a_cells), self._sums(share.b, share.b_cells)
            self._drawn[share] = special.betaincinv(a + _PRIOR, b + _PRIOR, self._uniforms())
        return self._drawn[share]

    def _sums(self, noised: int, cells: int) -> Floats:
        """(R,) draws of a true sum over `cells` cells of each hospital."""
        noise = self._noise_of(cells)
        reach = len(noise) // 2
        centre = round(noised / self._step)
        uniforms = self._uniforms()
        if centre < -reach:  # lower than noise ever is: nobody is as near as it gets
            return np.zeros(_DRAWS)
        lattice = np.arange(max(0, centre - reach), centre + reach + 1)
        counts = lattice.astype(np.float64) * self._step
        prior = np.exp(special.gammaln(counts + _PRIOR) - special.gammaln(counts + 1.0))
        cumulated = np.cumsum(noise[lattice - centre + reach] * prior)
        found: Floats = counts[
            np.searchsorted(cumulated, uniforms * cumulated[-1], side="right").clip(max=len(counts) - 1)
        ]
        return found

    def _noise_of(self, cells: int) -> Floats:
        """(2 * reach + 1,) probabilities of the noise in a sum, from its characteristic function, in steps of the lattice."""
        if cells not in self._noise:
            ratios = np.exp(-self._epsilons)
            deviation = math.sqrt(cells * float((2.0 * ratios / (1.0 - ratios) ** 2).sum()))
            reach = math.ceil(_TAIL / float(self._epsilons.min()) + _DEVIATIONS * deviation) + 1
            size = 1 << (2 * reach + 1).bit_length()
            cosines = np.cos(2.0 * np.pi * np.arange(size // 2 + 1) / size)
            logarithm = np.zeros(len(cosines))
            for ratio in ratios:
                # (1 - a)^2 / (1 - 2a cos t + a^2), with 1 - cos t apart from it.
                logarithm -= np.log1p(2.0 * ratio * (1.0 - cosines) / (1.0 - ratio) ** 2)
            ring = fft.irfft(np.exp(cells * logarithm), size)
            self._noise[cells] = np.maximum(np.concatenate((ring[-reach:], ring[: reach + 1])), 1e-300)
        return self._noise[cells]

    def _uniforms(self) -> Floats:
        """(R,) numbers in (0, 1), one in each of R equal parts, in random order."""
        return (self.order() + 0.5) / _DRAWS

    def order(self) -> Integers:
        """(R,) numbers of the draws in random order."""
        order: Integers = np.argsort(self._rng.random(_DRAWS), kind="stable")
        return order


def _total(tables: Sequence[Confusion]) -> Integers:
    arrays = [np.array(table, dtype=np.int64) for table in tables]
    shapes = {array.shape for array in arrays}
    size = arrays[0].shape[0] if arrays else 0
    if shapes != {(size, size)} or size < 2:
        raise ValueError(f"expected square tables of one size, at least 2 x 2, but got shapes {sorted(shapes)}")
    total: Integers = np.sum(arrays, axis=0)
    return total


def _seed(sites: Sequence[tuple[Confusion, float]]) -> int:
    tables = (str([[int(count) for count in row] for row in table]) for table, _ in sites)
    return derived_seed("noised figures", *tables, *(repr(float(epsilon)) for _, epsilon in sites))


def _interval(value: float, draws: Floats, tail: float) -> Estimate:
    low, high = (float(bound) for bound in np.quantile(draws, (tail, 1.0 - tail)))
    return Estimate(
        value=round(value, _DIGITS), low=round(min(low, value), _DIGITS), high=round(max(high, value), _DIGITS)
    )


def _balanced(recalls: Sequence[tuple[float, Floats]], posterior: _Posterior, tail: float) -> Estimate:
    if len(recalls) < 2:
        return Estimate(value=None)
    value = math.fsum(one for one, _ in recalls) / len(recalls)
    total, hidden = np.zeros(_DRAWS), np.zeros(_DRAWS)
    for _, draws in recalls:
        if float(np.ptp(np.quantile(draws, (0.025, 0.975)))) > _HIDDEN:
            hidden += np.sort(draws)
        else:
            total += draws
    return _interval(value, (total + hidden[posterior.order()]) / len(recalls), tail)
