"""SkinNet v1 to v4 for dermoscopy: an EfficientNet-B0 with metadata; with the lesion's mask; with a second network on the lesion; both.

The papers name for v1: EfficientNet-B0, an MLP on metadata with batch norm, ReLU and dropout 0.2 in its first three layers, a fusion of
1536 values, the CNN trained first and then frozen while the metadata branch trains. For v2: a mask as fourth input channel. For v3: a
parallel CNN on the masked lesion, of 7x7 (two), 5x5 (two) and 3x3 (four) convolutions with max pooling after each, 1024 values, 64 of
which are fused, and MBConv blocks before fusion. For v4: both, with EfficientNet-B3 on the lesion.

Where they are silent:
- The MLP has four layers, of 64, 128, 256 and 256 values; 1280 of the CNN and 256 make 1536. The last layer has no norm and no dropout. It
  starts at zero, so that a network whose metadata branch is held (a stage of training) is the CNN alone.
- Fused values go to one linear layer.
- The MBConv blocks are two, of expansion 1 and 3x3, on the 1280 maps of the EfficientNet on the whole image.
- v3 looks at the whole image without the mask, v4 with it, as v2. The masked lesion is the image times its mask.
- In v4 the 1536 values of the EfficientNet-B3 become 64 by a linear layer, as the 1024 of the parallel CNN in v3.
- The parallel CNN's widths are 32, 64, 128, 256, 256, 512, 512, 1024, each convolution with norm and ReLU.
- Eight halvings by 2x2 pooling take 224 pixels to nothing if each rounds down (224, 112, 56, 28, 14, 7, 3, 1, 0). With `ceil_mode` they
  round up and end at one pixel (7, 4, 2, 1); from 64 pixels one is reached after six, and the last two poolings leave it as it is. Every
  side up to 256 ends at one pixel; what larger ones leave is averaged.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from shared.models.attention import NORMS, group_norm
from shared.models.efficientnet import EfficientNet, MBConv
from shared.models.inputs import metadata_in
from shared.models.network import Network
from shared.models.torchvision_network import TorchvisionNetwork, out_of_place
from shared.study import Study
from shared.study_metadata import width_of
from shared.torchvision_cpu import import_torchvision

_torchvision: Any = import_torchvision().models.efficientnet

Norm = Literal["batch", "group"]
Lesion = Literal["none", "parallel_cnn", "efficientnet_b3"]

METADATA_WIDTHS = (64, 128, 256, 256)
METADATA_DROPOUT = 0.2
LESION_LAYERS = ((7, 32), (7, 64), (5, 128), (5, 256), (3, 256), (3, 512), (3, 512), (3, 1024))
LESION_FUSED = 64
_MBCONV_BLOCKS = 2


def _vector_norm(channels: int, norm: Norm) -> nn.Module:
    return nn.BatchNorm1d(channels) if norm == "batch" else group_norm(channels)


class MetadataBranch(nn.Module):
    """An MLP from `(N, inputs)` to `(N, 256)`; norm, ReLU and dropout after the first three of its four layers, the last one zero at first.

    Group norm takes gcd(32, C) groups of a vector's values.
    """

    def __init__(self, inputs: int, *, norm: Norm = "batch", dropout: float = METADATA_DROPOUT) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = inputs
        for width in METADATA_WIDTHS[:-1]:
            layers += [nn.Linear(before, width), _vector_norm(width, norm), nn.ReLU(), nn.Dropout(dropout)]
            before = width
        last = nn.Linear(before, METADATA_WIDTHS[-1])
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, metadata: Tensor) -> Tensor:
        out: Tensor = self.layers(metadata)
        return out


class ParallelCnn(nn.Module):
    """The masked lesion `(N, channels, H, W)` to `(N, fused)`, by way of 1024 values."""

    def __init__(self, *, channels: int = 3, norm: Norm = "batch", fused: int = LESION_FUSED) -> None:
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


class LesionEfficientNet(nn.Module):
    """The masked lesion `(N, channels, H, W)` to `(N, fused)`, by way of the 1536 values of an EfficientNet-B3."""

    def __init__(self, *, channels: int = 3, norm: Norm = "batch", fused: int = LESION_FUSED) -> None:
        super().__init__()
        whole = EfficientNet(width=1.2, depth=1.4, outputs=1, channels=channels, norm=norm)
        self.layers = whole.get_submodule("features")
        self.projection = nn.Linear(whole.feature_dim, fused)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.projection(_pooled(self.layers(x)))
        return out


class SkinNet(TorchvisionNetwork):
    """Planes `(N, channels [+ mask] + metadata, H, W)` (`shared.models.inputs`) to logits, by way of the fused values.

    The child `features` has torchvision's keys of EfficientNet-B0, so that its weight files load into it; where such a file has one input
    channel too few, the mask counts for nothing at first. The other children are `blocks`, `lesion`, `metadata` and `fc`.
    """

    def __init__(
        self,
        *,
        outputs: int,
        metadata: int,
        channels: int = 3,
        mask: bool = False,
        lesion: Lesion = "none",
        norm: Norm = "batch",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self._channels, self._metadata_width = channels, metadata
        self._sees_mask = mask
        images = EfficientNet(width=1.0, depth=1.0, outputs=1, channels=channels + mask, norm=norm)
        self.features = images.get_submodule("features")  # type: ignore[method-assign]
        self.feature_dim = images.feature_dim + METADATA_WIDTHS[-1]
        fresh = ["metadata"]
        self.blocks: nn.Module | None = None
        self.lesion: nn.Module | None = None
        if lesion != "none":
            self.blocks = _mbconv_blocks(images.feature_dim, norm)
            kind = ParallelCnn if lesion == "parallel_cnn" else LesionEfficientNet
            self.lesion = kind(channels=channels, norm=norm)
            self.feature_dim += LESION_FUSED
            fresh += ["blocks", "lesion"]
        self.metadata = MetadataBranch(metadata, norm=norm)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(self.feature_dim, outputs)  # type: ignore[misc]
        self.fresh_layers = tuple(fresh)
        out_of_place(self)

    def features(self, x: Tensor) -> Tensor:
        """Planes to the fused values `(N, feature_dim)`: of the image, of the lesion where it is looked at, of the metadata."""
        image, mask = x[:, : self._channels], x[:, self._channels : self._channels + 1]
        maps = self.get_submodule("features")(torch.cat((image, mask), 1) if self._sees_mask else image)
        if self.blocks is not None:
            maps = self.blocks(maps)
        fused = [_pooled(maps)]
        if self.lesion is not None:
            fused.append(self.lesion(image * mask))
        fused.append(self.metadata(metadata_in(x, self._metadata_width)))
        return torch.cat(fused, 1)

    def adapted(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """torchvision's file of EfficientNet-B0 without its classifier, and with zeros for the mask's channel."""
        given = {name: tensor for name, tensor in weights.items() if not name.startswith("classifier.")}
        stem = "features.0.0.weight"
        if self._sees_mask and stem in given and given[stem].shape[1] == self._channels:
            unseen = torch.zeros_like(given[stem][:, :1])
            given[stem] = torch.cat((given[stem], unseen), 1)
        return given


def _pooled(maps: Tensor) -> Tensor:
    return nn.functional.adaptive_avg_pool2d(maps, 1).flatten(1)


def _mbconv_blocks(channels: int, norm: Norm) -> nn.Module:
    layout = _torchvision.MBConvConfig(1, 3, 1, channels, channels, 1)
    return nn.Sequential(*(MBConv(layout, 0.0, NORMS[norm]) for _ in range(_MBCONV_BLOCKS)))


def _build(study: Study, *, mask: bool, lesion: Lesion) -> Network:
    assert study.model.norm != "none"  # the registry refuses it
    return SkinNet(
        outputs=study.outputs,
        metadata=width_of(study.metadata),
        channels=study.preprocessing.channels,
        mask=mask,
        lesion=lesion,
        norm=study.model.norm,
        dropout=study.model.dropout,
    )


#: Builders of the registry; weights are drawn from torch's global generator.
skinnet_v1 = partial(_build, mask=False, lesion="none")
skinnet_v2 = partial(_build, mask=True, lesion="none")
skinnet_v3 = partial(_build, mask=False, lesion="parallel_cnn")
skinnet_v4 = partial(_build, mask=True, lesion="efficientnet_b3")
