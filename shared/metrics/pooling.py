"""All hospitals together, from what each of them reports: counts, metrics with intervals, histograms. No image or
patient is seen.

- A rate (accuracy, sensitivity, specificity, precision, F1, recall) is that of the summed confusion counts. It equals
  the mean of the hospitals' rates weighted by their denominators, and hospitals are independent, so its standard
  error is sqrt(sum w^2 se^2) with each hospital's se taken from its patient-bootstrap interval as (high - low) / 2z.
  So patients with several images are counted rightly, which a binomial interval on the summed counts would not do.
- Balanced accuracy is the mean of the pooled recalls; their errors are added as independent.
- `auc` is the mean of the hospitals' own exact AUCs weighted by their test images: how well images are ranked
  *within* a hospital. The gains are weighted the same way.
- `histogram_roc` is the curve of all images together, so its area also compares images *across* hospitals (for the
  SVM: across different SVMs). It comes from the histograms, and its interval from drawing these anew, each hospital
  with as many images as it has patients (as if all images of a patient were one).

Intervals are normal ones cut to [0, 1]; none is given where a hospital with images reports no interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Literal, TypeVar

import numpy as np
from pydantic import Field

from shared.exact import as_float
from shared.metrics.bootstrap import GAINS, Gain
from shared.metrics.classification import CLASS_METRICS, Floats, rates, rates_by_class
from shared.metrics.histograms import common_edges, histogram_roc, spread_auc, spreading
from shared.results import ClassRow, Count, Difference, Estimate, Evaluated, HeadResult, ScoreHistogram
from shared.schema import Strict

HeadKey = Literal["network", "svm", "svm_paper"]
_Name = TypeVar("_Name", bound=str)


class PooledRoc(Strict):
    """ROC curve of all hospitals' images from their histograms. Whatever the scores inside the cells are, the exact
    area lies between `auc_least` and `auc_most`.
    """

    false_positive_rate: list[float]
    true_positive_rate: list[float]
    auc: Estimate
    auc_least: float
    auc_most: float


class PooledHead(Strict):
    """One head over all hospitals that report it. See the module for how each figure is obtained."""

    hospitals: Count
    patients: Count | None
    images: Count | None
    accuracy: Estimate
    balanced_accuracy: Estimate
    sensitivity: Estimate
    specificity: Estimate
    precision: Estimate
    f1: Estimate
    auc: Estimate
    confusion: list[list[int]]
    classes: list[ClassRow]
    histogram_roc: PooledRoc | None = Field(
        default=None, description="None where any hospital's histogram could not leave"
    )
    gain: dict[Literal["auc", "balanced_accuracy"], Difference] | None = None


def pool(
    hospitals: Sequence[Evaluated],
    head: HeadKey,
    *,
    positive: int,
    confidence: float,
    resamples: int = 1000,
    seed: int = 0,
) -> PooledHead | None:
    """Pooled result of one head; None where no hospital reports it.

    `positive` is the index of the positive class, `confidence` the level that the hospitals' intervals were made with.
    Raises ValueError where the hospitals' confusion counts differ in size.
    """
    found = [(site, result) for site in hospitals if (result := getattr(site, head)) is not None]
    if not found:
        return None
    results: list[HeadResult] = [result for _, result in found]
    if len({len(result.confusion) for result in results}) > 1:
        raise ValueError("Expected the same classes at every hospital, but got confusion counts of different sizes")
    if any(result.noise is not None for result in results):
        return _pooled_noised(results, positive=positive, confidence=confidence)
    counts = np.array([result.confusion for result in results], dtype=np.float64)
    images = np.array([site.images or 0 for site, _ in found], dtype=np.float64)
    z = NormalDist().inv_cdf(0.5 + confidence / 2.0)
    total = counts.sum(0)
    value, value_by_class = rates(total, positive), rates_by_class(total)
    denominators = _denominators(counts)

    def of_class(name: str, c: int) -> Estimate:
        estimates = [getattr(result.classes[c], name) for result in results]
        if name == "auc":
            return mean_of_estimates(estimates, images, z)
        return _rate(float(value_by_class[name][c]), estimates, denominators[name][:, c], z)

    classes = [
        ClassRow(images=int(row.sum()), **{name: of_class(name, c) for name in CLASS_METRICS})
        for c, row in enumerate(total)
    ]
    return PooledHead(
        hospitals=len(found),
        patients=sum(site.patients or 0 for site, _ in found),
        images=int(images.sum()),
        accuracy=_rate(float(value["accuracy"]), [result.accuracy for result in results], images, z),
        balanced_accuracy=_balanced(float(value["balanced_accuracy"]), [row.recall for row in classes], z),
        sensitivity=classes[positive].recall,
        specificity=classes[positive].specificity,
        precision=classes[positive].precision,
        f1=classes[positive].f1,
        auc=mean_of_estimates([result.auc for result in results], images, z),
        confusion=[[int(count) for count in row] for row in total],
        classes=classes,
        histogram_roc=_pooled_roc(found, confidence=confidence, resamples=resamples, seed=seed),
        gain=pooled_gain(results, images, confidence=confidence),
    )


def _pooled_noised(results: Sequence[HeadResult], *, positive: int, confidence: float) -> PooledHead:
    """The hospitals' noised counts added up, noise and all (`shared.metrics.noised`). Counts without noise get none here."""
    from shared.metrics.noised import pooled_noised

    tables = [(result.confusion, as_float(result.noise)) for result in results if result.noise is not None]
    if len(tables) < len(results):
        raise ValueError("Expected noised counts of every hospital, but got exact ones of some")
    overall, classes = pooled_noised(tables, positive=positive, confidence=confidence)
    total = np.sum([np.array(result.confusion) for result in results], axis=0)
    return PooledHead.model_validate(
        {
            **overall,
            "hospitals": len(results),
            "patients": None,
            "images": None,
            "confusion": total.astype(int).tolist(),
            "classes": classes,
        }
    )


def pooled_gain(results: Sequence[HeadResult], images: Floats, *, confidence: float) -> dict[Gain, Difference] | None:
    """See `pooled_differences`."""
    return pooled_differences([result.gain for result in results], GAINS, images, confidence=confidence)


def pooled_differences(
    gains: Sequence[Mapping[_Name, Difference] | None], names: Sequence[_Name], images: Floats, *, confidence: float
) -> dict[_Name, Difference] | None:
    """Mean of the hospitals' paired differences weighted by test images (H,), standard error sqrt(sum w^2 se^2),
    normal interval.

    Hospitals without the difference don't count; None where none has any.
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2.0)
    pooled: dict[_Name, Difference] = {}
    for name in names:
        pairs = [
            (gain[name], number)
            for gain, number in zip(gains, images, strict=True)
            if gain is not None and name in gain
        ]
        if not pairs:
            continue
        weights = np.array([number for _, number in pairs])
        weights = weights / weights.sum()
        value = float(weights @ np.array([gain.value for gain, _ in pairs]))
        error = float(np.sqrt((weights**2) @ np.array([gain.standard_error**2 for gain, _ in pairs])))
        pooled[name] = Difference(value=value, low=value - z * error, high=value + z * error, standard_error=error)
    return pooled or None


def _denominators(counts: Floats) -> dict[str, Floats]:
    """What each class rate of each hospital (H, K) is a share of."""
    of_class, said = counts.sum(2), counts.sum(1)
    return {
        "precision": said,
        "recall": of_class,
        "specificity": counts.sum((1, 2))[:, None] - of_class,
        "f1": of_class + said,
    }


def _cut(value: float, error: float, z: float) -> Estimate:
    return Estimate(value=value, low=max(0.0, value - z * error), high=min(1.0, value + z * error))


def _rate(value: float, estimates: Sequence[Estimate], weights: Floats, z: float) -> Estimate:
    """A pooled rate; `weights` (H,) are the hospitals' denominators."""
    if not np.isfinite(value):
        return Estimate(value=None)
    error = _error(estimates, weights, z)
    return Estimate(value=value) if error is None else _cut(value, error, z)


def _error(estimates: Sequence[Estimate], weights: Floats, z: float) -> float | None:
    squares = 0.0
    for estimate, weight in zip(estimates, weights, strict=True):
        if weight == 0:
            continue
        if estimate.low is None or estimate.high is None:
            return None
        squares += (weight * (estimate.high - estimate.low) / (2.0 * z)) ** 2
    return float(np.sqrt(squares) / weights.sum())


def mean_of_estimates(estimates: Sequence[Estimate], images: Floats, z: float) -> Estimate:
    """Mean weighted by images (H,) over the hospitals that define the figure; `z` is the normal quantile of their intervals."""
    weights = np.array([0.0 if one.value is None else number for one, number in zip(estimates, images, strict=True)])
    if weights.sum() == 0:
        return Estimate(value=None)
    value = float(np.array([one.value or 0.0 for one in estimates]) @ weights / weights.sum())
    return _rate(value, estimates, weights, z)


def _balanced(value: float, recalls: Sequence[Estimate], z: float) -> Estimate:
    if not np.isfinite(value):
        return Estimate(value=None)
    present = [recall for recall in recalls if recall.value is not None]
    error = _error(present, np.ones(len(present)), z)
    return Estimate(value=value) if error is None else _cut(value, error, z)


def _pooled_roc(
    found: Sequence[tuple[Evaluated, HeadResult]], *, confidence: float, resamples: int, seed: int
) -> PooledRoc | None:
    histograms = [result.histogram for _, result in found if result.histogram is not None]
    if len(histograms) < len(found):
        return None
    roc = histogram_roc(histograms)
    if roc is None:
        return None
    shares = [(site.patients or 0) / (site.images or 1) for site, _ in found]
    low, high = _drawn_interval(histograms, shares, confidence=confidence, resamples=resamples, seed=seed)
    return PooledRoc(
        false_positive_rate=roc.false_positive_rate.tolist(),
        true_positive_rate=roc.true_positive_rate.tolist(),
        auc=Estimate(value=roc.auc, low=low, high=high),
        auc_least=roc.auc_least,
        auc_most=roc.auc_most,
    )


def _drawn_interval(
    histograms: Sequence[ScoreHistogram], shares: Sequence[float], *, confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    """Percentile interval of the pooled AUC, the cells of each hospital and class drawn anew with `share` times its
    images.
    """
    rng = np.random.default_rng(seed)
    edges = common_edges(histograms)
    sums = {"positive": np.zeros((resamples, edges.size - 1)), "negative": np.zeros((resamples, edges.size - 1))}
    for one, share in zip(histograms, shares, strict=True):
        spread = spreading(one, edges)
        for kind, cells in (("positive", one.positive), ("negative", one.negative)):
            number = sum(cells)
            if number:
                drawn = max(1, round(number * share))
                sums[kind] += (
                    rng.multinomial(drawn, np.array(cells) / number, size=resamples) @ spread * (number / drawn)
                )
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(spread_auc(sums["positive"], sums["negative"]), (tail, 1.0 - tail))
    return float(low), float(high)
