"""Adapter of any tree of DICOM files, mammography and ultrasound above all.

The patient is the header's Patient ID (0010,0020); where it is empty, the field that the profile names as `patient_stand_in` (a keyword
such as StudyInstanceUID), else the file can't be used. The label is a table's or a header field's, never both:

- `labels.csv` in the root, with columns `file` or `SOPInstanceUID`, `label`, and optionally patient (before the header's), mask, division,
  frame and attributes, as `client.data.index_table` says;
- `label_field` of the profile: the keyword of the header field that holds the label, e.g. SeriesDescription.

Of a file with several frames the first is used, unless the table names one; one file can then have a row for each of several frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from client.data.dicom_headers import Headers, ImageHeader, read_headers, require_keyword
from client.data.image_files import files_under, require_folder
from client.data.index_table import Entry, Index, read_index, relative_name
from client.data.records import Adapter, Holding, Problem, Record, Unit, require_unit
from shared.errors import DataError
from shared.imaging.inside import Inside
from shared.profile import SiteData

_TABLE = "labels.csv"
_UID = "SOPInstanceUID"


@dataclass(frozen=True)
class DicomFolder:
    """One record a file (or a row of the table); key is the path below the root, with `#frame` where the table names a frame.

    Attributes: modality, view, side, and the table's. Metadata: age in years, sex, and the table's. A file without a label or a patient, a
    copy (the same SOP Instance UID), and a row without a file are problems; objects without an image and files of other kinds are noted,
    and so are images whose pixels are likely to hold text. Raises DataError where no image is there, or labels have no source or two.
    """

    units: tuple[Unit, ...] = ("image", "view")
    label_field: str | None = None
    stand_in: str | None = None

    def configured(self, data: SiteData) -> Adapter:
        """As the profile wants it read. Raises ProfileError where a keyword is none."""
        for key, keyword in (("label_field", data.label_field), ("patient_stand_in", data.patient_stand_in)):
            if keyword is not None:
                require_keyword(keyword, f"data.{key}")
        return replace(self, label_field=data.label_field, stand_in=data.patient_stand_in)

    def __call__(self, root: Path, *, unit: Unit) -> Holding:
        require_unit("dicom_folder", self.units, unit)
        require_folder(root, f"DICOM files, at any depth, and {_TABLE}")
        index = self._index(root)
        masks = index.masks if index is not None else frozenset()
        files = (path for path in files_under(root) if path not in masks and path != root / _TABLE)
        headers = read_headers(files, [name for name in (self.label_field, self.stand_in) if name is not None])
        if not headers.images:
            first = f"; the first problem: {headers.problems[0]}" if headers.problems else ""
            raise DataError(f"{root}: no DICOM image is there{first}")
        problems = [*headers.problems, *(index.problems if index is not None else ())]
        images = _without_copies(root, index, headers.images, problems)
        jobs: _Jobs = [(image, None) for image in images] if index is None else _listed(root, index, images, problems)
        records: dict[str, Record] = {}
        used: list[ImageHeader] = []
        stood_in = False
        for image, entry in jobs:
            patient = (entry.patient if entry is not None else "") or image.values.get("PatientID", "")
            if not patient and self.stand_in is not None:
                patient = image.values.get(self.stand_in, "")
                stood_in = stood_in or bool(patient)
            item = self._record(root, index, image, entry, patient)
            if isinstance(item, Record) and item.key in records and index is not None and entry is not None:
                item = Problem(index.table, f"'{item.key}' already stands in an earlier row", entry.row)
            if isinstance(item, Problem):
                problems.append(item)
                continue
            records[item.key] = item
            used.append(image)
        if not records:
            raise DataError(f"{root}: no DICOM image can be used; the first problem: {problems[0]}")
        return Holding(
            tuple(records.values()), tuple(problems), _notes(headers, used, jobs), self.stand_in if stood_in else None
        )

    def _index(self, root: Path) -> Index | None:
        table = root / _TABLE
        if table.is_file() and self.label_field is not None:
            raise DataError(
                f"{table}: the labels have two sources, this table and data.label_field ({self.label_field}) of the profile; remove one"
            )
        if not table.is_file() and self.label_field is None:
            raise DataError(
                f"{root}: nothing says what the images show: put a {_TABLE} (columns file or {_UID}, label) there, or name a header "
                "field as data.label_field in the profile"
            )
        if self.label_field is not None:
            return None
        index = read_index(table, ["file", _UID])
        if "label" not in index.columns:
            raise DataError(
                f"{table}: the column 'label' is missing; the columns there are {', '.join(sorted(index.columns))}"
            )
        return index

    def _record(
        self, root: Path, index: Index | None, image: ImageHeader, entry: Entry | None, patient: str
    ) -> Record | Problem:
        name = image.path.relative_to(root).as_posix()
        label = entry.label if entry is not None else image.values.get(str(self.label_field), "")
        if not label and entry is not None and index is not None:
            return Problem(index.table, f"'label' of {name} is empty", entry.row)
        if not label:
            return Problem(image.path, f"its header field {self.label_field}, which data.label_field names, is empty")
        if not patient:
            also = f", and so is {self.stand_in}" if self.stand_in is not None else ""
            return Problem(
                image.path,
                f"its Patient ID is empty{also}; let data.patient_stand_in name a header field that is filled, e.g. StudyInstanceUID",
            )
        frame = entry.frame if entry is not None else None
        if frame is not None and frame >= image.frames and index is not None and entry is not None:
            return Problem(index.table, f"'frame' is {frame + 1}, but {name} has {image.frames} frame(s)", entry.row)
        return Record(
            key=name if frame is None else f"{name}#{frame + 1}",
            image=image.path if frame is None else Inside(image.path, "frame", frame).address,
            label=label,
            patient=patient,
            masks=entry.masks if entry is not None else (),
            division=entry.division if entry is not None else None,
            attributes={**image.attributes, **(entry.attributes if entry is not None else {})},
            metadata={**image.metadata, **(entry.metadata if entry is not None else {})},
        )


_Jobs = list[tuple[ImageHeader, Entry | None]]


def _without_copies(
    root: Path, index: Index | None, images: Sequence[ImageHeader], problems: list[Problem]
) -> list[ImageHeader]:
    """One file for each SOP Instance UID: one that the table names, else the first."""
    named = (
        {root / relative_name(entry.named["file"]) for entry in index.entries if "file" in entry.named}
        if index
        else set()
    )
    first: dict[str, ImageHeader] = {}
    for image in sorted(images, key=lambda image: image.path not in named):
        kept = first.setdefault(image.values.get(_UID) or str(image.path), image)
        if kept is not image:
            problems.append(
                Problem(image.path, f"it has the same SOP Instance UID as {kept.path}; keep one of the two")
            )
    return sorted(first.values(), key=lambda image: image.path)


def _listed(root: Path, index: Index, images: Sequence[ImageHeader], problems: list[Problem]) -> _Jobs:
    """The images that the table's rows name. Rows without an image, and images without a row, are problems."""
    by_file: Mapping[str, ImageHeader] = {image.path.relative_to(root).as_posix(): image for image in images}
    by_uid: Mapping[str, ImageHeader] = {image.values[_UID]: image for image in images if _UID in image.values}
    jobs: _Jobs = []
    named: set[Path] = set()
    for entry in index.entries:
        file, uid = entry.named.get("file"), entry.named.get(_UID)
        image = by_file.get(relative_name(file)) if file is not None else by_uid.get(str(uid))
        if image is None:
            wanted = f"is called '{file}'" if file is not None else f"has the {_UID} '{uid}'"
            problems.append(Problem(index.table, f"no usable DICOM image under {root} {wanted}", entry.row))
        elif uid is not None and image.values.get(_UID) != uid:
            reason = f"'{file}' has the {_UID} {image.values.get(_UID, 'of none')}, but the row says {uid}"
            problems.append(Problem(index.table, reason, entry.row))
            named.add(image.path)
        else:
            jobs.append((image, entry))
            named.add(image.path)
    problems.extend(
        Problem(image.path, f"no usable row of {_TABLE} names it") for image in images if image.path not in named
    )
    return jobs


def _notes(headers: Headers, used: Sequence[ImageHeader], jobs: _Jobs) -> tuple[str, ...]:
    notes = []
    burned = list(dict.fromkeys(image.path for image in used if image.burned_in))
    if burned:
        notes.append(
            f"burned-in text is likely in {len(burned)} file(s) (Burned In Annotation is YES, or ultrasound that does not say NO), e.g. "
            f"{_some(burned)}: a name or a date in the pixels is learnt from and shown on this hospital's own pages; look at them first"
        )
    several = [image for image, entry in jobs if image.frames > 1 and (entry is None or entry.frame is None)]
    if several:
        example = several[0]
        notes.append(
            f"{len(several)} file(s) have several frames (e.g. {example.path}: {example.frames}); the first is used, unless the column "
            f"frame of {_TABLE} names another"
        )
    if headers.without_image:
        notes.append(f"{len(headers.without_image)} DICOM file(s) hold no image: {_some(headers.without_image)}")
    if headers.others:
        notes.append(f"{len(headers.others)} file(s) of other kinds were not looked at: {_some(headers.others)}")
    return tuple(notes)


def _some(paths: Sequence[Path]) -> str:
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(str(path) for path in paths[:3]) + more
