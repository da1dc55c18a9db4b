"""SkinNet's parts: v1, an EfficientNet-B0 with metadata, and the parallel CNN that v3 runs on the masked lesion.

The papers name for v1: EfficientNet-B0, an MLP on metadata with batch norm, ReLU and dropout 0.2 in its first three layers, a fusion of
1536 values; for v3: convolutions of 7x7 (two), 5x5 (two) and 3x3 (four), max pooling after each, 1024 values, 64 of which are fused.

Where they are silent:
- The MLP has four layers, of 64, 128, 256 and 256 values; 1280 of the CNN and 256 make 1536. The last layer has no norm and no dropout.
- Fused values go to one linear layer.
- The parallel CNN's widths are 32, 64, 128, 256, 256, 512, 512, 1024, each convolution with norm and ReLU. The 64 values are a linear
  layer's on its 1024.
- Eight halvings by 2x2 pooling take 224 pixels to nothing if each rounds down (224, 112, 56, 28, 14, 7, 3, 1, 0). With `ceil_mode` they
  round up and end at one pixel (7, 4, 2, 1); from 64 pixels one is reached after six, and the last two poolings leave it as it is. Every
  side up to 256 ends at one pixel; what larger ones leave is averaged.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from shared.models.attention import NORMS, group_norm
from shared.models.efficientnet import EfficientNet

Norm = Literal["batch", "group"]

METADATA_WIDTHS = (64, 128, 256, 256)
LESION_LAYERS = ((7, 32), (7, 64), (5, 128), (5, 256), (3, 256), (3, 512), (3, 512), (3, 1024))


def _vector_norm(channels: int, norm: Norm) -> nn.Module:
    return nn.BatchNorm1d(channels) if norm == "batch" else group_norm(channels)


class MetadataBranch(nn.Module):
    """An MLP from `(N, inputs)` to `(N, 256)`; norm, ReLU and dropout after the first three of its four layers.

    Group norm takes gcd(32, C) groups of a vector's values.
    """

    def __init__(self, inputs: int, *, norm: Norm = "batch", dropout: float = 0.2) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = inputs
        for width in METADATA_WIDTHS[:-1]:
            layers += [nn.Linear(before, width), _vector_norm(width, norm), nn.ReLU(), nn.Dropout(dropout)]
            before = width
        self.layers = nn.Sequential(*layers, nn.Linear(before, METADATA_WIDTHS[-1]))

    def forward(self, metadata: Tensor) -> Tensor:
        out: Tensor = self.layers(metadata)
        return out


class SkinNetV1(nn.Module):
    """Images and metadata to logits. `features` has torchvision's keys of EfficientNet-B0, so that its weight files load into it.

    The paper trains the CNN first (a study of efficientnet_b0), then freezes it here: `freeze_images` is for good.
    """

    def __init__(
        self, *, outputs: int, metadata: int, channels: int = 3, norm: Norm = "batch", dropout: float = 0.2
    ) -> None:
        super().__init__()
        images = EfficientNet(width=1.0, depth=1.0, outputs=1, channels=channels, norm=norm)
        self.features = images.get_submodule("features")
        self.metadata = MetadataBranch(metadata, norm=norm, dropout=dropout)
        self.fusion_dim = images.feature_dim + METADATA_WIDTHS[-1]
        self.fc = nn.Linear(self.fusion_dim, outputs)
        self.images_frozen = False

    def fused(self, images: Tensor, metadata: Tensor) -> Tensor:
        """`(N, channels, H, W)` and `(N, metadata)` to `(N, 1536)`."""
        pooled = nn.functional.adaptive_avg_pool2d(self.features(images), 1).flatten(1)
        return torch.cat((pooled, self.metadata(metadata)), 1)

    def forward(self, images: Tensor, metadata: Tensor) -> Tensor:
        """`(N, channels, H, W)` and `(N, metadata)` to logits `(N, outputs)`."""
        logits: Tensor = self.fc(self.fused(images, metadata))
        return logits

    def freeze_images(self) -> None:
        """The CNN's parameters need no gradient and its norms stay in eval mode from here on."""
        for parameter in self.features.parameters():
            parameter.requires_grad_(False)
        self.images_frozen = True
        self.train(self.training)

    def train(self, mode: bool = True) -> SkinNetV1:
        """As nn.Module.train, except that a frozen CNN stays in eval mode."""
        super().train(mode)
        if self.images_frozen:
            self.features.eval()
        return self


class ParallelCnn(nn.Module):
    """The masked lesion `(N, channels, H, W)` to `(N, fused)`, by way of 1024 values."""

    def __init__(self, *, channels: int = 3, norm: Norm = "batch", fused: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = channels
        for kernel, width in LESION_LAYERS:
            convolution = nn.Conv2d(before, width, kernel, padding=kernel // 2, bias=False)
            layers += [convolution, NORMS[norm](width), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)]
            before = width
        self.layers = nn.Sequential(*layers)
        self.projection = nn.Linear(before, fused)

    def lesion(self, x: Tensor) -> Tensor:
        """`(N, channels, H, W)` to `(N, 1024)`."""
        maps: Tensor = self.layers(x)
        return maps.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.projection(self.lesion(x))
        return out
