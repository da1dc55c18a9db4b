"""Opacus' per-sample gradients of every kind of block, and of a whole network, equal a loop over the samples, in float64."""

from typing import Any

import pytest
import torch
from opacus import GradSampleModule
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from shared.models.attention import build_attention, group_norm
from shared.models.cnn_vit import CnnViT
from shared.models.rcdnet import ResidualCbamBlock
from shared.models.resnet import BasicBlock, Bottleneck, ResNet
from shared.models.unet import Block
from shared.models.vit import VisionTransformer
from shared.models.wavelet import HaarAttention, HaarPooling

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")


def assert_hooks_equal_a_loop(network: nn.Module, x: Tensor) -> None:
    y = torch.arange(len(x)) % 2
    network.double().train()
    assert ModuleValidator.validate(network) == []
    expected: list[dict[str, Tensor]] = []
    for index in range(len(x)):
        network.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(network(x[index : index + 1]), y[index : index + 1]).backward()
        expected.append({name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None})
    network.zero_grad(set_to_none=True)
    wrapped = GradSampleModule(network, loss_reduction="sum", strict=True)
    nn.functional.cross_entropy(wrapped(x), y, reduction="sum").backward()
    for name, parameter in network.named_parameters():
        for index in range(len(x)):
            torch.testing.assert_close(
                parameter.grad_sample[index], expected[index][name], rtol=1e-8, atol=1e-11, msg=f"{name} {index}"
            )


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
@pytest.mark.parametrize(
    ("attention", "place"),
    [("none", "before_add"), ("se", "before_add"), ("cbam", "before_add"), ("cbam", "after_block")],
)
def test_blocks(block: Any, attention: Any, place: Any) -> None:
    torch.manual_seed(1)
    width = 4 * block.expansion
    shortcut = nn.Sequential(nn.Conv2d(6, width, 1, stride=2, bias=False), group_norm(width))
    one = block(6, 4, 2, shortcut, norm_layer=group_norm)
    if attention != "none":
        one.place_attention(build_attention(attention, width, norm_layer=group_norm), place)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), one, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2)
    )
    assert_hooks_equal_a_loop(network, images(3, 3, 9, 9))


def test_a_whole_network_down_to_a_single_pixel() -> None:
    torch.manual_seed(1)
    network = ResNet(
        BasicBlock, (1, 1, 1, 1), outputs=2, norm="group", attention="cbam", place="stage_outputs", dropout=0.0
    )
    assert_hooks_equal_a_loop(network, images(2, 3, 32, 32))


@pytest.mark.parametrize(
    "layer",
    [
        HaarAttention(6),
        HaarPooling(6, norm_layer=group_norm),
        ResidualCbamBlock(6, 16, stride=2, norm_layer=group_norm),
        Block(6, 4, norm_layer=group_norm, split=True),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_of_the_papers(layer: nn.Module) -> None:
    torch.manual_seed(1)
    stem = nn.Conv2d(3, 6, 3, padding=1)
    width = layer(torch.rand(1, 6, 10, 10)).shape[1]
    assert_hooks_equal_a_loop(
        nn.Sequential(stem, layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2)), images(3, 3, 10, 10)
    )


def test_transformers() -> None:
    torch.manual_seed(1)
    small = VisionTransformer(outputs=2, size=32, depth=2, heads=2, width=12, hidden=24)
    assert_hooks_equal_a_loop(small, images(3, 3, 32, 32))
    assert_hooks_equal_a_loop(CnnViT(outputs=2, size=32, norm="group"), images(2, 3, 32, 32))
