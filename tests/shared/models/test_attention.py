"""CBAM and squeeze-and-excitation against the papers' equations, written out in NumPy and float64."""

from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.signal import correlate2d
from torch import nn

from shared.models.attention import CBAM, NORMS, SqueezeExcitation, build_attention, group_norm

Array = NDArray[np.float64]


def sigmoid(z: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-z)))


def mlp(layers: nn.Sequential, pooled: Array) -> Array:
    """(N, C) to (N, C): two linear layers with a ReLU."""
    state = {name: tensor.detach().numpy() for name, tensor in layers.state_dict().items()}
    hidden = np.maximum(pooled @ state["0.weight"][:, :, 0, 0].T + state["0.bias"], 0)
    return np.asarray(hidden @ state["2.weight"][:, :, 0, 0].T + state["2.bias"])


def normalised(z: Array, norm: nn.Module) -> Array:
    """(N, H, W), one channel: over the batch with BatchNorm2d in training, over each image with GroupNorm."""
    axes = (0, 1, 2) if isinstance(norm, nn.BatchNorm2d) else (1, 2)
    scaled = (z - z.mean(axes, keepdims=True)) / np.sqrt(z.var(axes, keepdims=True) + norm.eps)
    state = norm.state_dict()
    return np.asarray(scaled * float(state["weight"]) + float(state["bias"]))


def reference_cbam(module: CBAM, x: Array) -> Array:
    channel = mlp(module.channel.mlp, x.mean((2, 3))) + mlp(module.channel.mlp, x.max((2, 3)))
    x = x * sigmoid(channel)[:, :, None, None]
    kernel = module.spatial.conv.weight.detach().numpy()[0]
    maps = np.stack(
        [
            correlate2d(np.pad(one.max(0), 3), kernel[0], "valid")
            + correlate2d(np.pad(one.mean(0), 3), kernel[1], "valid")
            for one in x
        ]
    )
    return np.asarray(x * sigmoid(normalised(maps, module.spatial.norm))[:, None])


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**31 - 1),
    channels=st.sampled_from([8, 16, 48]),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    norm=st.sampled_from(["batch", "group"]),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
def test_cbam_is_the_papers(
    seed: int, channels: int, height: int, width: int, norm: str, layout: torch.memory_format
) -> None:
    generator = torch.Generator().manual_seed(seed)
    module = CBAM(channels, norm_layer=NORMS["batch" if norm == "batch" else "group"]).double().train()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    x = torch.randn((3, channels, height, width), generator=generator, dtype=torch.float64)
    x = x.contiguous(memory_format=layout)
    with torch.no_grad():
        np.testing.assert_allclose(module(x).numpy(), reference_cbam(module, x.numpy()), rtol=1e-9, atol=1e-12)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**31 - 1), channels=st.sampled_from([4, 32]), side=st.integers(1, 7))
def test_squeeze_and_excitation_is_the_papers(seed: int, channels: int, side: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    module = SqueezeExcitation(channels).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    x = torch.randn((2, channels, side, side), generator=generator, dtype=torch.float64)
    expected = x.numpy() * sigmoid(mlp(module.mlp, x.numpy().mean((2, 3))))[:, :, None, None]
    with torch.no_grad():
        np.testing.assert_allclose(module(x).numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["se", "cbam"])
def test_gradients_do_not_depend_on_the_memory_format_and_agree_with_differences(kind: Literal["se", "cbam"]) -> None:
    torch.manual_seed(3)
    module = build_attention(kind, 16, norm_layer=group_norm).double()
    x = torch.randn((2, 16, 3, 4), dtype=torch.float64)
    gradients = []
    for layout in (torch.contiguous_format, torch.channels_last):
        leaf = x.clone().contiguous(memory_format=layout).requires_grad_()
        assert torch.autograd.gradcheck(module, (leaf,))
        module(leaf).square().sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[0], gradients[1].contiguous())


def test_a_single_image_of_a_single_pixel_passes_with_group_norm() -> None:
    module = CBAM(16, norm_layer=group_norm).double()
    x = torch.randn((1, 16, 1, 1), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        np.testing.assert_allclose(module(x).numpy(), reference_cbam(module, x.numpy()), rtol=1e-9)


@pytest.mark.parametrize("channels", [64, 512])
def test_reduction_is_16_and_the_kernel_7(channels: int) -> None:
    module = CBAM(channels, norm_layer=group_norm)
    hidden = channels // 16
    shared = 2 * channels * hidden + hidden + channels
    assert sum(p.numel() for p in module.parameters()) == shared + 2 * 7 * 7 + 2
    assert sum(p.numel() for p in SqueezeExcitation(channels).parameters()) == shared


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_gate_that_is_held_open_is_the_identity(norm: str) -> None:
    x = torch.randn((2, 32, 6, 6), generator=torch.Generator().manual_seed(1))
    for module in (CBAM(32, norm_layer=NORMS["batch" if norm == "batch" else "group"]), SqueezeExcitation(32)):
        module.eval()
        with torch.no_grad():
            assert not torch.allclose(module(x), x, rtol=1e-2)
            module.hold_open()
            torch.testing.assert_close(module(x), x, rtol=2e-5, atol=0)


def test_untrained_gates_let_most_of_the_signal_through() -> None:
    """Two gates near sigmoid(2): the product stays well above the 0.25 of gates that start at a half."""
    torch.manual_seed(0)
    module = CBAM(64, norm_layer=group_norm)
    x = torch.rand((4, 64, 16, 16))
    with torch.no_grad():
        share = float(module(x).norm() / x.norm())
    assert 0.6 < share < 0.95
