"""Denoising and CLAHE of a prepared image, each by itself: no figure of another image plays a part, so a private study may ask for both.

Both are scikit-image's. Order: noise goes first, because equalisation would raise it with everything else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.study_pixels import Clahe, Preprocessing

Levels = NDArray[np.float32]

#: N of Immerkær's estimator: the difference of two Laplacians, blind to constant, linear and slowly curved parts.
_IMMERKAER = ((1, -2, 1), (-2, 4, -2), (1, -2, 1))
#: Non-local means: 5 x 5 patches, compared up to 6 pixels away, h = 0.8 sigma (scikit-image's advice for its fast mode).
_PATCH, _DISTANCE, _H = 5, 6, 0.8


def is_enhanced(recipe: Preprocessing) -> bool:
    """Whether the recipe asks for denoising or CLAHE."""
    return recipe.denoise != "none" or recipe.clahe is not None


def enhanced(levels: Levels, recipe: Preprocessing) -> Levels:
    """(S, S) or (S, S, 3) float32 in [0, 1], denoised and equalised as the recipe says; the very array where it says neither."""
    if recipe.denoise != "none":
        levels = _clipped(_DENOISERS[recipe.denoise](levels))
    if recipe.clahe is not None:
        levels = equalised(levels, recipe.clahe)
    return levels


def equalised(levels: Levels, clahe: Clahe) -> Levels:
    """CLAHE in 256 bins, tiles of ceil(S / tiles) pixels, the result stretched over [0, 1]; of a colour image the V of its HSV.

    An image of one single value is left as it is.
    """
    from skimage.exposure import equalize_adapthist  # half a second that most studies need not wait for

    if float(np.ptp(levels)) == 0.0:
        return levels
    tile = math.ceil(levels.shape[0] / clahe.tiles)
    return _clipped(equalize_adapthist(levels, kernel_size=tile, clip_limit=clahe.clip_limit, nbins=256))


def noise_deviation(levels: NDArray[Any]) -> float:
    """Standard deviation of the noise in (H, W), estimated from the image alone; H and W of at least 3.

    Immerkær, "Fast Noise Variance Estimation", CVIU 64:2 (1996), equation 8: sqrt(pi / 2) / (6 (W-2) (H-2)) sum |I * N|. Fine texture
    counts as noise. Raises ValueError for another shape.
    """
    if levels.ndim != 2 or min(levels.shape) < 3:
        raise ValueError(f"expected a grey image of at least 3 x 3 pixels, but got {levels.shape}")
    image = np.asarray(levels, dtype=np.float64)
    height, width = image.shape
    found = np.zeros((height - 2, width - 2))
    for row, weights in enumerate(_IMMERKAER):
        for column, weight in enumerate(weights):
            found += weight * image[row : row + height - 2, column : column + width - 2]
    return float(math.sqrt(math.pi / 2) * np.abs(found).mean() / 6)


def _median(levels: Levels) -> NDArray[Any]:
    from skimage.filters import median

    footprint = np.ones((3, 3, *([1] * (levels.ndim - 2))), dtype=np.uint8)
    return np.asarray(median(levels, footprint, mode="nearest"))  # type: ignore[no-untyped-call]


def _bilateral(levels: Levels) -> NDArray[Any]:
    """Tomasi, Manduchi, ICCV 1998: deviation of 1 pixel in space; in value 1.5 times the noise, so that edges stay."""
    from skimage.restoration import denoise_bilateral

    noise = _noise(levels)
    if noise == 0.0:
        return levels
    return np.asarray(
        denoise_bilateral(
            levels, sigma_color=1.5 * noise, sigma_spatial=1, mode="edge", channel_axis=-1 if levels.ndim == 3 else None
        )
    )


def _non_local_means(levels: Levels) -> NDArray[Any]:
    """Buades, Coll, Morel, CVPR 2005, with the noise that the image itself shows."""
    from skimage.restoration import denoise_nl_means

    noise = _noise(levels)
    if noise == 0.0:
        return levels
    return np.asarray(
        denoise_nl_means(
            levels, patch_size=_PATCH, patch_distance=_DISTANCE, h=_H * noise, sigma=noise, fast_mode=True,
            channel_axis=-1 if levels.ndim == 3 else None,
        )
    )  # fmt: skip


def _noise(levels: Levels) -> float:
    planes = [levels] if levels.ndim == 2 else [levels[..., index] for index in range(levels.shape[2])]
    return float(np.mean([noise_deviation(plane) for plane in planes]))


def _clipped(values: NDArray[Any]) -> Levels:
    return np.asarray(np.clip(values, 0.0, 1.0), dtype=np.float32)


_DENOISERS: dict[str, Callable[[Levels], NDArray[Any]]] = {
    "median": _median,
    "bilateral": _bilateral,
    "nlm": _non_local_means,
}
