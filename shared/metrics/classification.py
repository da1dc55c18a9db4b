"""Figures of a classifier from weighted test images, for many resamples at once.

A bootstrap resample is a vector of integer weights over the images (how often each image's patient was drawn), so one
call computes every figure of every resample: confusion counts by one matrix product, AUCs by one sort and cumulative
sums. Inside this module a figure that is undefined (no image of a class, nothing predicted positive) is NaN; what
leaves is None (`shared.metrics.bootstrap`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

#: Figures of one class against the rest, in the order of `shared.results.ClassRow`.
CLASS_METRICS = ("precision", "recall", "specificity", "f1", "auc")


@dataclass(frozen=True, slots=True)
class Predictions:
    """What one head says of one set of images.

    `truth` and `predicted` are class indices (N,), `scores` (N, K) lie in [0, 1] and rank the images for each class,
    `patients` (N,) says whose image each is (any sortable values), `positive` is the index of the positive class.
    Raises ValueError where these don't fit together.
    """

    truth: Integers
    predicted: Integers
    scores: Floats
    patients: NDArray[Any]
    positive: int

    def __post_init__(self) -> None:
        if self.scores.ndim != 2:
            raise ValueError(f"Expected argument `scores` to be (N, K), but got shape {self.scores.shape}")
        images, classes = self.scores.shape
        for name in ("truth", "predicted", "patients"):
            shape = getattr(self, name).shape
            if shape != (images,):
                raise ValueError(f"Expected argument `{name}` to be ({images},) like `scores`, but got shape {shape}")
        for name in ("truth", "predicted"):
            values = getattr(self, name)
            if images and not (values.min() >= 0 and values.max() < classes):
                raise ValueError(
                    f"Expected argument `{name}` to hold class indices from 0 to {classes - 1}, "
                    f"but got {values.min()} to {values.max()}"
                )
        if not np.isfinite(self.scores).all() or (images and (self.scores.min() < 0 or self.scores.max() > 1)):
            raise ValueError("Expected argument `scores` to be finite and in [0, 1], but got other values")
        if not 0 <= self.positive < classes:
            raise ValueError(f"Expected argument `positive` to be below {classes}, but got {self.positive}")

    @property
    def classes(self) -> int:
        return int(self.scores.shape[1])

    @property
    def images(self) -> int:
        return int(self.scores.shape[0])


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of R weightings: `overall[name]` is (R,), `by_class[name]` is (R, K); NaN where undefined."""

    overall: Mapping[str, Floats]
    by_class: Mapping[str, Floats]


def confusion_counts(truth: Integers, predicted: Integers, classes: int, weights: Floats | None = None) -> Floats:
    """Counts (R, K, K) of [true class, predicted class] for weights (R, N); without weights (1, K, K) of plain
    counts.
    """
    if weights is None:
        weights = np.ones((1, truth.size))
    cells = np.zeros((truth.size, classes * classes))
    cells[np.arange(truth.size), truth * classes + predicted] = 1.0
    return (weights @ cells).reshape(-1, classes, classes)


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Quotient; NaN where the denominator is 0."""
    result = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), np.nan)
    np.divide(numerator, denominator, out=result, where=denominator > 0)
    return result


def rates_by_class(counts: Floats) -> dict[str, Floats]:
    """Precision, recall, specificity and F1 (..., K) of each class against the rest, from counts (..., K, K).

    Precision is undefined where nothing is predicted to be of the class, recall where no image is of it, specificity
    where every image is of it, F1 = 2TP / (2TP + FP + FN) where both of the first hold.
    """
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    of_class, said = counts.sum(-1), counts.sum(-2)
    total = counts.sum((-1, -2))[..., None]
    rest = total - of_class
    return {
        "precision": ratio(hits, said),
        "recall": ratio(hits, of_class),
        "specificity": ratio(rest - (said - hits), rest),
        "f1": ratio(2 * hits, of_class + said),
    }


def mean_of_defined(values: Floats, least: int) -> Floats:
    """Mean over the last axis of what is defined; NaN where fewer than `least` entries are."""
    defined = np.isfinite(values)
    number = defined.sum(-1)
    mean = ratio(np.where(defined, values, 0.0).sum(-1), number.astype(np.float64))
    return np.where(number >= least, mean, np.nan)


def rates(counts: Floats, positive: int) -> dict[str, Floats]:
    """Accuracy, balanced accuracy, sensitivity, specificity, precision and F1 (...) from counts (..., K, K).

    Balanced accuracy is the mean recall of the classes that have images (scikit-learn's definition), and undefined
    where only one has. The other four are of the positive class against the rest.
    """
    by_class = rates_by_class(counts)
    hits = np.diagonal(counts, axis1=-2, axis2=-1).sum(-1)
    return {
        "accuracy": ratio(hits, counts.sum((-1, -2))),
        "balanced_accuracy": mean_of_defined(by_class["recall"], least=2),
        "sensitivity": by_class["recall"][..., positive],
        "specificity": by_class["specificity"][..., positive],
        "precision": by_class["precision"][..., positive],
        "f1": by_class["f1"][..., positive],
    }


def area_under_roc(scores: Floats, is_positive: NDArray[np.bool_], weights: Floats | None = None) -> Floats:
    """Exact AUC (R,) of scores (N,) for weights (R, N): the share of positive-negative pairs in the right order, ties
    as half.

    Mann-Whitney's U over the number of pairs. NaN where a weighting leaves no positive or no negative image.
    """
    if weights is None:
        weights = np.ones((1, scores.size))
    if scores.size == 0:
        return np.full(weights.shape[0], np.nan)
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    starts = np.flatnonzero(np.concatenate(([True], ranked[1:] != ranked[:-1])))
    sorted_weights = weights[:, order]
    marks = is_positive[order].astype(np.float64)
    positives = np.add.reduceat(sorted_weights * marks, starts, axis=1)
    negatives = np.add.reduceat(sorted_weights * (1.0 - marks), starts, axis=1)
    below = np.cumsum(negatives, axis=1) - negatives
    pairs = positives.sum(1) * negatives.sum(1)
    return ratio((positives * (below + 0.5 * negatives)).sum(1), pairs)


def roc_curve(scores: Floats, is_positive: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Exact ROC curve: false and true positive rates from (0, 0) to (1, 1), one point for each distinct score.

    Raises ValueError where there is no positive or no negative image.
    """
    if is_positive.all() or not is_positive.any():
        raise ValueError("Expected argument `is_positive` to hold both kinds, but got one")
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    hits = np.cumsum(is_positive[order])[ends]
    alarms = ends + 1 - hits
    start = np.zeros(1)
    return np.concatenate((start, alarms / alarms[-1])), np.concatenate((start, hits / hits[-1]))


def figures(predictions: Predictions, weights: Floats | None = None) -> Figures:
    """Every figure of `shared.results.METRICS` and of the class rows, for weights (R, N) (without: one row of ones).

    `auc` is of the positive class's score for two classes; for more it is the mean of the one-against-rest AUCs of
    the classes that have images (and is undefined where fewer than two have).
    """
    counts = confusion_counts(predictions.truth, predictions.predicted, predictions.classes, weights)
    overall = rates(counts, predictions.positive)
    by_class = rates_by_class(counts)
    by_class["auc"] = np.stack(
        [area_under_roc(predictions.scores[:, c], predictions.truth == c, weights) for c in range(predictions.classes)],
        axis=1,
    )
    if predictions.classes == 2:
        overall["auc"] = by_class["auc"][:, predictions.positive]
    else:
        overall["auc"] = mean_of_defined(by_class["auc"], least=2)
    return Figures(overall, by_class)
