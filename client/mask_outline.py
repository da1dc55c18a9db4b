"""A mask drawn upon its image as an outline, for people's eyes in the hospital."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.study_pixels import Preprocessing

#: Turquoise stands out from skin, from grey tissue, and from the colours of heat.
_COLOUR = np.array([0.0, 0.9, 0.8])


def shown(stored: NDArray[Any], recipe: Preprocessing) -> NDArray[np.float32]:
    """A row of the image cache as a picture (C, S, S) in [0, 1], C of 1 or 3; in colour, with the mask's outline, where there is one."""
    planes = np.asarray(stored, dtype=np.float32) / np.float32(255 if stored.dtype == np.uint8 else 1)
    return planes if recipe.mask is None else outlined(planes[:-1], planes[-1])


def outlined(pixels: NDArray[np.float32], mask: NDArray[Any]) -> NDArray[np.float32]:
    """(C, S, S) in [0, 1], C of 1 or 3, and a mask (S, S) to (3, S, S).

    Coloured are marked pixels that have one beside them, or beyond the edge of the image, that is not marked.
    """
    marked = np.asarray(mask) >= 0.5
    around = np.pad(marked, 1)
    inner = around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    picture = np.array(np.broadcast_to(pixels, (3, *marked.shape)), dtype=np.float32)
    picture[:, marked & ~inner] = _COLOUR[:, None]
    return picture
