"""SkinNet's parts: shapes at 64 and 224 pixels, what is fused, and what freezing keeps."""

from typing import Any, Literal

import pytest
import torch
from opacus.validators import ModuleValidator
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from shared.models.skinnet import MetadataBranch, ParallelCnn, SkinNetV1
from shared.torchvision_cpu import import_torchvision

tv: Any = import_torchvision().models


@pytest.mark.parametrize("size", [64, 224])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_images_and_metadata_give_logits(size: int, norm: Literal["batch", "group"]) -> None:
    network = SkinNetV1(outputs=8, metadata=12, norm=norm)
    assert network.fusion_dim == 1536
    images, metadata = torch.rand(2, 3, size, size), torch.rand(2, 12)
    assert network.fused(images, metadata).shape == (2, 1536)
    assert network(images, metadata).shape == (2, 8)


def test_both_branches_reach_the_output() -> None:
    network = SkinNetV1(outputs=2, metadata=3, norm="group").eval()
    images, metadata = torch.rand(2, 3, 64, 64), torch.rand(2, 3)
    with torch.no_grad():
        whole = network(images, metadata)
        assert not torch.allclose(network(images.flip(3), metadata), whole, rtol=1e-6)
        assert not torch.allclose(network(images, metadata + 1), whole, rtol=1e-4)


def test_norm_relu_and_dropout_stand_in_the_first_three_of_four_layers() -> None:
    kinds = [type(layer) for layer in MetadataBranch(5).layers]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout] * 3 + [nn.Linear]
    assert {layer.p for layer in MetadataBranch(5).modules() if isinstance(layer, nn.Dropout)} == {0.2}


def test_a_trained_efficientnet_loads_into_the_image_branch() -> None:
    network = SkinNetV1(outputs=2, metadata=3).eval()
    trained = tv.efficientnet_b0(num_classes=7).eval()
    state = {name: tensor for name, tensor in trained.state_dict().items() if name.startswith("features.")}
    found = network.load_state_dict(state, strict=False)
    assert found.unexpected_keys == []
    assert all(name.split(".")[0] in ("metadata", "fc") for name in found.missing_keys)
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = trained.avgpool(trained.features(x)).flatten(1)
        torch.testing.assert_close(network.fused(x, torch.rand(2, 3))[:, :1280], expected)


def test_a_frozen_image_branch_keeps_weights_and_statistics_and_the_rest_learns() -> None:
    network = SkinNetV1(outputs=2, metadata=3)
    network.freeze_images()
    network.eval().train()
    assert not any(module.training for module in network.features.modules())
    assert all(module.training for module in network.metadata.modules() if isinstance(module, _BatchNorm))
    before = {name: tensor.clone() for name, tensor in network.features.state_dict().items()}
    optimiser = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=0.1)
    network(torch.rand(4, 3, 32, 32), torch.rand(4, 3)).square().sum().backward()
    weight = network.fc.weight.detach().clone()
    optimiser.step()
    assert not torch.equal(network.fc.weight, weight)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.features.state_dict().items())


@pytest.mark.parametrize(("size", "sides"), [(224, [112, 56, 28, 14, 7, 4, 2, 1]), (64, [32, 16, 8, 4, 2, 1, 1, 1])])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_the_parallel_cnn_ends_at_one_pixel(size: int, sides: list[int], norm: Literal["batch", "group"]) -> None:
    network = ParallelCnn(channels=4, norm=norm)
    seen: list[int] = []
    for layer in network.layers:
        if isinstance(layer, nn.MaxPool2d):
            layer.register_forward_hook(lambda _module, _inputs, out: seen.append(out.shape[-1]))
    x = torch.rand(2, 4, size, size)
    assert network.lesion(x).shape == (2, 1024)
    assert seen == sides
    assert network(x).shape == (2, 64)
    kernels = [layer.kernel_size[0] for layer in network.layers if isinstance(layer, nn.Conv2d)]
    assert kernels == [7, 7, 5, 5, 3, 3, 3, 3]


def test_with_group_norm_opacus_accepts_both() -> None:
    for network in (SkinNetV1(outputs=2, metadata=3, norm="group"), ParallelCnn(norm="group")):
        assert ModuleValidator.validate(network) == []
