"""Masks and preprocessing: geometry as properties, resampling compared with torch, intensities with NumPy."""

from __future__ import annotations

from fractions import Fraction
from math import floor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.transform import downscale_local_mean

from shared.errors import UnreadableImageError
from shared.imaging.masks import Box, bounding_box, read_mask, resized_mask, union_of_masks
from shared.imaging.preprocess import (
    cut,
    padded,
    prepare,
    prepare_mask,
    recipe_digest,
    resized,
    square_around,
    square_of_whole,
    unit_intensities,
)
from shared.study_pixels import Normalise, Preprocessing

sides = st.integers(1, 60)


def saved(path: Path, array: np.ndarray) -> Path:
    Image.fromarray(array).save(path)
    return path


@st.composite
def boxes_in_images(draw: st.DrawFn) -> tuple[Box, tuple[int, int]]:
    height, width = draw(sides), draw(sides)
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    return Box(top, left, draw(st.integers(top + 1, height)), draw(st.integers(left + 1, width))), (height, width)


@given(boxes_in_images(), st.floats(0, 4))
def test_the_square_holds_the_whole_finding_and_stays_inside_where_it_fits(
    case: tuple[Box, tuple[int, int]], margin: float
) -> None:
    box, (height, width) = case
    square = square_around(box, margin, (height, width))
    assert abs(square.side - max(box.height, box.width) * (1 + 2 * margin)) <= 0.5 + 1e-9
    for start, length, low, high in (
        (square.top, height, box.top, box.bottom),
        (square.left, width, box.left, box.right),
    ):
        assert start <= low and high <= start + square.side
        if square.side <= length:
            assert start >= 0 and start + square.side <= length
        else:
            before, after = -start, start + square.side - length
            assert before >= 0 and after >= 0 and abs(before - after) <= 1


@given(boxes_in_images())
def test_away_from_the_border_the_finding_lies_in_the_middle(case: tuple[Box, tuple[int, int]]) -> None:
    box, (height, width) = case
    far = Box(box.top + 1000, box.left + 1000, box.bottom + 1000, box.right + 1000)
    square = square_around(far, 0.5, (height + 2000, width + 2000))
    assert abs((square.top + square.side / 2) - (far.top + far.bottom) / 2) <= 0.5
    assert abs((square.left + square.side / 2) - (far.left + far.right) / 2) <= 0.5


@given(boxes_in_images(), st.floats(0, 4))
def test_what_is_cut_and_padded_is_the_image_inside_and_black_outside(
    case: tuple[Box, tuple[int, int]], margin: float
) -> None:
    box, size = case
    image = np.arange(1, size[0] * size[1] + 1, dtype=np.float32).reshape(size)
    square = square_around(box, margin, size)
    result = padded(cut(image, square), size, square)
    assert result.shape == (square.side, square.side)
    y, x = np.mgrid[square.top : square.top + square.side, square.left : square.left + square.side]
    inside = (y >= 0) & (y < size[0]) & (x >= 0) & (x < size[1])
    expected = np.where(inside, image[np.clip(y, 0, size[0] - 1), np.clip(x, 0, size[1] - 1)], 0)
    np.testing.assert_array_equal(result, expected)


@given(sides, sides)
def test_the_whole_image_is_padded_to_a_square_without_losing_a_pixel(height: int, width: int) -> None:
    image = np.ones((height, width), dtype=np.float32)
    square = square_of_whole(image.shape)
    result = padded(cut(image, square), image.shape, square)
    assert result.shape == (max(height, width),) * 2 and result.sum() == height * width


@given(boxes_in_images())
def test_the_bounding_box_of_a_box_is_that_box(case: tuple[Box, tuple[int, int]]) -> None:
    box, size = case
    mask = np.zeros(size, dtype=bool)
    mask[box.top : box.bottom, box.left : box.right] = True
    assert bounding_box(mask) == box
    assert bounding_box(np.zeros(size, dtype=bool)) is None


@given(boxes_in_images(), sides, sides)
def test_resizing_a_mask_is_nearest_neighbour_and_never_loses_a_finding(
    case: tuple[Box, tuple[int, int]], height: int, width: int
) -> None:
    box, size = case
    mask = np.zeros(size, dtype=bool)
    mask[box.top : box.bottom, box.left : box.right] = True
    result = resized_mask(mask, (height, width))
    assert result.shape == (height, width) and result.any()
    # The source pixel under the centre of each new pixel, in exact fractions.
    rows = [floor(Fraction(2 * y + 1, 2) * size[0] / height) for y in range(height)]
    columns = [floor(Fraction(2 * x + 1, 2) * size[1] / width) for x in range(width)]
    reference = np.array([[mask[y, x] for x in columns] for y in rows])
    if reference.any():
        np.testing.assert_array_equal(result, reference)


def test_masks_of_another_size_are_brought_to_the_image(tmp_path: Path) -> None:
    mask = np.zeros((40, 20), dtype=np.uint8)
    mask[10:20, 4:8] = 255
    path = saved(tmp_path / "m.png", mask)
    assert bounding_box(read_mask(path, (80, 40))) == Box(20, 8, 40, 16)
    assert bounding_box(read_mask(path, (20, 10))) == Box(5, 2, 10, 4)
    assert bounding_box(read_mask(path)) == Box(10, 4, 20, 8)


def test_a_crop_in_the_place_of_a_mask_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "crop.png", np.full((30, 30), 255, dtype=np.uint8))
    with pytest.raises(UnreadableImageError, match=r"crop.png: the mask is 30 x 30 pixels and its image 40 x 80"):
        read_mask(path, (80, 40))


def test_several_masks_are_united_and_an_empty_one_is_refused(tmp_path: Path) -> None:
    first, second = np.zeros((2, 16, 16), dtype=np.uint8)
    first[2, 3] = second[9, 12] = 1
    paths = [saved(tmp_path / "a.png", first), saved(tmp_path / "b.png", second)]
    assert bounding_box(union_of_masks(paths, (16, 16))) == Box(2, 3, 10, 13)
    empty = saved(tmp_path / "empty.png", np.zeros((16, 16), dtype=np.uint8))
    with pytest.raises(UnreadableImageError, match=r"empty\.png: the mask is empty"):
        union_of_masks([*paths, empty], (16, 16))


@given(st.integers(2, 90), st.integers(2, 90), st.integers(0, 2**32 - 1))
def test_resampling_equals_torchs_antialiased_bilinear(side: int, size: int, seed: int) -> None:
    image = np.random.default_rng(seed).random((side, side), dtype=np.float32)
    reference = torch.nn.functional.interpolate(
        torch.from_numpy(image)[None, None], size=(size, size), mode="bilinear", antialias=True
    )[0, 0]
    np.testing.assert_allclose(resized(image, size), reference.numpy(), atol=2e-5)


def test_nothing_is_skipped_when_shrinking() -> None:
    """A checkerboard becomes even grey, as by area averaging (skimage); picking pixels would give 0 or 1."""
    board = (np.indices((128, 128)).sum(axis=0) % 2).astype(np.float32)
    inner = resized(board, 16)[1:-1, 1:-1]
    np.testing.assert_allclose(inner, downscale_local_mean(board, (8, 8))[1:-1, 1:-1], atol=1e-3)


def test_intensities_by_bit_depth_and_by_the_regions_percentiles() -> None:
    array = np.random.default_rng(0).integers(300, 3000, size=(50, 60)).astype(np.uint16)
    np.testing.assert_allclose(unit_intensities(array, 12, "bit_depth"), array / 4095.0, atol=1e-6)
    low, high = np.quantile(array, [0.005, 0.995])
    expected = np.clip((array - low) / (high - low), 0, 1)
    np.testing.assert_allclose(unit_intensities(array, 12, "region_percentiles"), expected, atol=1e-5)
    assert (unit_intensities(np.full((4, 4), 9, np.uint8), 8, "region_percentiles") == 0).all()


def test_prepared_images_have_the_shape_and_type_that_their_source_asks_for(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    grey = saved(tmp_path / "grey.png", generator.integers(0, 256, (70, 90), dtype=np.uint8))
    deep = saved(tmp_path / "deep.png", generator.integers(0, 65536, (70, 90), dtype=np.uint16))
    colour = saved(tmp_path / "colour.png", generator.integers(0, 256, (70, 90, 3), dtype=np.uint8))
    whole = Preprocessing(region="whole", size=32, channels=3)
    assert (prepare(grey, (), whole).shape, prepare(grey, (), whole).dtype) == ((1, 32, 32), np.uint8)
    assert (prepare(deep, (), whole).shape, prepare(deep, (), whole).dtype) == ((1, 32, 32), np.float16)
    assert (prepare(colour, (), whole).shape, prepare(colour, (), whole).dtype) == ((3, 32, 32), np.uint8)
    one = whole.model_copy(update={"channels": 1})
    luma = prepare(colour, (), one)
    assert luma.shape == (1, 32, 32)
    expected = np.tensordot([0.299, 0.587, 0.114], prepare(colour, (), whole).astype(float), axes=1)
    np.testing.assert_allclose(luma[0], expected, atol=1.01)


def test_the_finding_is_cut_out_with_its_margin(tmp_path: Path) -> None:
    array = np.zeros((100, 80), dtype=np.uint8)
    array[40:60, 30:50] = 200
    image = saved(tmp_path / "i.png", array)
    mask = saved(tmp_path / "m.png", (array > 0).astype(np.uint8) * 255)
    recipe = Preprocessing(region="finding", margin=0.25, size=30, channels=1)
    result = prepare(image, [mask], recipe)[0]  # side 20 * 1.5 = 30: no resampling
    np.testing.assert_array_equal(result, array[35:65, 25:55])


def test_a_finding_without_a_mask_is_refused_and_names_the_image(tmp_path: Path) -> None:
    image = saved(tmp_path / "i.png", np.zeros((20, 20), dtype=np.uint8))
    recipe = Preprocessing(region="finding", size=16, channels=1)
    with pytest.raises(UnreadableImageError, match=r"i\.png: it has no mask"):
        prepare(image, [], recipe)
    with pytest.raises(UnreadableImageError, match=r"i\.png: the mask is empty"):
        prepare(image, [image], recipe)


def test_the_recipes_digest_changes_with_what_changes_pixels_and_with_nothing_else() -> None:
    recipe = Preprocessing(region="finding", size=32, channels=3)
    normalised = recipe.model_copy(update={"normalise": Normalise(mean=[0.5], std=[0.2])})
    assert recipe_digest(normalised) == recipe_digest(recipe)
    changes = ({"size": 33}, {"margin": 0.3}, {"region": "whole"}, {"intensity": "region_percentiles"}, {"channels": 1})
    digests = {recipe_digest(recipe.model_copy(update=change)) for change in changes}
    assert len(digests | {recipe_digest(recipe)}) == 6


@given(boxes_in_images(), st.sampled_from(["finding", "whole"]), st.floats(0, 1), st.integers(16, 40))
@settings(max_examples=40)
def test_a_prepared_mask_lies_where_the_finding_lies_in_the_prepared_image(
    tmp_path_factory: pytest.TempPathFactory,
    case: tuple[Box, tuple[int, int]],
    region: str,
    margin: float,
    size: int,
) -> None:
    box, shape = case
    array = np.zeros(shape, dtype=np.uint8)
    array[box.top : box.bottom, box.left : box.right] = 255
    if array.min() == array.max():
        return
    folder = tmp_path_factory.mktemp("mask")
    image, mask = saved(folder / "i.png", array), saved(folder / "m.png", array)
    recipe = Preprocessing.model_validate({"region": region, "margin": margin, "size": size, "channels": 1})
    found = prepare_mask(image, [mask], recipe)
    assert found.shape == (size, size) and found.dtype == np.float32
    np.testing.assert_allclose(found, prepare(image, [mask], recipe)[0] / 255.0, atol=0.003)


def test_a_prepared_mask_is_of_all_masks_and_brought_to_the_images_size(tmp_path: Path) -> None:
    image = saved(tmp_path / "i.png", np.arange(40 * 40, dtype=np.uint16).reshape(40, 40))
    left, right = np.zeros((20, 20), np.uint8), np.zeros((40, 40), np.uint8)
    left[:, :5], right[:, 30:] = 1, 1
    masks = [saved(tmp_path / "l.png", left), saved(tmp_path / "r.png", right)]
    found = prepare_mask(image, masks, Preprocessing(region="whole", size=40, channels=3))
    assert (found[:, :10] == 1).all() and (found[:, 30:] == 1).all() and (found[:, 10:30] == 0).all()
    with pytest.raises(ValueError, match="masks"):
        prepare_mask(image, [], Preprocessing(region="whole", size=40, channels=3))
