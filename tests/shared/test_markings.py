"""Black borders, vignette, hair and ruler are taken out of an image and of nothing else; masks are cut as the image is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw
from pydantic import ValidationError

from client.data.records import Record
from client.data.removal import removal_of
from client.page_removal import removal_section
from shared.imaging.field_of_view import _largest_rectangle, view_of
from shared.imaging.markings import markings, without_markings
from shared.imaging.pixels import Pixels
from shared.imaging.preprocess import prepare, prepare_mask, recipe_digest, unenhanced
from shared.study_pixels import Preprocessing

SIZE = (200, 150)


def recipe(*remove: str, **changes: object) -> Preprocessing:
    return Preprocessing.model_validate({"region": "whole", "size": 64, "channels": 3, "remove": remove, **changes})


def skin() -> Image.Image:
    """Bright skin that darkens to one side, with a brown lesion and a network of pigment in it."""
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
    light = 0.95 - 0.15 * columns / SIZE[0]
    lesion = 1 / (1 + np.exp((np.hypot(rows - 75, columns - 100) - 30) / 2))
    network = 0.05 * lesion * (np.sin(rows / 1.3) * np.sin(columns / 1.3))
    colour = (
        light[..., None] * np.array([0.95, 0.75, 0.7]) * (1 - lesion[..., None] * [0.4, 0.6, 0.7]) + network[..., None]
    )
    return Image.fromarray(np.rint(np.clip(colour, 0, 1) * 255).astype(np.uint8))


def levels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture, dtype=np.float32) / 255


def with_hair(picture: Image.Image, width: float = 2) -> Image.Image:
    """Four straight hairs and a bent one, `width` pixels thick, drawn finely and reduced as a camera does."""
    fine = Image.new("L", (4 * SIZE[0], 4 * SIZE[1]))
    pen, thick = ImageDraw.Draw(fine), round(4 * width)
    for ends in ((5, 10, 120, 40), (60, 140, 190, 20), (20, 60, 90, 145), (150, 5, 160, 148)):
        pen.line([4 * end for end in ends], fill=255, width=thick)
    pen.arc((120, 80, 680, 560), 200, 300, fill=255, width=thick)
    return Image.composite(Image.new("RGB", SIZE, (60, 45, 40)), picture, fine.resize(SIZE, Image.Resampling.BOX))


def with_ruler(picture: Image.Image) -> Image.Image:
    marked = picture.copy()
    for number in range(4):
        ImageDraw.Draw(marked).line((8 + 15 * number, 4, 10 + 15 * number, 12), fill=(30, 30, 30), width=2)
    return marked


def round_view(picture: Image.Image, radius: float = 90) -> Image.Image:
    rows, columns = np.mgrid[: picture.height, : picture.width]
    outside = np.hypot(rows - picture.height / 2, columns - picture.width / 2) > radius
    array = np.array(picture)
    array[outside] = 4
    return Image.fromarray(array)


@pytest.mark.parametrize("width", [1.2, 2, 3])
def test_hair_is_filled_with_what_was_there_and_a_lesion_without_hair_is_left_alone(width: float) -> None:
    clean, hairy = levels(skin()), levels(with_hair(skin(), width))
    drawn = np.abs(clean - hairy).max(axis=2) > 0.15
    found = markings(hairy)
    assert found[drawn].mean() > 0.95 and found[~drawn].mean() < 0.1
    left = np.abs(without_markings(hairy, recipe("hair")) - clean)[drawn]
    assert left.mean() < 0.04 < 0.2 < np.abs(hairy - clean)[drawn].mean()
    assert without_markings(clean, recipe("hair", "ruler")) is clean
    assert without_markings(hairy, recipe("borders", "vignette")) is hairy
    grey = hairy.mean(axis=2)
    assert markings(grey)[drawn].mean() > 0.9


def test_marks_of_a_ruler_are_found_at_the_edge_where_two_are_parallel() -> None:
    clean, marked = levels(skin()), levels(with_ruler(skin()))
    drawn = (clean != marked).any(axis=2)
    assert markings(marked, hair=False)[drawn].mean() > 0.9
    assert not markings(marked, ruler=False).any()
    middle = np.roll(marked, (60, 60), axis=(0, 1))
    assert not markings(middle, hair=False)[50:90, 60:140].any()


def test_a_round_field_of_view_becomes_its_rectangle_and_bars_go() -> None:
    array = np.asarray(round_view(skin()))
    view = view_of(Pixels(array, 8, "RGB"), recipe("vignette"))
    inside = view.of(array)
    assert (inside.mean(axis=2) > 40).mean() > 0.995  # a block of 2 x 2 pixels at the rim is judged by its mean
    # The largest upright rectangle in a circle that the image's edges cut: found here by trying half heights.
    best = max((2 * half * 2 * (90**2 - half**2) ** 0.5 for half in np.arange(1, 75.5, 0.5)), default=0)
    assert inside.shape[0] * inside.shape[1] > 0.95 * best
    barred = np.zeros((170, 240, 3), np.uint8)
    barred[12:162, 20:220] = np.asarray(skin())
    np.testing.assert_array_equal(view_of(Pixels(barred, 8, "RGB"), recipe("borders")).of(barred), np.asarray(skin()))
    for whole in (
        np.asarray(skin()),
        np.zeros((30, 40, 3), np.uint8),
        (np.asarray(skin())[..., 0].astype(np.uint16) << 8),
    ):
        pixels = Pixels(whole, 16 if whole.dtype == np.uint16 else 8, "RGB" if whole.ndim == 3 else "MONOCHROME2")
        assert view_of(pixels, recipe("borders", "vignette")).of(whole).shape == whole.shape


@settings(max_examples=60)
@given(arrays(np.bool_, st.tuples(st.integers(1, 6), st.integers(1, 6))))
def test_the_largest_rectangle_is_the_largest_of_all(free: np.ndarray) -> None:
    top, left, bottom, right = _largest_rectangle(free)
    every = [
        (b - t) * (r - x)
        for t in range(free.shape[0]) for b in range(t + 1, free.shape[0] + 1)
        for x in range(free.shape[1]) for r in range(x + 1, free.shape[1] + 1)
        if free[t:b, x:r].all()
    ]  # fmt: skip
    assert not every or (free[top:bottom, left:right].all() and (bottom - top) * (right - left) == max(every))


def test_masks_are_cut_as_the_image_is_and_a_finding_is_never_cut(tmp_path: Path) -> None:
    picture = round_view(skin(), 85)
    ImageDraw.Draw(picture).rectangle((120, 60, 149, 89), fill=(0, 255, 0))
    mask = Image.new("L", SIZE)
    ImageDraw.Draw(mask).rectangle((120, 60, 149, 89), fill=255)
    picture.save(tmp_path / "i.png")
    mask.save(tmp_path / "m.png")
    paths = (tmp_path / "i.png", [tmp_path / "m.png"])
    asked = recipe("vignette")
    plain = unenhanced(*paths, asked, with_mask=True)
    green = plain.levels[..., 1] - plain.levels[..., 0] > 0.5
    assert plain.kept < 0.8 and plain.mask is not None
    assert (green & plain.mask).sum() / (green | plain.mask).sum() > 0.85
    shares = prepare_mask(*paths, asked)
    assert ((shares > 0.5) & green).sum() / ((shares > 0.5) | green).sum() > 0.85
    whole = unenhanced(*paths, recipe(), with_mask=True)
    assert whole.mask is not None and whole.mask.sum() < plain.mask.sum()  # the same lesion, larger in what is left
    # A finding in a dark corner: the square around it is what counts.
    corner = Image.new("L", SIZE)
    corner.paste(255, (2, 2, 20, 20))
    corner.save(tmp_path / "c.png")
    args = (tmp_path / "i.png", [tmp_path / "c.png"])
    np.testing.assert_array_equal(
        prepare(*args, recipe("vignette", region="finding")), prepare(*args, recipe(region="finding"))
    )


def test_the_key_is_one_set_and_what_was_cached_without_it_still_stands() -> None:
    assert recipe("ruler", "borders").remove == ("borders", "ruler")
    assert (
        recipe_digest(recipe("ruler", "hair"))
        == recipe_digest(recipe("hair", "ruler"))
        != recipe_digest(recipe("hair"))
    )
    with pytest.raises(ValidationError, match="names something twice"):
        recipe("hair", "hair")
    # Of the release before the key was there.
    assert recipe_digest(recipe()) == "9d04ec84161834943b8fde949d4d334a483e46a35d7dacfda82b3e0860d8f845"


def test_the_hospitals_page_shows_what_changed_most(tmp_path: Path) -> None:
    pictures = {"clean": skin(), "hairy": with_hair(skin()), "round": round_view(skin())}
    records = []
    for name, picture in pictures.items():
        picture.save(tmp_path / f"{name}.png")
        records.append(Record(key=name, image=tmp_path / f"{name}.png", label="a", patient=name))
    records.append(Record(key="none", image=tmp_path / "none.png", label="a", patient="none"))
    asked = recipe("borders", "vignette", "hair", "ruler")
    found = removal_of(records, asked, most=10, seed=1, shown=2)
    assert (found.images, found.unreadable, found.cut, found.filled) == (3, 1, 1, 1)
    assert found.kept is not None and 0.5 < found.kept < 0.9
    assert [pair.key for pair in found.pairs] == ["round", "hairy"]
    page = removal_section(found, asked)
    assert page.count("data:image/png") == 4 and "1 images were cut" in page and "<figure>" not in page
