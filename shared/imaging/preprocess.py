"""From an image file to the small array that a network sees; everything here is done once, before the cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared.canonical import digest
from shared.imaging.enhancement import enhanced
from shared.imaging.field_of_view import shown
from shared.imaging.files import read_image
from shared.imaging.markings import LONGEST_SIDE, without_markings
from shared.imaging.masks import Box, Mask, bounding_box, resized_mask, union_of_masks
from shared.imaging.pixels import Pixels, unreadable
from shared.study_mask import PredictedMask
from shared.study_pixels import Preprocessing

#: Raise it with every change that alters a prepared pixel: cached images of another version are not used.
PREPROCESSING_VERSION = 1

_PERCENTILES = (0.5, 99.5)
#: ITU-R BT.601 luma, for a network with one channel and a colour image.
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Square:
    """A square of pixels; it may reach over the image's edge, where the image is smaller than it."""

    top: int
    left: int
    side: int


def recipe_digest(recipe: Preprocessing) -> str:
    """SHA-256 over what decides the prepared pixels. The normaliser is applied later, on the device, and left out."""
    values = recipe.model_dump(mode="json", exclude={"normalise", "layer_normalise", "mask"})
    if isinstance(recipe.mask, PredictedMask):
        # The file's name and what is told of it change no pixel.
        values["mask"] = {"model": recipe.mask.weights.sha256, "threshold": recipe.mask.threshold}
    elif recipe.mask is not None:
        values["mask"] = recipe.mask.source
    if not recipe.remove:
        del values["remove"]  # what was cached before the key was there still stands
    return digest({"version": PREPROCESSING_VERSION, "recipe": values})


class Segmenter(Protocol):
    """A network that tells where the lesion is, on images as its own study prepares them."""

    @property
    def recipe(self) -> Preprocessing:
        """Of its own study, without a mask."""

    def probabilities(self, levels: NDArray[np.float32]) -> NDArray[np.float32]:
        """(S, S) or (S, S, 3) in [0, 1], not normalised yet, to the probability of each pixel to be marked, (S, S)."""


def prepare(
    image: Path,
    masks: Sequence[Path],
    recipe: Preprocessing,
    seen: Callable[[Pixels], None] | None = None,
    segmenter: Segmenter | None = None,
) -> NDArray[np.uint8] | NDArray[np.float16]:
    """One image as the cache stores it, (C, size, size).

    C is 1 for grey images (repeated to the network's channels on the device) and 3 for colour; a recipe with one channel
    turns colour into luma (BT.601). With `recipe.mask`, C is the recipe's channels and one plane more: the mask, 0 or 1.
    dtype is uint8 where the source has up to 8 bits, 0..255 standing for [0, 1], and float16 in [0, 1] where it has more.
    Raises UnreadableImageError naming the file: also where a mask is needed and there is none, or an empty one. `seen` is
    called with the decoded pixels, before anything is cut or scaled; a mask that is predicted needs the `segmenter`.
    """
    pixels = read_image(image)
    if seen is not None:
        seen(pixels)
    marked = _marked(image, masks, pixels, recipe) if recipe.masks_needed_by else None
    pixels, marked = shown(pixels, marked, recipe)
    square = _region(marked, pixels, recipe)
    small = enhanced(_levels(pixels, square, recipe), recipe)
    planes = small[None] if small.ndim == 2 else np.moveaxis(small, 2, 0)
    if recipe.mask is not None:
        mask = _mask_plane(marked, pixels, square, recipe, segmenter)
        planes = np.concatenate([np.broadcast_to(planes, (recipe.channels, *mask.shape)), mask[None]])
    planes = np.ascontiguousarray(planes)
    if pixels.bits <= 8:
        return np.asarray(np.rint(planes * 255.0), dtype=np.uint8)
    return np.asarray(planes, dtype=np.float16)


@dataclass(frozen=True, slots=True)
class Plain:
    """An image in the network's frame before denoising and CLAHE: `levels` (S, S) or (S, S, 3) in [0, 1], `mask` (S, S).

    `kept` is the share of its area that is left where black borders or a vignette were cut off.
    """

    levels: NDArray[np.float32]
    mask: Mask | None
    bits: int
    kept: float = 1.0


def unenhanced(
    image: Path,
    masks: Sequence[Path],
    recipe: Preprocessing,
    *,
    with_mask: bool = False,
) -> Plain:
    """Cut, scaled to [0, 1] and resized. The mask is the hospital's own, where it is asked for and a file marks it. Raises as `prepare`."""
    pixels = read_image(image)
    wanted = recipe.region == "finding" or (with_mask and masks)
    marked = _marked(image, masks, pixels, recipe) if wanted else None
    area = math.prod(pixels.size)
    pixels, marked = shown(pixels, marked, recipe)
    square = _region(marked, pixels, recipe)
    mask: Mask | None = None
    if with_mask and marked is not None:
        inside = padded(cut(marked, square).astype(np.float32), pixels.size, square)
        mask = resized_mask(inside > 0, (recipe.size, recipe.size))
    return Plain(_levels(pixels, square, recipe), mask, pixels.bits, math.prod(pixels.size) / area)


def _levels(pixels: Pixels, square: Square, recipe: Preprocessing) -> NDArray[np.float32]:
    inside = unit_intensities(cut(pixels.array, square), pixels.bits, recipe.intensity)
    levels = padded(inside, pixels.size, square)
    if recipe.fills:
        # A hair is some pixels wide in an image of this size, and time does not grow with the camera.
        levels = without_markings(resized(levels, min(square.side, max(LONGEST_SIDE, recipe.size))), recipe)
    small = resized(levels, recipe.size)
    if small.ndim == 3 and recipe.channels == 1:
        small = small @ _LUMA
    return np.clip(small, 0.0, 1.0)


def prepare_mask(image: Path, masks: Sequence[Path], recipe: Preprocessing) -> NDArray[np.float32]:
    """What `masks` mark in the image as `prepare` gives it, (size, size): the share of each new pixel that is marked, from 0 to 1.

    The same square is cut out, padded (with nothing marked) and brought to size by the same filter. Raises UnreadableImageError where the
    image or a mask can't be read, a mask is empty or of another shape, and ValueError without a mask.
    """
    if not masks:
        raise ValueError("Expected argument `masks` to hold a file, but got none")
    pixels = read_image(image)
    pixels, found = shown(pixels, union_of_masks(masks, pixels.size), recipe)
    marked = np.asarray(found)
    return _share(marked, _region(marked, pixels, recipe), recipe.size)


def _share(marked: NDArray[Any], square: Square, size: int) -> NDArray[np.float32]:
    """(H, W) of a whole image, cut out and brought to (size, size) as the image is; nothing is marked outside of it."""
    inside = padded(cut(marked, square).astype(np.float32), (marked.shape[0], marked.shape[1]), square)
    return np.asarray(np.clip(resized(inside, size), 0.0, 1.0), dtype=np.float32)


def _mask_plane(
    marked: Mask | None, pixels: Pixels, square: Square, recipe: Preprocessing, segmenter: Segmenter | None
) -> NDArray[np.float32]:
    """The recipe's mask in the image's square, (size, size) of 0 and 1."""
    if isinstance(recipe.mask, PredictedMask):
        if segmenter is None:
            raise ValueError("Expected argument `segmenter`, since the recipe's mask is predicted, but got None")
        share, least = _predicted(marked, pixels, square, recipe, segmenter), recipe.mask.threshold
    else:
        assert marked is not None  # such a recipe needs masks
        share, least = _share(marked, square, recipe.size), 0.5
    return np.asarray(share >= least, dtype=np.float32)


def _predicted(
    marked: Mask | None, pixels: Pixels, square: Square, recipe: Preprocessing, segmenter: Segmenter
) -> NDArray[np.float32]:
    """Probabilities in the image's square, (size, size). The network sees the image as its own study cuts and scales it."""
    own = segmenter.recipe
    seen = _region(marked, pixels, own)
    found = segmenter.probabilities(enhanced(_levels(pixels, seen, own), own))
    if seen == square:
        return np.asarray(np.clip(resized(found, recipe.size), 0.0, 1.0), dtype=np.float32)
    whole = np.zeros(pixels.size, dtype=np.float32)
    inside = cut(whole, seen)
    top, left = max(-seen.top, 0), max(-seen.left, 0)
    inside[:] = resized(found, seen.side)[top : top + inside.shape[0], left : left + inside.shape[1]]
    return _share(whole, square, recipe.size)


def _marked(image: Path, masks: Sequence[Path], pixels: Pixels, recipe: Preprocessing) -> Mask:
    if masks:
        return union_of_masks(masks, pixels.size)
    instead = "use region: whole" if recipe.region == "finding" else "leave the image out"
    raise unreadable(image, f"it has no mask, but the study's {recipe.masks_needed_by}", f"add the mask, or {instead}")


def _region(marked: Mask | None, pixels: Pixels, recipe: Preprocessing) -> Square:
    if recipe.region == "whole":
        return square_of_whole(pixels.size)
    assert marked is not None  # such a recipe needs masks
    box = bounding_box(marked)
    assert box is not None  # union_of_masks refuses empty masks
    return square_around(box, recipe.margin, pixels.size)


def square_around(box: Box, margin: float, size: tuple[int, int]) -> Square:
    """The square around a finding: side = longer side of its box x (1 + 2 margin), centred on the box.

    At the border it is shifted inwards, so that it shows tissue rather than padding and the finding lies off-centre. Only
    where the square is larger than the image itself does it reach over both edges, centred; `padded` fills with black.
    """
    longer = max(box.height, box.width)
    side = max(longer, round(longer * (1.0 + 2.0 * margin)))
    return Square(
        _start(box.top + box.bottom, side, size[0]),
        _start(box.left + box.right, side, size[1]),
        side,
    )


def square_of_whole(size: tuple[int, int]) -> Square:
    """The square that holds the whole image; the shorter side is padded, so that no shape is distorted."""
    side = max(size)
    return Square(_start(size[0], side, size[0]), _start(size[1], side, size[1]), side)


def _start(doubled_centre: int, side: int, length: int) -> int:
    if side >= length:
        return -((side - length) // 2)
    return min(max((doubled_centre - side) // 2, 0), length - side)


def cut(array: NDArray[Any], square: Square) -> NDArray[Any]:
    """The part of the image that lies inside the square, a view."""
    rows = slice(max(square.top, 0), max(square.top, 0) + min(square.side, array.shape[0]))
    columns = slice(max(square.left, 0), max(square.left, 0) + min(square.side, array.shape[1]))
    return array[rows, columns]


def padded(inside: NDArray[np.float32], size: tuple[int, int], square: Square) -> NDArray[np.float32]:
    """The whole square, with black (0) where it reaches over the image of `size`."""
    if inside.shape[0] == inside.shape[1] == square.side:
        return inside
    whole = np.zeros((square.side, square.side, *inside.shape[2:]), dtype=np.float32)
    top, left = max(-square.top, 0), max(-square.left, 0)
    whole[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return whole


def unit_intensities(array: NDArray[Any], bits: int, intensity: str) -> NDArray[np.float32]:
    """Unsigned pixels to [0, 1], float32 of the same shape.

    `bit_depth` divides by 2**bits - 1. `region_percentiles` maps the 0.5th and 99.5th percentile of these very pixels (all
    channels together, so that colours keep their balance) to 0 and 1 and clips; a region of one single value becomes 0.
    """
    if intensity == "bit_depth":
        return np.asarray(
            array.astype(np.float64) / (2**bits - 1) if bits > 24 else array / np.float32(2**bits - 1), np.float32
        )
    low, high = np.percentile(array, _PERCENTILES)
    if high <= low:
        low, high = float(array.min()), float(array.max())
        if high <= low:
            return np.zeros(array.shape, dtype=np.float32)
    scaled = (array.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    return np.asarray(np.clip(scaled, 0.0, 1.0), dtype=np.float32)


def resized(square: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """(S, S) or (S, S, 3) to (size, size) or (size, size, 3).

    A triangle filter as wide as the new pixels (Pillow's BILINEAR, torch's `bilinear` with `antialias`): nothing between
    the new pixels is skipped when it shrinks, and it is plain bilinear interpolation when it grows.
    """
    if square.shape[0] == size:
        return square
    if square.ndim == 3:
        return np.stack([_resampled(square[..., index], size) for index in range(square.shape[2])], axis=2)
    return _resampled(square, size)


def _resampled(plane: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    picture = Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32))
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR), dtype=np.float32)
