"""The Split-Attention U-Net: split attention against the paper's equations in NumPy and float64, and the network's shapes."""

from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from shared.models.unet import SplitAttention, SplitAttentionUNet

SMALL = (8, 16, 32, 32)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**31 - 1), channels=st.sampled_from([4, 24]), radix=st.integers(2, 3), side=st.integers(1, 6)
)
def test_split_attention_is_the_papers(seed: int, channels: int, radix: int, side: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    module = SplitAttention(channels, radix=radix).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    x = torch.randn((2, radix * channels, side, side + 1), generator=generator, dtype=torch.float64)
    state = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    for image, found in zip(x.numpy(), module(x).detach().numpy(), strict=True):
        splits = [image[index * channels : (index + 1) * channels] for index in range(radix)]
        pooled = np.sum(splits, axis=0).mean((1, 2))
        hidden = np.maximum(state["squeeze.weight"][:, :, 0, 0] @ pooled + state["squeeze.bias"], 0)
        scores = (state["excite.weight"][:, :, 0, 0] @ hidden + state["excite.bias"]).reshape(radix, channels)
        weights = np.exp(scores) / np.exp(scores).sum(0)
        expected = sum(weight[:, None, None] * split for weight, split in zip(weights, splits, strict=True))
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 64), (50, 37), (8, 8)])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_mask_has_the_images_sides(height: int, width: int, norm: Literal["batch", "group"]) -> None:
    network = SplitAttentionUNet(widths=SMALL, norm=norm)
    assert network(torch.rand(2, 3, height, width)).shape == (2, 1, height, width)


def test_the_papers_widths_and_kernels() -> None:
    network = SplitAttentionUNet()
    assert network(torch.rand(1, 3, 64, 64)).shape == (1, 1, 64, 64)
    depthwise = [module for module in network.modules() if isinstance(module, nn.Conv2d) and module.groups > 1]
    assert {module.kernel_size for module in depthwise} == {(5, 5)}
    assert [block.second.pointwise.out_channels for block in network.encoder] == [128, 256, 512, 512]  # type: ignore[union-attr]
    attention = [name for name, module in network.named_modules() if isinstance(module, SplitAttention)]
    assert attention == ["encoder.0.attention"]


def test_the_mask_depends_on_the_deepest_level_and_on_every_skip() -> None:
    network = SplitAttentionUNet(widths=SMALL, norm="group").double()
    x = random(1, 3, 32, 32)
    whole = network(x)
    for block in network.encoder:
        handle = block.register_forward_hook(lambda _module, _inputs, out: torch.zeros_like(out))
        assert not torch.allclose(network(x), whole)
        handle.remove()
    torch.testing.assert_close(network(x), whole)


def test_every_parameter_gets_a_gradient_and_opacus_accepts_it_with_group_norm() -> None:
    network = SplitAttentionUNet(widths=SMALL, norm="group")
    network(torch.rand(2, 3, 32, 32)).square().sum().backward()
    assert all(
        parameter.grad is not None and float(parameter.grad.abs().sum()) > 0 for parameter in network.parameters()
    )
    assert ModuleValidator.validate(network) == []
    assert ModuleValidator.validate(SplitAttentionUNet(widths=SMALL)) != []


def test_one_width_is_no_u() -> None:
    with pytest.raises(ValueError, match="at least two widths, but got 1"):
        SplitAttentionUNet(widths=[8])
