"""Figures over all classes at once, from confusion counts alone: means weighted by the classes' images, and errors that are counted.

- A weighted figure is the mean of the classes' one-against-the-rest figures, each class with as much weight as it has images
  (scikit-learn's `average="weighted"`). The weighted recall is the accuracy. A class that has images and is never said has precision 0,
  as in scikit-learn.
- `errors` is FP + FN, each class against the rest, added over the classes. Where one class is said of each image, every wrong image
  counts twice: as missed in its own class and as a false alarm in the one that was said. So it is even, and twice the wrong images.
- `rare_errors` is the same sum over the classes that the study calls rare: an image that is mixed up between two rare ones counts twice,
  one between a rare and another class once.

Intervals come from drawing each hospital's counts anew, as many images as it has patients (as if all images of a patient were one), the
sums scaled up again. So what leaves a hospital anyhow is enough for them. Those of the weighted figures follow the rules of
`shared.metrics.bootstrap.interval`, the patients behind them being those of all hospitals. So do those of the errors, as a share of the
most that there could be among these images (two an image; one where a single class is rare): where no image, or every image, is wrong,
the open side is the exact binomial (Clopper-Pearson) bound by patients, times that most. Of two or more rare classes this bound is
generous, since only an image that is mixed up between two of them counts twice.
Of noised counts none of these is given. The weighted means rest on single cells, which such noise hides; errors would be twice the images
that accuracy does not count, and accuracy has an interval that knows of the noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from shared.metrics.bootstrap import interval
from shared.metrics.classification import Floats, rates_by_class, ratio
from shared.results import Estimate

#: Names of the weighted means, in the order of the tables.
WEIGHTED = ("precision", "recall", "specificity", "f1")
#: Why there are none of noised counts, as a clause.
NOISED = (
    "left out, because the counts carry noise: the weighted figures rest on single cells, which it hides, and the errors add "
    "nothing to the accuracy, whose interval knows of it"
)


@dataclass(frozen=True, slots=True)
class Counted:
    """Errors, with the ends of the interval: how many there would be among as many images of other patients."""

    value: int
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class OverClasses:
    """Weighted means by the names of `WEIGHTED`; `rare_errors` is None where the study calls no class rare."""

    weighted: Mapping[str, Estimate]
    errors: Counted
    rare_errors: Counted | None


def weighted_rates(counts: Floats) -> dict[str, Floats]:
    """Weighted precision, recall, specificity and F1 (...) of counts (..., K, K); NaN without an image.

    Specificity is also undefined where all images are of one class: then there is no other to be told from it.
    """
    support = counts.sum(-1)
    images = support.sum(-1)
    found: dict[str, Floats] = {}
    for name, values in rates_by_class(counts).items():
        if name == "precision":
            values = np.where((counts.sum(-2) == 0) & (support > 0), 0.0, values)
        terms = np.where(support > 0, support * values, 0.0)
        found[name] = ratio(terms.sum(-1), images)
    return found


def errors(counts: Floats, classes: Sequence[int] | None = None) -> Floats:
    """FP + FN (...) of counts (..., K, K), each class against the rest, added over `classes` (None: over all)."""
    right = np.diagonal(counts, axis1=-2, axis2=-1)
    of_class: Floats = counts.sum(-1) + counts.sum(-2) - 2 * right
    chosen: Floats = of_class if classes is None else of_class[..., list(classes)]
    total: Floats = chosen.sum(-1)
    return total


def over_classes(
    hospitals: Sequence[tuple[Sequence[Sequence[int]], int]],
    rare: Sequence[int],
    *,
    confidence: float,
    resamples: int,
    seed: int,
) -> OverClasses:
    """Figures of one hospital, or of several together, from each one's exact confusion counts [true][predicted] and number of patients.

    `rare` are the indices of the rare classes. The same counts and seed give the same intervals. No interval where a hospital with images
    has fewer than two patients. Raises ValueError where there is no table, or the tables' sizes differ.
    """
    tables = [np.array(confusion, dtype=np.float64) for confusion, _ in hospitals]
    if len({table.shape for table in tables}) != 1:
        raise ValueError("expected confusion counts of one size, at least of one hospital")
    total = np.sum(tables, axis=0)
    drawn = _drawn(tables, [patients for _, patients in hospitals], resamples, seed)
    behind = sum(patients for table, (_, patients) in zip(tables, hospitals, strict=True) if table.any())
    # Without draws none defines a figure, so that it has no interval.
    again = weighted_rates(np.full((1, *total.shape), np.nan) if drawn is None else drawn)
    weighted = {
        name: interval(float(value), again[name], confidence=confidence, patients=behind)
        for name, value in weighted_rates(total).items()
    }

    def counted(classes: Sequence[int] | None) -> Counted:
        value = int(errors(total, classes))
        most = total.sum() * (1 if classes is not None and len(classes) == 1 else 2)
        if drawn is None or not most:
            return Counted(value, None, None)
        # Rounded, since sums of scaled draws that are all the same may differ in their last bit.
        draws = np.round(errors(drawn, classes) / most, 12)
        share = interval(value / most, draws, confidence=confidence, patients=behind)
        if share.low is None or share.high is None:
            return Counted(value, None, None)
        return Counted(value, min(share.low * most, value), max(share.high * most, value))

    return OverClasses(weighted, counted(None), counted(rare) if rare else None)


def _drawn(tables: Sequence[Floats], patients: Sequence[int], resamples: int, seed: int) -> Floats | None:
    """(R, K, K) sums of counts drawn anew; None where a hospital has too few patients to draw."""
    rng = np.random.default_rng(seed)
    total = np.zeros((resamples, *tables[0].shape))
    for table, number in zip(tables, patients, strict=True):
        images = table.sum()
        if images == 0:
            continue
        if number < 2:
            return None
        draws = rng.multinomial(number, table.reshape(-1) / images, size=resamples) * (images / number)
        total += draws.reshape(total.shape)
    return total
