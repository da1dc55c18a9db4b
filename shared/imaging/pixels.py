"""Decoded pixels, whatever file they came from, and the error of a file that can't be decoded."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shared.errors import UnreadableImageError

#: More pixels than any mammogram or photograph has; a larger size in a header is a damaged or hostile file.
MAXIMUM_PIXELS = 300_000_000


@dataclass(frozen=True, slots=True)
class Pixels:
    """One image (or frame), larger is brighter.

    `array` is unsigned integer, (H, W) where `photometric` is MONOCHROME2 and (H, W, 3) where it is RGB, with values
    0 .. 2**bits - 1. Signed sources are shifted by 2**(bits-1); MONOCHROME1, palettes and YBR are already resolved.
    """

    array: NDArray[Any]
    bits: int
    photometric: Literal["MONOCHROME2", "RGB"]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)"""
        return self.array.shape[0], self.array.shape[1]


def checked(array: NDArray[Any], bits: int, path: Path) -> Pixels:
    """Pixels after a check of shape, type and range. Raises UnreadableImageError naming `path`."""
    if array.dtype.kind not in "ub" or array.size == 0:
        raise unreadable(
            path, f"its pixels are of type {array.dtype} and shape {array.shape}, expected unsigned integers"
        )
    if array.ndim == 2:
        return Pixels(np.ascontiguousarray(array), bits, "MONOCHROME2")
    if array.ndim == 3 and array.shape[2] == 3:
        return Pixels(np.ascontiguousarray(array), bits, "RGB")
    raise unreadable(path, f"its pixels have the shape {array.shape}, expected (height, width) or (height, width, 3)")


def pixel_digest(array: NDArray[Any]) -> str:
    """Lower-case hex SHA-256 of type, shape and pixels."""
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def unreadable(
    path: Path, reason: str, remedy: str = "get the file again from its source, or take it out"
) -> UnreadableImageError:
    """The error of one file, a sentence: which file, what was wrong, what to do."""
    return UnreadableImageError(f"{path}: {reason}; {remedy}")
