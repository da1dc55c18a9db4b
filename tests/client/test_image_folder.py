"""The adapter of class folders and `index.csv`, on folders written here, and on the published BUSI images."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.data.cache import prepare_store
from client.data.image_folder import ImageFolder
from client.data.image_survey import survey
from client.data.registry import ADAPTERS
from shared.errors import DataError
from shared.study_pixels import Preprocessing

read = ImageFolder()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number, name in enumerate(("benign/a.png", "benign/deep/b.JPG", "malignant/c.tiff")):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((5, 7), number, dtype=np.uint8)).save(path)
    return tmp_path


def index(root: Path, text: str) -> Path:
    (root / "index.csv").write_text(text)
    return root


def test_without_a_table_the_first_folder_is_the_label_and_every_image_its_own_patient(root: Path) -> None:
    holding = read(root, unit="image")
    assert [(r.key, r.label, r.patient) for r in holding.records] == [
        ("benign/a.png", "benign", "benign/a.png"),
        ("benign/deep/b.JPG", "benign", "benign/deep/b.JPG"),
        ("malignant/c.tiff", "malignant", "malignant/c.tiff"),
    ]
    assert holding.patient_stand_in == "image" and "there is no index.csv" in holding.notes[0]
    assert not holding.problems and not survey(holding.records, masks="read").problems


def test_an_image_in_no_class_folder_is_a_problem_and_other_files_are_noted(root: Path) -> None:
    (root / "stray.png").write_bytes((root / "benign" / "a.png").read_bytes())
    (root / "benign" / "notes.txt").touch()
    (root / ".hidden.png").touch()
    holding = read(root, unit="image")
    assert len(holding.records) == 3
    assert [str(problem) for problem in holding.problems] == [
        f"{root / 'stray.png'}: it lies in no class folder, and there is no index.csv to say what it shows"
    ]
    assert "1 other file" in holding.notes[1] and "notes.txt" in holding.notes[1]


def test_the_table_gives_label_patient_masks_division_and_everything_else(root: Path) -> None:
    for name in ("m1.png", "m2.png"):
        (root / "masks").mkdir(exist_ok=True)
        Image.fromarray(np.full((5, 7), 255, dtype=np.uint8)).save(root / "masks" / name)
    index(
        root,
        "file,label,patient,mask,division,age,Scanner\n"
        "benign\\a.png,cyst,P1,masks/m1.png; masks/m2.png,train,40,GE\n./benign/deep/b.JPG,cyst,P1,,train,,\n"
        "malignant/c.tiff,cancer,P2,,test,51.5,Philips\n",
    )
    holding = read(root, unit="image")
    first, second, third = holding.records
    assert (first.label, first.patient, [mask.name for mask in first.masks]) == ("cyst", "P1", ["m1.png", "m2.png"])
    assert [record.division for record in holding.records] == ["train", "train", "test"]
    assert first.attributes == {"age": "40", "Scanner": "ge"} and first.metadata == {"age": 40.0, "Scanner": "GE"}
    assert second.attributes == second.metadata == {}
    assert third.metadata == {"age": 51.5, "Scanner": "Philips"}
    assert (holding.problems, holding.notes, holding.patient_stand_in) == ((), (), None)


def test_without_a_label_column_the_folder_is_the_label(root: Path) -> None:
    index(root, "file,patient\nbenign/a.png,P1\nbenign/deep/b.JPG,P1\nmalignant/c.tiff,P2\n")
    assert [record.label for record in read(root, unit="image").records] == ["benign", "benign", "malignant"]


def test_a_known_column_is_known_in_any_case_and_never_an_attribute(root: Path) -> None:
    index(root, "File,Label,PATIENT\nbenign/a.png,cyst,P1\nbenign/deep/b.JPG,cyst,P1\nmalignant/c.tiff,cyst,P2\n")
    holding = read(root, unit="image")
    assert [(record.label, record.patient, record.attributes) for record in holding.records] == [
        ("cyst", "P1", {}),
        ("cyst", "P1", {}),
        ("cyst", "P2", {}),
    ]
    index(root, "file,label,Label\nbenign/a.png,x,y\n")
    with pytest.raises(DataError, match="'label' is there more than once"):
        read(root, unit="image")


def test_rows_and_images_that_cannot_be_used_are_problems_with_their_line(root: Path) -> None:
    index(
        root,
        "file,label,patient,mask,division,frame\n"
        "benign/a.png,benign,P1,,,\nbenign/a.png,benign,P1,,,\nnone.png,benign,P1,,,\nbenign/deep/b.JPG,,P1,,,\n"
        "malignant/c.tiff,malignant,,,,\nmalignant/c.tiff,malignant,P,m.png,,\nmalignant/c.tiff,malignant,P,,both,\n"
        "malignant/c.tiff,malignant,P,,,0\n,malignant,P,,,\nmalignant/c.tiff,malignant,P,../m.png,,\n",
    )
    (root / "benign" / "d.png").touch()
    holding = read(root, unit="image")
    assert [record.key for record in holding.records] == ["benign/a.png"]
    found = {problem.row: problem.reason for problem in holding.problems}
    assert set(found) == {3, 4, 5, 6, 7, 8, 9, 10, 11, None}
    for row, words in {
        3: "earlier row", 4: "no image 'none.png'", 5: "'label' is empty", 6: "'patient' is empty", 7: "is not there",
        8: "'both'", 9: "'frame' must be", 10: "'file' is empty", 11: "must lie under", None: "no usable row",
    }.items():  # fmt: skip
        assert words in found[row]


def test_the_pages_of_one_file_can_be_records_of_their_own(root: Path) -> None:
    pages = [Image.fromarray(np.full((20, 20), value, dtype=np.uint8)) for value in (10, 20, 30)]
    pages[0].save(root / "loop.tiff", save_all=True, append_images=pages[1:])
    index(root, "file,label,patient,frame\nloop.tiff,x,P1,1\nloop.tiff,x,P1,3\nbenign/a.png,x,P1,\n")
    records = read(root, unit="image").records
    assert [record.key for record in records] == ["loop.tiff#1", "loop.tiff#3", "benign/a.png"]
    recipe = Preprocessing(region="whole", size=20, channels=1)
    store = prepare_store(records[:2], recipe, root / "cache", unreadable="stop")
    assert [int(image.max()) for image in store.images] == [10, 30]


@pytest.mark.parametrize("state", ["missing", "empty", "no images", "no rows", "no file column", "semicolons"])
def test_a_folder_of_another_layout_ends_in_a_sentence(root: Path, state: str) -> None:
    folder = root / "other" if state in ("missing", "empty", "no images") else root
    if state in ("empty", "no images"):
        folder.mkdir()
    if state == "no images":
        (folder / "a.txt").touch()
    if state == "no rows":
        index(root, "file,label\n")
    if state == "no file column":
        index(root, "image,label\nbenign/a.png,benign\n")
    if state == "semicolons":
        index(root, "file;label\nbenign/a.png;benign\n")
    with pytest.raises(DataError, match=f"{folder}.*commas" if state == "semicolons" else str(folder)):
        read(folder, unit="image")


def test_a_finding_is_no_unit_of_this_layout(root: Path) -> None:
    with pytest.raises(DataError, match="only: image, view"):
        read(root, unit="finding")
    assert isinstance(ADAPTERS["image_folder"], ImageFolder)


@pytest.mark.real_data
def test_the_published_busi_images_are_class_folders_whose_masks_need_a_table() -> None:
    data = os.environ.get("FEDERATION_DATA")
    if data is None:
        pytest.skip("FEDERATION_DATA is not set: the published images are not there")
    records = read(Path(data) / "busi" / "Dataset_BUSI_with_GT", unit="image").records
    images = [record for record in records if "_mask" not in record.key]
    assert Counter(record.label for record in images) == {"benign": 437, "malignant": 210, "normal": 133}
