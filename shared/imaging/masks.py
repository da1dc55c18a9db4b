"""Masks that mark a finding: from a file to the pixels of the image they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.imaging.files import read_image
from shared.imaging.pixels import unreadable

#: Mask and image of one view may differ in size (CBIS-DDSM), but not in shape: such a mask belongs to something else.
_SHAPE_TOLERANCE = 1.2

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Box:
    """Pixels [top, bottom) x [left, right)."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left

    def of(self, array: NDArray[Any]) -> NDArray[Any]:
        """That part of an image, or of its mask, as a view."""
        return array[self.top : self.bottom, self.left : self.right]


def read_mask(path: Path, size: tuple[int, int] | None = None) -> Mask:
    """The marked pixels of a mask file, (H, W) bool, resized to `size` (height, width) where that differs.

    Marked is what is brighter than the background, which is the darkest value; a file of one single value marks all
    (non-zero) or nothing (zero). In colour a pixel is marked if any channel is. Raises UnreadableImageError, also where
    the mask's aspect ratio is off by more than a fifth, as with a crop taken for a mask.
    """
    pixels = read_image(path)
    values = pixels.array if pixels.array.ndim == 2 else pixels.array.max(axis=2)
    low, high = int(values.min()), int(values.max())
    mask: Mask = values > low if low != high else values > 0
    if size is None or mask.shape == size:
        return mask
    ratio = (mask.shape[0] * size[1]) / (mask.shape[1] * size[0])
    if not 1 / _SHAPE_TOLERANCE <= ratio <= _SHAPE_TOLERANCE:
        raise unreadable(
            path,
            f"the mask is {mask.shape[1]} x {mask.shape[0]} pixels and its image {size[1]} x {size[0]}, which is another shape",
            "check that it is the mask of this image and not a crop",
        )
    return resized_mask(mask, size)


def resized_mask(mask: Mask, size: tuple[int, int]) -> Mask:
    """`mask` at `size` by nearest neighbour (pixel centres). What is marked never vanishes altogether."""
    rows = _nearest(mask.shape[0], size[0])
    columns = _nearest(mask.shape[1], size[1])
    result: Mask = mask[np.ix_(rows, columns)]
    if mask.any() and not result.any():
        # Smaller than one pixel of the new raster: mark the pixels that its centres fall into.
        y, x = np.nonzero(mask)
        result[y * size[0] // mask.shape[0], x * size[1] // mask.shape[1]] = True
    return result


def union_of_masks(paths: Sequence[Path], size: tuple[int, int]) -> Mask:
    """What any of the files marks, (H, W) bool. Raises UnreadableImageError where a file marks nothing."""
    union = np.zeros(size, dtype=np.bool_)
    for path in paths:
        mask = read_mask(path, size)
        if not mask.any():
            raise unreadable(path, "the mask is empty: it marks no finding")
        union |= mask
    return union


def bounding_box(mask: Mask) -> Box | None:
    """The smallest box that holds everything marked, None where nothing is."""
    rows = np.flatnonzero(mask.any(axis=1))
    if rows.size == 0:
        return None
    columns = np.flatnonzero(mask.any(axis=0))
    return Box(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)


def _nearest(source: int, target: int) -> NDArray[np.intp]:
    """For each of `target` pixels the source pixel under its centre, in exact integer arithmetic."""
    return (2 * np.arange(target, dtype=np.intp) + 1) * source // (2 * target)
