"""CNN-ViT: a small convolutional stem and a transformer encoder, the comparison that two of the papers name without a layout.

Chosen here: four 3x3 convolutions with stride 2 (32, 64, 128, 256 channels, each with norm and ReLU) in place of ViT's 16x16 patches, as in
Xiao et al., "Early Convolutions Help Transformers See Better", NeurIPS 2021 (arXiv:2106.14881), then a 1x1 convolution to tokens of width
256, a class token, and six encoder blocks of 8 heads with an MLP of 1024 (Dosovitskiy et al., ICLR 2021). Patches of 16 pixels, as
ViT-B/16's.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from shared.errors import StudyError
from shared.models.attention import NORMS
from shared.models.network import Network
from shared.models.transformer import ClassToken, Encoder
from shared.study import Study

STEM = (32, 64, 128, 256)
WIDTH = 256
PATCH = 2 ** len(STEM)


class CnnViT(Network):
    """Stem, tokens, encoder; features are the class token's 256 values."""

    def __init__(
        self,
        *,
        outputs: int,
        size: int,
        channels: int = 3,
        norm: Literal["batch", "group"] = "batch",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = channels
        for width in STEM:
            convolution = nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            layers += [convolution, NORMS[norm](width), nn.ReLU()]
            before = width
        self.stem = nn.Sequential(*layers)
        self.projection = nn.Conv2d(before, WIDTH, 1)
        self.class_token = ClassToken(WIDTH)
        self.encoder = Encoder((size // PATCH) ** 2 + 1, depth=6, heads=8, width=WIDTH, hidden=1024)
        self.feature_dim = WIDTH
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(WIDTH, outputs)

    def features(self, x: Tensor) -> Tensor:
        """`(N, channels, size, size)` to `(N, 256)`."""
        tokens = self.projection(self.stem(x)).flatten(2).transpose(1, 2)
        encoded: Tensor = self.encoder(self.class_token(tokens))
        return encoded[:, 0]


def cnn_vit(study: Study) -> Network:
    """CNN-ViT with the study's norm, weights drawn from torch's global generator. Raises StudyError for a side it can't divide by 16."""
    size = study.preprocessing.size
    if size % PATCH:
        raise StudyError(
            f"preprocessing.size: cnn_vit makes one token of {PATCH} x {PATCH} pixels, but the side is {size}"
        )
    assert study.model.norm != "none"  # the registry refuses it
    return CnnViT(
        outputs=study.outputs,
        size=size,
        channels=study.input_shape[0],
        norm=study.model.norm,
        dropout=study.model.dropout,
    )
