"""Intervals by the cluster bootstrap: patients, not images, are drawn with replacement, and a patient brings all its
images.

Percentile intervals (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13; clusters: Field & Welsh,
2007). What is done where the bootstrap has nothing to say:

- A resample may lack a class, so that a figure is undefined in it: the percentiles are over the resamples that define
  the figure, and there is no interval where fewer than 90 % of them do, nor where there are fewer than two patients.
- Where no image (or every image) is wrong, all resamples agree and the percentile interval would be a point, which
  claims too much. Then the open side is the exact binomial (Clopper-Pearson) bound for n of n successes,
  (alpha/2)^(1/n), with n the *patients* behind the figure (for an AUC or a balanced accuracy those of the class that
  has fewest).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shared.metrics.classification import CLASS_METRICS, Figures, Floats, Predictions, confusion_counts, figures
from shared.metrics.histograms import score_histogram
from shared.results import ClassRow, Difference, Estimate, HeadResult

Gain = Literal["auc", "balanced_accuracy"]

#: Weights of at most this many resample-image pairs are held at once (32 MB), however many resamples a study asks for.
_BLOCK = 4_000_000
#: Share of the resamples that must define a figure for it to get an interval.
LEAST_DEFINED = 0.9
#: Figures that a paired difference is given of.
GAINS: tuple[Gain, ...] = ("auc", "balanced_accuracy")


def patient_weights(patients: NDArray[np.generic], resamples: int, seed: int) -> Iterator[Floats]:
    """Blocks (r, N) of image weights whose r add up to `resamples`: how often each image's patient was drawn.

    The same patients and seed give the same weights, which is what pairs two models.
    """
    names, owner = np.unique(patients, return_inverse=True)
    rng = np.random.default_rng(seed)
    chances = np.full(names.size, 1.0 / names.size)
    step = max(1, _BLOCK // max(1, owner.size))
    for start in range(0, resamples, step):
        drawn = rng.multinomial(names.size, chances, size=min(step, resamples - start))
        yield drawn.astype(np.float64)[:, owner]


def resampled(predictions: Predictions, resamples: int, seed: int) -> Figures:
    """Figures of `resamples` draws of patients with replacement. Needs at least one image."""
    blocks = [figures(predictions, weights) for weights in patient_weights(predictions.patients, resamples, seed)]
    return Figures(
        {name: np.concatenate([block.overall[name] for block in blocks]) for name in blocks[0].overall},
        {name: np.concatenate([block.by_class[name] for block in blocks]) for name in blocks[0].by_class},
    )


def interval(value: float, draws: Floats, *, confidence: float, patients: int) -> Estimate:
    """`value` with its percentile interval over `draws` (R,); None for what is undefined (see the module's rules).

    `patients` is the number behind the figure, for the binomial bound where all draws agree on 0 or 1.
    """
    if not np.isfinite(value):
        return Estimate(value=None)
    value = float(value)
    defined = draws[np.isfinite(draws)]
    if patients < 2 or defined.size < LEAST_DEFINED * draws.size:
        return Estimate(value=value)
    tail = (1.0 - confidence) / 2.0
    low, high = (float(bound) for bound in np.quantile(defined, (tail, 1.0 - tail)))
    if value == 1.0 and defined.min() == 1.0:
        low = tail ** (1.0 / patients)
    elif value == 0.0 and defined.max() == 0.0:
        high = 1.0 - tail ** (1.0 / patients)
    return Estimate(value=value, low=low, high=high)


def paired_difference(final: Floats, baseline: Floats, value: float, *, confidence: float) -> Difference | None:
    """Difference of two figures over the same draws (R,), percentile interval and bootstrap standard error (ddof 1).

    None where `value` is undefined or fewer than 90 % of the draws define the difference.
    """
    draws = final - baseline
    defined = draws[np.isfinite(draws)]
    if not np.isfinite(value) or defined.size < max(2.0, LEAST_DEFINED * draws.size):
        return None
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(defined, (tail, 1.0 - tail))
    return Difference(value=float(value), low=float(low), high=float(high), standard_error=float(defined.std(ddof=1)))


def head_result(
    predictions: Predictions,
    *,
    resamples: int,
    confidence: float,
    bins: int,
    minimum_cell: int,
    seed: int,
    baseline: Predictions | None = None,
) -> HeadResult:
    """Everything that leaves about one head. `baseline` is what the round-0 model said of the same images, in the
    same order.

    Raises ValueError where there is no image, or `baseline` is of other images.
    """
    if predictions.images == 0:
        raise ValueError("Expected at least one image to evaluate, but got none")
    value = figures(predictions)
    draws = resampled(predictions, resamples, seed)
    behind_overall, behind_class = _patients_behind(predictions)

    def overall(name: str) -> Estimate:
        patients = behind_overall[name]
        return interval(value.overall[name][0], draws.overall[name], confidence=confidence, patients=patients)

    def of_class(name: str, c: int) -> Estimate:
        patients = behind_class[name][c]
        return interval(
            value.by_class[name][0, c], draws.by_class[name][:, c], confidence=confidence, patients=patients
        )

    counts = confusion_counts(predictions.truth, predictions.predicted, predictions.classes)[0]
    return HeadResult(
        accuracy=overall("accuracy"),
        balanced_accuracy=overall("balanced_accuracy"),
        sensitivity=overall("sensitivity"),
        specificity=overall("specificity"),
        precision=overall("precision"),
        f1=overall("f1"),
        auc=overall("auc"),
        confusion=[[int(count) for count in row] for row in counts],
        classes=[
            ClassRow(images=int(counts[c].sum()), **{name: of_class(name, c) for name in CLASS_METRICS})
            for c in range(predictions.classes)
        ],
        histogram=score_histogram(
            predictions.scores[:, predictions.positive],
            predictions.truth == predictions.positive,
            bins=bins,
            minimum_cell=minimum_cell,
        ),
        gain=None if baseline is None else _gain(predictions, value, draws, baseline, resamples, confidence, seed),
    )


def _gain(
    predictions: Predictions,
    value: Figures,
    draws: Figures,
    baseline: Predictions,
    resamples: int,
    confidence: float,
    seed: int,
) -> dict[Gain, Difference] | None:
    if not (
        np.array_equal(baseline.truth, predictions.truth) and np.array_equal(baseline.patients, predictions.patients)
    ):
        raise ValueError("Expected argument `baseline` to be of the same images, but got other labels or patients")
    before, before_draws = figures(baseline), resampled(baseline, resamples, seed)
    gain = {
        name: paired_difference(
            draws.overall[name],
            before_draws.overall[name],
            float(value.overall[name][0] - before.overall[name][0]),
            confidence=confidence,
        )
        for name in GAINS
    }
    return {name: difference for name, difference in gain.items() if difference is not None} or None


def _patients_behind(predictions: Predictions) -> tuple[dict[str, int], dict[str, list[int]]]:
    """How many patients each figure is about, overall and by class."""

    def count(mask: NDArray[np.bool_]) -> int:
        return int(np.unique(predictions.patients[mask]).size)

    classes = range(predictions.classes)
    truth, said = predictions.truth, predictions.predicted
    of_class = [count(truth == c) for c in classes]
    rest = [count(truth != c) for c in classes]
    by_class = {
        "precision": [count(said == c) for c in classes],
        "recall": of_class,
        "specificity": rest,
        "f1": [count((truth == c) | (said == c)) for c in classes],
        "auc": [min(pair) for pair in zip(of_class, rest, strict=True)],
    }
    fewest = min((number for number in of_class if number), default=0)
    positive = predictions.positive
    overall = {
        "accuracy": count(np.ones(predictions.images, dtype=bool)),
        "balanced_accuracy": fewest,
        "sensitivity": of_class[positive],
        "specificity": rest[positive],
        "precision": by_class["precision"][positive],
        "f1": by_class["f1"][positive],
        "auc": fewest,
    }
    return overall, by_class
