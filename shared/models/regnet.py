"""torchvision's RegNetY-400MF: Radosavovic et al., "Designing Network Design Spaces", CVPR 2020 (arXiv:2003.13678).

Squeeze-and-excitation belongs to the blocks of the Y family.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from shared.models.attention import NORMS
from shared.models.network import Network
from shared.models.torchvision_network import out_of_place, with_channels
from shared.study import Study
from shared.torchvision_cpu import import_torchvision

_torchvision: Any = import_torchvision().models.regnet
TorchvisionRegNet: TypeAlias = _torchvision.RegNet

#: Radosavovic et al., table 8, RegNetY-400MF.
_Y_400MF = {"depth": 16, "w_0": 48, "w_a": 27.89, "w_m": 2.09, "group_width": 8, "se_ratio": 0.25}


class RegNet(Network, TorchvisionRegNet):  # type: ignore[misc]
    """torchvision's RegNetY-400MF as a Network of 440 features."""

    stem: Any
    trunk_output: nn.Module
    avgpool: nn.Module

    def __init__(
        self, *, outputs: int, channels: int = 3, norm: Literal["batch", "group"] = "batch", dropout: float = 0.0
    ) -> None:
        blocks = _torchvision.BlockParams.from_init_params(**_Y_400MF)
        super().__init__(blocks, num_classes=outputs, norm_layer=NORMS[norm])
        self.feature_dim = self.fc.in_features
        self.dropout = nn.Dropout(dropout)
        self.stem[0] = with_channels(self.stem[0], channels)
        out_of_place(self)

    def features(self, x: Tensor) -> Tensor:
        """Global average pooling of the last stage: `(N, channels, H, W)` to `(N, 440)`."""
        pooled: Tensor = self.avgpool(self.trunk_output(self.stem(x)))
        return pooled.flatten(1)


def regnet_y_400mf(study: Study) -> Network:
    """RegNetY-400MF with the study's norm, weights drawn from torch's global generator."""
    assert study.model.norm != "none"  # the registry refuses it
    return RegNet(
        outputs=study.outputs,
        channels=study.input_shape[0],
        norm=study.model.norm,
        dropout=study.model.dropout,
    )
