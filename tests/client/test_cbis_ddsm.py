"""The adapter on DICOM trees: small ones built here, and the phantom's."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from client.data.cbis_ddsm import CbisDdsm
from client.data.cbis_ddsm_files import index_folders
from client.data.cbis_ddsm_tables import read_tables
from client.phantom import SCANNERS, write_phantom
from shared.errors import DataError

read = CbisDdsm()
HEADER = (
    "patient_id,breast_density,left or right breast,image view,abnormality id,abnormality type,mass shape,"
    "mass margins,assessment,pathology,subtlety,image file path,cropped image file path,ROI mask file path\n"
)
CASE = "Mass-Training_P_00007_LEFT_CC"
SIZE = (40, 30)


def dicom(path: Path, pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> Path:
    bits = pixels.dtype.itemsize * 8
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.SeriesInstanceUID = generate_uid()
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelData = pixels.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def grey(size: tuple[int, int] = SIZE) -> NDArray[np.uint16]:
    return np.arange(size[0] * size[1], dtype=np.uint16).reshape(size)


def mask(size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    marked = np.zeros(size, dtype=np.uint8)
    marked[size[0] // 4 : size[0] // 2, size[1] // 4 : size[1] // 2] = 255
    return marked


def table(root: Path, *findings: tuple[int, str]) -> Path:
    """The mass training table with one row a finding (number, pathology) of the one view CASE."""
    path = root / "mass_case_description_train_set.csv"
    rows = [
        f"P_00007,2,LEFT,CC,{number},mass,OVAL,{'SPICULATED' if number > 1 else 'OBSCURED'},4,{pathology},3,"
        f'{CASE}/1.1/1.2/000000.dcm,{CASE}_{number}/1.1/1.3/000000.dcm,"{CASE}_{number}/1.1/1.3/000001.dcm\n"\n'
        for number, pathology in findings
    ]
    path.write_text(HEADER + "".join(rows))
    return path


def test_mask_and_crop_in_one_folder_are_told_apart_by_size_whatever_their_names(tmp_path: Path) -> None:
    table(tmp_path, (1, "BENIGN"), (2, "MALIGNANT"))
    image = dicom(tmp_path / "CBIS-DDSM" / CASE / "a" / "b" / "1-1.dcm", grey())
    first = dicom(tmp_path / "CBIS-DDSM" / f"{CASE}_1" / "a" / "b" / "1-1.dcm", mask())
    dicom(first.with_name("1-2.dcm"), grey((10, 8)))
    second = dicom(tmp_path / "CBIS-DDSM" / f"{CASE}_2" / "a" / "b" / "1-2.dcm", mask())
    dicom(second.with_name("1-1.dcm"), grey((10, 8)))
    holding = read(tmp_path, unit="finding")
    assert not holding.problems
    assert [(record.image, record.masks, record.label) for record in holding.records] == [
        (image, (first,), "benign"),
        (image, (second,), "malignant"),
    ]


@pytest.mark.parametrize("mask_size", [(44, 33), (20, 15)])
@pytest.mark.parametrize("mask_name", ["1-1.dcm", "1-2.dcm"])
def test_a_mask_of_another_size_than_the_mammogram_is_known_by_its_two_values(
    tmp_path: Path, mask_size: tuple[int, int], mask_name: str
) -> None:
    table(tmp_path, (1, "BENIGN"))
    dicom(tmp_path / CASE / "1-1.dcm", grey())
    folder = tmp_path / f"{CASE}_1"
    dicom(folder / ("1-2.dcm" if mask_name == "1-1.dcm" else "1-1.dcm"), grey((25, 25)))
    expected = dicom(folder / mask_name, mask(mask_size))
    assert read(tmp_path, unit="finding").records[0].masks == (expected,)


def test_a_crop_as_large_as_the_mammogram_does_not_pass_for_the_mask(tmp_path: Path) -> None:
    table(tmp_path, (1, "BENIGN"))
    dicom(tmp_path / CASE / "1-1.dcm", grey())
    dicom(tmp_path / f"{CASE}_1" / "cropped" / "1-1.dcm", grey())
    expected = dicom(tmp_path / f"{CASE}_1" / "mask" / "1-1.dcm", mask())
    assert read(tmp_path, unit="finding").records[0].masks == (expected,)


def test_a_view_is_malignant_if_any_finding_is_and_has_all_masks(tmp_path: Path) -> None:
    table(tmp_path, (1, "BENIGN_WITHOUT_CALLBACK"), (2, "MALIGNANT"), (3, "BENIGN"))
    dicom(tmp_path / CASE / "1-1.dcm", grey())
    masks = tuple(dicom(tmp_path / f"{CASE}_{number}" / "1-1.dcm", mask()) for number in (1, 2, 3))
    (record,) = read(tmp_path, unit="view").records
    assert (record.label, record.masks, record.patient, record.division) == ("malignant", masks, "P_00007", "train")
    agreed = {"abnormality": "mass", "view": "cc", "side": "left", "breast_density": "2", "mass_shape": "oval"}
    assert record.attributes == agreed


def test_a_folder_downloaded_twice_is_one_image(tmp_path: Path) -> None:
    table(tmp_path, (1, "BENIGN"))
    image = dicom(tmp_path / "first" / CASE / "1-1.dcm", grey())
    again = tmp_path / "second" / CASE / "1-1.dcm"
    again.parent.mkdir(parents=True)
    again.write_bytes(image.read_bytes())
    dicom(tmp_path / "first" / f"{CASE}_1" / "1-1.dcm", mask())
    holding = read(tmp_path, unit="finding")
    assert not holding.problems
    assert holding.records[0].image == image


def test_several_images_in_a_views_folder_are_decided_by_the_series_that_the_table_names(tmp_path: Path) -> None:
    table(tmp_path, (1, "BENIGN"))
    dicom(tmp_path / CASE / "1.1" / "9.9" / "1-1.dcm", grey((20, 20)))
    image = dicom(tmp_path / CASE / "1.1" / "1.2" / "1-1.dcm", grey())
    dicom(tmp_path / f"{CASE}_1" / "1-1.dcm", mask())
    assert read(tmp_path, unit="finding").records[0].image == image


def broken_row(root: Path, kind: str) -> str:
    """Spoil the second finding's files; returns what the problem must name."""
    folder = root / f"{CASE}_2"
    if kind == "missing":
        return folder.name
    if kind == "not dicom":
        folder.mkdir()
        (folder / "1-1.dcm").write_text("not an image")
        return str(folder / "1-1.dcm")
    if kind == "truncated header":
        whole = dicom(folder / "1-1.dcm", mask())
        whole.write_bytes(whole.read_bytes()[:200])
        return str(whole)
    if kind == "no pixels":
        path = dicom(folder / "1-1.dcm", mask())
        dataset = pydicom.dcmread(path)
        del dataset.Rows, dataset.Columns, dataset.PixelData
        dataset.save_as(path)
        return str(path)
    if kind == "crop only":
        dicom(folder / "1-1.dcm", grey((10, 10)))
        return folder.name
    dicom(folder / "1-1.dcm", mask())
    dicom(folder / "1-2.dcm", mask())
    return folder.name


@pytest.mark.parametrize("kind", ["missing", "not dicom", "truncated header", "no pixels", "crop only", "two masks"])
def test_a_row_without_usable_files_is_a_problem_and_the_others_stay(tmp_path: Path, kind: str) -> None:
    path = table(tmp_path, (1, "BENIGN"), (2, "BENIGN"))
    dicom(tmp_path / CASE / "1-1.dcm", grey())
    dicom(tmp_path / f"{CASE}_1" / "1-1.dcm", mask())
    named = broken_row(tmp_path, kind)
    holding = read(tmp_path, unit="finding")
    assert [record.key[-1] for record in holding.records] == ["1"]
    (problem,) = holding.problems
    assert (problem.file, problem.row) == (path, 4)
    assert named in problem.reason


def test_a_damaged_mammogram_is_a_problem_of_each_of_its_rows(tmp_path: Path) -> None:
    table(tmp_path, (1, "BENIGN"), (2, "BENIGN"))
    other = CASE.replace("CC", "MLO")
    path = tmp_path / "mass_case_description_train_set.csv"
    path.write_text(
        path.read_text() + f"P_00007,2,LEFT,MLO,1,mass,OVAL,N/A,4,BENIGN,3,{other}/1/2/0.dcm,x,{other}_1/1/2/0.dcm\n"
    )
    dicom(tmp_path / other / "1-1.dcm", grey())
    dicom(tmp_path / f"{other}_1" / "1-1.dcm", mask())
    (tmp_path / CASE).mkdir()
    (tmp_path / CASE / "1-1.dcm").write_bytes(b"\0" * 4000)
    holding = read(tmp_path, unit="finding")
    assert len(holding.records) == 1
    assert [problem.row for problem in holding.problems] == [2, 4]
    assert all("1-1.dcm" in problem.reason for problem in holding.problems)


def test_tables_without_any_image_are_an_error_that_names_a_folder_to_look_for(tmp_path: Path) -> None:
    table(tmp_path, (1, "BENIGN"))
    with pytest.raises(DataError, match=CASE):
        read(tmp_path, unit="finding")


def test_a_unit_that_the_layout_lacks_is_an_error_naming_those_it_has(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="finding, view"):
        read(tmp_path, unit="image")


def test_the_index_walks_each_real_folder_once_and_gives_nested_files_to_the_deeper_case(tmp_path: Path) -> None:
    outer, inner = tmp_path / "A" / "1.dcm", tmp_path / "A" / "x" / "A_1" / "y" / "2.DCM"
    inner.parent.mkdir(parents=True)
    outer.touch()
    inner.touch()
    (tmp_path / "A" / "notes.txt").touch()
    (tmp_path / "A" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert index_folders(tmp_path, {"A", "A_1", "B"}) == {"A": (outer,), "A_1": (inner,)}


def test_the_tree_is_listed_once_however_many_rows_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[str] = []
    real = os.scandir

    def counting(path: str) -> object:
        listed.append(str(path))
        return real(path)

    table(tmp_path, *((number, "BENIGN") for number in range(1, 31)))
    dicom(tmp_path / CASE / "1-1.dcm", grey())
    for number in range(1, 31):
        dicom(tmp_path / f"{CASE}_{number}" / "a" / "1-1.dcm", mask())
    monkeypatch.setattr(os, "scandir", counting)
    assert len(read(tmp_path, unit="finding").records) == 30
    assert listed.count(str(tmp_path / f"{CASE}_30" / "a")) == 1


@pytest.fixture(scope="module", params=sorted(SCANNERS))
def phantom(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("phantom") / str(request.param)
    write_phantom(root, patients=6, seed=3, scanner=str(request.param))
    return root


def test_every_finding_of_the_phantom_gets_its_own_mask(phantom: Path) -> None:
    holding = read(phantom, unit="finding")
    assert not holding.problems
    with_rows = 0
    for path in sorted(phantom.glob("*.csv")):
        with path.open(newline="") as stream:
            with_rows += sum(1 for _ in csv.DictReader(stream))
    assert len(holding.records) == with_rows == len({record.masks for record in holding.records})
    for record in holding.records:
        image, marked = (pydicom.dcmread(path) for path in (record.image, record.masks[0]))
        assert set(np.unique(marked.pixel_array)) == {0, 255}
        assert abs(image.Rows - marked.Rows) <= 4 and abs(image.Columns - marked.Columns) <= 4
        assert record.masks[0].is_relative_to(phantom) and record.image.is_relative_to(phantom)


def test_views_of_the_phantom_are_the_mammograms_of_its_tables(phantom: Path) -> None:
    holding = read(phantom, unit="view")
    views = {finding.mammogram for finding in read_tables(phantom).findings}
    assert len(holding.records) == len(views)
    assert sum(len(record.masks) for record in holding.records) == len(read(phantom, unit="finding").records)
