"""What the headers of a DICOM tree say: which files hold an image, whose it is, and what is known of it. No pixel is decoded."""

from __future__ import annotations

import difflib
import logging
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.datadict import dictionary_VR, keyword_dict, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from client.data.records import Problem
from shared.errors import ProfileError

_SUFFIXES = (".dcm", ".dicom", ".ima")
_READ = (
    "SOPInstanceUID", "SOPClassUID", "Modality", "PatientID", "PatientAge", "PatientSex", "Rows", "Columns", "NumberOfFrames",
    "BurnedInAnnotation", "ViewPosition", "ImageLaterality", "Laterality",
)  # fmt: skip
_AGE = re.compile(r"(\d{1,3})([DWMY])")
_DAYS = {"D": 1.0, "W": 7.0, "M": 365.25 / 12, "Y": 365.25}
_SEX = {"M": "male", "F": "female", "O": "other"}
_SIDES = {"L": "left", "R": "right", "B": "both"}


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """One image file. `values` are the fields read, by keyword, as text without blanks; absent and empty ones are left out."""

    path: Path
    values: Mapping[str, str]

    @property
    def frames(self) -> int:
        text = self.values.get("NumberOfFrames", "1")
        return int(text) if text.isdigit() else 1

    @property
    def burned_in(self) -> bool:
        """Whether text in the pixels is likely: the header says so (PS3.3 C.7.6.1.1.5), or it is ultrasound that does not deny it."""
        said = self.values.get("BurnedInAnnotation", "").upper()
        return said == "YES" or (said != "NO" and self.values.get("Modality") in ("US", "IVUS"))

    @property
    def attributes(self) -> dict[str, str]:
        """modality, view and side where given, in lower case; the side is left, right or both."""
        side = self.values.get("ImageLaterality") or self.values.get("Laterality", "")
        found = {
            "modality": self.values.get("Modality", ""),
            "view": self.values.get("ViewPosition", ""),
            "side": _SIDES.get(side.upper(), ""),
        }
        return {name: value.lower() for name, value in found.items() if value}

    @property
    def metadata(self) -> dict[str, float | str]:
        """age in years and sex (male, female, other), where given."""
        found: dict[str, float | str] = {}
        age = _AGE.fullmatch(self.values.get("PatientAge", ""))
        if age is not None:
            found["age"] = round(int(age[1]) * _DAYS[age[2]] / _DAYS["Y"], 2)
        sex = _SEX.get(self.values.get("PatientSex", "").upper())
        if sex is not None:
            found["sex"] = sex
        return found


@dataclass(frozen=True, slots=True)
class Headers:
    """Image files, files that claim to be DICOM but can't be read, DICOM files without an image, and files of other kinds."""

    images: tuple[ImageHeader, ...]
    problems: tuple[Problem, ...]
    without_image: tuple[Path, ...]
    others: tuple[Path, ...]


def read_headers(files: Iterable[Path], more: Iterable[str] = ()) -> Headers:
    """The header of each file; DICOM is known by its magic (PS3.10 section 7.1) or its suffix. `more` are further keywords to read."""
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    images: list[ImageHeader] = []
    problems: list[Problem] = []
    without_image: list[Path] = []
    others: list[Path] = []
    wanted = [*_READ, *more]
    for path in files:
        try:
            with path.open("rb") as stream:
                magic = stream.read(132)[128:] == b"DICM"
            if not magic and path.suffix.lower() not in _SUFFIXES:
                others.append(path)
                continue
            values = _values(path, wanted)
        except OSError as problem:
            problems.append(Problem(path, f"it can't be opened ({problem.strerror or problem})"))
            continue
        except Exception as problem:  # pydicom has no common base class for what a damaged header raises
            problems.append(Problem(path, f"its DICOM header is damaged ({' '.join(str(problem).split())[:200]})"))
            continue
        if not magic and not values.keys() & {"SOPInstanceUID", "SOPClassUID", "Rows"}:
            problems.append(Problem(path, "it is called a DICOM file, but is none"))
        elif "0" in (values.get("Rows", "0"), values.get("Columns", "0")):
            without_image.append(path)
        else:
            images.append(ImageHeader(path, values))
    return Headers(tuple(images), tuple(problems), tuple(without_image), tuple(others))


def require_keyword(keyword: str, key: str) -> None:
    """Raise ProfileError where `keyword` names no field of the DICOM dictionary (PS3.6), or one that is no text or number."""
    if tag_for_keyword(keyword) is None:
        close = difflib.get_close_matches(keyword, keyword_dict, n=1)
        hint = f"did you mean {close[0]}?" if close else "e.g. StudyInstanceUID or SeriesDescription"
        raise ProfileError(f"{key}: '{keyword}' is the keyword of no DICOM header field; {hint}")
    if dictionary_VR(keyword) in ("SQ", "OB", "OW", "OD", "OF", "OL", "OV", "UN", "OB or OW"):
        raise ProfileError(f"{key}: the DICOM header field {keyword} holds no text; take one that does")


def _values(path: Path, wanted: list[str]) -> dict[str, str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(wanted), force=True)
        values = {keyword: _text(dataset, keyword) for keyword in wanted}
    return {keyword: value for keyword, value in values.items() if value}


def _text(dataset: Dataset, keyword: str) -> str:
    value = dataset.get(keyword)
    if value is None:
        return ""
    if isinstance(value, MultiValue):
        return "\\".join(str(one) for one in value).strip()
    return str(value).strip().strip("\0")
