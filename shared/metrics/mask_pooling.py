"""The masks of all hospitals together, from what each of them reports. No image or patient is seen.

Every figure of a hospital is a mean over its images, so the mean of the hospitals' figures weighted by test images is that over all images
(but for sensitivity, where images without a lesion have no say; and a class's figures are without the hospitals that withhold theirs).
Hospitals are independent: intervals as in `shared.metrics.pooling`. Noised counts are added up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import NormalDist

import numpy as np
from pydantic import Field

from shared.exact import as_float
from shared.metrics.classification import Floats
from shared.metrics.noised_masks import pooled_noised_masks
from shared.metrics.pooling import mean_of_estimates, pooled_differences
from shared.results import (
    MASK_GAINS,
    MASK_METRICS,
    Count,
    DiceHistogram,
    Difference,
    Estimate,
    Evaluated,
    MaskClassRow,
    MaskGain,
    MaskMetric,
    MaskResult,
    NoisedMasks,
)
from shared.schema import Strict


class PooledMasks(Strict):
    """Masks over all hospitals that report them."""

    hospitals: Count
    patients: Count | None = Field(description="None where only noised counts leave")
    images: Count | None = Field(description="None where only noised counts leave")
    figures: dict[MaskMetric, Estimate]
    classes: list[MaskClassRow] = Field(description="none of noised counts")
    gain: dict[MaskGain, Difference] | None
    counts: list[int] | None = Field(default=None, description="noised counts by IoU added up; None for exact figures")


def pool_masks(hospitals: Sequence[Evaluated], *, confidence: float) -> PooledMasks | None:
    """None where no hospital reports masks.

    Raises ValueError where the hospitals' classes differ in number, or some report noised counts and others exact figures.
    """
    found = [(site, site.masks) for site in hospitals if site.masks is not None]
    noised = [site.noised_masks for site in hospitals if site.noised_masks is not None]
    if found and noised:
        raise ValueError("Expected noised counts of every hospital, but got exact figures of some")
    if noised:
        return _pooled_noised(noised, confidence)
    if not found:
        return None
    results: list[MaskResult] = [masks for _, masks in found]
    if len({len(masks.classes) for masks in results}) > 1:
        raise ValueError("Expected the same classes at every hospital, but got different numbers of them")
    z = NormalDist().inv_cdf(0.5 + confidence / 2.0)
    images = np.array([site.images or 0 for site, _ in found], dtype=np.float64)

    def of_class(index: int) -> MaskClassRow:
        rows = [masks.classes[index] for masks in results]
        counts = np.array([row.images for row in rows], dtype=np.float64)
        return MaskClassRow(
            images=int(counts.sum()),
            iou=mean_of_estimates([row.iou for row in rows], counts, z),
            dice=mean_of_estimates([row.dice for row in rows], counts, z),
        )

    return PooledMasks(
        hospitals=len(found),
        patients=sum(site.patients or 0 for site, _ in found),
        images=int(images.sum()),
        figures={
            name: mean_of_estimates([getattr(masks, name) for masks in results], images, z) for name in MASK_METRICS
        },
        classes=[of_class(index) for index in range(len(results[0].classes))],
        gain=pooled_differences([_gain(masks) for masks in results], MASK_GAINS, images, confidence=confidence),
    )


def _pooled_noised(hospitals: Sequence[NoisedMasks], confidence: float) -> PooledMasks:
    """The hospitals' noised counts added up, noise and all (`shared.metrics.noised_masks`)."""
    figures = pooled_noised_masks([(one.counts, as_float(one.noise)) for one in hospitals], confidence=confidence)
    return PooledMasks(
        hospitals=len(hospitals),
        patients=None,
        images=None,
        figures={name: figures[name] if name in figures else Estimate(value=None) for name in MASK_METRICS},
        classes=[],
        gain=None,
        counts=[sum(cell) for cell in zip(*(one.counts for one in hospitals), strict=True)],
    )


def _gain(masks: MaskResult) -> Mapping[MaskGain, Difference] | None:
    return masks.gain


def shares_reaching(histogram: DiceHistogram) -> tuple[Floats, Floats]:
    """Edges `(E,)` and the share of the images whose Dice is at least each of them, `(E,)`: exact, since cells are [a, b)."""
    counts = np.asarray(histogram.images, dtype=np.float64)
    below = np.concatenate(([0.0], np.cumsum(counts)))
    return np.asarray(histogram.edges, dtype=np.float64), 1.0 - below / counts.sum()


def quantiles(histogram: DiceHistogram, shares: Sequence[float]) -> list[float]:
    """The Dice that each share of the images stays below, the images of a cell taken as spread evenly in it."""
    edges, reaching = shares_reaching(histogram)
    return [float(value) for value in np.interp(shares, 1.0 - reaching, edges)]
