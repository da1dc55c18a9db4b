"""RcdNet, an interpretation: residual blocks of depthwise separable convolutions with CBAM, for breast ultrasound.

Of the paper only the abstract is public: depthwise separable convolution combined with CBAM, compared with ResNet, MobileNet, RegNet, ViT
and ResNeXt. All below is ours:
- The layout is ResNet-18's (four stages of two blocks, widths 64 to 512, halved between stages), so that what differs from a ResNet is
  the convolution and the attention, which is what the name says.
- A block is two 3x3 depthwise separable convolutions, CBAM on the branch before the add (as in CBAM's own paper), the shortcut, ReLU.
- The stem is one 3x3 convolution with stride 2 and max pooling: ultrasound images come in few pixels.

CBAM is part of the network and not an option, so that `model.attention` is none.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from shared.models.attention import CBAM, NORMS, NormLayer
from shared.models.network import Network
from shared.models.separable import SeparableConvolution
from shared.study import Study

WIDTHS = (64, 128, 256, 512)
DEPTH = 2


class ResidualCbamBlock(nn.Module):
    """`(N, C, H, W)` to `(N, C', ceil(H / stride), ceil(W / stride))`."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, norm_layer: NormLayer) -> None:
        super().__init__()
        self.convolution1 = SeparableConvolution(
            in_channels, out_channels, kernel=3, stride=stride, norm_layer=norm_layer
        )
        self.convolution2 = SeparableConvolution(
            out_channels, out_channels, kernel=3, norm_layer=norm_layer, activate=False
        )
        self.attention = CBAM(out_channels, norm_layer=norm_layer)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), norm_layer(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        branch = self.attention(self.convolution2(self.convolution1(x)))
        return nn.functional.relu(branch + self.shortcut(x))


class RcdNet(Network):
    """Stem, four stages of residual blocks, global average pooling: 512 features."""

    def __init__(
        self, *, outputs: int, channels: int = 3, norm: Literal["batch", "group"] = "batch", dropout: float = 0.0
    ) -> None:
        super().__init__()
        norm_layer = NORMS[norm]
        self.stem = nn.Sequential(
            nn.Conv2d(channels, WIDTHS[0], 3, stride=2, padding=1, bias=False), norm_layer(WIDTHS[0]), nn.ReLU()
        )
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        before = WIDTHS[0]
        for index, width in enumerate(WIDTHS):
            blocks = [
                ResidualCbamBlock(
                    before if block == 0 else width,
                    width,
                    stride=2 if block == 0 and index > 0 else 1,
                    norm_layer=norm_layer,
                )
                for block in range(DEPTH)
            ]
            self.add_module(f"stage{index + 1}", nn.Sequential(*blocks))
            before = width
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is None:  # the biased ones are CBAM's
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.feature_dim = WIDTHS[-1]
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(self.feature_dim, outputs)

    def features(self, x: Tensor) -> Tensor:
        """Global average pooling of the last stage: `(N, channels, H, W)` to `(N, 512)`."""
        x = self.maxpool(self.stem(x))
        for index in range(len(WIDTHS)):
            x = self.get_submodule(f"stage{index + 1}")(x)
        return x.mean((2, 3))


def rcdnet(study: Study) -> Network:
    """RcdNet with the study's norm, weights drawn from torch's global generator."""
    assert study.model.norm != "none"  # the registry refuses it
    return RcdNet(
        outputs=study.outputs,
        channels=study.input_shape[0],
        norm=study.model.norm,
        dropout=study.model.dropout,
    )
