"""Where an image shows something: without black bars at its edges, and without the dark corners around a round field of view.

Both are told from one image alone. What is found is a crop, so that no pixel is made up; masks are cut alike.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from shared.imaging.masks import Box, Mask
from shared.imaging.pixels import Pixels
from shared.study_pixels import Preprocessing

#: A row or column is part of a black bar where all but a hundredth of its pixels are darker than this share of the image's median.
_BLACK, _SHARE = 0.15, 0.99
#: A pixel belongs to the dark surroundings where it is darker than this share of the median and connected with a corner by such pixels.
_DARK = 0.4
#: With fewer dark corners there is no round field of view: a mole may lie in one.
_CORNERS = 2
#: The field of view is looked for in an image of at most so many pixels a side.
_SIDE = 100
#: Where less than this share of the image would be left, the darkness is what the image shows, and nothing is cut.
_LEAST = 0.25


def view_of(pixels: Pixels, recipe: Preprocessing) -> Box:
    """What is left of the image where `recipe.remove` names borders, vignette or both; else the whole."""
    view = Box(0, 0, *pixels.size)
    if recipe.cuts:
        luma = _luma(pixels)
        if "borders" in recipe.remove:
            view = _without_bars(luma)
        if "vignette" in recipe.remove:
            view = _inscribed(luma, view)
        if view.height * view.width < _LEAST * luma.size:
            view = Box(0, 0, *pixels.size)
    return view


def shown(pixels: Pixels, marked: Mask | None, recipe: Preprocessing) -> tuple[Pixels, Mask | None]:
    """The image and what is marked in it, both cut to what the image shows; the very same where the recipe cuts nothing.

    Where `region: finding` would lose a part of the finding, nothing is cut: the square around it is what counts.
    """
    if not recipe.cuts:
        return pixels, marked
    view = view_of(pixels, recipe)
    if marked is not None:
        inside = view.of(marked)
        if recipe.region == "finding" and int(inside.sum()) < int(marked.sum()):
            return pixels, marked
        marked = inside
    return replace(pixels, array=view.of(pixels.array)), marked


def _luma(pixels: Pixels) -> NDArray[np.float32]:
    """Mean of the channels."""
    array = pixels.array
    return np.asarray(array.mean(axis=2, dtype=np.float32) if array.ndim == 3 else array, dtype=np.float32)


def _without_bars(luma: NDArray[np.float32]) -> Box:
    black = luma < _BLACK * float(np.median(luma))
    top, bottom = _ends(black.mean(axis=1) >= _SHARE)
    left, right = _ends(black.mean(axis=0) >= _SHARE)
    return Box(top, left, bottom, right)


def _ends(bar: NDArray[np.bool_]) -> tuple[int, int]:
    shown = np.flatnonzero(~bar)
    return (int(shown[0]), int(shown[-1]) + 1) if len(shown) else (0, len(bar))


def _inscribed(luma: NDArray[np.float32], view: Box) -> Box:
    """The largest upright rectangle in `view` that touches nothing of the dark surroundings, to a hundredth of the longer side."""
    from scipy import ndimage

    inside = view.of(luma)
    step = max(1, -(-max(inside.shape) // _SIDE))
    rows, columns = inside.shape[0] // step, inside.shape[1] // step
    if min(rows, columns) < 2:
        return view
    small = inside[: rows * step, : columns * step].reshape(rows, step, columns, step).mean(axis=(1, 3))
    dark, _ = ndimage.label(small < _DARK * float(np.median(small)))
    corners = [int(dark[row, column]) for row in (0, -1) for column in (0, -1) if dark[row, column]]
    if len(corners) < _CORNERS:
        return view
    top, left, bottom, right = _largest_rectangle(~np.isin(dark, corners))
    # What the blocks leave over at the right and at the bottom is kept where the rectangle reaches it.
    return Box(
        view.top + top * step,
        view.left + left * step,
        view.bottom if bottom == rows else view.top + bottom * step,
        view.right if right == columns else view.left + right * step,
    )


def _largest_rectangle(free: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Top, left, bottom, right of the largest rectangle of True, among equals the uppermost; the whole where nothing is True."""
    best, found = 0, (0, 0, *free.shape)
    heights = np.zeros(free.shape[1] + 1, dtype=int)  # the last column is a sentinel of height 0
    for row, line in enumerate(free):
        heights[:-1] = np.where(line, heights[:-1] + 1, 0)
        open_at: list[tuple[int, int]] = []  # columns where rectangles began, with their heights, ascending
        for column, height in enumerate(heights.tolist()):
            start = column
            while open_at and open_at[-1][1] >= height:
                start, tall = open_at.pop()
                if tall * (column - start) > best:
                    best, found = tall * (column - start), (row - tall + 1, start, row + 1, column)
            open_at.append((start, height))
    return found
