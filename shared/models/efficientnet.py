"""torchvision's EfficientNet-B0 and -B3: Tan, Le, "EfficientNet: Rethinking Model Scaling for CNNs", ICML 2019 (arXiv:1905.11946).

Squeeze-and-excitation belongs to the blocks. In training, torchvision's stochastic depth drops residual branches of single images with a
probability that rises from 0 to nearly 0.2 over the blocks (Huang et al., "Deep Networks with Stochastic Depth", 2016).
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from shared.models.attention import NORMS
from shared.models.network import Network
from shared.models.torchvision_network import PooledNetwork
from shared.study import Study
from shared.torchvision_cpu import import_torchvision

_torchvision: Any = import_torchvision().models.efficientnet
TorchvisionEfficientNet: TypeAlias = _torchvision.EfficientNet
TorchvisionMBConv: TypeAlias = _torchvision.MBConv

#: Tan and Le, table 1: expansion, kernel, stride, input channels, output channels, layers of each stage of B0.
_STAGES = (
    (1, 3, 1, 32, 16, 1),
    (6, 3, 2, 16, 24, 2),
    (6, 5, 2, 24, 40, 2),
    (6, 3, 2, 40, 80, 3),
    (6, 5, 1, 80, 112, 3),
    (6, 5, 2, 112, 192, 4),
    (6, 3, 1, 192, 320, 1),
)


class MBConv(TorchvisionMBConv):  # type: ignore[misc]
    """torchvision's inverted residual block with its add out of place."""

    block: nn.Module
    stochastic_depth: nn.Module
    use_res_connect: bool

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` to `(N, C', H / stride, W / stride)`."""
        out: Tensor = self.block(x)
        return x + self.stochastic_depth(out) if self.use_res_connect else out


class EfficientNet(PooledNetwork, TorchvisionEfficientNet):  # type: ignore[misc]
    """torchvision's EfficientNet as a Network: 1280 features of B0 (width 1, depth 1), 1536 of B3 (width 1.2, depth 1.4)."""

    def __init__(
        self,
        *,
        width: float,
        depth: float,
        outputs: int,
        channels: int = 3,
        norm: Literal["batch", "group"] = "batch",
        dropout: float = 0.0,
    ) -> None:
        stage = partial(_torchvision.MBConvConfig, width_mult=width, depth_mult=depth, block=MBConv)
        super().__init__(
            [stage(*sizes) for sizes in _STAGES], dropout=dropout, num_classes=outputs, norm_layer=NORMS[norm]
        )
        self.finish(channels=channels, dropout=dropout)


def _build(study: Study, *, width: float, depth: float) -> EfficientNet:
    assert study.model.norm != "none"  # the registry refuses it
    return EfficientNet(
        width=width,
        depth=depth,
        outputs=study.outputs,
        channels=study.input_shape[0],
        norm=study.model.norm,
        dropout=study.model.dropout,
    )


def efficientnet_b0(study: Study) -> Network:
    """EfficientNet-B0 with the study's norm, weights drawn from torch's global generator."""
    return _build(study, width=1.0, depth=1.0)


def efficientnet_b3(study: Study) -> Network:
    """EfficientNet-B3 with the study's norm, weights drawn from torch's global generator."""
    return _build(study, width=1.2, depth=1.4)
