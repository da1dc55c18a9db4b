"""ViT-B/16 with torchvision's state_dict: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021 (arXiv:2010.11929).

The image's side may be any multiple of 16: position embeddings of weights for another side are interpolated, as in the paper's section 3.2.
The head starts with a deviation of 0.02 and not at zero as torchvision's, so that the first step already reaches every layer. Layer norm
is part of the architecture, so that `model.norm` must be none.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from shared.errors import StudyError
from shared.models.network import Network
from shared.models.torchvision_network import TorchvisionNetwork
from shared.models.transformer import ClassToken, Encoder, publish_as
from shared.study import Study
from shared.torchvision_cpu import import_torchvision

_torchvision: Any = import_torchvision().models.vision_transformer


class VisionTransformer(TorchvisionNetwork):
    """A transformer on patches; features are the class token's `width` values after the encoder."""

    head_name = "heads.head"

    def __init__(
        self,
        *,
        outputs: int,
        size: int,
        channels: int = 3,
        patch: int = 16,
        depth: int = 12,
        heads: int = 12,
        width: int = 768,
        hidden: int = 3072,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.size, self.patch = size, patch
        self.class_token = ClassToken(width)
        self.conv_proj = nn.Conv2d(channels, width, patch, stride=patch)
        length = (size // patch) ** 2 + 1
        self.encoder = Encoder(length, depth=depth, heads=heads, width=width, hidden=hidden)
        self.heads = nn.Sequential(OrderedDict(head=nn.Linear(width, outputs)))
        self.feature_dim = width
        self.dropout = nn.Dropout(dropout)
        nn.init.trunc_normal_(self.conv_proj.weight, std=math.sqrt(1 / (channels * patch * patch)))
        nn.init.zeros_(self.conv_proj.bias)  # type: ignore[arg-type]
        nn.init.trunc_normal_(self.fc.weight, std=0.02)
        nn.init.zeros_(self.fc.bias)
        publish_as(self, {"class_token.weight": "class_token"})

    def features(self, x: Tensor) -> Tensor:
        """`(N, channels, size, size)` to `(N, width)`."""
        tokens = self.conv_proj(x).flatten(2).transpose(1, 2)
        encoded: Tensor = self.encoder(self.class_token(tokens))
        return encoded[:, 0]

    def adapted(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights with their position embedding interpolated (bicubic) to this network's number of patches."""
        given = weights.get("encoder.pos_embedding")
        if given is None or given.ndim != 3 or given.shape[0] != 1 or given.shape[1] < 2:
            return dict(weights)
        patches = given.shape[1] - 1
        if math.isqrt(patches) ** 2 != patches:
            return dict(weights)
        return dict(_torchvision.interpolate_embeddings(self.size, self.patch, OrderedDict(weights)))


def vit_b_16(study: Study) -> Network:
    """ViT-B/16 for the study's image size, weights drawn from torch's global generator. Raises StudyError for a side it can't divide."""
    size = study.preprocessing.size
    if size % 16:
        raise StudyError(f"preprocessing.size: vit_b_16 divides the image into patches of 16, but the side is {size}")
    return VisionTransformer(
        outputs=study.outputs, size=size, channels=study.input_shape[0], dropout=study.model.dropout
    )
