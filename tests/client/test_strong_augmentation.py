"""SkinNet's augmentations: nothing at probability 0, each image by itself, in range, the same by seed, and geometry against references."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.ndimage import gaussian_filter
from test_augmentation import augmented
from torch.nn import functional as F

from client.data.augmentation import is_identity
from client.data.distortion import elastic_grid, grid_grid, identity_grid, optical_grid
from client.data.occlusion import blurred, cut_out, gaussian_kernels, motion_kernels
from shared.study_augmentation import Augmentation, Blur, Cutout, Distortion

#: The paper's list, with its probabilities; the amounts are ours.
SKINNET = Augmentation.model_validate(
    {
        "rotation_degrees": 45, "translate": 0.1, "scale": 0.1, "movement_probability": 0.25,
        "brightness": 0.2, "contrast": 0.2, "tone_probability": 0.05,
        "distortion": {"probability": 0.3}, "blur": {"probability": 0.15},
        "cutout": {"probability": 0.5, "fewest": 1, "most": 5, "side": 16},
    }
)  # fmt: skip
OFF = [
    {"distortion": {"probability": 0}},
    {"blur": {"probability": 0}},
    {"cutout": {"probability": 0}},
    {"rotation_degrees": 30, "movement_probability": 0},
    {"brightness": 0.5, "contrast": 0.5, "tone_probability": 0},
]
CERTAIN = [
    *({"distortion": {"probability": 1, "kinds": [kind]}} for kind in ("elastic", "grid", "optical")),
    *({"blur": {"probability": 1, "kinds": [kind]}} for kind in ("motion", "gaussian")),
    {"cutout": {"probability": 1, "most": 3, "side": 5}},
]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(count: int = 6, channels: int = 3, side: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, channels, side, side, generator=seeded(seed))


def spec(values: dict[str, Any]) -> Augmentation:
    return Augmentation.model_validate(values)


@pytest.mark.parametrize("values", OFF, ids=str)
def test_at_probability_nought_images_stay_as_they_are(values: dict[str, Any]) -> None:
    images = batch()
    torch.testing.assert_close(augmented(images, spec(values), seeded(1)), images, atol=1e-5, rtol=0)
    assert not is_identity(spec(values))


@pytest.mark.parametrize("values", CERTAIN, ids=str)
def test_each_changes_every_image_at_probability_one_and_about_a_third_at_a_third(values: dict[str, Any]) -> None:
    images = batch(300, 1, 16)
    changed = (augmented(images, spec(values), seeded(1)) != images).flatten(1).any(1)
    assert changed.all()
    key = next(iter(values))
    some = spec({key: {**values[key], "probability": 1 / 3}})
    share = (augmented(images, some, seeded(2)) != images).flatten(1).any(1).float().mean()
    assert 0.23 < share < 0.44


@settings(max_examples=25)
@given(st.integers(0, 2**31 - 1), st.sampled_from([16, 24, 33]), st.sampled_from([1, 3]))
def test_the_papers_list_stays_in_range_and_comes_back_by_seed(seed: int, side: int, channels: int) -> None:
    images = batch(5, channels, side, seed)
    kept = images.clone()
    first = augmented(images, SKINNET, seeded(seed))
    assert first.shape == images.shape and first.dtype == images.dtype
    assert float(first.min()) >= 0.0 and float(first.max()) <= 1.0
    assert torch.equal(first, augmented(images, SKINNET, seeded(seed)))
    assert torch.equal(images, kept), "the batch itself is not written into"


def test_movement_and_tone_happen_to_their_share_of_images() -> None:
    images = batch(800, 1, 16)
    moved = spec({"rotation_degrees": 90, "movement_probability": 0.25})
    toned = spec({"brightness": 0.5, "tone_probability": 0.05})
    for one, expected in ((moved, 0.25), (toned, 0.05)):
        share = ((augmented(images, one, seeded(3)) - images).abs() > 1e-4).flatten(1).any(1).float().mean()
        assert share == pytest.approx(expected, abs=0.05)


@settings(max_examples=25)
@given(st.integers(0, 2**31 - 1), st.integers(1, 4), st.integers(1, 8))
def test_cutout_is_black_squares_of_the_side_and_nothing_else(seed: int, most: int, side: int) -> None:
    result = cut_out(torch.ones(40, 3, 24, 24), Cutout(probability=1, most=most, side=side), seeded(seed))
    hidden = (result == 0).float()
    assert torch.equal(result, 1 - hidden) and torch.equal(hidden[:, 0], hidden[:, 2])
    area = hidden[:, 0].sum((1, 2))
    assert area.min() >= side**2 and area.max() <= most * side**2
    # Every hidden pixel lies in a whole square of hidden pixels: opening by the square changes nothing.
    whole = -F.max_pool2d(-hidden, side, stride=1)
    back = F.max_pool2d(F.pad(whole, (side - 1,) * 4), side, stride=1)
    assert torch.equal(back, hidden)


def test_the_number_of_squares_is_from_fewest_to_most() -> None:
    one = Cutout(probability=1, fewest=2, most=4, side=1)
    hidden = (cut_out(torch.ones(400, 1, 64, 64), one, seeded(0)) == 0).sum((1, 2, 3))
    assert set(hidden.tolist()) <= {1, 2, 3, 4} and {2, 3, 4} <= set(hidden.tolist())


@pytest.mark.parametrize("grid", [elastic_grid, grid_grid, optical_grid])
def test_a_distortion_of_nearly_nothing_is_the_image(grid: Callable[..., torch.Tensor]) -> None:
    tiny = Distortion(probability=1, elastic=1e-9, grid=1e-9, optical=1e-9)
    torch.testing.assert_close(grid(3, 17, tiny, seeded(1)), identity_grid(3, 17), atol=1e-5, rtol=0)
    images = batch(3, 2, 17)
    same = F.grid_sample(images, identity_grid(3, 17), align_corners=False)
    torch.testing.assert_close(same, images, atol=1e-5, rtol=0)


def test_elastic_displacements_keep_to_their_limit_and_vary_smoothly() -> None:
    moves = elastic_grid(200, 64, Distortion(probability=1, elastic=0.05), seeded(2)) - identity_grid(200, 64)
    assert 0.08 < moves.abs().max() < 0.1 * 1.3, "in units of half the side; bicubic curves overshoot a little"
    assert (moves[:, 1:] - moves[:, :-1]).abs().max() < 0.02


def test_grid_cells_grow_and_shrink_but_never_change_places() -> None:
    grid = grid_grid(50, 40, Distortion(probability=1, grid=0.5), seeded(4))
    steps = grid[:, 0, 1:, 0] - grid[:, 0, :-1, 0]
    assert (steps > 0).all() and steps.max() / steps.min() > 2
    assert grid.min() >= -1 and grid.max() <= 1
    assert torch.equal(grid[:, 0, :, 0], grid[:, 7, :, 0]) and torch.equal(grid[:, :, 0, 1], grid[:, :, 7, 1])


def test_optical_distortion_is_radial() -> None:
    plain = identity_grid(20, 31)
    grid = optical_grid(20, 31, Distortion(probability=1, optical=0.3), seeded(5))
    factor = grid.norm(dim=3) / plain.norm(dim=3).clamp(min=1e-9)
    edge, corner = factor[:, 15, 30] - 1, factor[:, 30, 30] - 1
    torch.testing.assert_close(corner, 2 * edge, atol=1e-4, rtol=1e-3)  # r^2 is twice as large in the corner
    assert edge.min() < -0.1 and edge.max() > 0.1 and edge.abs().max() <= 0.3


def test_gaussian_blur_is_scipys() -> None:
    one = Blur(probability=1, kinds=["gaussian"], gaussian=1.2)
    kernel = gaussian_kernels(1, one, seeded(0))[0]
    pixels = torch.arange(kernel.shape[0]) - kernel.shape[0] // 2
    deviation = float((kernel.sum(0) * pixels**2).sum().sqrt())
    assert 0.4 <= deviation <= 1.2
    images = batch(1, 1, 20)
    generator = seeded(7)
    found = blurred(images, one, generator)[0, 0].numpy()
    replay = seeded(7)
    torch.rand(1, generator=replay)
    torch.randint(1, (1,), generator=replay)
    drawn = 1.2 * (1 + 2 * float(torch.rand(1, generator=replay))) / 3
    reach = one.reach
    expected = gaussian_filter(images[0, 0].numpy().astype(np.float64), drawn, mode="mirror", radius=reach)
    np.testing.assert_allclose(found[reach:-reach, reach:-reach], expected[reach:-reach, reach:-reach], atol=1e-5)


def test_motion_is_a_straight_path_through_the_centre() -> None:
    one = Blur(probability=1, kinds=["motion"], motion=9)
    kernels = motion_kernels(300, one, seeded(1))
    torch.testing.assert_close(kernels.sum((1, 2)), torch.ones(300))
    torch.testing.assert_close(kernels, kernels.flip(1, 2), atol=1e-6, rtol=0)
    reach = kernels.shape[1] // 2
    places = torch.stack(torch.meshgrid(*[torch.arange(-reach, reach + 1.0)] * 2, indexing="ij")).flatten(1)
    spread = torch.einsum("np,ap,bp->nab", kernels.flatten(1), places, places)
    narrow, wide = torch.linalg.eigvalsh(spread).T
    assert narrow.max() < 0.3 and wide.max() > 5, "variance across the path, and along the longest"
    assert (kernels > 1e-6).sum((1, 2)).min() >= 2


def test_a_blur_leaves_an_even_image_even() -> None:
    for kind in ("motion", "gaussian"):
        even = torch.full((8, 3, 16, 16), 0.3)
        torch.testing.assert_close(blurred(even, Blur(probability=1, kinds=[kind]), seeded(1)), even)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"movement_probability": 0.5}, "movement_probability needs"),
        ({"tone_probability": 0.5}, "tone_probability needs"),
        ({"cutout": {"probability": 1, "fewest": 3, "most": 2}}, "less than fewest"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        spec(values)


def test_what_does_not_fit_the_images_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cutout\.side is 40, but images have 32"):
        spec({"cutout": {"probability": 1, "side": 40}}).require_fits(32)
    with pytest.raises(ValueError, match=r"blur reaches 30 pixels"):
        spec({"blur": {"probability": 1, "gaussian": 10}}).require_fits(28)
    SKINNET.require_fits(64)
