"""The files of one patient, laid out as the NBIA Data Retriever leaves CBIS-DDSM on a disk."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from client.phantom.cases import Case, View
from client.phantom.dicom_files import Header, uid_for, write_image
from client.phantom.mammogram import DrawnFinding, Mammogram, draw_mammograms
from client.phantom.scanners import Encoding, FolderNaming, Scanner
from client.phantom.tables import Row

COLLECTION = "CBIS-DDSM"

_SWAPPED_SHARE: Final = 0.25
_APART_SHARE: Final = 0.02
_UNNAMED_SERIES_SHARE: Final = 0.08
_ODD_MASK_SHARE: Final = 0.06


def write_patient(root: Path, case: Case, scanner: Scanner, identity: str) -> tuple[Row, ...]:
    """Draw and write every view of `case` below `root`; `identity` names the phantom in its UIDs.

    Quirks of the collection, each in a share of the findings: mask and crop in the other order than the table says
    (25 %), in two series (2 %), without SeriesDescription (8 %), masks up to four pixels larger or smaller than their
    mammogram (6 %).
    """
    # The child after those of the views: the quirks of the files never depend on what is drawn.
    stream = np.random.SeedSequence(case.stream.entropy, spawn_key=(*case.stream.spawn_key, len(case.views)))
    rng = np.random.default_rng(stream)
    rows: list[Row] = []
    for mammogram in draw_mammograms(case, scanner):
        writer = _ViewWriter(root, case, mammogram, scanner, identity, rng)
        image = writer.write_mammogram()
        for drawn in mammogram.findings:
            cropped, mask = writer.write_finding(drawn)
            rows.append(Row(case, mammogram.view, drawn.finding, image, cropped, mask))
    return tuple(rows)


class _ViewWriter:
    """Writes one mammogram and its findings, returning the paths that the table gives for them."""

    def __init__(
        self, root: Path, case: Case, mammogram: Mammogram, scanner: Scanner, identity: str, rng: np.random.Generator
    ) -> None:
        self._root = root / COLLECTION
        self._mammogram = mammogram
        self._scanner = scanner
        self._identity = identity
        self._rng = rng
        view = mammogram.view
        self._subject = f"Calc-{case.part}_{case.patient_id}_{view.side}_{view.projection}"

    def write_mammogram(self) -> str:
        shares = self._scanner.encodings
        encoding = list(shares)[int(self._rng.choice(len(shares), p=list(shares.values())))]
        series = _Series(self, self._subject, "full mammogram images")
        series.write(self._mammogram.pixels, 1, inverted=self._mammogram.inverted, encoding=encoding)
        return series.in_table(0)

    def write_finding(self, drawn: DrawnFinding) -> tuple[str, str]:
        """Write crop and mask; returns their table paths, in that order."""
        rng = self._rng
        subject = f"{self._subject}_{drawn.finding.abnormality}"
        top, left, bottom, right = drawn.box
        crop = self._mammogram.pixels[top:bottom, left:right]
        mask = drawn.region.astype(np.uint8) * np.uint8(255)
        if rng.random() < _ODD_MASK_SHARE:
            mask = _resized(mask, rng)
        swapped, apart = bool(rng.random() < _SWAPPED_SHARE), bool(rng.random() < _APART_SHARE)
        named = bool(rng.random() >= _UNNAMED_SERIES_SHARE)
        mask_series = _Series(self, subject, "ROI mask images", named=named)
        crop_series = _Series(self, subject, "cropped images", named=named, apart=apart)
        crop_number = 1 if apart or swapped else 2
        crop_series.write(crop, crop_number, inverted=self._mammogram.inverted)
        mask_series.write(mask, 2 if swapped and not apart else 1)
        return crop_series.in_table(0 if apart else 1), mask_series.in_table(0)

    @property
    def view(self) -> View:
        return self._mammogram.view


class _Series:
    """One series folder. Mask and crop of a finding share a series, unless `apart`."""

    def __init__(
        self, writer: _ViewWriter, subject: str, description: str, *, named: bool = True, apart: bool = False
    ) -> None:
        self._writer = writer
        self._subject = subject
        self._description = description if named else None
        names = (writer._identity, subject)
        self._study_uid = uid_for(*names, "study")
        self._series_uid = uid_for(*names, "cropped series" if apart else "series")
        self._folder = writer._root / subject / self._study_uid / self._series_uid
        if writer._scanner.folders is FolderNaming.DESCRIPTIVE:
            shown = description if apart or "full" in description else "ROI mask images"
            study, series = f"01-01-2000-DDSM-NA-{self._study_uid[-5:]}", f"1.000000-{shown}-{self._series_uid[-5:]}"
            self._folder = writer._root / subject / study / series

    def write(
        self,
        pixels: NDArray[np.uint16] | NDArray[np.uint8],
        number: int,
        *,
        inverted: bool = False,
        encoding: Encoding = Encoding.EXPLICIT,
    ) -> None:
        header = Header(
            subject=self._subject,
            side=self._writer.view.side,
            projection=self._writer.view.projection,
            study_uid=self._study_uid,
            series_uid=self._series_uid,
            instance_uid=uid_for(self._series_uid, number),
            instance_number=number,
            series_description=self._description,
        )
        path = self._folder / f"1-{number}.dcm"
        write_image(path, pixels, header, self._writer._scanner, inverted=inverted, encoding=encoding)

    def in_table(self, number: int) -> str:
        return f"{self._subject}/{self._study_uid}/{self._series_uid}/{number:06d}.dcm"


def _resized(mask: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """The mask with one to four rows and columns added or cut at the bottom and right, never where the region lies."""
    down, across = (int(rng.choice((-1, 1))) * int(rng.integers(1, 5)) for _ in range(2))
    padded = np.pad(mask, ((0, max(down, 0)), (0, max(across, 0))))
    cut = padded[: mask.shape[0] + down, : mask.shape[1] + across]
    return mask if np.count_nonzero(cut) < np.count_nonzero(mask) else np.ascontiguousarray(cut)
