"""Everything that leaves of the masks of one hospital's test part, with intervals by the cluster bootstrap (`shared.metrics.bootstrap`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shared.metrics.bootstrap import interval, paired_difference, patient_weights
from shared.metrics.classification import Floats, Integers
from shared.metrics.histograms import score_histogram
from shared.metrics.segmentation import MaskCounts, mask_figures, means_of_defined
from shared.results import MASK_GAINS, DiceHistogram, Difference, Estimate, MaskClassRow, MaskGain, MaskResult


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
    No figures of a class in `withheld_classes`.

    Raises ValueError where there is no image, or `baseline` is of other images.
    """
    if counts.images == 0:
        raise ValueError("Expected at least one image to evaluate, but got none")
    values = mask_figures(counts)
    by_class = [np.where(labels == index, values[name], np.nan) for index in range(classes) for name in MASK_GAINS]
    before = [] if baseline is None else _before(counts, baseline)
    columns = np.stack([*values.values(), *by_class, *before], axis=1)
    blocks = [means_of_defined(columns, block) for block in patient_weights(counts.patients, resamples, seed)]
    draws, found = np.concatenate(blocks), means_of_defined(columns)[0]
    names, first, start = list(values), len(values), len(values) + len(by_class)
    images = [int((labels == index).sum()) for index in range(classes)]
    withheld = withheld_classes(images, minimum_cell)

    def estimate(column: int) -> Estimate:
        behind = int(np.unique(counts.patients[np.isfinite(columns[:, column])]).size)
        return interval(float(found[column]), draws[:, column], confidence=confidence, patients=behind)

    def of_class(index: int, place: int) -> Estimate:
        return Estimate(value=None) if index in withheld else estimate(first + index * len(MASK_GAINS) + place)

    def gain() -> dict[MaskGain, Difference] | None:
        pairs = {name: (names.index(name), start + place) for place, name in enumerate(MASK_GAINS)}
        differences = {
            name: paired_difference(
                draws[:, now], draws[:, then], float(found[now] - found[then]), confidence=confidence
            )
            for name, (now, then) in pairs.items()
        }
        return {name: difference for name, difference in differences.items() if difference is not None} or None

    return MaskResult(
        **{name: estimate(column) for column, name in enumerate(names)},
        classes=[
            MaskClassRow(
                images=images[index], **{name: of_class(index, place) for place, name in enumerate(MASK_GAINS)}
            )
            for index in range(classes)
        ],
        minimum_cell=minimum_cell,
        histogram=dice_histogram(values["dice"], bins=bins, minimum_cell=minimum_cell),
        gain=None if baseline is None else gain(),
    )


def withheld_classes(images: Sequence[int], minimum_cell: int) -> set[int]:
    """Indices of the classes whose figures stay in the hospital, from each one's number of test images.

    Those are the classes with fewer than `minimum_cell` images but not none; and the next smallest ones, until so many images are withheld
    together: the mean over all images less those of the other classes' would give them away.
    """
    found: set[int] = set()
    together = 0
    for index in sorted(range(len(images)), key=lambda index: images[index]):
        if images[index] > 0 and (images[index] < minimum_cell or 0 < together < minimum_cell):
            found.add(index)
            together += images[index]
    return found


def dice_histogram(dice: Floats, *, bins: int, minimum_cell: int) -> DiceHistogram | None:
    """Images by their Dice, in as many cells as leave none with fewer than `minimum_cell` images but not none; None where no cells do."""
    found = score_histogram(dice, np.ones(dice.size, dtype=np.bool_), bins=bins, minimum_cell=minimum_cell)
    if found is None:
        return None
    return DiceHistogram(edges=found.edges, images=found.positive, minimum_cell=minimum_cell)


def _before(counts: MaskCounts, baseline: MaskCounts) -> list[Floats]:
    """The baseline's figures of each image, in the order of `MASK_GAINS`."""
    # A mask has as many pixels of a lesion whatever the model says of it.
    if not (np.array_equal(baseline.patients, counts.patients) and np.array_equal(baseline.lesions, counts.lesions)):
        raise ValueError("Expected argument `baseline` to be of the same images, but got other masks or patients")
    figures = mask_figures(baseline)
    return [figures[name] for name in MASK_GAINS]
