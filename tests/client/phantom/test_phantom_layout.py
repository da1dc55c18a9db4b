"""The phantom is laid out like CBIS-DDSM: tables, folders and DICOM headers."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless, RLELossless

from client.data.cbis_ddsm import CbisDdsm
from client.phantom import SCANNERS, PhantomSummary, write_phantom

PUBLISHED_HEADER = (
    "patient_id,breast density,left or right breast,image view,abnormality id,abnormality type,calc type,"
    "calc distribution,assessment,pathology,subtlety,image file path,cropped image file path,ROI mask file path"
)
VOCABULARY = {
    "left or right breast": {"LEFT", "RIGHT"},
    "image view": {"CC", "MLO"},
    "breast density": {"1", "2", "3", "4"},
    "abnormality type": {"calcification"},
    "assessment": {"0", "2", "3", "4", "5"},
    "pathology": {"MALIGNANT", "BENIGN", "BENIGN_WITHOUT_CALLBACK"},
    "subtlety": {"1", "2", "3", "4", "5"},
    "calc distribution": {"N/A", "DIFFUSELY_SCATTERED", "REGIONAL", "CLUSTERED", "LINEAR", "SEGMENTAL"},
}
TYPES = {"ROUND_AND_REGULAR", "PUNCTATE", "COARSE", "LUCENT_CENTER", "AMORPHOUS", "PLEOMORPHIC",
         "FINE_LINEAR_BRANCHING"}  # fmt: skip


@dataclass(frozen=True)
class Site:
    root: Path
    summary: PhantomSummary

    def rows(self, part: str) -> list[dict[str, str]]:
        with (self.root / f"calc_case_description_{part}_set.csv").open(newline="", encoding="utf-8") as lines:
            return list(csv.DictReader(lines))


@pytest.fixture(scope="session")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Site]:
    folder = tmp_path_factory.mktemp("phantom")
    written = {}
    for name in SCANNERS:
        root = folder / name
        written[name] = Site(root, write_phantom(root, patients=10, seed=3, scanner=name))
    return written


@pytest.fixture(scope="session", params=sorted(SCANNERS))
def site(request: pytest.FixtureRequest, sites: dict[str, Site]) -> Site:
    return sites[request.param]


def _files(site: Site, cell: str) -> list[pydicom.FileDataset]:
    """The files of the series that a table cell names, found by UID: folder names may not hold it."""
    subject, study, series, _ = cell.strip().split("/")
    found = [pydicom.dcmread(path) for path in sorted((site.root / "CBIS-DDSM" / subject).rglob("*.dcm"))]
    return [file for file in found if (file.StudyInstanceUID, file.SeriesInstanceUID) == (study, series)]


def _rows(site: Site) -> list[dict[str, str]]:
    return site.rows("train") + site.rows("test")


@pytest.mark.parametrize("part", ["train", "test"])
def test_columns_and_line_ends_are_those_published(site: Site, part: str) -> None:
    raw = (site.root / f"calc_case_description_{part}_set.csv").read_bytes()
    assert raw.decode().split("\n", 1)[0] == PUBLISHED_HEADER
    assert b"\r" not in raw


def test_cells_use_the_published_vocabulary_and_quirks(site: Site) -> None:
    for row in _rows(site):
        for column, words in VOCABULARY.items():
            assert row[column] in words
        assert set(row["calc type"].split("-")) <= TYPES
        assert row["cropped image file path"].endswith(".dcm\n")
        assert not row["image file path"].endswith("\n")
        assert row["ROI mask file path"].endswith("/000000.dcm")


def test_a_fifth_of_the_patients_is_the_test_part(site: Site) -> None:
    train, test = ({row["patient_id"] for row in site.rows(part)} for part in ("train", "test"))
    assert not train & test
    assert len(test) == 2
    assert len(train) == 8


def test_every_row_has_its_three_files_and_every_file_its_row(site: Site) -> None:
    named = set()
    for row in _rows(site):
        part = "Training" if row in site.rows("train") else "Test"
        subject = f"Calc-{part}_{row['patient_id']}_{row['left or right breast']}_{row['image view']}"
        assert row["image file path"].split("/")[0] == subject
        (full,) = _files(site, row["image file path"])
        series = _files(site, row["ROI mask file path"]) + _files(site, row["cropped image file path"])
        pair = {file.SOPInstanceUID: file for file in series}
        assert len(pair) == 2
        assert all(file.PatientID == f"{subject}_{row['abnormality id']}" for file in pair.values())
        named |= {full.SOPInstanceUID, *pair}
    on_disk = [pydicom.dcmread(path).SOPInstanceUID for path in site.root.rglob("*.dcm")]
    assert sorted(named) == sorted(on_disk)
    assert {path.name for path in site.root.rglob("*.dcm")} == {"1-1.dcm", "1-2.dcm"}


def test_headers_name_nobody_and_say_that_the_image_is_synthetic(site: Site) -> None:
    for path in site.root.rglob("*.dcm"):
        file = pydicom.dcmread(path)
        assert file.Modality == "MG"
        assert file.Manufacturer == "Consilium synthetic phantom"
        assert str(file.PatientName) == file.PatientID == path.relative_to(site.root).parts[1]
        assert not file.PatientBirthDate
        assert not file.PatientSex
        assert not file.ReferringPhysicianName
        assert file.file_meta.MediaStorageSOPInstanceUID == file.SOPInstanceUID
        assert max(len(file.SOPInstanceUID), len(file.StudyInstanceUID), len(file.SeriesInstanceUID)) <= 64


def test_the_sites_hold_every_photometric_interpretation_and_transfer_syntax(sites: dict[str, Site]) -> None:
    seen = set()
    for site in sites.values():
        for row in _rows(site):
            (full,) = _files(site, row["image file path"])
            assert (full.BitsAllocated, full.BitsStored, full.HighBit) == (16, 12, 11)
            assert full.pixel_array.max() <= 4095
            seen |= {full.PhotometricInterpretation, full.file_meta.TransferSyntaxUID}
    explicit = "1.2.840.10008.1.2.1"
    assert seen == {"MONOCHROME1", "MONOCHROME2", explicit, str(RLELossless), str(JPEG2000Lossless)}


def test_both_directory_styles_of_the_retriever_occur(sites: dict[str, Site]) -> None:
    def first_folder(site: Site) -> str:
        return next(iter(sorted((site.root / "CBIS-DDSM").glob("*/*")))).name

    styles = {name: first_folder(site) for name, site in sites.items()}
    assert styles["panel"].startswith("2.25.")
    assert styles["cassette"].startswith("01-01-2000-DDSM-NA-")


def test_breast_is_brighter_than_background_in_both_photometric_interpretations(site: Site) -> None:
    for row in _rows(site):
        (full,) = _files(site, row["image file path"])
        values = full.pixel_array.astype(float)
        if full.PhotometricInterpretation == "MONOCHROME1":
            values = 4095 - values
        chest, air = (slice(0, 60), slice(-12, None))
        if row["left or right breast"] == "RIGHT":
            chest, air = slice(-60, None), slice(0, 12)
        middle = slice(values.shape[0] * 2 // 5, values.shape[0] * 3 // 5)
        assert np.median(values[middle, chest]) > np.median(values[middle, air]) + 300


def test_crop_is_the_mask_box_of_the_mammogram(site: Site) -> None:
    swapped = resized = 0
    for row in _rows(site):
        (full,) = _files(site, row["image file path"])
        pair = {
            file.SOPInstanceUID: file
            for cell in ("ROI mask file path", "cropped image file path")
            for file in _files(site, row[cell])
        }
        mask, crop = sorted(pair.values(), key=lambda file: file.BitsStored)
        assert set(np.unique(mask.pixel_array)) == {0, 255}
        rows, columns = (np.flatnonzero(mask.pixel_array.any(axis=axis)) for axis in (1, 0))
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        np.testing.assert_array_equal(full.pixel_array[box], crop.pixel_array)
        swapped += mask.InstanceNumber == 2
        resized += mask.pixel_array.shape != full.pixel_array.shape
        assert all(abs(a - b) <= 4 for a, b in zip(mask.pixel_array.shape, full.pixel_array.shape, strict=True))
    assert swapped > 0
    assert resized < site.summary.findings / 2


def test_the_adapter_reads_every_row_as_it_would_the_collection(site: Site) -> None:
    holding = CbisDdsm()(site.root, unit="finding")
    assert holding.problems == ()
    rows = _rows(site)
    assert len(holding.records) == len(rows)
    assert {record.patient for record in holding.records} == {row["patient_id"] for row in rows}
    for record in holding.records:
        header = pydicom.dcmread(record.image, stop_before_pixels=True)
        assert header.PatientID == record.image.relative_to(site.root).parts[1]
        assert pydicom.dcmread(record.masks[0]).BitsStored == 8


def test_summary_counts_what_lies_on_the_disk(site: Site) -> None:
    rows, summary = _rows(site), site.summary
    assert summary.findings == len(rows) == summary.train_findings + summary.test_findings
    assert summary.malignant_findings == sum(row["pathology"] == "MALIGNANT" for row in rows)
    assert summary.images == len({row["image file path"] for row in rows})
    assert summary.patients == len({row["patient_id"] for row in rows})
    assert summary.scanner in SCANNERS
    assert Path(summary.root) == site.root
