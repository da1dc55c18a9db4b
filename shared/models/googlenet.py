"""torchvision's GoogLeNet: Szegedy et al., "Going Deeper with Convolutions", CVPR 2015 (arXiv:1409.4842), with norms.

It has no auxiliary classifiers: a Network has one output, with norms they are not needed to train, and weight files that hold them load
without. Convolutions start as the ResNets' and not with torchvision's deviation of 0.01, which with group norm Adam's first steps
overturn: at a learning rate of 1e-3 the gradient of the first layer fell from 65 to 1e-5 in 15 steps and stayed there.

torchvision's published weights were trained on (x - 0.5) / 0.5 and not on ImageNet's mean and deviation; torchvision converts inside the
network, here `preprocessing.normalise` must say it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib import import_module
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from shared.errors import StudyError
from shared.models.attention import NORMS
from shared.models.network import Network
from shared.models.torchvision_network import with_channels
from shared.study import Study
from shared.study_pixels import Normalise
from shared.torchvision_cpu import import_torchvision

import_torchvision()
# By its full name: torchvision.models.googlenet is a function.
_torchvision: Any = import_module("torchvision.models.googlenet")
TorchvisionGoogLeNet: TypeAlias = _torchvision.GoogLeNet
TorchvisionConvolution: TypeAlias = _torchvision.BasicConv2d

_STAGES = (
    "conv1", "maxpool1", "conv2", "conv3", "maxpool2",
    "inception3a", "inception3b", "maxpool3",
    "inception4a", "inception4b", "inception4c", "inception4d", "inception4e", "maxpool4",
    "inception5a", "inception5b", "avgpool",
)  # fmt: skip


class Convolution(TorchvisionConvolution):  # type: ignore[misc]
    """torchvision's convolution, norm and ReLU, out of place; batch norm keeps torchvision's eps of 0.001."""

    conv: nn.Module
    bn: nn.Module

    def __init__(
        self, in_channels: int, out_channels: int, *, norm: Literal["batch", "group"] = "batch", **options: Any
    ) -> None:
        super().__init__(in_channels, out_channels, **options)
        if norm == "group":
            self.bn = NORMS["group"](out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` to `(N, C', H', W')`."""
        return nn.functional.relu(self.bn(self.conv(x)))


class GoogLeNet(Network, TorchvisionGoogLeNet):  # type: ignore[misc]
    """torchvision's GoogLeNet as a Network of 1024 features."""

    conv1: Any

    def __init__(
        self, *, outputs: int, channels: int = 3, norm: Literal["batch", "group"] = "batch", dropout: float = 0.0
    ) -> None:
        convolution = partial(Convolution, norm=norm)
        inception = partial(_torchvision.Inception, conv_block=convolution)
        super().__init__(
            num_classes=outputs,
            aux_logits=False,
            init_weights=False,
            blocks=[convolution, inception, _torchvision.InceptionAux],
            dropout=dropout,
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.feature_dim = self.fc.in_features
        self.conv1.conv = with_channels(self.conv1.conv, channels)

    def features(self, x: Tensor) -> Tensor:
        """Global average pooling of the last inception block: `(N, channels, H, W)` to `(N, 1024)`."""
        for name in _STAGES:
            x = self.get_submodule(name)(x)
        return x.flatten(1)

    def adapted(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights without the auxiliary classifiers."""
        return {name: tensor for name, tensor in weights.items() if not name.startswith(("aux1.", "aux2."))}


def googlenet(study: Study) -> Network:
    """GoogLeNet with the study's norm, weights drawn from torch's global generator.

    Raises StudyError where torchvision's weights would see pixels on another scale than they were trained on.
    """
    recipe = study.preprocessing
    normalise = recipe.normalise or Normalise(mean=[0.0], std=[1.0])
    # With layer normalisation each image has a scale of its own, which no constants are: the study means it so.
    by_constants = recipe.layer_normalise is None
    if study.model.weights == "torchvision" and by_constants and {*normalise.mean, *normalise.std} != {0.5}:
        raise StudyError(
            "model.weights: torchvision's GoogLeNet was trained on (x - 0.5) / 0.5; "
            "set preprocessing.normalise to {mean: [0.5], std: [0.5]}"
        )
    assert study.model.norm != "none"  # the registry refuses it
    return GoogLeNet(
        outputs=study.outputs,
        channels=study.input_shape[0],
        norm=study.model.norm,
        dropout=study.model.dropout,
    )
