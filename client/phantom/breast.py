"""The breast without findings: outline, parenchyma, pectoral muscle.

Images are drawn with the chest wall at the left edge and mirrored for the right breast, on the signal scale [0, 1],
where bright is dense. Parenchyma is power-law noise: mammographic power spectra fall as 1/f^beta with beta near 3
(Burgess, Jacobson and Judy, Medical Physics 28:419, 2001).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import fft, special

from client.phantom.cases import Projection

Image = NDArray[np.float32]

_SPECTRUM_EXPONENT = 3.0


@dataclass(frozen=True)
class Breast:
    """A drawn breast: `signal` `(H, W)` in [0, 1], `depth` `(H, W)` as distance from the skin in pixels (negative
    outside, approximate), `muscle` `(H, W)` in [0, 1], and the nipple as (row, column)."""

    signal: Image
    depth: Image
    muscle: Image
    nipple: tuple[float, float]


def power_law_noise(rows: int, columns: int, rng: np.random.Generator, exponent: float = _SPECTRUM_EXPONENT) -> Image:
    """Noise `(rows, columns)` of mean 0 and standard deviation 1 with power spectrum 1/f^exponent."""
    height, width = fft.next_fast_len(rows, real=True), fft.next_fast_len(columns, real=True)
    white = rng.standard_normal((height, width), dtype=np.float32)
    noise = fft.irfft2(fft.rfft2(white) * _gain(height, width, exponent), s=(height, width))[:rows, :columns]
    return np.asarray((noise - noise.mean()) / noise.std(), dtype=np.float32)


@lru_cache(maxsize=8)
def _gain(height: int, width: int, exponent: float) -> Image:
    """Amplitude of each frequency of `rfft2`; flat below two periods in the image, so that no view is one slope."""
    frequency = np.hypot(fft.fftfreq(height)[:, None], fft.rfftfreq(width)[None, :])
    gain = np.maximum(frequency, 2 / max(height, width)) ** (-exponent / 2)
    gain[0, 0] = 0.0
    return np.asarray(gain, dtype=np.float32)


def draw_breast(rows: int, columns: int, *, projection: Projection, density: int, rng: np.random.Generator) -> Breast:
    """Draw one view; `density` is the BI-RADS composition 1 to 4.

    CC: nearly symmetric half ellipse, no muscle. MLO: drooping outline, pectoral triangle in the upper chest-wall
    corner.
    """
    yy, xx = np.mgrid[0:rows, 0:columns].astype(np.float32)
    oblique = projection is Projection.MLO
    width = columns * rng.uniform(0.66, 0.84)
    middle = rows * (rng.uniform(0.54, 0.6) if oblique else rng.uniform(0.48, 0.52))
    above = rows * (rng.uniform(0.5, 0.58) if oblique else rng.uniform(0.4, 0.46))
    below = rows * (rng.uniform(0.34, 0.39) if oblique else rng.uniform(0.4, 0.46))
    half = np.where(yy < middle, above, below)
    power = rng.uniform(2.0, 2.3)
    level = ((xx / width) ** power + (np.abs(yy - middle) / half) ** power) ** (1 / power)
    ripple = 0.012 * np.sin(yy / rows * rng.uniform(6, 12) + rng.uniform(0, 6)).astype(np.float32)
    depth = ((1 - level + ripple) * min(width, above, below)).astype(np.float32)
    thickness = np.where(depth > 0, 1 - np.exp(-np.maximum(depth, 0) / 14), 0)

    texture = power_law_noise(rows, columns, rng)
    fibres = power_law_noise(rows, columns, rng, exponent=2.2)
    gland = np.exp(-((xx / width - 0.5) ** 2 / 0.09 + (yy - middle) ** 2 / (0.5 * half) ** 2))
    share = (0.15, 0.35, 0.6, 0.85)[density - 1]
    parenchyma = gland * share * special.expit(3 * (texture + 2 * share - 0.9))
    signal = thickness * (0.26 + 0.36 * parenchyma + 0.025 * texture + 0.012 * fibres)

    muscle = np.zeros((rows, columns), dtype=np.float32)
    if oblique:
        reach, foot = columns * rng.uniform(0.3, 0.42), rows * rng.uniform(0.5, 0.68)
        edge = reach * (1 - yy / foot) + 4 * texture
        muscle = special.expit((edge - xx) / 4).astype(np.float32)
        signal = signal + thickness * muscle * 0.2
    return Breast(signal=signal.astype(np.float32), depth=depth, muscle=muscle, nipple=(float(middle), float(width)))
