"""One level of the Haar wavelet transform, and the three places where a ResNet's stem can use it.

The transform is orthonormal (Mallat, "A Theory for Multiresolution Signal Decomposition", IEEE PAMI 11(7), 1989) and equals PyWavelets'
`dwt2(x, "haar")` in its default mode. Names: the first letter is the filter along the width, the second along the height, so that LH holds
horizontal edges (PyWavelets' cH) and HL vertical ones (cV).

The paper of WA-ResNet-50 puts the transform on the input in one place and on feature maps in another: `HaarBands` is the first,
`HaarPooling` the second. It gives no equation for wavelet attention; `HaarAttention` follows the idea of Zhao et al., "Wavelet-Attention
CNN for Image Classification", 2022 (arXiv:2201.09271): attention comes from the high bands, LL is kept. Its gate, a 1x1 convolution and a
sigmoid, is ours.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from shared.models.attention import NormLayer


class Bands(NamedTuple):
    """Each `(N, C, ceil(H / 2), ceil(W / 2))`."""

    ll: Tensor
    lh: Tensor
    hl: Tensor
    hh: Tensor


def haar_bands(x: Tensor) -> Bands:
    """The four bands of `(N, C, H, W)`. An odd last row or column is repeated once, which is PyWavelets' symmetric mode."""
    height, width = x.shape[2:]
    if height % 2 or width % 2:
        x = nn.functional.pad(x, (0, width % 2, 0, height % 2), mode="replicate")
    above_left, above_right = x[..., ::2, ::2], x[..., ::2, 1::2]
    below_left, below_right = x[..., 1::2, ::2], x[..., 1::2, 1::2]
    above, below = above_left + above_right, below_left + below_right
    falling, rising = above_left - above_right, below_left - below_right
    return Bands((above + below) / 2, (above - below) / 2, (falling + rising) / 2, (falling - rising) / 2)


class HaarBands(nn.Module):
    """`(N, C, H, W)` to `(N, 4 C, ceil(H / 2), ceil(W / 2))`: LL of every channel, then LH, HL and HH."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(haar_bands(x), 1)


class HaarAttention(nn.Module):
    """LL * (1 + sigmoid(conv1x1([LH, HL, HH]))): `(N, C, H, W)` to `(N, C, ceil(H / 2), ceil(W / 2))`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        low, *high = haar_bands(x)
        return low + low * torch.sigmoid(self.conv(torch.cat(high, 1)))


class HaarPooling(nn.Module):
    """Halves feature maps in place of max pooling: the four bands, a 1x1 convolution back to C channels, norm and ReLU.

    `(N, C, H, W)` to `(N, C, ceil(H / 2), ceil(W / 2))`.
    """

    def __init__(self, channels: int, *, norm_layer: NormLayer) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4 * channels, channels, 1, bias=False)
        self.norm = norm_layer(channels)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.norm(self.conv(torch.cat(haar_bands(x), 1))))
