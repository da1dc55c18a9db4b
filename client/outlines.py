"""Masks drawn upon their images as outlines, for people's eyes in the hospital."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.study_pixels import Preprocessing

#: Turquoise stands out from skin, from grey tissue, and from the colours of heat.
MASK_COLOUR = (0.0, 0.9, 0.8)
#: Pixels a side that a picture has at least; smaller images are enlarged by a whole factor.
SIDE = 256
TRUE_COLOUR = (0.20, 0.85, 1.0)
FOUND_COLOUR = (1.0, 0.80, 0.10)
#: Pixels of the enlarged picture that a dash of the found outline is long.
_DASH = 6


def shown(stored: NDArray[Any], recipe: Preprocessing) -> NDArray[np.float32]:
    """A row of the image cache as a picture (C, S, S) in [0, 1], C of 1 or 3; in colour, with the mask's outline, where there is one."""
    planes = np.asarray(stored, dtype=np.float32) / np.float32(255 if stored.dtype == np.uint8 else 1)
    if recipe.mask is None:
        return planes
    picture = np.array(np.broadcast_to(planes[:-1], (3, *planes.shape[1:])), dtype=np.float32)
    picture[:, _outline(planes[-1] >= 0.5, 1)] = np.array(MASK_COLOUR, dtype=np.float32)[:, None]
    return picture


def outlined(image: NDArray[np.float32], truth: NDArray[np.bool_], found: NDArray[np.bool_]) -> NDArray[np.float32]:
    """`(3, H', W')` in [0, 1]: the image `(C, H, W)` enlarged, the true outline as a line and the found one dashed over it.

    The masks are `(H, W)`. Raises ValueError where the shapes differ.
    """
    if image.shape[1:] != truth.shape or truth.shape != found.shape:
        raise ValueError(f"Expected masks of the image's sides, but got {image.shape}, {truth.shape} and {found.shape}")
    factor = max(1, -(-SIDE // max(truth.shape)))
    large = np.ones((factor, factor), dtype=np.bool_)
    channels = image if image.shape[0] == 3 else np.repeat(image[:1], 3, axis=0)
    picture = np.stack([np.kron(one, large) for one in channels]).astype(np.float32)
    rows, columns = np.indices(picture.shape[1:])
    for mask, colour, kept in (
        (truth, TRUE_COLOUR, True),
        (found, FOUND_COLOUR, ((rows + columns) // _DASH) % 2 == 0),
    ):
        line = _outline(np.kron(mask, large), 2) & kept
        picture[:, line] = np.array(colour, dtype=np.float32)[:, None]
    return picture


def _outline(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Pixels of the mask within `width` of its edge; the border of the image is an edge too."""
    from scipy.ndimage import binary_erosion  # slow to import, and few need it

    return np.asarray(mask & ~binary_erosion(mask, iterations=width), dtype=np.bool_)
