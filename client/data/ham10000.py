"""Adapter of HAM10000 as published (Tschandl, Rosendahl and Kittler, Scientific Data 5:180161, 2018).

`HAM10000_metadata.csv`, the images in one or more folders, and the lesion masks `IMAGE_ID_segmentation.png`; or folders with such tables,
which are read as one holding. The dataset names no
patient: the lesion stands in for it, since one lesion has up to six images; the profile must say so (`patient_stand_in: lesion_id`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from client.data.csv_table import read_rows
from client.data.records import Holding, Problem, Record, Unit, require_unit
from shared.errors import DataError

_METADATA = ("HAM10000_metadata.csv", "HAM10000_metadata")
_REQUIRED = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization")
_IMAGES = (".jpg", ".jpeg", ".png")
_MASK = "_segmentation"


@dataclass(frozen=True)
class Ham10000:
    """One record an image; the label is `dx` (akiec, bcc, bkl, df, mel, nv, vasc), the patient is `lesion_id`.

    Attributes: dx_type, sex, localization. Metadata: age in years (absent where unknown), sex, localization. A row without its
    image is a problem. Raises DataError where table, columns or all images are missing.
    """

    units: tuple[Unit, ...] = ("image",)

    def __call__(self, root: Path, *, unit: Unit) -> Holding:
        require_unit("ham10000", self.units, unit)
        images, masks = _files_under(root)
        records: dict[str, Record] = {}
        problems: list[Problem] = []
        for table in _tables_in(root):
            rows, unread = read_rows(table, _REQUIRED)
            problems += unread
            for row, cells in rows:
                item = _record(table, row, cells, images, masks)
                if isinstance(item, Record) and item.key in records:
                    item = Problem(table, f"image {item.key} already stands in an earlier row", row)
                if isinstance(item, Record):
                    records[item.key] = item
                else:
                    problems.append(item)
        if not records:
            first = f"; the first problem: {problems[0]}" if problems else ", which has no rows"
            raise DataError(f"{root}: no image can be used of those in {_METADATA[0]}{first}")
        return Holding(tuple(records.values()), tuple(problems), patient_stand_in="lesion_id")


def _tables_in(root: Path) -> list[Path]:
    """The table in `root`, or else those in its folders: several hospitals' holdings, as one."""
    if not root.is_dir():
        raise DataError(
            f"{root}: no such folder; data.root of the profile must be the folder that holds {_METADATA[0]}"
        )
    for folders in ([root], sorted(child for child in root.iterdir() if child.is_dir())):
        tables = [place for folder in folders for place in _first_table(folder)]
        if tables:
            return tables
    state = "is empty" if not any(root.iterdir()) else f"holds no {_METADATA[0]}"
    raise DataError(f"{root}: the folder {state}; expected that table, the images and the lesion masks")


def _first_table(folder: Path) -> list[Path]:
    return [folder / name for name in _METADATA if (folder / name).is_file()][:1]


def _files_under(root: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Images and masks by image id, from one walk of the tree."""
    images: dict[str, Path] = {}
    masks: dict[str, Path] = {}
    for folder, subfolders, files in os.walk(root):
        subfolders.sort()
        for name in sorted(files):
            stem, suffix = os.path.splitext(name)  # noqa: PTH122 - a Path a file is slow over 20,000 files
            if suffix.lower() not in _IMAGES or name.startswith("."):
                continue
            if stem.endswith(_MASK):
                masks.setdefault(stem.removesuffix(_MASK), Path(folder, name))
            else:
                images.setdefault(stem, Path(folder, name))
    return images, masks


def _record(
    table: Path, row: int, cells: dict[str, str], images: dict[str, Path], masks: dict[str, Path]
) -> Record | Problem:
    values = {name: cells[name] for name in _REQUIRED}
    for name in ("lesion_id", "image_id", "dx"):
        if not values[name]:
            return Problem(table, f"'{name}' is empty", row)
    image = images.get(values["image_id"])
    if image is None:
        return Problem(table, f"no image file called {values['image_id']}.jpg under {table.parent}", row)
    metadata: dict[str, float | str] = {name: values[name] for name in ("sex", "localization")}
    if values["age"]:
        try:
            metadata["age"] = float(values["age"])
        except ValueError:
            return Problem(table, f"'age' must be a number of years or empty, but is '{values['age']}'", row)
    mask = masks.get(values["image_id"])
    return Record(
        key=values["image_id"],
        image=image,
        label=values["dx"].lower(),
        patient=values["lesion_id"],
        masks=() if mask is None else (mask,),
        attributes={name: values[name].lower() for name in ("dx_type", "sex", "localization") if values[name]},
        metadata=metadata,
    )
