"""Figures of masks, image by image, from the pixels that were and were not found: the Dice coefficient, the Jaccard index, and rates.

For one image with TP pixels of the lesion found, FP found beside it, FN missed and TN rightly left: IoU (Jaccard) is TP / (TP + FP + FN),
Dice 2 TP / (2 TP + FP + FN); both are 1 where the image has no lesion and none was found. The thresholded IoU is the IoU, or 0 where it
is below 0.65: Codella et al., "Skin Lesion Analysis Toward Melanoma Detection 2018" (arXiv:1902.03368), by which ISIC 2018 ranked.
A figure of several images is the mean over those in which it is defined: sensitivity needs a lesion, specificity a background.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.metrics.classification import Floats, Integers, ratio
from shared.results import MaskMetric

#: An IoU below this counts as a lesion that was not delineated.
JACCARD_THRESHOLD = 0.65


@dataclass(frozen=True, slots=True)
class MaskCounts:
    """Pixels of N images by what they are and what was said of them, each `(N,)`; `patients` `(N,)` says whose image each is.

    Raises ValueError where the lengths differ or a count is negative.
    """

    true_positive: Integers
    false_positive: Integers
    false_negative: Integers
    true_negative: Integers
    patients: NDArray[Any]

    def __post_init__(self) -> None:
        shapes = {one.name: getattr(self, one.name).shape for one in fields(self)}
        if len(set(shapes.values())) > 1 or self.true_positive.ndim != 1:
            raise ValueError(f"Expected one count an image in each field, but got shapes {shapes}")
        if self.images and min(int(one.min()) for one in self.pixels) < 0:
            raise ValueError("Expected counts of pixels, but one is below 0")

    @property
    def pixels(self) -> tuple[Integers, Integers, Integers, Integers]:
        """The four counts, in the order of the fields."""
        return self.true_positive, self.false_positive, self.false_negative, self.true_negative

    @property
    def images(self) -> int:
        return len(self.true_positive)

    @property
    def lesions(self) -> Integers:
        """Pixels of each image's lesion, `(N,)`: the same whatever a model says of it."""
        return self.true_positive + self.false_negative


def counted(truth: NDArray[np.bool_], found: NDArray[np.bool_]) -> Integers:
    """Counts `(N, 4)`, in the order of `MaskCounts`, of masks `(N, ...)`. Raises ValueError where the shapes differ."""
    if truth.shape != found.shape:
        raise ValueError(f"Expected masks of one shape, but got {truth.shape} and {found.shape}")
    lesion, said = truth.reshape(len(truth), -1), found.reshape(len(found), -1)
    kinds = (lesion & said, ~lesion & said, lesion & ~said, ~lesion & ~said)
    return np.stack([kind.sum(1, dtype=np.int64) for kind in kinds], axis=1)


def mask_figures(counts: MaskCounts) -> Mapping[MaskMetric, Floats]:
    """Each figure of each image, `(N,)`; NaN where it is undefined."""
    found, extra, missed, rest = (one.astype(np.float64) for one in counts.pixels)
    iou = np.nan_to_num(ratio(found, found + extra + missed), nan=1.0)
    return {
        "iou": iou,
        "dice": np.nan_to_num(ratio(2 * found, 2 * found + extra + missed), nan=1.0),
        "thresholded_iou": np.where(iou >= JACCARD_THRESHOLD, iou, 0.0),
        "pixel_accuracy": ratio(found + rest, found + extra + missed + rest),
        "sensitivity": ratio(found, found + missed),
        "specificity": ratio(rest, rest + extra),
    }


def means_of_defined(values: Floats, weights: Floats | None = None) -> Floats:
    """Mean of each of `(N, F)` under each row of weights `(R, N)` over the images that define it, `(R, F)`; NaN where none does."""
    weights = np.ones((1, len(values))) if weights is None else weights
    defined = np.isfinite(values)
    total = weights @ defined.astype(np.float64)
    return ratio(weights @ np.where(defined, values, 0.0), total)
