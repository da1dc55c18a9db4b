"""torchvision's VGG-16, with or without norms: Simonyan, Zisserman, ICLR 2015 (arXiv:1409.1556), configuration D.

Features are the 4096 outputs of the second linear layer. Of its 138 million parameters, 124 million lie in three linear layers: under
DP-SGD in hooks mode each patient's gradient takes 0.55 GB, so small physical batches or ghost mode are needed there.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from torch import Tensor, nn

from shared.models.attention import NORMS
from shared.models.network import Network
from shared.models.torchvision_network import TorchvisionNetwork, out_of_place, with_channels
from shared.study import Study
from shared.torchvision_cpu import import_torchvision

_torchvision: Any = import_torchvision().models.vgg
TorchvisionVGG: TypeAlias = _torchvision.VGG


class VGG(TorchvisionNetwork, TorchvisionVGG):  # type: ignore[misc]
    """torchvision's VGG of configuration D as a Network; `norm` stands between every convolution and its ReLU."""

    classifier: nn.Sequential
    avgpool: nn.Module
    head_name = "classifier.6"

    def __init__(self, *, outputs: int, channels: int = 3, norm: str = "none", dropout: float = 0.0) -> None:
        layers: nn.Sequential = _torchvision.make_layers(_torchvision.cfgs["D"], batch_norm=norm != "none")
        layers[0] = with_channels(layers[0], channels)
        if norm == "group":
            for index, layer in enumerate(layers):
                if isinstance(layer, nn.BatchNorm2d):
                    layers[index] = NORMS["group"](layer.num_features)
        super().__init__(layers, num_classes=outputs, dropout=dropout)
        self.feature_dim = self.fc.in_features
        self.dropout = nn.Dropout(dropout)
        out_of_place(self)

    def features(self, x: Tensor) -> Tensor:
        """The second linear layer's output after its ReLU: `(N, channels, H, W)` to `(N, 4096)`."""
        x = self.avgpool(self.get_submodule("features")(x)).flatten(1)
        found: Tensor = self.classifier[:5](x)
        return found


def vgg16(study: Study) -> Network:
    """VGG-16 without norms, weights drawn from torch's global generator."""
    return VGG(outputs=study.outputs, channels=study.input_shape[0], dropout=study.model.dropout)


def vgg16_bn(study: Study) -> Network:
    """VGG-16 with the study's norm, weights drawn from torch's global generator."""
    return VGG(
        outputs=study.outputs,
        channels=study.input_shape[0],
        norm=study.model.norm,
        dropout=study.model.dropout,
    )
