"""Batches for training and evaluation, out of the image cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.data.augmentation import displaced, is_identity, retouched
from client.data.cache import ImageStore
from shared.models.inputs import Normaliser, with_metadata
from shared.study_augmentation import Augmentation
from shared.study_pixels import Preprocessing


class Batches:
    """Batches (images, labels) of the rows `indices` of a store: one epoch each time it is iterated.

    images: (B, channels, S, S) float32 on `device`, in [0, 1], then normalised by the recipe's constants or by each image's own
    mean and deviation; grey is repeated to the recipe's channels. Where the recipe has a mask, one more plane comes behind them, of 0
    and 1: it moves with the image, and nothing else changes it. `metadata` (N, M), one row an image of the store, come last as one plane
    (`shared.models.inputs`), where M is not 0. labels: (B,) int64 on `device`, or (B, 1 + descriptors) where those that were given have
    such rows.

    With `generator` (a CPU generator) the order is shuffled anew in each epoch (unless `shuffle` is False) and `augmentation` is applied;
    without it rows come in
    the order of `indices`, unchanged. The same generator state gives the same batches, whatever the device.

    Where it is shuffled, a last batch of one single image joins the batch before it, because batch normalisation can't learn
    from one image. Raises ValueError where an index is of no readable image, or an augmentation has no generator.

    There is no reading ahead in a thread: gathering a batch takes well under 1 % of its training step
    (benchmarks/input_pipeline.py), and on a GPU the next one is gathered while the device still works on the last.
    """

    def __init__(
        self,
        store: ImageStore,
        labels: Sequence[int] | NDArray[np.int64] | Tensor,
        indices: Sequence[int] | NDArray[np.int64],
        *,
        recipe: Preprocessing,
        batch_size: int,
        device: torch.device | str = "cpu",
        generator: torch.Generator | None = None,
        augmentation: Augmentation | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
        metadata: NDArray[np.float32] | None = None,
        shuffle: bool = True,
    ) -> None:
        self._pixels: NDArray[np.uint8 | np.float16] = np.asarray(store.images)
        self._labels = torch.as_tensor(labels, dtype=torch.int64)
        self._indices = np.asarray(indices, dtype=np.int64)
        if len(self._labels) != len(store):
            raise ValueError(f"expected one label for each of the {len(store)} images, but got {len(self._labels)}")
        if len(self._indices) and not (self._indices.min() >= 0 and self._indices.max() < len(store)):
            raise ValueError(f"expected indices from 0 to {len(store) - 1}")
        if not store.readable[self._indices].all():
            raise ValueError("an index is of an image that can't be read")
        if recipe.mask is not None and len(self._indices) and store.images.shape[1] != recipe.planes:
            raise ValueError(
                f"expected images of {recipe.planes} planes, the mask last, but got {store.images.shape[1]}"
            )
        if augmentation is not None and is_identity(augmentation):
            augmentation = None
        if augmentation is not None and generator is None:
            raise ValueError("augmentation needs a generator")
        self._metadata = metadata if metadata is not None and metadata.shape[1] else None
        if self._metadata is not None and len(self._metadata) != len(store):
            raise ValueError(f"expected metadata for each of the {len(store)} images, but got {len(self._metadata)}")
        self._recipe, self._batch_size = recipe, batch_size
        self._device, self._memory_format = torch.device(device), memory_format
        self._generator, self._augmentation = generator, augmentation
        self._shuffled = generator is not None and shuffle
        self._normalised = Normaliser(recipe, self._device)

    def __len__(self) -> int:
        """Batches in one epoch."""
        return len(self._bounds())

    @property
    def images(self) -> int:
        """Images in one epoch."""
        return len(self._indices)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = self._indices
        if self._shuffled:
            order = order[torch.randperm(len(order), generator=self._generator).numpy()]
        for start, stop in self._bounds():
            rows = order[start:stop]
            yield self._images(rows), self._labels[torch.from_numpy(rows)].to(self._device, non_blocking=True)

    def of_rows(self, rows: NDArray[np.int64], copies: int = 1) -> tuple[Tensor, Tensor]:
        """These rows of the store, each `copies` times in a row, each copy augmented by itself; labels as often."""
        repeated = np.repeat(np.asarray(rows, dtype=np.int64), copies)
        return self._images(repeated), self._labels[torch.from_numpy(repeated)].to(self._device, non_blocking=True)

    def _bounds(self) -> list[tuple[int, int]]:
        count = len(self._indices)
        starts = list(range(0, count, self._batch_size))
        if self._shuffled and len(starts) > 1 and count - starts[-1] == 1:
            starts.pop()
        return list(pairwise([*starts, count]))

    def _images(self, rows: NDArray[np.int64]) -> Tensor:
        # Fancy indexing copies the rows out of the read-only map.
        stored = torch.from_numpy(self._pixels[rows])
        if self._device.type == "cuda":
            stored = stored.pin_memory()
        images = stored.to(self._device, non_blocking=True)
        images = images.to(torch.float32).div_(255) if images.dtype == torch.uint8 else images.to(torch.float32)
        mask: Tensor | None = None
        if self._augmentation is not None and self._generator is not None:
            images = displaced(images, self._augmentation, self._generator)
        if self._recipe.mask is not None:
            images, mask = images[:, :-1], (images[:, -1:] >= 0.5).to(torch.float32)
        if self._augmentation is not None and self._generator is not None:
            # Before grey is repeated: a third of the work.
            images = retouched(images, self._augmentation, self._generator)
        if images.shape[1] != self._recipe.channels:
            images = images.expand(-1, self._recipe.channels, -1, -1)
        images = self._normalised(images)
        if mask is not None:
            images = torch.cat([images, mask], dim=1)
        if self._metadata is not None:
            images = with_metadata(images, torch.from_numpy(self._metadata[rows]).to(self._device))
        return images.contiguous(memory_format=self._memory_format)
