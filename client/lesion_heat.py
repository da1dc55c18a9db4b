"""Heat maps of a hospital's test images: for single images, and how much of the heat falls on the lesions. All of it stays there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.heat_maps import enlarged, grad_cam, heat_inside, last_map
from shared.errors import UnreadableImageError
from shared.imaging.decoder import close_decoders
from shared.imaging.inside import source_file
from shared.imaging.preprocess import prepare_mask
from shared.models.network import Network
from shared.study_pixels import Preprocessing

_log = logging.getLogger(__name__)

#: At most so many images with masks are looked at, and none further once so many bytes of files were read: it takes seconds.
MOST_IMAGES = 200
MOST_BYTES = 1_000_000_000
_BATCH = 16

#: The images (N, channels, S, S) of these test rows as the network gets them, on its device.
ImagesOf = Callable[[Sequence[int]], Tensor]


@dataclass(frozen=True, slots=True)
class OnLesions:
    """`inside` is the mean share of an image's heat that lies on its lesion, `area` the mean share of the image that the lesion covers.

    Both over the same `images`; `without_heat` further ones have no heat at all.
    """

    images: int
    without_heat: int
    inside: float
    area: float


@dataclass(frozen=True, slots=True)
class HeatMaps:
    """Grad-CAM of one network for the positive class at its child `layer`, whose map has `cells` (height, width) positions.

    `files` are each test image's file and then its masks.
    """

    network: Network
    layer: str
    cells: tuple[int, int]
    recipe: Preprocessing
    positive_index: int
    images_of: ImagesOf
    files: Sequence[Sequence[Path]]

    @classmethod
    def of(
        cls,
        network: Network,
        images_of: ImagesOf,
        *,
        files: Sequence[Sequence[Path]],
        recipe: Preprocessing,
        positive_index: int,
    ) -> HeatMaps | None:
        """None where the network has no feature map to look at. `images_of` must have a row 0."""
        found = last_map(network, images_of([0]))
        return None if found is None else cls(network, found[0], found[1], recipe, positive_index, images_of, files)

    def heat(self, rows: Sequence[int]) -> NDArray[np.float32]:
        """Heat of the positive class in these test images, (N, S, S), none below 0."""
        maps = [
            enlarged(
                grad_cam(
                    self.network,
                    self.layer,
                    self.images_of(rows[start : start + _BATCH]),
                    class_index=self.positive_index,
                    positive_index=self.positive_index,
                ),
                self.recipe.size,
            ).cpu()
            for start in range(0, len(rows), _BATCH)
        ]
        size = self.recipe.size
        return torch.cat(maps).numpy() if maps else np.empty((0, size, size), np.float32)

    def on_lesions(self, *, seed: int) -> OnLesions | None:
        """How much of the heat falls on the lesions, in test images that have masks; None where none has, or none has any heat.

        Of more images than it looks at, those are drawn by `seed`. One whose mask can't be read is passed over and named in the log.
        """
        masked = np.array([row for row, one in enumerate(self.files) if len(one) > 1], dtype=np.int64)
        drawn = np.random.default_rng(seed).permutation(masked)[:MOST_IMAGES].tolist()
        inside: list[float] = []
        areas: list[float] = []
        without = 0
        for rows, masks in _batches(_prepared(drawn, self.files, self.recipe)):
            for heat, mask in zip(self.heat(rows), masks, strict=True):
                share = heat_inside(heat, mask)
                if share is None:
                    without += 1
                else:
                    inside.append(share)
                    areas.append(float(mask.mean(dtype=np.float64)))
        if not inside:
            return None
        return OnLesions(len(inside), without, float(np.mean(inside)), float(np.mean(areas)))


def _prepared(
    rows: Sequence[int], files: Sequence[Sequence[Path]], recipe: Preprocessing
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """The rows whose masks can be read, with their masks (S, S), as long as not too much was read."""
    read = 0
    try:
        for row in rows:
            if read > MOST_BYTES:
                break
            image, *marks = files[row]
            try:
                mask = prepare_mask(image, marks, recipe)
                read += sum(source_file(path).stat().st_size for path in (image, *marks))
            except (UnreadableImageError, OSError) as problem:
                _log.warning("no heat is measured on a lesion: %s", problem)
                continue
            yield row, mask
    finally:
        close_decoders()


def _batches(
    prepared: Iterator[tuple[int, NDArray[np.float32]]],
) -> Iterator[tuple[list[int], list[NDArray[np.float32]]]]:
    while some := list(islice(prepared, _BATCH)):
        yield [row for row, _ in some], [mask for _, mask in some]
