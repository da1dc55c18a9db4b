"""DP-SGD on a network for masks: sums against a loop over the patients, the bound on one patient's share, and a step that drew nobody."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from private_network import assert_equal, constants
from torch import Tensor

from client.losses import image_losses
from client.private.dp_sgd import DpSgd, train_private_round
from client.private.gradients import Mode
from client.private.requirements import require_private_network
from client.private.sampling import PatientSampler
from shared.errors import PrivacyError
from shared.models.unet import SplitAttentionUNet
from shared.study_training import Training

TRAINING = Training(optimiser="sgd", learning_rate=0.1, loss="cross_entropy_dice")
LOSSES = image_losses(TRAINING, positive_index=1, class_counts=None)
MODES: list[Mode] = ["hooks", "ghost"]
SIDE = 16


def unet(norm: Any = "group") -> SplitAttentionUNet:
    torch.manual_seed(1)
    network = SplitAttentionUNet(widths=(8, 8), norm=norm)
    network.double().train()
    return network


def discs(count: int) -> tuple[Tensor, Tensor]:
    """Images (N, 3, S, S) and their masks (N, 1, S, S)."""
    generator = torch.Generator().manual_seed(2)
    images = torch.rand((count, 3, SIDE, SIDE), generator=generator, dtype=torch.float64)
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    centres = torch.randint(4, 12, (count, 2), generator=generator)
    far = (rows - centres[:, 0, None, None]) ** 2 + (columns - centres[:, 1, None, None]) ** 2
    masks = (far < 16).to(torch.float64)[:, None]
    return images + masks, masks


def mechanism(network: SplitAttentionUNet, x: Tensor, masks: Tensor, clipping_norm: float, **options: Any) -> DpSgd:
    """One patient for each image."""
    rows, public = np.arange(len(x)), constants(clipping_norm=clipping_norm)
    return DpSgd(
        network, PatientSampler(rows, rows, rate=public.sampling_rate), lambda some: (x[some], masks[some]), constants=public,
        losses=LOSSES, image_shape=(3, SIDE, SIDE), target_shape=(1, SIDE, SIDE), **options,
    )  # fmt: skip


def looped(network: SplitAttentionUNet, x: Tensor, masks: Tensor, clipping_norm: float) -> dict[str, Tensor]:
    """The clipped sum by one backward pass for each image."""
    total = {name: torch.zeros_like(one) for name, one in network.named_parameters()}
    for index in range(len(x)):
        loss = LOSSES(network(x[index : index + 1]), masks[index : index + 1]).sum()
        found = torch.autograd.grad(loss, list(network.parameters()))
        factor = min(1.0, clipping_norm / float(torch.cat([one.flatten() for one in found]).norm()))
        for name, gradient in zip(total, found, strict=True):
            total[name] += factor * gradient
    return total


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("clipping_norm", [0.1, 1e6])
def test_the_clipped_sum_is_that_of_a_loop_over_the_patients(mode: Mode, clipping_norm: float) -> None:
    """With a norm that nobody reaches it is the sum of the images' own gradients."""
    network, (x, masks) = unet(), discs(4)
    expected = looped(network, x, masks, clipping_norm)
    one = mechanism(network, x, masks, clipping_norm, mode=mode, physical_batch=3)
    assert_equal(one.clipped_sum(np.arange(4)), expected)
    one.close()


@pytest.mark.parametrize("mode", MODES)
def test_one_patients_share_is_at_most_c_whatever_the_image(mode: Mode) -> None:
    network, (x, masks) = unet(), discs(3)
    x[1], masks[1] = 1e4 * x[1], 1 - masks[1]
    with torch.no_grad():
        network.head.weight.mul_(1e3)
    one = mechanism(network, x, masks, 0.05, mode=mode)
    rest = one.clipped_sum(np.array([0, 2]))
    every = one.clipped_sum(np.arange(3))
    share = torch.cat([(every[name] - rest[name]).flatten() for name in every])
    assert 0.9 * 0.05 < float(share.norm()) <= 0.05 * (1 + 1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_a_mask_whose_gradient_is_not_finite_counts_as_zero(mode: Mode) -> None:
    network, (x, masks) = unet(), discs(3)
    x[1, 0, 0, 0] = float("nan")
    finite = np.array([0, 2])
    one = mechanism(network, x, masks, 0.1, mode=mode)
    assert_equal(one.clipped_sum(np.arange(3)), looped(network, x[finite], masks[finite], 0.1))


def test_a_step_that_drew_nobody_is_noise_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    network, (x, masks) = unet(), discs(3)
    one = mechanism(network, x, masks, 0.1)
    monkeypatch.setattr(one, "noise", lambda count: torch.full((count,), 0.25, dtype=torch.float64))
    nobody = one.release(np.empty(0, np.int64))
    assert_equal(
        nobody, {name: torch.full_like(value, 0.25 / 3.0) for name, value in network.named_parameters()}, 1e-12
    )


def test_batch_norm_is_refused_and_a_round_trains_with_group_norm() -> None:
    with pytest.raises(PrivacyError, match="BatchNorm2d: it normalises each patient by the others"):
        require_private_network(unet("batch"), losses=LOSSES, image_shape=(3, SIDE, SIDE), target_shape=(1, SIDE, SIDE))
    network, (x, masks) = unet().float(), discs(6)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    rows, public = np.arange(6), constants(noise_multiplier=0.1, clipping_norm=1.0)
    found = train_private_round(
        network, PatientSampler(rows, rows, rate=public.sampling_rate), lambda some: (x[some].float(), masks[some].float()),
        steps=2, constants=public, training=TRAINING, positive_index=1, image_shape=(3, SIDE, SIDE), seed=1,
        device=torch.device("cpu"),
    )  # fmt: skip
    assert found.steps == 2
    trained = {name for name, _ in network.named_parameters()}
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]) != (name in trained), name
