"""Adapter of plain image files: a folder for each class, or a table `index.csv`, or both.

    root/benign/a.png                  without a table the first folder is the label
    root/index.csv                     columns: file, and optionally label, patient, mask, division, frame; any other is an attribute

With a table its rows decide: an image that no row names is a problem, and where it has no column `label` the first folder is the label.
Where it has no column `patient`, or there is no table, every image is its own patient (`patient_stand_in: image`). See
`client.data.index_table` for the columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from client.data.image_files import PICTURES, files_under, require_folder
from client.data.index_table import Entry, Index, read_index, relative_name
from client.data.records import Holding, Problem, Record, Unit, require_unit
from shared.errors import DataError
from shared.imaging.inside import Inside

_INDEX = "index.csv"
_IMAGES = (*PICTURES, ".dcm", ".dicom")


@dataclass(frozen=True)
class ImageFolder:
    """One record an image (or a row of the table); key is the path below the root, with `#frame` where the table names a frame.

    Raises DataError where there is no image, or the table can't be read or has no column `file`.
    """

    units: tuple[Unit, ...] = ("image", "view")

    def __call__(self, root: Path, *, unit: Unit) -> Holding:
        require_unit("image_folder", self.units, unit)
        require_folder(root, f"a folder for each class, or {_INDEX} and the images")
        images: dict[str, Path] = {}
        others: list[Path] = []
        for path in files_under(root):
            if path.suffix.lower() in _IMAGES:
                images[path.relative_to(root).as_posix()] = path
            elif path != root / _INDEX:
                others.append(path)
        if not images:
            raise DataError(f"{root}: no image file is there; images are known by {', '.join(_IMAGES)}")
        index = read_index(root / _INDEX, ["file"]) if (root / _INDEX).is_file() else None
        records, problems = _listed(index, images) if index is not None else _by_folder(images)
        if not records:
            raise DataError(f"{root}: no image can be used; the first problem: {problems[0]}")
        has_patients = index is not None and "patient" in index.columns
        notes = []
        if not has_patients:
            where = f"{_INDEX} has no column patient" if index is not None else f"there is no {_INDEX}"
            notes.append(
                f"{where}: every image is its own patient, so that images of one patient can stand in training and in test"
            )
        if others:
            notes.append(f"{len(others)} other file(s) were not looked at (e.g. {others[0]})")
        return Holding(tuple(records), tuple(problems), tuple(notes), None if has_patients else "image")


def _by_folder(images: Mapping[str, Path]) -> tuple[list[Record], list[Problem]]:
    records, problems = [], []
    for name, path in images.items():
        label = _class_folder(name)
        if label is None:
            problems.append(Problem(path, f"it lies in no class folder, and there is no {_INDEX} to say what it shows"))
        else:
            records.append(Record(key=name, image=path, label=label, patient=name))
    return records, problems


def _listed(index: Index, images: Mapping[str, Path]) -> tuple[list[Record], list[Problem]]:
    problems = list(index.problems)
    records: dict[str, Record] = {}
    for entry in index.entries:
        item = _record(index, entry, images)
        if isinstance(item, Record) and item.key in records:
            item = Problem(index.table, f"'{item.key}' already stands in an earlier row", entry.row)
        if isinstance(item, Problem):
            problems.append(item)
        else:
            records[item.key] = item
    named = {relative_name(entry.named["file"]) for entry in index.entries}
    masks = {mask.relative_to(index.table.parent).as_posix() for mask in index.masks}
    problems.extend(
        Problem(path, f"no usable row of {index.table.name} names it")
        for name, path in images.items()
        if name not in named and name not in masks
    )
    return list(records.values()), problems


def _record(index: Index, entry: Entry, images: Mapping[str, Path]) -> Record | Problem:
    name = relative_name(entry.named["file"])
    if name not in images:
        return Problem(index.table, f"no image '{name}' under {index.table.parent}", entry.row)
    label: str | None = entry.label
    if "label" not in index.columns:
        label = _class_folder(name)
    if not label:
        return Problem(
            index.table,
            "'label' is empty" if "label" in index.columns else f"'{name}' lies in no class folder",
            entry.row,
        )
    if "patient" in index.columns and not entry.patient:
        return Problem(index.table, "'patient' is empty", entry.row)
    image = images[name]
    return Record(
        key=name if entry.frame is None else f"{name}#{entry.frame + 1}",
        image=image if entry.frame is None else Inside(image, "frame", entry.frame).address,
        label=label,
        patient=entry.patient or name,
        masks=entry.masks,
        division=entry.division,
        attributes=entry.attributes,
        metadata=entry.metadata,
    )


def _class_folder(name: str) -> str | None:
    first, slash, _ = name.partition("/")
    return first if slash else None
