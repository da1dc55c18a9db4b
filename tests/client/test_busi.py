"""The BUSI adapter, on folders written here and on the published images."""

from __future__ import annotations

import csv
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.data.busi import Busi
from client.data.image_survey import survey
from client.data.registry import ADAPTERS
from shared.errors import DataError

read = Busi()


def picture(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 6), value, dtype=np.uint8)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "Dataset_BUSI_with_GT"
    for label, number in (("benign", 1), ("benign", 2), ("malignant", 1), ("normal", 1)):
        picture(folder / label / f"{label} ({number}).png", 9)
        picture(folder / label / f"{label} ({number})_mask.png", 0 if label == "normal" else 255)
    picture(folder / "benign" / "benign (1)_mask_1.png", 255)
    return tmp_path


def index(root: Path, rows: str) -> None:
    (root / "busi_index.csv").write_text("file,label,near_duplicate_group\n" + rows)


def by_key(root: Path) -> dict[str, str]:
    return {record.key: record.patient for record in read(root, unit="image").records}


def test_the_label_is_the_folder_and_one_image_can_have_several_masks(root: Path) -> None:
    holding = read(root, unit="image")
    assert [(record.label, record.image.name, [mask.name for mask in record.masks]) for record in holding.records] == [
        ("benign", "benign (1).png", ["benign (1)_mask.png", "benign (1)_mask_1.png"]),
        ("benign", "benign (2).png", ["benign (2)_mask.png"]),
        ("malignant", "malignant (1).png", ["malignant (1)_mask.png"]),
        ("normal", "normal (1).png", []),
    ]
    assert not holding.problems


def test_the_empty_masks_of_normal_images_are_no_problem_where_findings_are_cut_out(root: Path) -> None:
    records = read(root, unit="image").records
    found = survey(records, masks="require", taken=lambda record: record.label != "normal")
    assert not found.problems
    assert len(found.usable) == 4
    assert len(survey(records, masks="require").usable) == 3


def test_a_near_duplicate_group_stands_in_for_the_patient(root: Path) -> None:
    index(
        root,
        "images/benign/benign (1).png,benign,d1\nimages/benign/benign (2).png,benign,\n"
        "images/malignant/malignant (1).png,malignant,d1\nimages/normal/normal (1).png,normal,\n",
    )
    patients = by_key(root)
    assert patients["benign/benign (1)"] == patients["malignant/malignant (1)"] == "d1"
    assert len(set(patients.values())) == 3
    holding = read(root, unit="image")
    assert (holding.patient_stand_in, holding.notes) == ("near_duplicate_group", ())
    assert by_key(root / "Dataset_BUSI_with_GT") == patients


def test_without_the_table_every_image_is_its_own_patient_and_a_note_says_so(root: Path) -> None:
    holding = read(root, unit="image")
    assert len({record.patient for record in holding.records}) == 4
    assert holding.patient_stand_in == "image"
    assert "near-duplicates" in holding.notes[0]


def test_an_image_that_the_table_does_not_list_is_told(root: Path) -> None:
    index(root, "images/benign/benign (1).png,benign,d1\n")
    assert "does not list 3 of 4 images" in read(root, unit="image").notes[0]


def test_rows_and_masks_without_an_image_are_problems(root: Path) -> None:
    index(
        root,
        "images/benign/benign (9).png,benign,d1\nimages/benign/benign (1).png,benign,d2\n"
        "images/benign/benign (1).png,benign,d3\nimages/benign/benign (2).png,benign,,too,many\n",
    )
    picture(root / "Dataset_BUSI_with_GT" / "malignant" / "malignant (7)_mask.png")
    problems = read(root, unit="image").problems
    assert sorted((problem.file.name, problem.row) for problem in problems if problem.row) == [
        ("busi_index.csv", 2),
        ("busi_index.csv", 4),
        ("busi_index.csv", 5),
    ]
    assert "malignant (7)_mask.png: a mask without its image" in str(problems[-1])
    assert by_key(root)["benign/benign (1)"] == "d2"


@pytest.mark.parametrize("state", ["missing", "empty", "other folders", "no images", "no column"])
def test_a_folder_of_another_layout_ends_in_a_sentence(tmp_path: Path, state: str) -> None:
    folder = tmp_path / "other"
    if state != "missing":
        folder.mkdir()
    if state == "other folders":
        picture(folder / "cats" / "cat.png")
    if state in ("no images", "no column"):
        (folder / "benign").mkdir()
    if state == "no column":
        picture(folder / "benign" / "benign (1).png")
        (folder / "busi_index.csv").write_text("file;near_duplicate_group\n")
    with pytest.raises(DataError, match="other.*separate the cells by commas" if state == "no column" else "other"):
        read(folder, unit="image")


def test_an_image_is_a_view_and_no_finding(root: Path) -> None:
    assert read(root, unit="view").records == read(root, unit="image").records
    with pytest.raises(DataError, match="only: image, view"):
        read(root, unit="finding")
    assert isinstance(ADAPTERS["busi"], Busi)


@pytest.mark.real_data
def test_the_published_images_are_read_whole() -> None:
    data = os.environ.get("FEDERATION_DATA")
    if data is None:
        pytest.skip("FEDERATION_DATA is not set: the published images are not there")
    holding = read(Path(data) / "busi", unit="image")
    with (Path(data) / "busi" / "busi_index.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert not holding.problems and not holding.notes
    assert Counter(record.label for record in holding.records) == {"benign": 437, "malignant": 210, "normal": 133}
    masks = {f"images/{record.label}/{record.image.name}": len(record.masks) for record in holding.records}
    assert all(masks[row["file"]] == int(row["n_masks"]) for row in rows if row["label"] != "normal")
    grouped = {row["near_duplicate_group"] for row in rows} - {""}
    single = sum(not row["near_duplicate_group"] for row in rows)
    assert len({record.patient for record in holding.records}) == len(grouped) + single
