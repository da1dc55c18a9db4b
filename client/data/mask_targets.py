"""Batches of a segmentation study: the mask, which the store keeps as an image's last plane, is what the network is to find."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from client.data.batches import Batches


class MaskTargets:
    """`batches`, whose images `(B, C + 1, S, S)` carry their mask, as images `(B, C, S, S)` and masks `(B, 1, S, S)` of 0 and 1."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    def __len__(self) -> int:
        """Batches in one epoch."""
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, _ in self._batches:
            yield _image_and_mask(images)

    def of_rows(self, rows: NDArray[np.int64], copies: int = 1) -> tuple[Tensor, Tensor]:
        """These rows of the store, each `copies` times in a row, each copy augmented by itself together with its mask."""
        return _image_and_mask(self._batches.of_rows(rows, copies)[0])


def _image_and_mask(planes: Tensor) -> tuple[Tensor, Tensor]:
    """`(B, C + 1, S, S)` to `(B, C, S, S)` and `(B, 1, S, S)`."""
    return planes[:, :-1], planes[:, -1:]
