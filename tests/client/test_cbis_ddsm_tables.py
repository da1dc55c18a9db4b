"""The case-description tables, written for the test and as published."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from client.data.cbis_ddsm_tables import TABLES, Finding, read_tables
from client.data.splits import split_records
from shared.errors import DataError, SplitLeakError
from shared.study_data import Split

COLUMNS = (
    "patient_id,breast density,left or right breast,image view,abnormality id,abnormality type,calc type,"
    "calc distribution,assessment,pathology,subtlety,image file path,cropped image file path,ROI mask file path"
)
TRAIN = "calc_case_description_train_set.csv"


def row(patient: str = "P_00001", number: int = 1, pathology: str = "BENIGN", side: str = "LEFT") -> str:
    case = f"Calc-Training_{patient}_{side}_CC"
    return (
        f"{patient},3,{side},CC,{number},calcification,PLEOMORPHIC,N/A,4,{pathology},3,"
        f'{case}/1.2/1.3/000000.dcm,"{case}_{number}/1.2/1.4/000001.dcm\n",{case}_{number}/1.2/1.4/000000.dcm'
    )


def write(folder: Path, *rows: str, header: str = COLUMNS, name: str = TRAIN) -> Path:
    path = folder / name
    path.write_text("\n".join((header, *rows)) + "\n")
    return path


def test_a_newline_inside_a_path_cell_neither_ends_the_row_nor_shifts_the_row_numbers(tmp_path: Path) -> None:
    write(tmp_path, row("P_00001"), row("P_00002"), row("P_00003"))
    tables = read_tables(tmp_path)
    assert [finding.row for finding in tables.findings] == [2, 4, 6]
    assert tables.findings[0].roi_folder == "Calc-Training_P_00001_LEFT_CC_1"
    assert tables.findings[0].view_series == "1.3"
    assert not tables.problems


def test_both_spellings_of_the_density_column_are_read(tmp_path: Path) -> None:
    write(tmp_path, row(), header=COLUMNS.replace("breast density", "breast_density"))
    assert read_tables(tmp_path).findings[0].breast_density == "3"


def test_the_readers_assessment_is_nowhere_in_a_finding(tmp_path: Path) -> None:
    write(tmp_path, row().replace(",4,BENIGN", ",SECRET,BENIGN"))
    assert "secret" not in repr(read_tables(tmp_path).findings[0]).lower()


def test_descriptors_are_lower_case_and_those_not_available_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, row())
    assert read_tables(tmp_path).findings[0].descriptors == {"calc_type": "pleomorphic"}


def test_tables_may_lie_one_folder_below(tmp_path: Path) -> None:
    (tmp_path / "csv").mkdir()
    write(tmp_path / "csv", row())
    assert len(read_tables(tmp_path).findings) == 1


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (("LEFT,CC", "MIDDLE,CC"), "LEFT or RIGHT"),
        (("LEFT,CC", "LEFT,AP"), "CC or MLO"),
        ((",BENIGN,", ",UNKNOWN,"), "pathology"),
        (("calcification", "asymmetry"), "abnormality type"),
        (("P_00002,3", ",3"), "'patient id' is empty"),
        ((",3,Calc", ",Calc"), "13 cells"),
    ],
)
def test_a_row_that_makes_no_sense_is_a_problem_with_its_line_and_the_others_stay(
    tmp_path: Path, change: tuple[str, str], word: str
) -> None:
    path = write(tmp_path, row("P_00001"), row("P_00002").replace(*change), row("P_00003"))
    tables = read_tables(tmp_path)
    assert [finding.patient for finding in tables.findings] == ["P_00001", "P_00003"]
    (problem,) = tables.problems
    assert str(problem).startswith(f"{path}:4: ")
    assert word in problem.reason


def test_a_finding_given_twice_counts_once(tmp_path: Path) -> None:
    write(tmp_path, row(), row(pathology="MALIGNANT"))
    tables = read_tables(tmp_path)
    assert [finding.pathology for finding in tables.findings] == ["benign"]
    assert f"{TRAIN}:2" in tables.problems[0].reason


def test_a_missing_column_is_named_with_the_columns_that_are_there(tmp_path: Path) -> None:
    path = write(tmp_path, row(), header=COLUMNS.replace("pathology", "result"))
    with pytest.raises(DataError) as caught:
        read_tables(tmp_path)
    for part in (str(path), "'pathology'", "'result'", "'patient_id'"):
        assert part in str(caught.value)


@pytest.mark.parametrize("state", ["missing", "empty", "no table", "empty file", "not text"])
def test_a_folder_without_a_table_ends_in_a_sentence(tmp_path: Path, state: str) -> None:
    root = tmp_path / "data"
    if state != "missing":
        root.mkdir()
    if state == "no table":
        (root / "readme.txt").write_text("nothing here")
    if state == "empty file":
        (root / TRAIN).write_text("")
    if state == "not text":
        (root / TRAIN).write_bytes(b"\xff\xfe\x00\x80" * 50)
    with pytest.raises(DataError, match="data"):
        read_tables(root)


@pytest.fixture
def published() -> Path:
    folder = os.environ.get("FEDERATION_DATA")
    if folder is None:
        pytest.skip("FEDERATION_DATA is not set: the published tables are not there")
    return Path(folder) / "cbis_ddsm_tables"


def mammograms(findings: tuple[Finding, ...]) -> set[tuple[str, str, str, str]]:
    return {finding.mammogram for finding in findings}


@pytest.mark.real_data
def test_the_published_tables_give_the_published_counts(published: Path) -> None:
    tables = read_tables(published)
    assert not tables.problems
    views = mammograms(tables.findings)
    assert sum(view[0] == "calcification" for view in views) == 1511
    assert sum(view[0] == "mass" for view in views) == 1592
    by_part = {part: mammograms(tuple(f for f in tables.findings if f.division == part)) for part in ("train", "test")}
    assert (len(by_part["train"]), len(by_part["test"])) == (2458, 645)
    malignant = {finding.mammogram for finding in tables.findings if finding.pathology == "malignant"}
    others = {finding.mammogram for finding in tables.findings if finding.pathology != "malignant"}
    assert len(malignant & others) == 17


@pytest.mark.real_data
@pytest.mark.parametrize("name", TABLES)
def test_findings_and_patients_of_each_published_table_equal_an_independent_count(published: Path, name: str) -> None:
    with (published / name).open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    findings = [finding for finding in read_tables(published).findings if finding.table.name == name]
    assert len(findings) == len(rows)
    assert {finding.patient for finding in findings} == {row["patient_id"] for row in rows}
    for label in ("MALIGNANT", "BENIGN", "BENIGN_WITHOUT_CALLBACK"):
        expected = sum(row["pathology"] == label for row in rows)
        assert sum(finding.pathology == label.lower() for finding in findings) == expected


@pytest.mark.real_data
def test_calcifications_and_masses_pooled_leak_31_patients_between_the_official_parts(published: Path) -> None:
    import numpy as np

    findings = read_tables(published).findings

    def divide(chosen: list[Finding]) -> None:
        split_records(
            [finding.patient for finding in chosen],
            np.array([int(finding.pathology == "malignant") for finding in chosen]),
            [finding.division for finding in chosen],
            split=Split(division="official"),
            positive=1,
            seed=0,
        )

    divide([finding for finding in findings if finding.abnormality == "calcification"])
    divide([finding for finding in findings if finding.abnormality == "mass"])
    with pytest.raises(SplitLeakError, match=r"^31 patients"):
        divide(list(findings))
