"""Denoising, CLAHE and the figures of what they do, each against an independent reference or a case that can be told by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import median_filter
from scipy.signal import convolve2d
from skimage import data
from skimage.filters import gaussian

from shared.imaging.contrast import contrast_of, local_contrast, signal_to_noise, visibility
from shared.imaging.enhancement import enhanced, equalised, is_enhanced, noise_deviation
from shared.imaging.preprocess import prepare, recipe_digest, unenhanced
from shared.study_pixels import Clahe, LayerNormalise, Preprocessing

PLAIN = Preprocessing(region="whole", size=64, channels=1)
CAMERA = np.asarray(data.camera()[100:356:2, 100:356:2] / 255, dtype=np.float32)


def noisy(deviation: float, seed: int = 0) -> np.ndarray:
    values = CAMERA + np.random.default_rng(seed).normal(0, deviation, CAMERA.shape)
    return np.clip(values, 0, 1).astype(np.float32)


def with_(**changes: object) -> Preprocessing:
    return Preprocessing.model_validate({**PLAIN.model_dump(), **changes})


def test_nothing_is_touched_where_both_are_off() -> None:
    assert enhanced(CAMERA, PLAIN) is CAMERA and not is_enhanced(PLAIN)


def test_the_median_is_scipys() -> None:
    image = noisy(0.1)
    np.testing.assert_allclose(enhanced(image, with_(denoise="median")), median_filter(image, 3, mode="nearest"))


@pytest.mark.parametrize("method", ["median", "bilateral", "nlm"])
def test_denoising_brings_an_image_nearer_to_what_it_was_without_noise(method: str) -> None:
    smooth = gaussian(CAMERA, 2)
    noise = np.random.default_rng(0).normal(0, 0.05, smooth.shape)
    image = np.clip(smooth + noise, 0, 1).astype(np.float32)
    result = enhanced(image, with_(denoise=method))
    assert result.dtype == np.float32 and result.shape == image.shape
    assert result.min() >= 0.0 and result.max() <= 1.0
    assert np.mean((result - smooth) ** 2) < 0.6 * np.mean((image - smooth) ** 2)
    flat = np.full((32, 32), 0.25, np.float32)
    np.testing.assert_array_equal(enhanced(flat, with_(denoise=method)), flat)


def test_the_noise_is_immerkaers_and_near_the_truth_on_a_smooth_image() -> None:
    smooth = np.add.outer(np.linspace(0.3, 0.7, 128), np.linspace(-0.1, 0.1, 128))
    image = smooth + np.random.default_rng(3).normal(0, 0.03, smooth.shape)
    assert noise_deviation(image) == pytest.approx(0.03, rel=0.05)
    assert noise_deviation(smooth) < 1e-12
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]])
    total = np.abs(convolve2d(image, kernel, mode="valid")).sum()
    assert noise_deviation(image) == pytest.approx(np.sqrt(np.pi / 2) * total / (6 * 126 * 126))
    with pytest.raises(ValueError, match="at least 3 x 3"):
        noise_deviation(image[:2])


def test_clahe_raises_local_contrast_and_spreads_the_levels() -> None:
    dull = (0.4 + 0.2 * CAMERA).astype(np.float32)
    result = equalised(dull, Clahe())
    assert result.dtype == np.float32 and (result.min(), result.max()) == (0.0, 1.0)
    before, after = local_contrast(dull.astype(float)), local_contrast(result.astype(float))
    assert before is not None and after is not None and after > 2 * before
    flat = np.full((32, 32), 0.25, np.float32)
    assert equalised(flat, Clahe()) is flat


def test_a_larger_clip_limit_and_more_tiles_change_more() -> None:
    def spread(clahe: Clahe) -> float:
        return float(local_contrast(equalised(CAMERA, clahe).astype(float)) or 0)

    assert spread(Clahe(clip_limit=0.005)) < spread(Clahe(clip_limit=0.03))
    assert spread(Clahe(tiles=1)) < spread(Clahe(tiles=8))


@settings(max_examples=25)
@given(st.integers(16, 70), st.integers(1, 8), st.booleans(), st.integers(0, 2**32 - 1))
def test_any_size_and_any_tiles_stay_in_range(side: int, tiles: int, colour: bool, seed: int) -> None:
    image = np.random.default_rng(seed).random((side, side, 3) if colour else (side, side), dtype=np.float32)
    result = enhanced(image, with_(size=side, clahe={"tiles": tiles}))
    assert result.shape == image.shape and result.min() >= 0.0 and result.max() <= 1.0


def test_only_the_brightness_of_a_colour_image_is_equalised() -> None:
    grey = (0.4 + 0.2 * CAMERA).astype(np.float32)
    result = equalised(np.stack([grey, 0.5 * grey, 0.25 * grey], axis=2), Clahe())
    bright = result[..., 0] > 0.1
    np.testing.assert_allclose(result[..., 1][bright] / result[..., 0][bright], 0.5, atol=0.02)


def test_more_tiles_than_a_small_image_carries_and_two_normalisers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"clahe\.tiles is 40"):
        with_(clahe={"tiles": 40})
    with pytest.raises(ValueError, match="exclude each other"):
        with_(normalise={"mean": [0.5], "std": [0.2]}, layer_normalise={})


def test_local_contrast_of_a_checkerboard_is_that_of_its_two_levels() -> None:
    board = np.where(np.indices((64, 64)).sum(axis=0) % 2, 0.75, 0.25)
    assert local_contrast(board) == pytest.approx(0.5)
    assert local_contrast(np.full((64, 64), 0.3)) == 0.0
    assert local_contrast(np.zeros((64, 64))) is None
    padded = np.zeros((64, 64))
    padded[:, 16:48] = board[:, 16:48]
    assert local_contrast(padded) == pytest.approx(0.5), "black padding has no contrast"


def test_visibility_is_of_the_brightest_marked_pixels_against_the_rest() -> None:
    grey, mask = np.full((40, 40), 0.2), np.zeros((40, 40), dtype=bool)
    mask[10:30, 10:30] = True  # 400 pixels, of which 5 % are 20
    grey[12, 11:31] = 0.6
    grey[12, 30] = 0.2
    grey[14, 11] = 0.6
    assert visibility(grey, mask) == pytest.approx((0.6 - 0.2) / (0.6 + 0.2))
    assert visibility(grey, np.zeros_like(mask)) is None and visibility(grey, ~np.zeros_like(mask)) is None
    assert visibility(np.zeros((40, 40)), mask) is None
    with pytest.raises(ValueError, match="mask of shape"):
        visibility(grey, mask[1:])


def test_snr_is_in_decibels_and_falls_with_noise() -> None:
    flat = 0.5 + np.random.default_rng(0).normal(0, 0.05, (200, 200))
    assert signal_to_noise(flat) == pytest.approx(20.0, abs=0.5)
    assert signal_to_noise(np.full((20, 20), 0.5)) is None and signal_to_noise(np.zeros((20, 20))) is None
    quiet, loud = (contrast_of(noisy(d), None) for d in (0.02, 0.1))
    assert quiet.snr is not None and loud.snr is not None and quiet.snr > loud.snr and quiet.visibility is None


def test_the_prepared_image_is_the_enhanced_one_and_the_mask_lies_on_it(tmp_path: Path) -> None:
    array = np.random.default_rng(1).integers(40, 90, (100, 80), dtype=np.uint8)
    array[40:60, 30:50] = 200
    mask = np.zeros((100, 80), dtype=np.uint8)
    mask[40:60, 30:50] = 255
    for name, one in (("i.png", array), ("m.png", mask)):
        Image.fromarray(one).save(tmp_path / name)
    recipe = with_(region="finding", margin=0.25, size=30, clahe={"tiles": 2}, denoise="median")
    plain = unenhanced(tmp_path / "i.png", [tmp_path / "m.png"], recipe, with_mask=True)
    np.testing.assert_array_equal(plain.levels, np.float32(array[35:65, 25:55]) / np.float32(255))
    assert plain.mask is not None
    np.testing.assert_array_equal(plain.mask, mask[35:65, 25:55] > 0)
    stored = prepare(tmp_path / "i.png", [tmp_path / "m.png"], recipe)[0]
    np.testing.assert_array_equal(stored, np.rint(enhanced(plain.levels, recipe) * 255))


def test_the_recipes_digest_knows_enhancement_but_not_normalisation() -> None:
    changes = ({"clahe": {}}, {"clahe": {"tiles": 4}}, {"denoise": "median"}, {"denoise": "nlm"})
    assert len({recipe_digest(with_(**change)) for change in changes} | {recipe_digest(PLAIN)}) == 5
    layer = PLAIN.model_copy(update={"layer_normalise": LayerNormalise(gamma=1.2, beta=0.1)})
    assert recipe_digest(layer) == recipe_digest(PLAIN)
