"""Addresses of images inside files: what is one, what it reads, and how its errors name it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared.errors import UnreadableImageError
from shared.imaging.files import read_image
from shared.imaging.inside import Inside, inside, source_file


@pytest.fixture
def loop(tmp_path: Path) -> Path:
    pages = [Image.fromarray(np.full((4, 6), value, dtype=np.uint8)) for value in (10, 20)]
    pages[0].save(tmp_path / "loop.tiff", save_all=True, append_images=pages[1:])
    return tmp_path / "loop.tiff"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    images = np.arange(3 * 4 * 5 * 3, dtype=np.uint8).reshape(3, 4, 5, 3)
    np.savez(
        tmp_path / "set.npz",
        train_images=images,
        deep_images=np.full((1, 4, 5), 4000, np.uint16),
        float_images=np.ones((1, 4, 5)),
    )
    return tmp_path / "set.npz"


def test_an_address_and_its_place_mean_the_same(loop: Path) -> None:
    place = Inside(loop, "frame", 1)
    assert inside(place.address) == place
    assert source_file(place.address) == loop == source_file(loop)


def test_files_with_numbers_for_names_are_files(tmp_path: Path) -> None:
    path = tmp_path / "series" / "00017"
    path.parent.mkdir()
    Image.fromarray(np.full((4, 6), 9, dtype=np.uint8)).save(path, format="png")
    assert inside(path) is None
    assert read_image(path).size == (4, 6)


def test_a_frame_and_a_row_have_their_own_pixels(loop: Path, archive: Path) -> None:
    assert [int(read_image(loop / "frame" / str(index)).array.max()) for index in (0, 1)] == [10, 20]
    row = read_image(archive / "train" / "2")
    assert (row.photometric, row.bits) == ("RGB", 8)
    np.testing.assert_array_equal(row.array, np.arange(120, 180, dtype=np.uint8).reshape(4, 5, 3))
    deep = read_image(archive / "deep" / "0")
    assert (deep.bits, int(deep.array.max())) == (16, 4000)


def test_errors_name_the_address(loop: Path, archive: Path) -> None:
    for path, reason in (
        (loop / "frame" / "7", "no frame 7"),
        (archive / "train" / "3", "has 3 images only"),
        (archive / "float" / "0", "float64"),
    ):
        with pytest.raises(UnreadableImageError, match=f"^{path}: .*{reason}"):
            read_image(path)
    with pytest.raises(UnreadableImageError, match="holds no array 'test_images'"):
        read_image(archive / "test" / "0")


def test_an_archive_that_changed_is_read_again(archive: Path) -> None:
    before = read_image(archive / "train" / "0").array
    np.savez(archive, train_images=np.full((1, 4, 5), 7, np.uint8), padding=np.zeros(100))
    after = read_image(archive / "train" / "0").array
    assert before.shape == (4, 5, 3) and (after == 7).all()
