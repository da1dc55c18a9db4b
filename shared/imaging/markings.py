"""Hair and the marks of a ruler: thin dark lines of a dermoscopy image, found by closing and filled from the skin beside them.

After Lee, Ng, Gallagher, Coldman, McLean, "DullRazor: A software approach to hair removal from images", Computers in Biology and Medicine
27:6 (1997): what closings with lines in several directions fill is thin and dark (a black top-hat), and hair where it is long. Chosen here:
four directions; of colour images the red channel alone, in which hair and ink are dark, while vessels and most pigment are not; long is
what an opening with a straight line leaves, so that a network of pigment isn't taken for hair; filling by normalised convolution (Knutsson,
Westin, CVPR 1993) in place of interpolation between two neighbours. Light hair stays, as it does there. Rulers are not in the paper: see
`_ruler`. Shares and depth were chosen by eye on HAM10000 (docs/decisions/0014-hair-and-borders.md).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shared.study_pixels import Preprocessing

Levels = NDArray[np.float32]

#: Larger images are looked at in this size: a hair is some pixels wide there, and time does not grow with the camera.
LONGEST_SIDE = 512
#: All lengths as shares of the longer side. A line is narrower than _REACH, darker than its surroundings by _DEPTH, and straight for _RUN.
_REACH, _DEPTH, _RUN = 0.036, 0.05, 0.08
#: A line's pixels lie no farther from its straight run than _BESIDE.
_BESIDE = 0.01
#: Directions in which lines are looked for.
_DIRECTIONS = 12
#: Marks of a ruler: shortest and longest, how far from the edge their middle lies, how thick for their length, how parallel (degrees).
_MARK, _EDGE, _THICK, _PARALLEL = (0.025, 0.09), 0.17, 0.4, 15.0
#: Deviations (pixels) of the Gaussians that fill, the next where the one before reaches no skin.
_FILL = (1.5, 4.0, 12.0)


def without_markings(levels: Levels, recipe: Preprocessing) -> Levels:
    """(H, W) or (H, W, 3) in [0, 1] without the hair and ruler that `recipe.remove` names; the very array where none is found."""
    if not recipe.fills:
        return levels
    marked = markings(levels, hair="hair" in recipe.fills, ruler="ruler" in recipe.fills)
    return filled(levels, marked) if marked.any() else levels


def markings(levels: Levels, *, hair: bool = True, ruler: bool = True) -> NDArray[np.bool_]:
    """(H, W): where hair or marks of a ruler are, one pixel wider than they look."""
    from scipy import ndimage

    side = max(levels.shape[:2])
    grey = levels if levels.ndim == 2 else levels[..., 0]
    thin = _closed(grey, _odd(_REACH * side)) - grey > _DEPTH
    found = np.zeros(grey.shape, dtype=np.bool_)
    if hair:
        for line in _lines(_odd(_RUN * side)):
            found |= ndimage.binary_opening(thin, line)
        if found.any():
            found = thin & ndimage.binary_dilation(found, iterations=max(1, round(_BESIDE * side)))
    if ruler:
        found |= _ruler(thin)
    return np.asarray(ndimage.binary_dilation(found, np.ones((3, 3), dtype=np.bool_))) if found.any() else found


def _odd(length: float) -> int:
    return max(3, 2 * round((length - 1) / 2) + 1)


def _lines(length: int) -> list[NDArray[np.bool_]]:
    """Lines of `length` pixels through the middle of a square, in directions that are evenly apart."""
    reach = (length - 1) / 2
    along = np.linspace(-reach, reach, 2 * length)
    lines = []
    for number in range(_DIRECTIONS):
        angle = np.pi * number / _DIRECTIONS
        line = np.zeros((length, length), dtype=np.bool_)
        line[np.rint(reach + along * np.sin(angle)).astype(int), np.rint(reach + along * np.cos(angle)).astype(int)] = (
            True
        )
        lines.append(line)
    return lines


def filled(levels: Levels, marked: NDArray[np.bool_]) -> Levels:
    """The image with each marked pixel as the mean of unmarked ones around it, the nearer the heavier."""
    from scipy import ndimage

    result = levels.copy()
    known = np.asarray(~marked, dtype=np.float32)
    left = marked
    colour = levels.ndim == 3
    for deviation in _FILL:
        weight = ndimage.gaussian_filter(known, deviation, truncate=3.0)
        reached = left & (weight > 0.02)
        spread = (deviation, deviation, 0.0) if colour else (deviation, deviation)
        total = ndimage.gaussian_filter(levels * (known[..., None] if colour else known), spread, truncate=3.0)
        result[reached] = total[reached] / (weight[reached][:, None] if colour else weight[reached])
        left = left & ~reached
        if not left.any():
            break
    return result


def _closed(grey: Levels, reach: int) -> Levels:
    """The largest of the closings with lines of `reach` pixels in four directions."""
    from scipy import ndimage

    diagonal = np.eye(_odd(reach / 2**0.5), dtype=np.bool_)
    closings = [ndimage.minimum_filter1d(ndimage.maximum_filter1d(grey, reach, axis), reach, axis) for axis in (0, 1)]
    closings += [ndimage.grey_closing(grey, footprint=line, mode="nearest") for line in (diagonal, diagonal[::-1])]
    return np.asarray(np.maximum.reduce(closings), dtype=np.float32)


def _ruler(thin: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Marks of a ruler among thin dark pieces: short, straight, close to an edge, and at least two of them parallel."""
    from skimage.measure import label, regionprops

    height, width = thin.shape
    side = max(height, width)
    pieces = np.asarray(label(thin, connectivity=2))  # type: ignore[no-untyped-call]
    marks: list[tuple[int, float]] = []
    for piece in regionprops(pieces):  # type: ignore[no-untyped-call]
        if not 3 <= piece.area <= (_MARK[1] * side) ** 2:
            continue
        row, column = piece.centroid
        if min(row, column, height - row, width - column) > _EDGE * side:
            continue
        long = piece.axis_major_length
        if _MARK[0] * side <= long <= _MARK[1] * side and piece.axis_minor_length <= _THICK * long:
            marks.append((int(piece.label), float(np.degrees(piece.orientation))))
    chosen = [
        number
        for number, angle in marks
        if any(other != number and abs((angle - its + 90) % 180 - 90) <= _PARALLEL for other, its in marks)
    ]
    return np.isin(pieces, chosen)
