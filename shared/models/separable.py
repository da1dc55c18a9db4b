"""Depthwise separable convolution: Howard et al., "MobileNets", 2017 (arXiv:1704.04861), section 3.1."""

from __future__ import annotations

from torch import Tensor, nn

from shared.models.attention import NormLayer


class SeparableConvolution(nn.Module):
    """A convolution of each channel alone, then a 1x1 convolution across channels, each followed by norm and ReLU.

    `(N, C, H, W)` to `(N, C', ceil(H / stride), ceil(W / stride))`; the kernel is odd. `activate=False` leaves the last ReLU out.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int,
        norm_layer: NormLayer,
        stride: int = 1,
        activate: bool = True,
    ) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            in_channels, in_channels, kernel, stride=stride, padding=kernel // 2, groups=in_channels, bias=False
        )
        self.norm1 = norm_layer(in_channels)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.norm2 = norm_layer(out_channels)
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu(self.norm1(self.depthwise(x)))
        x = self.norm2(self.pointwise(x))
        return nn.functional.relu(x) if self.activate else x
