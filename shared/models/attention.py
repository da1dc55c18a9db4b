"""Attention modules for residual networks.

Squeeze-and-excitation: Hu, Shen, Sun, "Squeeze-and-Excitation Networks", CVPR 2018 (arXiv:1709.01507), equations 2 to 4.
CBAM: Woo, Park, Lee, Kweon, "CBAM: Convolutional Block Attention Module", ECCV 2018 (arXiv:1807.06521), equations 1 to 3.

Where the papers are silent: the last bias of every gate starts such that an undriven gate is sigmoid(2) = 0.88 instead of 0.5. CBAM has
two gates, and with `after_block` a ResNet-34 has 16 of them on the path of its identity shortcuts: 0.25 to the power of 16 would cut that
path off, while 0.88 keeps it alive and the gate still far from saturation, so that it learns. Other weights start as in the reference code.
Linear layers are 1x1 convolutions, because Opacus' ghost mode refuses a Linear that is called twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

NormLayer = Callable[[int], nn.Module]

#: Input of the sigmoid of an undriven gate.
_OPEN = 2.0
#: The same where a gate is to be the identity: sigmoid(12) differs from 1 by 6e-6.
_WIDE_OPEN = 12.0


class Attention(nn.Module):
    """A module that scales `(N, C, H, W)` features by gates in (0, 1), computed for each image on its own (batch norm apart)."""

    def hold_open(self) -> None:
        """Make every gate a constant within 1e-5 of 1. For modules in a frozen layer that no weight file filled:

        a frozen untrained gate that depends on the image would only distort the frozen layer.
        """
        raise NotImplementedError


def batch_norm(channels: int) -> nn.Module:
    """BatchNorm2d with torchvision's settings."""
    return nn.BatchNorm2d(channels)


def group_norm(channels: int) -> nn.Module:
    """GroupNorm with gcd(32, C) groups, Opacus' replacement of batch norm (Wu, He, "Group Normalization", 2018: 32 groups)."""
    return nn.GroupNorm(math.gcd(32, channels), channels)


NORMS: dict[Literal["batch", "group"], NormLayer] = {"batch": batch_norm, "group": group_norm}


def _bottleneck(channels: int, reduction: int, bias: float) -> nn.Sequential:
    """Two 1x1 convolutions with a ReLU between; max(1, C // reduction) hidden channels; `bias` on the output."""
    hidden = max(1, channels // reduction)
    layers = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, channels, 1))
    _set_bias(layers, bias)
    return layers


def _set_bias(layers: nn.Sequential, bias: float) -> None:
    last = layers[-1].bias
    assert isinstance(last, Tensor)
    nn.init.constant_(last, bias)


def _silence(module: nn.Module, bias: float) -> None:
    """Zero weight, constant bias: the module's output no longer depends on its input."""
    weight, shift = module.weight, module.bias
    assert isinstance(weight, Tensor) and isinstance(shift, Tensor)
    nn.init.zeros_(weight)
    nn.init.constant_(shift, bias)


class SqueezeExcitation(Attention):
    """x * sigmoid(W2 relu(W1 mean(x))): one gate a channel, from the mean over the image (Hu et al., equations 2 to 4)."""

    def __init__(self, channels: int, *, reduction: int = 16) -> None:
        super().__init__()
        self.mlp = _bottleneck(channels, reduction, _OPEN)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` to `(N, C, H, W)`."""
        return x * torch.sigmoid(self.mlp(nn.functional.adaptive_avg_pool2d(x, 1)))

    def hold_open(self) -> None:
        _silence(self.mlp[2], _WIDE_OPEN)


def _channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _over_pixels(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and maximum over the pixels of each channel, both `(N, C, 1, 1)`. A tie's gradient goes to its first pixel."""
    # These and no other forms, because their gradients keep the memory format of x: half the time of amax and mean.
    mean = nn.functional.avg_pool2d(x, x.shape[2:]) if _channels_last(x) else x.mean((2, 3), keepdim=True)
    return mean, nn.functional.adaptive_max_pool2d(x, 1)


def _over_channels(x: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum and mean over the channels of each pixel, both `(N, 1, H, W)`. A tie's gradient goes to its first channel."""
    if _channels_last(x):
        pixels = x.permute(0, 2, 3, 1)
        return pixels.max(3).values.unsqueeze(1), pixels.mean(3).unsqueeze(1)
    return x.max(1, keepdim=True).values, x.mean(1, keepdim=True)


class ChannelAttention(nn.Module):
    """x * sigmoid(mlp(mean(x)) + mlp(max(x))), the MLP shared (Woo et al., equation 2)."""

    def __init__(self, channels: int, *, reduction: int = 16) -> None:
        super().__init__()
        self.mlp = _bottleneck(channels, reduction, _OPEN / 2)  # the bias counts twice: the MLP is applied twice

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` to `(N, C, H, W)`."""
        average, greatest = _over_pixels(x)
        return x * torch.sigmoid(self.mlp(average) + self.mlp(greatest))


class SpatialAttention(nn.Module):
    """x * sigmoid(norm(conv7x7([mean over channels, max over channels]))) (Woo et al., equation 3).

    The norm is of the authors' code, not in the paper's text.
    """

    def __init__(self, *, norm_layer: NormLayer) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.norm = norm_layer(1)
        nn.init.constant_(self.norm.bias, _OPEN)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` to `(N, C, H, W)`."""
        weighed: Tensor = self.conv(torch.cat(_over_channels(x), 1))
        if isinstance(self.norm, nn.GroupNorm) and weighed.shape[2:] == (1, 1):
            # The norm of a single value is its bias, but torch refuses it for a single image; of two equal values it does not.
            return x * torch.sigmoid(self.norm(weighed.expand(-1, -1, 1, 2))[..., :1])
        return x * torch.sigmoid(self.norm(weighed))


class CBAM(Attention):
    """Channel attention, then spatial attention (Woo et al., equation 1); reduction 16 and a 7x7 kernel as in the paper."""

    def __init__(self, channels: int, *, norm_layer: NormLayer, reduction: int = 16) -> None:
        super().__init__()
        self.channel = ChannelAttention(channels, reduction=reduction)
        self.spatial = SpatialAttention(norm_layer=norm_layer)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` to `(N, C, H, W)`."""
        attended: Tensor = self.spatial(self.channel(x))
        return attended

    def hold_open(self) -> None:
        _silence(self.channel.mlp[2], _WIDE_OPEN / 2)
        _silence(self.spatial.norm, _WIDE_OPEN)


def build_attention(kind: Literal["se", "cbam"], channels: int, *, norm_layer: NormLayer) -> Attention:
    """The attention module of a study's `model.attention` for `channels` channels."""
    if kind == "se":
        return SqueezeExcitation(channels)
    return CBAM(channels, norm_layer=norm_layer)
