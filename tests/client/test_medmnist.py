"""The MedMNIST adapter, on archives written here and on the published BreastMNIST, through survey and cache too."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from client.data.cache import forget_records, prepare_store
from client.data.image_survey import find_duplicates, survey
from client.data.medmnist import MedMnist
from client.data.registry import ADAPTERS
from client.data.source_digests import source_digests
from shared.errors import DataError
from shared.study_pixels import Preprocessing

read = MedMnist()
RECIPE = Preprocessing(region="whole", size=28, channels=1)


def arrays(labels: tuple[int, ...] = (5, 2, 3), *, colour: bool = False) -> dict[str, NDArray[Any]]:
    generator = np.random.default_rng(0)
    made: dict[str, NDArray[Any]] = {}
    for part, count in zip(("train", "val", "test"), labels, strict=True):
        shape = (count, 28, 28, 3) if colour else (count, 28, 28)
        made[f"{part}_images"] = generator.integers(0, 256, shape, dtype=np.uint8)
        made[f"{part}_labels"] = np.arange(count, dtype=np.uint8) % 2
    return made


def archive(folder: Path, name: str = "breastmnist.npz", **changes: Any) -> Path:
    content = {name: value for name, value in {**arrays(), **changes}.items() if value is not None}
    np.savez_compressed(folder / name, **content)
    return folder / name


def test_every_row_is_a_record_with_its_label_named_and_its_published_part(tmp_path: Path) -> None:
    file = archive(tmp_path)
    holding = read(tmp_path, unit="image")
    assert len(holding.records) == 10 == len({record.patient for record in holding.records})
    second = holding.records[1]
    assert (second.key, second.label, second.image) == ("train/1", "normal_or_benign", file / "train" / "1")
    assert holding.records[0].label == "malignant"
    assert Counter((r.attributes["part"], r.division) for r in holding.records) == {
        ("train", "train"): 5,
        ("val", "train"): 2,
        ("test", "test"): 3,
    }
    assert holding.patient_stand_in == "image" and "names no patient" in holding.notes[0]
    assert read(file, unit="image").records == holding.records


def test_labels_of_shape_n_and_of_n_1_mean_the_same(tmp_path: Path) -> None:
    archive(tmp_path)
    flat = [record.label for record in read(tmp_path, unit="image").records]
    archive(tmp_path, train_labels=arrays()["train_labels"][:, None])
    assert [record.label for record in read(tmp_path, unit="image").records] == flat


@pytest.mark.parametrize(
    ("name", "label"),
    [("dermamnist_64.npz", "bcc"), ("pneumoniamnist.npz", "pneumonia"), ("bloodmnist_224.npz", "bloodmnist_1")],
)
def test_a_label_is_named_by_the_set_and_never_by_a_bare_number(tmp_path: Path, name: str, label: str) -> None:
    archive(tmp_path, name)
    assert read(tmp_path, unit="image").records[1].label == label


@pytest.mark.parametrize("colour", [False, True])
def test_the_cache_holds_the_arrays_own_pixels(tmp_path: Path, colour: bool) -> None:
    made = arrays(colour=colour)
    archive(tmp_path, "dermamnist.npz", **made)
    records = read(tmp_path, unit="image").records
    recipe = RECIPE.model_copy(update={"channels": 3 if colour else 1})
    store = prepare_store(records, recipe, tmp_path / "cache", unreadable="stop", workers=2)
    expected = np.concatenate([made[f"{part}_images"] for part in ("train", "val", "test")])
    np.testing.assert_array_equal(store.images, np.moveaxis(expected, -1, 1) if colour else expected[:, None])
    assert store.readable.all() and not store.problems


def test_a_row_that_changed_is_prepared_again_and_the_others_keep_their_digests(tmp_path: Path) -> None:
    made = arrays()
    file = archive(tmp_path, **made)
    records = read(tmp_path, unit="image").records
    cache = tmp_path / "cache"
    before = prepare_store(records, RECIPE, cache, unreadable="stop")
    paths = [record.image for record in records]
    old = source_digests(cache, paths)
    made["train_images"][3] = 7
    archive(tmp_path, **made)
    os.utime(file, (1, 1))
    new = source_digests(cache, paths)
    assert [path for path in paths if old[path] != new[path]] == [records[3].image]
    after = prepare_store(records, RECIPE, cache, unreadable="stop")
    assert (after.images[3] == 7).all()
    np.testing.assert_array_equal(after.images[4], before.images[4])


def test_who_withdraws_is_taken_out_of_the_cache_alone(tmp_path: Path) -> None:
    archive(tmp_path)
    records = read(tmp_path, unit="image").records
    cache = tmp_path / "cache"
    prepare_store(records, RECIPE, cache, unreadable="stop")
    forget_records(cache, ["train/2"], {records[2].image})
    (pack,) = (np.load(path) for path in cache.rglob("*.npy"))
    assert [index for index in range(10) if not pack[index].any()] == [2]


def test_the_same_pixels_in_training_and_test_are_found(tmp_path: Path) -> None:
    made = arrays()
    made["test_images"][1] = made["train_images"][2]
    archive(tmp_path, **made)
    records = read(tmp_path, unit="image").records
    assert find_duplicates(survey(records, masks="read"), records).across == ((records[2].image, records[8].image),)


def test_pixels_cut_off_are_named_and_nothing_crashes(tmp_path: Path) -> None:
    made = arrays((60, 2, 2))
    file = tmp_path / "breastmnist.npz"
    np.savez(file, **made)
    content = bytearray(file.read_bytes())
    content[5000] ^= 0xFF
    file.write_bytes(content)
    records = read(tmp_path, unit="image").records
    found = survey(records, masks="read")
    assert len(found.usable) == 4
    assert len(found.problems) == 60
    assert f"{file / 'train' / '0'}: " in str(found.problems[0]) and "can't be read" in str(found.problems[0])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"train_labels": None}, "train_labels is missing"),
        ({"train_labels": np.zeros((5, 14), np.uint8)}, "several labels"),
        ({"train_labels": np.zeros(4, np.uint8)}, r"expected \(5,\) or \(5, 1\)"),
        ({"train_labels": np.zeros(5)}, "whole numbers"),
        ({"train_labels": np.full(5, 9)}, "a label is 9, but breastmnist has 0 to 1"),
        ({"train_images": np.zeros((5, 28, 28, 28), np.uint8)}, r"expected uint8 of \(N, height, width\)"),
        ({"train_images": np.zeros((5, 28, 28))}, "float64"),
        ({f"{part}_images": None for part in ("train", "val", "test")}, "holds no array train_images"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:20],
)
def test_arrays_that_do_not_fit_end_in_a_sentence(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    archive(tmp_path, **changes)
    with pytest.raises(DataError, match=f"breastmnist.npz: .*{sentence}"):
        read(tmp_path, unit="image")


@pytest.mark.parametrize("state", ["missing", "empty", "no archive", "two archives", "not an archive", "a pickle"])
def test_a_folder_of_another_layout_ends_in_a_sentence(tmp_path: Path, state: str) -> None:
    folder = tmp_path / "other"
    if state != "missing":
        folder.mkdir()
    if state == "no archive":
        (folder / "picture.png").touch()
    if state == "two archives":
        archive(folder)
        archive(folder, "bloodmnist.npz")
    if state == "not an archive":
        (folder / "breastmnist.npz").write_bytes(b"PK nothing")
    if state == "a pickle":
        np.savez(folder / "breastmnist.npz", train_images=np.array([{}], dtype=object))
    with pytest.raises(DataError, match="other"):
        read(folder, unit="image")


def test_any_other_unit_than_the_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="only: image"):
        read(archive(tmp_path), unit="finding")
    assert isinstance(ADAPTERS["medmnist"], MedMnist)


@pytest.mark.real_data
def test_the_published_breastmnist_is_read_whole() -> None:
    data = os.environ.get("FEDERATION_DATA")
    if data is None:
        pytest.skip("FEDERATION_DATA is not set: the published archive is not there")
    records = read(Path(data) / "breastmnist_28", unit="image").records
    with np.load(Path(data) / "breastmnist_28" / "breastmnist.npz") as published:
        counts = Counter(int(label) for part in ("train", "val", "test") for label in published[f"{part}_labels"])
    assert Counter(record.attributes["part"] for record in records) == {"train": 546, "val": 78, "test": 156}
    assert Counter(record.label for record in records) == {"malignant": counts[0], "normal_or_benign": counts[1]}
    assert not survey(records, masks="read").problems
