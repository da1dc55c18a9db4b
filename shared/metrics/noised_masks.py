"""Figures of masks from test patients counted by their IoU, with two-sided geometric noise (`client.private.counts`) on each count.

Only the noised counts and their epsilon are needed, so coordinator, hospital and auditor compute the very same figures. Each patient has
one vote, one image's IoU in one of 20 public bins, so a figure is a mean over patients.

- A figure is a mean over the patients of x: IoU itself, Dice = 2 IoU / (1 + IoU), or IoU where it is at least 0.65 and else 0 (0.65 is an
  edge of the bins, so nobody is on the wrong side of it). Its value takes for x of a bin its mean where IoU is spread evenly in the bin,
  and is S / N, the noised sum of x over the noised number of patients: the noise of both has mean 0 (counts cut at 0 would add patients of
  every IoU that nobody has). It is cut to [0, 1], and None where N is not above 0.
- Its interval is of Fieller's kind ("Some Problems in Interval Estimation", 1954): those means m with (S - m N)^2 <= z^2 V(m), where
  V(m) is the variance of S - m N. Noise gives it a known part, that of one count times the sum of (x - m)^2 over the bins; which patients
  came gives the sum of (x - m)^2 over the patients, with counts below 0 taken for 0, and half a patient more at either end (Jeffreys'
  prior of a share), so that counts in a single bin claim no certainty. Both make it wider rather than narrower. Where N is too small
  beside the noise, the interval is all of [0, 1].
- Nothing is known of the places within the bins: the lower end is computed with the least x of each bin, the upper end with the largest,
  which widens an interval of IoU by half a bin, 0.025, at either end. The interval always holds the value.
- Hospitals are pooled by adding up their counts, noise and all; their test patients are taken for one sample of all their patients.

A posterior for each bin by itself, as `shared.metrics.noised` has for the two sums of a rate, would not do: 20 counts of which most are
near 0 and can't be below add patients where there are none, and pull the mean towards the middle by more than the interval's width.
Figures are rounded to 6 digits, so that other machines give the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from statistics import NormalDist

import numpy as np

from shared.metrics.classification import Integers
from shared.metrics.segmentation import JACCARD_THRESHOLD, MaskCounts
from shared.privacy.mechanisms import Geometric
from shared.results import IOU_BINS, NOISED_MASK_METRICS, Estimate, NoisedMaskMetric

#: Edges of the bins: bin k is [k / 20, (k + 1) / 20), the last one with 1.
IOU_EDGES = tuple(k / IOU_BINS for k in range(IOU_BINS + 1))

_DIGITS = 6
#: Patients at 0 and at 1 whom the variance is given besides: Jeffreys' prior.
_PRIOR = 0.5


def iou_bins(counts: MaskCounts) -> Integers:
    """The bin of each image's IoU, `(N,)`, in whole numbers; an image without a lesion where none was found is in the last."""
    both = counts.true_positive
    either = both + counts.false_positive + counts.false_negative
    found: Integers = np.where(either > 0, IOU_BINS * both // np.maximum(either, 1), IOU_BINS)
    return np.minimum(found, IOU_BINS - 1)


def figures_from_noised_masks(
    counts: Sequence[int], *, epsilon: float, confidence: float
) -> dict[NoisedMaskMetric, Estimate]:
    """Figures of one hospital: `pooled_noised_masks` of its counts alone."""
    return pooled_noised_masks([(counts, epsilon)], confidence=confidence)


def pooled_noised_masks(
    sites: Sequence[tuple[Sequence[int], float]], *, confidence: float
) -> dict[NoisedMaskMetric, Estimate]:
    """Figures of all hospitals together from their noised counts by bin of IoU `(20,)`, each with its epsilon.

    `confidence` is the level of the intervals, in (0, 1). Raises ValueError where there are no counts, not 20 of them, or an argument is
    out of range; MechanismError for an epsilon that is.
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"expected a confidence between 0 and 1, but got {confidence}")
    if not sites or any(len(counts) != IOU_BINS for counts, _ in sites):
        raise ValueError(f"expected {IOU_BINS} counts of each hospital, but got {[len(counts) for counts, _ in sites]}")
    total = [sum(cell) for cell in zip(*(counts for counts, _ in sites), strict=True)]
    noise = math.fsum(Geometric(epsilon).variance for _, epsilon in sites)
    z = NormalDist().inv_cdf(0.5 + confidence / 2.0)
    return {name: _estimate(total, noise, z, *_PLACES[name]) for name in NOISED_MASK_METRICS}


def _estimate(
    counts: Sequence[int], noise: float, z: float, least: Sequence[float], mean: Sequence[float], most: Sequence[float]
) -> Estimate:
    """Of x with its `least`, `mean` and `most` in each bin."""
    patients = sum(counts)
    if patients <= 0:
        return Estimate(value=None)
    value = min(1.0, max(0.0, _weighted(counts, mean) / patients))
    low, high = _ends(counts, least, noise, z)[0], _ends(counts, most, noise, z)[1]
    return Estimate(
        value=round(value, _DIGITS),
        low=round(max(0.0, min(low, value)), _DIGITS),
        high=round(min(1.0, max(high, value)), _DIGITS),
    )


def _ends(counts: Sequence[int], x: Sequence[float], noise: float, z: float) -> tuple[float, float]:
    """Both ends of Fieller's interval of the mean of `x`: the roots m of (S - m N)^2 = z^2 V(m); 0 and 1 where it has no end."""
    patients, total = float(sum(counts)), _weighted(counts, x)
    spread = [max(0, count) + noise for count in counts]
    squares = patients**2 - z**2 * (math.fsum(spread) + 2.0 * _PRIOR)
    if squares <= 0.0:
        return 0.0, 1.0
    middle = total * patients - z**2 * (_weighted(spread, x) + _PRIOR)
    rest = total**2 - z**2 * (_weighted(spread, [one**2 for one in x]) + _PRIOR)
    root = math.sqrt(max(0.0, middle**2 - squares * rest))
    return (middle - root) / squares, (middle + root) / squares


def _weighted(counts: Sequence[float], x: Sequence[float]) -> float:
    return math.fsum(count * one for count, one in zip(counts, x, strict=True))


def _dice(iou: float) -> float:
    return 2.0 * iou / (1.0 + iou)


def _mean_dice(low: float, high: float) -> float:
    """Over IoU evenly between `low` and `high`."""
    return 2.0 - 2.0 * math.log((1.0 + high) / (1.0 + low)) / (high - low)


def _middle(low: float, high: float) -> float:
    return (low + high) / 2.0


_Places = tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]


def _places(of_iou: Callable[[float], float], mean: Callable[[float, float], float], *, from_: float = 0.0) -> _Places:
    """Least, mean and most of a figure in each bin, 0 in those below `from_`."""
    bins = [(low, high, low >= from_) for low, high in pairwise(IOU_EDGES)]
    return (
        tuple(of_iou(low) if counts else 0.0 for low, _, counts in bins),
        tuple(mean(low, high) if counts else 0.0 for low, high, counts in bins),
        tuple(of_iou(high) if counts else 0.0 for _, high, counts in bins),
    )


_PLACES: Mapping[NoisedMaskMetric, _Places] = {
    "iou": _places(float, _middle),
    "dice": _places(_dice, _mean_dice),
    "thresholded_iou": _places(float, _middle, from_=JACCARD_THRESHOLD),
}
