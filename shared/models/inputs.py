"""What a network gets of an image: its pixels normalised, and what else it is told of it, as planes of one tensor.

`(N, channels, S, S)` of the image, and behind them, where the study has metadata, one plane that holds their values in its first places and
0 elsewhere. One tensor, so that clipping by patient, heat maps and trial steps need not know what it is made of. A plane costs less than
one colour of the image, and is taken apart before the first layer.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from shared.study_pixels import Preprocessing


class Normaliser:
    """Images (N, channels, H, W) in [0, 1] to what the recipe's network was made for: by public constants, by each image's own mean and
    deviation, or as they are. The constants wait on `device`.
    """

    def __init__(self, recipe: Preprocessing, device: torch.device | str = "cpu") -> None:
        self._constants: tuple[Tensor, Tensor] | None = None
        if (given := recipe.normalise) is not None:
            mean, std = (torch.tensor(one, device=device)[:, None, None] for one in (given.mean, given.std))
            self._constants = (mean, std)
        self._layer = recipe.layer_normalise

    def __call__(self, images: Tensor) -> Tensor:
        if self._constants is not None:
            images = (images - self._constants[0]) / self._constants[1]
        if self._layer is not None:
            images = F.layer_norm(images, images.shape[1:]) * self._layer.gamma + self._layer.beta
        return images


def with_metadata(planes: Tensor, metadata: Tensor) -> Tensor:
    """`(N, C, H, W)` and `(N, M)` to `(N, C + 1, H, W)`; M is at most H W."""
    count, _, height, width = planes.shape
    plane = planes.new_zeros((count, height * width))
    plane[:, : metadata.shape[1]] = metadata
    return torch.cat((planes, plane.view(count, 1, height, width)), 1)


def metadata_in(planes: Tensor, values: int) -> Tensor:
    """The `(N, values)` of the last plane."""
    return planes[:, -1].flatten(1)[:, :values]
