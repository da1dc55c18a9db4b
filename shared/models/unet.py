"""Split-Attention U-Net: from an image to the logits of a mask. SkinNet v2 takes the thresholded mask as its fourth input channel.

The paper names depthwise 5x5 and pointwise convolutions and split attention in the first layer. Its relative DCSAU-Net (Xu et al.,
Computers in Biology and Medicine, 2023, arXiv:2202.00972) gives radix 2, encoder widths 128/256/512/512, bilinear upsampling and a 1x1
head. Split attention: Zhang et al., "ResNeSt: Split-Attention Networks", 2020 (arXiv:2004.08955), section 3.1, cardinality 1. U-Net:
Ronneberger, Fischer, Brox, MICCAI 2015 (arXiv:1505.04597).

Where the papers are silent:
- "The first layer" is the first block of the encoder, at full resolution; the other blocks have none.
- A block is two depthwise separable convolutions; decoder blocks have the width of the encoder's at the same resolution.
- Between the two linear layers of split attention there is no norm: they see one vector an image, which group norm of one channel a
  group would make zero and batch norm would tie to the other images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from shared.errors import StudyError
from shared.models.attention import NORMS, NormLayer
from shared.models.network import FederatedNetwork
from shared.models.separable import SeparableConvolution
from shared.study import Study

WIDTHS = (128, 256, 512, 512)


class SplitAttention(nn.Module):
    """Weighs `radix` feature maps of the same image against each other, channel by channel, by a softmax over them.

    `(N, radix * C, H, W)` to `(N, C, H, W)`: the sum over r of a_r * U_r, with a from the pooled sum of all U (Zhang et al., equations 1
    and 2). The hidden layer has max(32, radix * C / 4) channels, as in the authors' code.
    """

    def __init__(self, channels: int, *, radix: int = 2) -> None:
        super().__init__()
        self.radix = radix
        hidden = max(32, radix * channels // 4)
        self.squeeze = nn.Conv2d(channels, hidden, 1)
        self.excite = nn.Conv2d(hidden, radix * channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        splits = torch.stack(x.chunk(self.radix, 1), 1)
        pooled = splits.sum(1).mean((2, 3), keepdim=True)
        scores: Tensor = self.excite(nn.functional.relu(self.squeeze(pooled)))
        weights = torch.stack(scores.chunk(self.radix, 1), 1).softmax(1)
        return (splits * weights).sum(1)


class Block(nn.Module):
    """Two 5x5 depthwise separable convolutions, with split attention of radix 2 between them where `split`.

    `(N, C, H, W)` to `(N, C', H, W)`.
    """

    def __init__(self, in_channels: int, out_channels: int, *, norm_layer: NormLayer, split: bool = False) -> None:
        super().__init__()
        width = 2 * out_channels if split else out_channels
        self.first = SeparableConvolution(in_channels, width, kernel=5, norm_layer=norm_layer)
        self.attention: nn.Module = SplitAttention(out_channels) if split else nn.Identity()
        self.second = SeparableConvolution(out_channels, out_channels, kernel=5, norm_layer=norm_layer)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.attention(self.first(x)))
        return out


class SplitAttentionUNet(FederatedNetwork):
    """`(N, channels, H, W)` to mask logits `(N, 1, H, W)`. The sides need not be powers of two; both are at least 2 ** (levels - 1)."""

    head_name: ClassVar[str] = "head"

    def __init__(
        self, *, channels: int = 3, widths: Sequence[int] = WIDTHS, norm: Literal["batch", "group"] = "batch"
    ) -> None:
        super().__init__()
        if len(widths) < 2:
            raise ValueError(f"expected at least two widths, but got {len(widths)}")
        norm_layer = NORMS[norm]
        inputs = (channels, *widths[:-1])
        self.encoder = nn.ModuleList(
            Block(before, width, norm_layer=norm_layer, split=level == 0)
            for level, (before, width) in enumerate(zip(inputs, widths, strict=True))
        )
        self.pool = nn.MaxPool2d(2)
        # From the deepest level upwards; each takes the level below it and its skip connection.
        self.decoder = nn.ModuleList(
            Block(widths[level + 1] + widths[level], widths[level], norm_layer=norm_layer)
            for level in reversed(range(len(widths) - 1))
        )
        self.head = nn.Conv2d(widths[0], 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for level, block in enumerate(self.encoder):
            x = block(x if level == 0 else self.pool(x))
            skips.append(x)
        skips.pop()
        for block in self.decoder:
            skip = skips.pop()
            raised = nn.functional.interpolate(x, size=skip.shape[2:], mode="bilinear", align_corners=False)
            x = block(torch.cat((raised, skip), 1))
        logits: Tensor = self.head(x)
        return logits


def split_attention_unet(study: Study) -> SplitAttentionUNet:
    """The study's U-Net, weights drawn from torch's global generator. Raises StudyError where its images are too small for its levels."""
    model, pixels = study.model, study.preprocessing
    assert model.norm != "none"  # the registry refuses it
    widths = WIDTHS if model.widths is None else tuple(model.widths)
    smallest: int = 2 ** (len(widths) - 1)
    if pixels.size < smallest:
        raise StudyError(
            f"model.widths: {len(widths)} levels need images of at least {smallest} pixels a side, but preprocessing.size is {pixels.size}"
        )
    return SplitAttentionUNet(channels=study.input_shape[0], widths=widths, norm=model.norm)
