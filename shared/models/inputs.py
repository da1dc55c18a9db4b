"""How an image and what else a network is told of it travel as one tensor: as planes, the image's first.

`(N, channels, S, S)` of the image, and behind them, where the study has metadata, one plane that holds their values in its first places and
0 elsewhere. One tensor, so that clipping by patient, heat maps and trial steps need not know what it is made of. A plane costs less than
one colour of the image, and is taken apart before the first layer.
"""

from __future__ import annotations

import torch
from torch import Tensor


def with_metadata(planes: Tensor, metadata: Tensor) -> Tensor:
    """`(N, C, H, W)` and `(N, M)` to `(N, C + 1, H, W)`; M is at most H W."""
    count, _, height, width = planes.shape
    plane = planes.new_zeros((count, height * width))
    plane[:, : metadata.shape[1]] = metadata
    return torch.cat((planes, plane.view(count, 1, height, width)), 1)


def metadata_in(planes: Tensor, values: int) -> Tensor:
    """The `(N, values)` of the last plane."""
    return planes[:, -1].flatten(1)[:, :values]
