"""Focal and Dice losses against the papers' formulas, written out in NumPy and float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from shared.losses import dice_and_cross_entropy_losses, dice_losses, focal_losses


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**31 - 1),
    classes=st.integers(2, 9),
    gamma=st.floats(0, 5),
    weighed=st.booleans(),
)
def test_focal_loss_of_many_classes_is_the_papers(seed: int, classes: int, gamma: float, weighed: bool) -> None:
    generator = np.random.default_rng(seed)
    logits, labels = generator.normal(size=(6, classes)) * 3, generator.integers(classes, size=6)
    alpha = generator.uniform(0.1, 2, classes) if weighed else np.ones(classes)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    p = probabilities[np.arange(6), labels]
    expected = -alpha[labels] * (1 - p) ** gamma * np.log(p)
    found = focal_losses(
        torch.from_numpy(logits), torch.from_numpy(labels), gamma=gamma, alpha=list(alpha) if weighed else None
    )
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-8, atol=1e-12)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**31 - 1), gamma=st.floats(0, 5), positive=st.sampled_from([0, 1]))
def test_focal_loss_of_one_logit_is_that_of_two(seed: int, gamma: float, positive: int) -> None:
    generator = np.random.default_rng(seed)
    z, labels = generator.normal(size=8) * 3, generator.integers(2, size=8)
    p = np.where(labels == positive, 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(z)))
    expected = -np.array([0.25, 0.75])[labels] * (1 - p) ** gamma * np.log(p)
    one = torch.from_numpy(z)[:, None]
    found = focal_losses(
        one, torch.from_numpy(labels), positive_index=positive, gamma=gamma, alpha=[0.25, 0.75]
    ).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_without_gamma_and_alpha_it_is_cross_entropy() -> None:
    logits, labels = torch.randn(7, 4, generator=torch.Generator().manual_seed(0)), torch.arange(7) % 4
    expected = nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(focal_losses(logits, labels, gamma=0.0), expected)


@pytest.mark.parametrize("shape", [(2, 1), (2, 3)])
def test_certain_outputs_have_finite_losses_and_gradients(shape: tuple[int, int]) -> None:
    logits = torch.full(shape, -300.0)
    logits[:, 0] = 300.0
    leaf = logits.requires_grad_()
    losses = focal_losses(leaf, torch.tensor([0, 1]))
    losses.sum().backward()
    assert leaf.grad is not None
    assert bool(torch.isfinite(losses).all()) and bool(torch.isfinite(leaf.grad).all())
    assert sorted(losses.tolist())[0] == pytest.approx(0, abs=1e-12)
    assert max(losses.tolist()) == pytest.approx(300.0 if shape[1] == 1 else 600.0)


def test_gradients_of_the_focal_loss_agree_with_differences() -> None:
    logits = torch.randn((4, 3), generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 1])
    assert torch.autograd.gradcheck(lambda x: focal_losses(x, labels, alpha=[1, 2, 3]), (logits,))


def test_a_wrong_number_of_weights_and_a_negative_gamma_are_refused() -> None:
    with pytest.raises(ValueError, match="alpha to have 3 values, one a class, but got 2"):
        focal_losses(torch.zeros(1, 3), torch.tensor([0]), alpha=[1, 2])
    with pytest.raises(ValueError, match="alpha to have 2 values, one a class, but got 1"):
        focal_losses(torch.zeros(1, 1), torch.tensor([0]), alpha=[1])
    with pytest.raises(ValueError, match="gamma of at least 0, but got -1"):
        focal_losses(torch.zeros(1, 3), torch.tensor([0]), gamma=-1)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**31 - 1), smooth=st.floats(0.1, 10))
def test_dice_and_cross_entropy_are_the_formulas(seed: int, smooth: float) -> None:
    generator = np.random.default_rng(seed)
    logits, masks = generator.normal(size=(3, 1, 5, 4)) * 2, generator.integers(2, size=(3, 1, 5, 4))
    p = 1 / (1 + np.exp(-logits))
    dice = [1 - (2 * (a * b).sum() + smooth) / (a.sum() + b.sum() + smooth) for a, b in zip(p, masks, strict=True)]
    entropy = [-(b * np.log(a) + (1 - b) * np.log(1 - a)).mean() for a, b in zip(p, masks, strict=True)]
    x, m = torch.from_numpy(logits), torch.from_numpy(masks)
    np.testing.assert_allclose(dice_losses(x, m, smooth=smooth).numpy(), dice, rtol=1e-9)
    found = dice_and_cross_entropy_losses(x, m, smooth=smooth).numpy()
    np.testing.assert_allclose(found, np.add(dice, entropy), rtol=1e-9)


def test_dice_is_nothing_for_a_perfect_or_rightly_empty_mask_and_one_for_a_miss() -> None:
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    sure = 200 * (2 * mask - 1)
    assert dice_losses(sure, mask).item() == pytest.approx(0, abs=1e-6)
    assert dice_losses(torch.full_like(mask, -200), torch.zeros_like(mask)).item() == pytest.approx(0, abs=1e-6)
    assert dice_losses(-sure, mask).item() == pytest.approx(1 - 1 / 65, abs=1e-6)


def test_masks_of_another_shape_are_refused() -> None:
    for loss in (dice_losses, dice_and_cross_entropy_losses):
        with pytest.raises(ValueError, match=r"masks of shape \(2, 1, 4, 4\), but got \(2, 4, 4\)"):
            loss(torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4))
    assert math.isfinite(dice_losses(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)).item())
