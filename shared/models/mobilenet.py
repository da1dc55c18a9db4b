"""torchvision's MobileNetV2: Sandler, Howard, Zhu, Zhmoginov, Chen, CVPR 2018 (arXiv:1801.04381)."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from shared.models.attention import NORMS
from shared.models.network import Network
from shared.models.torchvision_network import PooledNetwork
from shared.study import Study
from shared.torchvision_cpu import import_torchvision

_torchvision: Any = import_torchvision().models.mobilenetv2
TorchvisionMobileNetV2: TypeAlias = _torchvision.MobileNetV2


class MobileNetV2(PooledNetwork, TorchvisionMobileNetV2):  # type: ignore[misc]
    """torchvision's MobileNetV2 of width 1 as a Network of 1280 features."""

    def __init__(
        self, *, outputs: int, channels: int = 3, norm: Literal["batch", "group"] = "batch", dropout: float = 0.0
    ) -> None:
        super().__init__(num_classes=outputs, norm_layer=NORMS[norm])
        self.finish(channels=channels, dropout=dropout)


def mobilenet_v2(study: Study) -> Network:
    """MobileNetV2 with the study's norm, weights drawn from torch's global generator."""
    assert study.model.norm != "none"  # the registry refuses it
    return MobileNetV2(
        outputs=study.outputs,
        channels=study.input_shape[0],
        norm=study.model.norm,
        dropout=study.model.dropout,
    )
