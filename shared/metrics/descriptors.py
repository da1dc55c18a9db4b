"""Figures of one descriptor of lesions, from the test images that have it, with intervals by the cluster bootstrap."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shared.metrics.bootstrap import interval, patient_weights
from shared.metrics.classification import Floats, Integers, confusion_counts, mean_of_defined, rates, rates_by_class
from shared.results import DescriptorResult, Estimate


def descriptor_figures(counts: Floats) -> dict[str, Floats]:
    """Accuracy, balanced accuracy and macro F1 `(...)` from counts `(..., K, K)` of [true value, predicted value].

    Macro F1 is the mean of the F1 of the values that occur or are predicted (scikit-learn's definition), NaN without any image.
    """
    found = rates(counts, 0)
    macro = mean_of_defined(rates_by_class(counts)["f1"], least=1)
    return {"accuracy": found["accuracy"], "balanced_accuracy": found["balanced_accuracy"], "macro_f1": macro}


def descriptor_result(
    truth: Integers,
    predicted: Integers,
    patients: NDArray[np.generic],
    *,
    values: int,
    resamples: int,
    confidence: float,
    minimum_cell: int,
    seed: int,
) -> DescriptorResult | None:
    """What leaves of one descriptor; None where fewer than `minimum_cell` images have it.

    `truth` and `predicted` `(N,)` are indices of its `values`, of the N images that have it; `patients` `(N,)` says whose they are.
    """
    if truth.size < minimum_cell:
        return None
    by_value = np.bincount(truth, minlength=values).tolist()
    figures = descriptor_figures(confusion_counts(truth, predicted, values))
    draws = [
        descriptor_figures(confusion_counts(truth, predicted, values, weights))
        for weights in patient_weights(patients, resamples, seed)
    ]
    of_value = [int(np.unique(patients[truth == value]).size) for value in range(values)]
    behind = {
        "accuracy": int(np.unique(patients).size),
        "balanced_accuracy": min(number for number in of_value if number),
        "macro_f1": min(number for number in of_value if number),
    }

    def estimate(name: str) -> Estimate:
        resampled = np.concatenate([one[name] for one in draws])
        return interval(float(figures[name][0]), resampled, confidence=confidence, patients=behind[name])

    small = any(0 < count < minimum_cell for count in by_value)
    return DescriptorResult(
        images=int(truth.size),
        patients=behind["accuracy"],
        by_value=None if small else by_value,
        accuracy=estimate("accuracy"),
        balanced_accuracy=estimate("balanced_accuracy"),
        macro_f1=estimate("macro_f1"),
        minimum_cell=minimum_cell,
    )
