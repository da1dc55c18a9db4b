"""From signal to stored values: film label, blur, noise, contrast curve, 12-bit quantisation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from client.phantom.cases import Projection, Side
from client.phantom.scanners import Scanner

Image = NDArray[np.float32]
Pixels = NDArray[np.uint16]

FULL_SCALE = 4095
"""Largest stored value: BitsStored is 12."""

_GLYPHS = {
    "L": ("1....", "1....", "1....", "1....", "1....", "1....", "11111"),
    "R": ("1111.", "1...1", "1...1", "1111.", "1.1..", "1..1.", "1...1"),
    "C": (".1111", "1....", "1....", "1....", "1....", "1....", ".1111"),
    "M": ("1...1", "11.11", "1.1.1", "1.1.1", "1...1", "1...1", "1...1"),
    "O": (".111.", "1...1", "1...1", "1...1", "1...1", "1...1", ".111."),
}


def blurred(signal: Image, scanner: Scanner) -> Image:
    """`signal` `(H, W)` through the scanner's point spread function."""
    return np.asarray(ndimage.gaussian_filter(signal, scanner.blur), dtype=np.float32)


def stamp_label(
    signal: Image, outside: NDArray[np.bool_], side: Side, projection: Projection, rng: np.random.Generator
) -> None:
    """Write side and projection (as `R MLO`) in place, in a background corner away from the chest wall.

    Letters are drawn upright: call it after mirroring, with `outside` `(H, W)` True where there is no breast.
    """
    text = [side[0], *projection]
    strokes = [np.array([[c == "1" for c in row] for row in _GLYPHS[letter]], dtype=bool) for letter in text]
    gap = np.zeros((7, 2), dtype=bool)
    line = np.hstack([block for stroke in strokes for block in (stroke, gap)])[:, :-2]
    plate = np.kron(np.pad(line, 2), np.ones((2, 2), dtype=bool))
    columns = signal.shape[1]
    height, width = plate.shape
    top = int(rng.integers(6, 22))
    left = columns - width - int(rng.integers(4, 12)) if side is Side.LEFT else int(rng.integers(4, 12))
    free = outside[top : top + height, left : left + width]
    if free.shape != plate.shape:
        return
    signal[top : top + height, left : left + width][free] = np.where(plate, 0.95, 0.3)[free]


def expose(signal: Image, scanner: Scanner, *, inverted: bool, rng: np.random.Generator) -> Pixels:
    """Stored values `(H, W)` in [0, 4095] of a blurred `signal`.

    Noise, then the contrast curve `s^gamma * (1 + shoulder) / (1 + shoulder * s^gamma)` between the scanner's black and
    white. `inverted` stores the negative, as MONOCHROME1 asks (PS3.3 C.7.6.3.1.2).
    """
    rows, columns = signal.shape
    noise = rng.standard_normal((rows, columns), dtype=np.float32)
    grain = ndimage.gaussian_filter(rng.standard_normal((rows, columns), dtype=np.float32), 1.0) * np.float32(3.5)
    level = np.maximum(signal, 0)
    noisy = level + scanner.noise * np.sqrt(level / 0.5 + 0.05) * noise + scanner.grain * grain
    tone = np.clip(noisy, 0, 1) ** scanner.gamma
    tone = tone * (1 + scanner.shoulder) / (1 + scanner.shoulder * tone)
    stored = np.rint((scanner.black + (scanner.white - scanner.black) * tone) * FULL_SCALE)
    positive = np.clip(stored, 0, FULL_SCALE)
    pixels: Pixels = (FULL_SCALE - positive if inverted else positive).astype(np.uint16)
    return pixels
