"""Finds the DICOM files of the CBIS-DDSM download and tells mammogram, crop and mask apart.

The tables' paths are no guide: the download renames series folders and files (`000000.dcm` became `1-1.dcm`), puts crop and mask
of a finding into one folder or into two series, and the tables name crop and mask the wrong way round in places. Only the top folder
(`Calc-Training_P_00005_RIGHT_CC_1`) is reliable. What a file is, its content decides.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

from shared.errors import DataError, UnreadableImageError
from shared.imaging.files import read_image

_SUFFIXES = (".dcm", ".dicom")


@dataclass(frozen=True, slots=True)
class Header:
    """What the header of an image file says: its size in pixels, its series and its own identity."""

    path: Path
    rows: int
    columns: int
    series: str
    instance: str

    @property
    def size(self) -> tuple[int, int]:
        return (self.rows, self.columns)


def index_folders(root: Path, names: Collection[str]) -> dict[str, tuple[Path, ...]]:
    """Walk the tree under `root` once; the DICOM files under each folder called one of `names`, at any depth, sorted.

    A file under two such folders belongs to the deeper one. Symbolic links are followed, each real folder once.
    """
    found: dict[str, list[Path]] = {}
    visited: set[str] = set()
    owner: dict[str, str | None] = {}
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:
            subfolders.clear()
            continue
        visited.add(real)
        subfolders.sort()
        name = os.path.basename(folder)  # noqa: PTH119 - a Path for each of 10,000 folders would cost seconds
        case = name if name in names else owner.get(os.path.dirname(folder))  # noqa: PTH120
        owner[folder] = case
        if case is not None:
            images = sorted(file for file in files if file.lower().endswith(_SUFFIXES) and not file.startswith("."))
            found.setdefault(case, []).extend(Path(folder, file) for file in images)
    return {case: tuple(paths) for case, paths in found.items() if paths}


def read_header(path: Path) -> Header:
    """Size and identity of an image file, without its pixels. Raises UnreadableImageError naming the file."""
    wanted = ["Rows", "Columns", "SeriesInstanceUID", "SOPInstanceUID"]
    try:
        dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=wanted)
        rows, columns = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
    except (InvalidDicomError, EOFError):
        raise UnreadableImageError(f"{path}: not a DICOM file") from None
    except OSError as problem:
        raise UnreadableImageError(f"{path}: can't be read: {problem.strerror}") from None
    except Exception as problem:  # pydicom has no common base class for what a damaged header raises
        raise UnreadableImageError(f"{path}: damaged DICOM header: {problem}") from None
    if rows <= 0 or columns <= 0:
        raise UnreadableImageError(f"{path}: a DICOM file without an image")
    return Header(
        path, rows, columns, str(dataset.get("SeriesInstanceUID", "")), str(dataset.get("SOPInstanceUID", ""))
    )


def mammogram_of(folder: str, files: Mapping[str, Sequence[Path]], series: str | None) -> Header:
    """The mammogram of a view's folder. `series` (from the table) decides where the download holds several images.

    Raises DataError where the folder has no DICOM file or several different ones, UnreadableImageError for a damaged one.
    """
    headers = _headers(folder, files)
    if len(headers) > 1 and series is not None:
        named = [header for header in headers if series == header.series or series in header.path.parts]
        headers = named or headers
    if len(headers) > 1:
        names = ", ".join(str(header.path) for header in headers)
        raise DataError(
            f"folder {folder} holds {len(headers)} different images ({names}) where one mammogram was expected"
        )
    return headers[0]


def mask_of(folder: str, files: Mapping[str, Sequence[Path]], mammogram: Header) -> Path:
    """The mask among the files of a finding's folder, which also holds the crop; which is which, content says.

    The one file of the mammogram's size is the mask (headers only). Where none or several have that size, pixels decide: a
    mask has two values. Raises DataError where no file or more than one can be the mask, UnreadableImageError for a damaged one.
    """
    headers = _headers(folder, files)
    full = [header for header in headers if header.size == mammogram.size]
    if len(full) == 1:
        return full[0].path
    masks = [header for header in (full or headers) if _two_valued(header.path)]
    largest = max((header.rows * header.columns for header in masks), default=0)
    masks = [header for header in masks if header.rows * header.columns == largest]
    if len(masks) == 1:
        return masks[0].path
    names = ", ".join(header.path.name for header in headers)
    if not masks:
        raise DataError(
            f"folder {folder} holds no mask (an image of the mammogram's size or of two values) among {names}"
        )
    raise DataError(f"folder {folder} holds {len(masks)} different masks among {names} where one was expected")


def _headers(folder: str, files: Mapping[str, Sequence[Path]]) -> list[Header]:
    """Headers of a folder's files, one for each instance: a repeated download leaves copies."""
    paths = files.get(folder, ())
    if not paths:
        raise DataError(f"no DICOM file under a folder called {folder}")
    unique: dict[str, Header] = {}
    for path in paths:
        header = read_header(path)
        unique.setdefault(header.instance or str(path), header)
    return list(unique.values())


def _two_valued(path: Path) -> bool:
    pixels = read_image(path).array
    low, high = pixels.min(), pixels.max()
    return bool(low < high and np.all((pixels == low) | (pixels == high)))
