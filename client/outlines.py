"""The outlines of a true and a found mask, drawn on their image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Pixels a side that a picture has at least; smaller images are enlarged by a whole factor.
SIDE = 256
TRUE_COLOUR = (0.20, 0.85, 1.0)
FOUND_COLOUR = (1.0, 0.80, 0.10)
#: Pixels of the enlarged picture that a dash of the found outline is long.
_DASH = 6


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
        line = _outline(np.kron(mask, large)) & kept
        picture[:, line] = np.array(colour, dtype=np.float32)[:, None]
    return picture


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of the mask within two of its edge; the border of the image is an edge too."""
    inner = mask
    for _ in range(2):
        around = np.pad(inner, 1)
        inner = inner & around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    return np.asarray(mask & ~inner, dtype=np.bool_)
