"""What CLAHE and denoising do to an image, in three figures. Papers name them without formulas; these are ours.

Grey levels are in [0, 1]. All are of one prepared image as the network gets it, before it is normalised.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.imaging.enhancement import noise_deviation
from shared.imaging.masks import Mask

#: The brightest share of the marked pixels is taken for the calcification itself: masks outline the cluster, with the tissue in it.
_BRIGHTEST = 0.05
#: Windows of local contrast along a side.
_WINDOWS = 16


@dataclass(frozen=True, slots=True)
class Contrast:
    """Figures of one image; None where one is not defined on it."""

    local_contrast: float | None
    visibility: float | None
    snr: float | None


def contrast_of(levels: NDArray[np.float32], mask: Mask | None) -> Contrast:
    """All three, of (S, S) or (S, S, 3) in [0, 1] (colour as the mean of its channels) and a mask (S, S)."""
    grey = np.asarray(levels if levels.ndim == 2 else levels.mean(axis=2), dtype=np.float64)
    return Contrast(
        local_contrast=local_contrast(grey),
        visibility=visibility(grey, mask) if mask is not None else None,
        snr=signal_to_noise(grey),
    )


def local_contrast(grey: NDArray[np.float64]) -> float | None:
    """Mean of (max - min) / (max + min) (Michelson, 1927) over 16 x 16 windows that divide (S, S); in [0, 1].

    Windows that are black throughout, as padding is, have none and are left out; None where all are.
    """
    side = grey.shape[0]
    edges = np.unique(np.linspace(0, side, min(_WINDOWS, side) + 1).round().astype(int))[:-1]
    low = np.minimum.reduceat(np.minimum.reduceat(grey, edges, axis=0), edges, axis=1)
    high = np.maximum.reduceat(np.maximum.reduceat(grey, edges, axis=0), edges, axis=1)
    lit = high > 0
    if not lit.any():
        return None
    return float(((high[lit] - low[lit]) / (high[lit] + low[lit])).mean())


def visibility(grey: NDArray[np.float64], mask: Mask) -> float | None:
    """(c - s) / (c + s): c is the mean of the brightest 5 % of the marked pixels, s the median of all that are not marked.

    0: no brighter than the surroundings; 1: bright in the dark. None where nothing or everything is marked, or all is black. A mask
    that outlines the calcifications' cluster is enough. Raises ValueError where the shapes differ.
    """
    if mask.shape != grey.shape:
        raise ValueError(f"expected a mask of shape {grey.shape}, but got {mask.shape}")
    inside, outside = grey[mask], grey[~mask]
    if inside.size == 0 or outside.size == 0:
        return None
    count = max(1, math.ceil(_BRIGHTEST * inside.size))
    calcification, surroundings = float(np.sort(inside)[-count:].mean()), float(np.median(outside))
    total = calcification + surroundings
    return (calcification - surroundings) / total if total > 0 else None


def signal_to_noise(grey: NDArray[np.float64]) -> float | None:
    """20 log10(m / n) in dB: m is the mean of all pixels, n the noise by Immerkær's estimator. None without noise or signal."""
    signal, noise = float(grey.mean()), noise_deviation(grey)
    return 20 * math.log10(signal / noise) if signal > 0 and noise > 0 else None
