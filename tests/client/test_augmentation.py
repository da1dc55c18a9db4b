"""Augmentation: flips and turns exact, movements compared with torchvision, all of it reproducible."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client.data.augmentation import _flipped, _inverse_affine, _moved, displaced, is_identity, retouched
from shared.study_augmentation import Augmentation
from shared.torchvision_cpu import import_torchvision

torchvision = import_torchvision()

FULL = Augmentation(
    horizontal_flip=0.5,
    vertical_flip=0.5,
    quarter_turns=True,
    rotation_degrees=30,
    translate=0.1,
    scale=0.2,
    brightness=0.2,
    contrast=0.3,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def augmented(images: torch.Tensor, spec: Augmentation, generator: torch.Generator) -> torch.Tensor:
    return retouched(displaced(images, spec, generator), spec, generator)


def batch(count: int = 6, channels: int = 3, side: int = 17, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, channels, side, side, generator=seeded(seed))


def test_nothing_changes_and_nothing_is_drawn_where_all_is_off() -> None:
    images, generator = batch(), seeded(1)
    before = generator.get_state()
    assert torch.equal(augmented(images, Augmentation(), generator), images)
    assert torch.equal(generator.get_state(), before)
    assert is_identity(Augmentation()) and not is_identity(FULL)


def test_certain_flips_are_torchs_flips() -> None:
    images = batch()
    assert torch.equal(augmented(images, Augmentation(horizontal_flip=1), seeded(1)), images.flip(-1))
    assert torch.equal(augmented(images, Augmentation(vertical_flip=1), seeded(1)), images.flip(-2))
    both = Augmentation(horizontal_flip=1, vertical_flip=1)
    assert torch.equal(augmented(images, both, seeded(1)), images.rot90(2, (-2, -1)))


def test_each_image_gets_its_own_turn_and_flip() -> None:
    images = batch(1).expand(400, -1, -1, -1)
    result = augmented(images, Augmentation(horizontal_flip=0.5, quarter_turns=True), seeded(3))
    options = [turned.rot90(k, (-2, -1)) for turned in (images[0], images[0].flip(-1)) for k in range(4)]
    counts = [sum(torch.equal(image, option) for image in result) for option in options]
    assert sum(counts) == 400 and min(counts) > 20


@given(st.booleans(), st.booleans(), st.integers(0, 3), st.integers(2, 20))
def test_resampled_flips_and_turns_equal_the_exact_ones(across: bool, down: bool, turn: int, side: int) -> None:
    images = batch(1, 2, side)
    flags = torch.tensor([across]), torch.tensor([down]), torch.tensor([turn])
    theta = _inverse_affine(*flags, torch.zeros(1), torch.zeros(1, 2), torch.ones(1))
    torch.testing.assert_close(_moved(images, theta), _flipped(images, *flags), atol=1e-5, rtol=0)


@settings(max_examples=40)
@given(st.floats(-180, 180), st.integers(-5, 5), st.integers(-5, 5), st.floats(0.5, 1.5))
def test_movements_equal_torchvisions_affine(degrees: float, right: int, below: int, factor: float) -> None:
    side = 25
    images = batch(1, 1, side)
    theta = _inverse_affine(
        torch.tensor([False]),
        torch.tensor([False]),
        torch.tensor([0]),
        torch.tensor([degrees * math.pi / 180]),
        torch.tensor([[right / side, below / side]]),
        torch.tensor([factor]),
    )
    reference = torchvision.transforms.functional.affine(
        images,
        angle=-degrees,  # torchvision's is clockwise
        translate=[right, below],
        scale=factor,
        shear=[0.0, 0.0],
        interpolation=torchvision.transforms.InterpolationMode.BILINEAR,
    )
    torch.testing.assert_close(_moved(images, theta), reference, atol=2e-4, rtol=0)


def test_brightness_and_contrast_stay_within_their_limits() -> None:
    images = batch(200, 1, 8) * 0.2 + 0.4
    brighter = augmented(images, Augmentation(brightness=0.1), seeded(5)) - images
    spread = brighter.flatten(1).std(dim=1)
    assert spread.max() < 1e-6, "each image is shifted as a whole"
    shifts = brighter.flatten(1).mean(dim=1)
    assert -0.1 <= shifts.min() < -0.08 and 0.08 < shifts.max() <= 0.1
    stretched = augmented(images, Augmentation(contrast=0.5), seeded(6)).flatten(1)
    torch.testing.assert_close(stretched.mean(dim=1), images.flatten(1).mean(dim=1))
    ratio = stretched.std(dim=1) / images.flatten(1).std(dim=1)
    assert 0.5 <= ratio.min() < 0.55 and 1.45 < ratio.max() <= 1.5 + 1e-5


@settings(max_examples=30)
@given(st.integers(0, 2**31 - 1))
def test_values_stay_in_range_and_the_same_seed_gives_the_same_batch(seed: int) -> None:
    images = batch(4, 1, 12, seed)
    strong = FULL.model_copy(update={"brightness": 1.0, "contrast": 1.0})
    first = augmented(images, strong, seeded(seed))
    assert first.shape == images.shape and float(first.min()) >= 0.0 and float(first.max()) <= 1.0
    assert torch.equal(first, augmented(images, strong, seeded(seed)))
    assert not torch.equal(first, augmented(images, strong, seeded(seed + 1)))


def test_integers_and_oblong_images_are_refused() -> None:
    with pytest.raises(ValueError, match="square"):
        augmented(torch.rand(1, 1, 4, 5), FULL, seeded(0))
    with pytest.raises(ValueError, match="floating-point"):
        augmented(torch.zeros(1, 1, 4, 4, dtype=torch.uint8), FULL, seeded(0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_gives_what_the_cpu_gives() -> None:
    images = batch()
    on_gpu = augmented(images.cuda(), FULL, seeded(7)).cpu()
    torch.testing.assert_close(on_gpu, augmented(images, FULL, seeded(7)), atol=1e-4, rtol=0)
