"""The HAM10000 adapter, on folders written here and on the published images."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from client.data.ham10000 import Ham10000
from client.data.registry import ADAPTERS, adapter_named, open_holding
from shared.errors import DataError, ProfileError
from shared.profile import Profile

read = Ham10000()
HEADER = "lesion_id,image_id,dx,dx_type,age,sex,localization\n"
ROWS = (
    "HAM_1,ISIC_1,mel,histo,80.0,male,scalp\n"
    "HAM_1,ISIC_2,mel,histo,80.0,male,scalp\n"
    "HAM_2,ISIC_3,nv,follow_up,,unknown,back\n"
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "HAM10000_metadata.csv").write_text(HEADER + ROWS)
    for folder, name in (("part_1", "ISIC_1.jpg"), ("part_1", "ISIC_2.jpg"), ("part_2", "ISIC_3.JPG")):
        (tmp_path / f"HAM10000_images_{folder}").mkdir(exist_ok=True)
        (tmp_path / f"HAM10000_images_{folder}" / name).write_bytes(name.encode())
    masks = tmp_path / "HAM10000_segmentations_lesion_tschandl"
    masks.mkdir()
    (masks / "ISIC_1_segmentation.png").touch()
    (masks / "ISIC_3_segmentation.png").touch()
    return tmp_path


def test_an_image_is_a_record_and_its_lesion_stands_in_for_the_patient(root: Path) -> None:
    first, second, third = read(root, unit="image").records
    assert (first.key, first.label, first.patient, first.image.name) == ("ISIC_1", "mel", "HAM_1", "ISIC_1.jpg")
    assert first.patient == second.patient != third.patient
    assert [len(record.masks) for record in (first, second, third)] == [1, 0, 1]
    assert first.metadata == {"age": 80.0, "sex": "male", "localization": "scalp"}
    assert first.attributes == {"dx_type": "histo", "sex": "male", "localization": "scalp"}


def test_folders_with_tables_are_one_holding(root: Path, tmp_path: Path) -> None:
    whole = tmp_path / "all"
    for name, rows in (("one", ROWS.splitlines()[:2]), ("two", ROWS.splitlines()[2:])):
        (whole / name).mkdir(parents=True)
        (whole / name / "HAM10000_metadata.csv").write_text(HEADER + "\n".join(rows) + "\n")
        for row in rows:
            (whole / name / f"{row.split(',')[1]}.jpg").touch()
    pooled = read(whole, unit="image")
    assert [record.key for record in pooled.records] == [record.key for record in read(root, unit="image").records]
    assert {record.image.parent.name for record in pooled.records} == {"one", "two"}


def test_an_image_that_stands_in_two_tables_is_a_problem_of_the_second(tmp_path: Path) -> None:
    for name, rows in (("one", ROWS.splitlines()[:2]), ("two", ROWS.splitlines()[1:])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "HAM10000_metadata.csv").write_text(HEADER + "\n".join(rows) + "\n")
        for row in rows:
            (tmp_path / name / f"{row.split(',')[1]}.jpg").touch()
    pooled = read(tmp_path, unit="image")
    assert [record.key for record in pooled.records] == ["ISIC_1", "ISIC_2", "ISIC_3"]
    (problem,) = pooled.problems
    assert (problem.row, "image ISIC_2 already stands in an earlier row" in str(problem)) == (2, True)
    assert str(tmp_path / "two" / "HAM10000_metadata.csv") in str(problem)


def test_an_unknown_age_is_absent_rather_than_a_number(root: Path) -> None:
    assert "age" not in read(root, unit="image").records[2].metadata


def test_rows_that_cannot_be_used_are_problems_with_their_line(root: Path) -> None:
    table = root / "HAM10000_metadata.csv"
    table.write_text(
        table.read_text()
        + "HAM_3,ISIC_9,nv,histo,5,male,back\nHAM_3,ISIC_1,nv,histo,5,male,back\nHAM_3,,nv,histo,5,male,back\n"
    )
    (root / "ISIC_9.txt").touch()
    holding = read(root, unit="image")
    assert len(holding.records) == 3
    assert [problem.row for problem in holding.problems] == [5, 6, 7]
    assert "ISIC_9" in str(holding.problems[0])


@pytest.mark.parametrize("state", ["missing", "empty", "no table", "no images", "no rows"])
def test_a_folder_of_another_layout_ends_in_a_sentence(root: Path, tmp_path: Path, state: str) -> None:
    folder = tmp_path / "other"
    if state != "missing":
        folder.mkdir()
    if state == "no table":
        (folder / "picture.jpg").touch()
    if state in ("no images", "no rows"):
        (folder / "HAM10000_metadata.csv").write_text(HEADER + (ROWS if state == "no images" else ""))
    with pytest.raises(DataError, match="other"):
        read(folder, unit="image")


def test_a_missing_column_is_named_with_those_that_are_there(root: Path) -> None:
    (root / "HAM10000_metadata.csv").write_text(HEADER.replace("lesion_id", "lesion") + ROWS)
    with pytest.raises(DataError, match=r"'lesion_id' missing; the columns there are 'lesion'"):
        read(root, unit="image")


@pytest.mark.parametrize("unit", ["finding", "view"])
def test_any_other_unit_than_the_image_is_refused(root: Path, unit: str) -> None:
    with pytest.raises(DataError, match="only: image"):
        read(root, unit=unit)  # type: ignore[arg-type]


def profile(root: Path, **data: str | None) -> Profile:
    return Profile.model_validate(
        {
            "schema": "consilium/profile/1",
            "site": "test",
            "title": "Test",
            "data": {
                "layout": "ham10000",
                "root": str(root),
                "synthetic": False,
                "patient_stand_in": "lesion_id",
                **data,
            },
        }
    )


def test_problems_stop_a_site_whose_profile_says_stop_and_name_the_file(root: Path) -> None:
    (root / "HAM10000_images_part_1" / "ISIC_2.jpg").unlink()
    with pytest.raises(DataError, match=r"HAM10000_metadata.csv:3: .*unreadable: skip"):
        open_holding(profile(root), unit="image")
    holding = open_holding(profile(root, unreadable="skip"), unit="image")
    assert (len(holding.records), len(holding.problems)) == (2, 1)


def test_an_unknown_layout_gets_the_nearest_name(root: Path) -> None:
    assert adapter_named("ham10000") is ADAPTERS["ham10000"]
    with pytest.raises(ProfileError, match="did you mean 'cbis_ddsm'"):
        adapter_named("cbis-ddsm")
    with pytest.raises(ProfileError, match="known layouts are busi, cbis_ddsm"):
        open_holding(profile(root, layout="zzz"), unit="image")


@pytest.mark.parametrize("said", [None, "patient_id"])
def test_a_profile_must_name_what_stands_in_for_the_patient(root: Path, said: str | None) -> None:
    with pytest.raises(ProfileError, match="write patient_stand_in: lesion_id"):
        open_holding(profile(root, patient_stand_in=said), unit="image")


def test_a_setting_of_another_layout_is_refused(root: Path) -> None:
    with pytest.raises(ProfileError, match="label_field: the layout ham10000 has no such setting"):
        open_holding(profile(root, label_field="SeriesDescription"), unit="image")


@pytest.mark.real_data
@pytest.mark.parametrize("site", ["vidir_modern", "rosendahl", "vidir_molemax"])
def test_a_real_hospital_is_read_whole(site: str) -> None:
    data = os.environ.get("FEDERATION_DATA")
    if data is None:
        pytest.skip("FEDERATION_DATA is not set: the published images are not there")
    folder = Path(data) / "ham10000" / site
    with (folder / "HAM10000_metadata.csv").open(newline="") as stream:
        rows = {row["image_id"]: row for row in csv.DictReader(stream)}
    holding = read(folder, unit="image")
    assert not holding.problems
    assert {record.key for record in holding.records} == set(rows)
    for record in holding.records:
        row = rows[record.key]
        assert (record.label, record.patient) == (row["dx"], row["lesion_id"])
        assert record.masks[0].name == f"{record.key}_segmentation.png"
