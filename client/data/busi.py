"""Adapter of BUSI as published (Al-Dhabyani et al., Dataset of breast ultrasound images, Data in Brief 28:104863, 2020).

Folders `benign`, `malignant` and `normal` with `NAME.png` and its masks `NAME_mask.png`, `NAME_mask_1.png`, ... It names no patient and
holds near-duplicates, some of them with different labels. A table `busi_index.csv` (columns `file` and `near_duplicate_group`, in the
folder or the one above) says which images belong together: then the group stands in for the patient, and an image of no group is its own.
Without that table every image is its own patient, and a note says what this can mean. All images are of one hospital.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from client.data.csv_table import read_rows
from client.data.image_files import PICTURES, files_under, require_folder
from client.data.records import Holding, Problem, Record, Unit, require_unit
from shared.errors import DataError

_CLASSES = ("benign", "malignant", "normal")
_INDEX = "busi_index.csv"
_MASK = re.compile(r"(?P<image>.+)_mask(_\d+)?")
_HOLDS = f"the folders {', '.join(_CLASSES)}"

Name = tuple[str, str]
"""Class folder and file name of an image."""


@dataclass(frozen=True)
class Busi:
    """One record an image, which is a view; the label is its folder, the patient the near-duplicate group (without the table, the image).

    Masks of normal images are published empty, so a normal record has none. A mask without its image, and a row of the table without one,
    is a problem. Raises DataError where no class folder or no image is there, or the table lacks a column.
    """

    units: tuple[Unit, ...] = ("image", "view")

    def __call__(self, root: Path, *, unit: Unit) -> Holding:
        require_unit("busi", self.units, unit)
        folder = _class_folders_in(root)
        images, masks = _pictures_in(folder)
        if not images:
            raise DataError(f"{folder}: the class folders hold no image; expected NAME.png and NAME_mask.png in them")
        index = next(
            (path for path in (root / _INDEX, folder / _INDEX, folder.parent / _INDEX) if path.is_file()), None
        )
        groups, problems = _groups(index, images) if index is not None else ({}, [])
        problems.extend(
            Problem(path, f"a mask without its image: {name}.* is not in that folder")
            for (label, name), paths in masks.items()
            if (label, name) not in images
            for path in paths
        )
        records = [
            Record(
                key=f"{label}/{name}",
                image=path,
                label=label,
                patient=groups.get((label, name)) or f"{label}/{name}",
                masks=() if label == "normal" else tuple(masks.get((label, name), ())),
            )
            for (label, name), path in images.items()
        ]
        stand_in = "image" if index is None else "near_duplicate_group"
        return Holding(tuple(records), tuple(problems), _notes(index, images, groups), stand_in)


def _class_folders_in(root: Path) -> Path:
    require_folder(root, _HOLDS)
    for folder in (root, *sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))):
        if any((folder / name).is_dir() for name in _CLASSES):
            return folder
    raise DataError(f"{root}: holds none of {_HOLDS}, nor does a folder in it")


def _pictures_in(folder: Path) -> tuple[dict[Name, Path], dict[Name, list[Path]]]:
    """Images, and the masks of each image, by class folder and name without suffix."""
    images: dict[Name, Path] = {}
    masks: dict[Name, list[Path]] = {}
    for label in _CLASSES:
        for path in files_under(folder / label):
            if path.suffix.lower() not in PICTURES:
                continue
            mask = _MASK.fullmatch(path.stem)
            if mask is None:
                images[label, path.stem] = path
            else:
                masks.setdefault((label, mask["image"]), []).append(path)
    return images, masks


def _groups(index: Path, images: Mapping[Name, Path]) -> tuple[dict[Name, str | None], list[Problem]]:
    """The group of each image that the table lists (None: of no group), and the rows that list none."""
    rows, problems = read_rows(index, ("file", "near_duplicate_group"))
    groups: dict[Name, str | None] = {}
    for row, cells in rows:
        listed = PurePosixPath(cells["file"].replace("\\", "/"))
        name = (listed.parent.name, listed.stem)
        if name not in images:
            problems.append(Problem(index, f"no image '{listed.parent.name}/{listed.name}' under {index.parent}", row))
        elif name in groups:
            problems.append(Problem(index, f"'{cells['file']}' already stands in an earlier row", row))
        else:
            groups[name] = cells["near_duplicate_group"] or None
    return groups, problems


def _notes(index: Path | None, images: Mapping[Name, Path], groups: Mapping[Name, str | None]) -> tuple[str, ...]:
    if index is None:
        return (
            f"no {_INDEX} beside the images: every image is its own patient, so that near-duplicates, which this dataset has, can stand "
            "in training and in test",
        )
    unlisted = [path for name, path in images.items() if name not in groups]
    if not unlisted:
        return ()
    return (
        f"{_INDEX} does not list {len(unlisted)} of {len(images)} images (e.g. {unlisted[0]}); each is its own patient",
    )
