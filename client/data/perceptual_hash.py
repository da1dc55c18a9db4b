"""What an image looks like, as a perceptual hash: copies that were saved again, scaled or cropped by a hair have hashes a few bits apart.

pHash of the ImageHash library (Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010): the lowest frequencies
of the cosine transform of a small grey image, each above or below their median. Of one image two are kept: 256 bits (16 x 16 frequencies
of 64 x 64 pixels), by which copies are told inside a hospital, and 64 bits (8 x 8 of 32 x 32), which a second saving seldom changes at
all, for a comparison that knows equal and unequal only. The measurements behind both: docs/decisions/0013-duplicates-across-hospitals.md
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from client.data.pixel_digests import NOBODY, Kind
from shared.imaging.pixels import Pixels

#: Frequencies along each side of the two hashes, and hex digits of each.
_FINE, _COARSE = 16, 8
_FINE_DIGITS = _FINE * _FINE // 4


def perceptual_hash(pixels: Pixels) -> str:
    """80 hex digits, the fine hash and then the coarse one; NOBODY where all values are one.

    Of an image with up to 8 bits it is ImageHash's of the very file; deeper ones are scaled from their least and largest value to 0..255.
    """
    array: NDArray[Any] = pixels.array
    least, most = int(array.min()), int(array.max())
    if least == most:
        return NOBODY
    if pixels.bits > 8:
        array = (array.astype(np.float32) - least) * np.float32(255.0 / (most - least))
    from imagehash import phash  # and with it SciPy, which most studies need not wait for

    picture = Image.fromarray(np.ascontiguousarray(array, dtype=np.uint8)).convert("L")
    return f"{phash(picture, hash_size=_FINE)}{phash(picture, hash_size=_COARSE)}"


#: perceptual.json in the cache folder: the file's SHA-256 -> its image's perceptual hash.
PERCEPTUAL = Kind("perceptual.json", "consilium/perceptual-hashes/1", perceptual_hash)


def fine_bits(hashes: list[str]) -> NDArray[np.uint64]:
    """(N, 4): the 256 bits of each hash; none may be NOBODY."""
    packed = b"".join(bytes.fromhex(one[:_FINE_DIGITS]) for one in hashes)
    return np.frombuffer(packed, dtype=">u8").astype(np.uint64).reshape(-1, 4)


def coarse(found: str) -> str:
    """The 16 hex digits of the coarse hash; empty for NOBODY."""
    return found[_FINE_DIGITS:]
