"""Everything that leaves of the masks of one hospital's test part, with intervals by the cluster bootstrap (`shared.metrics.bootstrap`)."""

from __future__ import annotations

import numpy as np

from shared.metrics.bootstrap import interval, paired_difference, patient_weights
from shared.metrics.classification import Floats, Integers
from shared.metrics.histograms import score_histogram
from shared.metrics.segmentation import MaskCounts, mask_figures, means_of_defined
from shared.results import DiceHistogram, Difference, Estimate, MaskClassRow, MaskGain, MaskResult

#: Figures that are divided by class, and that a paired difference is given of.
GAINS: tuple[MaskGain, ...] = ("iou", "dice")


def mask_result(
    counts: MaskCounts,
    labels: Integers,
    *,
    classes: int,
    resamples: int,
    confidence: float,
    bins: int,
    minimum_cell: int,
    seed: int,
    baseline: MaskCounts | None = None,
) -> MaskResult:
    """`labels` `(N,)` are the images' classes, by which figures are divided. `baseline` is of the round-0 model on the same images.

    Raises ValueError where there is no image, or `baseline` is of other images.
    """
    if counts.images == 0:
        raise ValueError("Expected at least one image to evaluate, but got none")
    values = mask_figures(counts)
    by_class = [np.where(labels == index, values[name], np.nan) for index in range(classes) for name in GAINS]
    columns = np.stack([*values.values(), *by_class], axis=1)
    blocks = [means_of_defined(columns, block) for block in patient_weights(counts.patients, resamples, seed)]
    draws, found = np.concatenate(blocks), means_of_defined(columns)[0]

    def estimate(column: int) -> Estimate:
        behind = int(np.unique(counts.patients[np.isfinite(columns[:, column])]).size)
        return interval(float(found[column]), draws[:, column], confidence=confidence, patients=behind)

    names, first = list(values), len(values)
    return MaskResult(
        **{name: estimate(column) for column, name in enumerate(names)},
        classes=[
            MaskClassRow(
                images=int((labels == index).sum()),
                **{name: estimate(first + index * len(GAINS) + place) for place, name in enumerate(GAINS)},
            )
            for index in range(classes)
        ],
        histogram=dice_histogram(values["dice"], bins=bins, minimum_cell=minimum_cell),
        gain=None if baseline is None else _gain(counts, baseline, resamples, confidence, seed),
    )


def dice_histogram(dice: Floats, *, bins: int, minimum_cell: int) -> DiceHistogram | None:
    """Images by their Dice, in as many cells as leave none with fewer than `minimum_cell` images but not none; None where no cells do."""
    found = score_histogram(dice, np.ones(dice.size, dtype=np.bool_), bins=bins, minimum_cell=minimum_cell)
    if found is None:
        return None
    return DiceHistogram(edges=found.edges, images=found.positive, minimum_cell=minimum_cell)


def _gain(
    counts: MaskCounts, baseline: MaskCounts, resamples: int, confidence: float, seed: int
) -> dict[MaskGain, Difference] | None:
    # A mask has as many pixels of a lesion whatever the model says of it.
    if not (np.array_equal(baseline.patients, counts.patients) and np.array_equal(baseline.lesions, counts.lesions)):
        raise ValueError("Expected argument `baseline` to be of the same images, but got other masks or patients")
    sides = [np.stack([mask_figures(one)[name] for name in GAINS], axis=1) for one in (counts, baseline)]
    blocks = [
        [means_of_defined(side, block) for side in sides] for block in patient_weights(counts.patients, resamples, seed)
    ]
    after, before = (np.concatenate([block[side] for block in blocks]) for side in (0, 1))
    values = means_of_defined(sides[0])[0] - means_of_defined(sides[1])[0]
    gain = {
        name: paired_difference(after[:, place], before[:, place], float(values[place]), confidence=confidence)
        for place, name in enumerate(GAINS)
    }
    return {name: difference for name, difference in gain.items() if difference is not None} or None
