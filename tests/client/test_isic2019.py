"""The ISIC 2019 adapter, on folders written here."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.data.isic2019 import Isic2019
from client.data.registry import ADAPTERS
from shared.errors import DataError
from shared.study_task import Task

read = Isic2019()
TRUTH = "ISIC_2019_Training_GroundTruth.csv"
METADATA = "ISIC_2019_Training_Metadata.csv"
COLUMNS = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK")


def truth_row(image: str, *diagnoses: str) -> str:
    return ",".join([image, *("1.0" if name in diagnoses else "0.0" for name in COLUMNS)]) + "\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / TRUTH).write_text(
        f"image,{','.join(COLUMNS)}\n"
        + truth_row("ISIC_1", "MEL")
        + truth_row("ISIC_2_downsampled", "SCC")
        + truth_row("ISIC_3", "NV")
    )
    (tmp_path / METADATA).write_text(
        "image,age_approx,anatom_site_general,lesion_id,sex\n"
        "ISIC_1,55.0,anterior torso,BCN_1,Female\nISIC_2_downsampled,,,BCN_1,\nISIC_3,30,head/neck,,male\n"
    )
    images = tmp_path / "ISIC_2019_Training_Input"
    images.mkdir()
    for name in ("ISIC_1.jpg", "ISIC_2_downsampled.JPG", "ISIC_3.jpg", "LICENSE.txt"):
        (images / name).touch()
    return tmp_path


def add(root: Path, truth: str = "", metadata: str = "") -> None:
    for name, text in ((TRUTH, truth), (METADATA, metadata)):
        with (root / name).open("a") as stream:
            stream.write(text)


def test_the_label_is_the_diagnosis_and_the_lesion_stands_in_for_the_patient(root: Path) -> None:
    holding = read(root, unit="image")
    first, second, third = holding.records
    assert [record.label for record in holding.records] == ["mel", "scc", "nv"]
    assert first.patient == second.patient == "BCN_1" != third.patient
    assert first.image == root / "ISIC_2019_Training_Input" / "ISIC_1.jpg"
    assert first.metadata == {"age": 55.0, "sex": "Female", "localization": "anterior torso"}
    assert first.attributes == {"sex": "female", "localization": "anterior torso"}
    assert second.metadata == {} == second.attributes
    assert (holding.patient_stand_in, holding.problems) == ("lesion_id", ())


def test_an_image_without_a_lesion_is_its_own_patient_and_a_note_counts_it(root: Path) -> None:
    holding = read(root, unit="image")
    assert holding.records[2].patient == "ISIC_3"
    assert "1 of 3 images have no lesion_id" in holding.notes[0]


def test_rows_that_cannot_be_used_are_problems_with_their_table_and_line(root: Path) -> None:
    add(
        root,
        truth_row("ISIC_4", "MEL", "NV")
        + truth_row("ISIC_5")
        + truth_row("ISIC_6", "NV")
        + truth_row("ISIC_7", "NV")
        + truth_row("ISIC_1", "NV")
        + truth_row("ISIC_8", "NV"),
        "ISIC_7,40,,L,male\nISIC_1,40,,L,male\nISIC_8,old,,L,male\nISIC_9,40,,L,male\n",
    )
    (root / "ISIC_8.jpg").touch()
    holding = read(root, unit="image")
    assert len(holding.records) == 3
    assert [(problem.file.name.split("_")[-1], problem.row) for problem in holding.problems] == [
        ("Metadata.csv", 6),
        ("GroundTruth.csv", 5),
        ("GroundTruth.csv", 6),
        ("GroundTruth.csv", 7),
        ("GroundTruth.csv", 8),
        ("GroundTruth.csv", 9),
        ("Metadata.csv", 7),
        ("Metadata.csv", 8),
    ]
    texts = [problem.reason for problem in holding.problems]
    assert "MEL 1.0, NV 1.0" in texts[1] and "no 1" in texts[2] and "no row of ISIC_2019_Training_Metadata" in texts[3]
    assert "no image file called ISIC_7.jpg" in texts[4] and "'old'" in texts[6] and "no diagnosis" in texts[7]


@pytest.mark.parametrize("state", ["missing", "empty", "no truth", "no metadata", "no images", "no column", "twice"])
def test_a_folder_of_another_layout_ends_in_a_sentence(root: Path, state: str) -> None:
    folder = root if state not in ("missing", "empty") else root / "other"
    if state == "empty":
        folder.mkdir()
    if state == "no truth":
        (root / TRUTH).unlink()
    if state == "no metadata":
        (root / METADATA).unlink()
    if state == "no images":
        for path in (root / "ISIC_2019_Training_Input").iterdir():
            path.unlink()
    if state == "no column":
        (root / METADATA).write_text("image,sex\n")
    if state == "twice":
        (root / "copy").mkdir()
        (root / "copy" / TRUTH).write_text((root / TRUTH).read_text())
    with pytest.raises(DataError, match=str(folder)):
        read(folder, unit="image")


def test_one_study_can_list_the_labels_of_this_layout_and_of_ham10000() -> None:
    task = Task(
        classes={"benign": ["nv", "bkl", "df", "vasc"], "malignant": ["mel", "bcc", "akiec", "ak", "scc"]},
        positive_class="malignant",
        unit="image",
    )
    assert {task.class_of(label) for label in ("akiec", "ak", "SCC", "mel")} == {1}
    assert isinstance(ADAPTERS["isic2019"], Isic2019)
