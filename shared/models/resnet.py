"""torchvision's ResNets with attention and norm as options, and the same state_dict keys.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016 (arXiv:1512.03385); ResNeXt: Xie, Girshick, Dollár, Tu, He,
"Aggregated Residual Transformations for Deep Neural Networks", CVPR 2017 (arXiv:1611.05431). The blocks are torchvision's; their
`forward` is out of place (`out + identity`, ReLU not in place), because Opacus' backward hooks refuse tensors that were changed in place.

Where attention stands:
- `before_add` (CBAM's and SE's own papers): on the residual branch, before the shortcut is added.
- `after_block`: on the block's output, after the add and its ReLU; blocks hold it as `attention` in both cases.
- `stage_outputs`: one module after each of the four stages, `attention1` to `attention4` of the network.

Where a Haar transform stands (`wavelet`, see shared/models/wavelet.py):
- `haar` and `haar_attention`: on the input, whose side it halves; with `haar`, `conv1` has four times the channels.
- `haar_features`: in place of max pooling, after `conv1`, its norm and ReLU.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from shared.models.attention import NORMS, build_attention
from shared.models.network import Network
from shared.models.wavelet import HaarAttention, HaarBands, HaarPooling
from shared.study import Study
from shared.torchvision_cpu import import_torchvision

# Not annotated by torchvision, so its classes are Any to the type checker.
_torchvision: Any = import_torchvision().models.resnet
TorchvisionBasicBlock: TypeAlias = _torchvision.BasicBlock
TorchvisionBottleneck: TypeAlias = _torchvision.Bottleneck
TorchvisionResNet: TypeAlias = _torchvision.ResNet

Place = Literal["after_block", "before_add", "stage_outputs"]
Stem = Literal["plain", "haar", "haar_attention", "haar_features"]


class _Block(nn.Module):
    """What both blocks share: the shortcut, and where attention stands."""

    downsample: nn.Module | None
    attention: nn.Module | None
    place: Place
    relu: nn.Module

    def residual(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` to `(N, C', H / stride, W / stride)`."""
        identity = x if self.downsample is None else self.downsample(x)
        out = self.residual(x)
        if self.attention is not None and self.place == "before_add":
            out = self.attention(out)
        out = self.relu(out + identity)
        if self.attention is not None and self.place == "after_block":
            out = self.attention(out)
        attended: Tensor = out
        return attended

    def place_attention(self, attention: nn.Module | None, place: Place) -> None:
        self.attention = attention
        self.place = place


class BasicBlock(_Block, TorchvisionBasicBlock):  # type: ignore[misc]
    """torchvision's BasicBlock, out of place, with attention."""

    conv1: nn.Module
    bn1: nn.Module
    conv2: nn.Module
    bn2: nn.Module

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.relu = nn.ReLU()
        self.place_attention(None, "before_add")

    def residual(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return out


class Bottleneck(_Block, TorchvisionBottleneck):  # type: ignore[misc]
    """torchvision's Bottleneck (stride on the 3x3 convolution), out of place, with attention."""

    conv1: nn.Module
    bn1: nn.Module
    conv2: nn.Module
    bn2: nn.Module
    conv3: nn.Module
    bn3: nn.Module

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.relu = nn.ReLU()
        self.place_attention(None, "before_add")

    def residual(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        last: Tensor = self.bn3(self.conv3(out))
        return last


class ResNet(Network, TorchvisionResNet):  # type: ignore[misc]
    """torchvision's ResNet as a Network: `feature_dim` is 512 for basic blocks and 2048 for bottlenecks."""

    conv1: nn.Module
    bn1: nn.Module
    relu: nn.Module
    maxpool: nn.Module
    avgpool: nn.Module
    wavelet: nn.Module | None

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: tuple[int, int, int, int],
        *,
        outputs: int,
        channels: int = 3,
        attention: Literal["none", "se", "cbam"] = "none",
        place: Place = "before_add",
        stem: Stem = "plain",
        norm: Literal["batch", "group"] = "batch",
        dropout: float = 0.0,
        **widths: int,
    ) -> None:
        super().__init__(block, list(layers), num_classes=outputs, norm_layer=NORMS[norm], **widths)
        self.feature_dim = self.fc.in_features
        self.dropout = nn.Dropout(dropout)
        self.relu = nn.ReLU()
        self._place_wavelet(stem, channels, norm)
        if stem == "haar":
            channels = 4 * channels
        if channels != 3:
            first = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(first.weight, mode="fan_out", nonlinearity="relu")
            self.conv1 = first
        self._attended = attention != "none" and place == "stage_outputs"
        if attention == "none":
            return
        for index in range(1, 5):
            width = 64 * 2 ** (index - 1) * block.expansion
            if place == "stage_outputs":
                self.add_module(f"attention{index}", build_attention(attention, width, norm_layer=NORMS[norm]))
                continue
            for child in self.get_submodule(f"layer{index}").children():
                assert isinstance(child, _Block)
                child.place_attention(build_attention(attention, width, norm_layer=NORMS[norm]), place)

    def _place_wavelet(self, stem: Stem, channels: int, norm: Literal["batch", "group"]) -> None:
        self.wavelet = None
        self._on_features = stem == "haar_features"
        if stem == "haar":
            self.wavelet = HaarBands()
            self.fresh_layers = ("conv1",)
        elif stem == "haar_attention":
            self.wavelet = HaarAttention(channels)
            self.fresh_layers = ("wavelet",)
        elif stem == "haar_features":
            self.wavelet = HaarPooling(64, norm_layer=NORMS[norm])
            self.fresh_layers = ("wavelet",)

    def features(self, x: Tensor) -> Tensor:
        """Global average pooling of the last stage: `(N, channels, H, W)` to `(N, feature_dim)`."""
        if self.wavelet is not None and not self._on_features:
            x = self.wavelet(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.wavelet(x) if self.wavelet is not None and self._on_features else self.maxpool(x)
        for index in range(1, 5):
            x = self.get_submodule(f"layer{index}")(x)
            if self._attended:
                x = self.get_submodule(f"attention{index}")(x)
        pooled: Tensor = self.avgpool(x)
        return pooled.flatten(1)


def _build(
    block: type[BasicBlock] | type[Bottleneck], layers: tuple[int, int, int, int], study: Study, **widths: int
) -> ResNet:
    model = study.model
    assert model.norm != "none"  # the registry refuses it
    return ResNet(
        block,
        layers,
        outputs=study.outputs,
        channels=study.input_shape[0],
        attention=model.attention,
        place=model.cbam_at or model.se_at or "before_add",
        stem=model.stem,
        norm=model.norm,
        dropout=model.dropout,
        **widths,
    )


def resnet18(study: Study) -> Network:
    """ResNet-18 with the study's options, weights drawn from torch's global generator."""
    return _build(BasicBlock, (2, 2, 2, 2), study)


def resnet34(study: Study) -> Network:
    """ResNet-34 with the study's options, weights drawn from torch's global generator."""
    return _build(BasicBlock, (3, 4, 6, 3), study)


def resnet50(study: Study) -> Network:
    """ResNet-50 with the study's options, weights drawn from torch's global generator."""
    return _build(Bottleneck, (3, 4, 6, 3), study)


def resnext50_32x4d(study: Study) -> Network:
    """ResNeXt-50 (32x4d) with the study's options, weights drawn from torch's global generator."""
    return _build(Bottleneck, (3, 4, 6, 3), study, groups=32, width_per_group=4)
