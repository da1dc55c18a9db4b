"""Adapter of MedMNIST's two-dimensional sets (Yang et al., MedMNIST v2, Scientific Data 10:41, 2023): one `.npz` a set.

The archive holds `train_images`, `val_images` and `test_images`, (N, H, W) or (N, H, W, 3) uint8, and `..._labels`, (N,) or (N, 1).
Nothing is unpacked: a record's image is an address like `breastmnist.npz/train/17`, which the image reader understands
(`shared.imaging.inside`), and the image cache keeps what was prepared. MedMNIST names no patient, so every image is its own
(`patient_stand_in: image`), although some sets have several images of one patient. `division` is the published part; validation images
belong to `train`, from which a study that asks for the official division draws its own validation part.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from client.data.image_files import require_folder
from client.data.records import Holding, Record, Unit, require_unit
from shared.errors import DataError, UnreadableImageError
from shared.imaging.arrays import array_shapes, read_array
from shared.imaging.inside import Inside

LABELS: Mapping[str, tuple[str, ...]] = {
    "breastmnist": ("malignant", "normal_or_benign"),
    "dermamnist": ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"),
    "pneumoniamnist": ("normal", "pneumonia"),
}
"""Names of the label numbers 0, 1, ... DermaMNIST's are those of the layout ham10000, whose images it holds."""

_DIVISIONS: Mapping[str, Literal["train", "test"]] = {"train": "train", "val": "train", "test": "test"}
_SIZE = re.compile(r"_\d+$")


@dataclass(frozen=True)
class MedMnist:
    """Records of one archive: the file, or the folder that holds it alone.

    A label is named by `LABELS`, in a set that is not there by set and number (`bloodmnist_3`). Attributes: `part` (train, val, test).
    Raises DataError where there is no archive or several, arrays are missing or don't fit, or an image has several labels.
    """

    units: tuple[Unit, ...] = ("image",)

    def __call__(self, root: Path, *, unit: Unit) -> Holding:
        require_unit("medmnist", self.units, unit)
        file = _archive_in(root)
        try:
            shapes = array_shapes(file)
            parts = [part for part in _DIVISIONS if f"{part}_images" in shapes]
            if not parts:
                there = ", ".join(sorted(shapes)) or "none"
                raise DataError(
                    f"{file}: holds no array train_images, val_images or test_images; the arrays are {there}"
                )
            flavour = _SIZE.sub("", file.stem.lower())
            records = [record for part in parts for record in _records(file, flavour, part, shapes)]
        except UnreadableImageError as problem:
            raise DataError(str(problem)) from None
        if not records:
            raise DataError(f"{file}: its arrays hold no image")
        note = "MedMNIST names no patient: every image is its own, so images of one patient can stand in training and in test"
        return Holding(tuple(records), notes=(note,), patient_stand_in="image")


def _archive_in(root: Path) -> Path:
    if root.is_file():
        return root
    require_folder(root, "one MedMNIST archive, e.g. breastmnist.npz")
    found = sorted(path for path in root.iterdir() if path.suffix == ".npz" and not path.name.startswith("."))
    if len(found) != 1:
        named = f": {', '.join(path.name for path in found)}" if found else ""
        raise DataError(
            f"{root}: holds {len(found)} .npz files{named}; expected one, or let data.root name the file itself"
        )
    return found[0]


def _records(file: Path, flavour: str, part: str, shapes: Mapping[str, tuple[tuple[int, ...], str]]) -> list[Record]:
    shape, kind = shapes[f"{part}_images"]
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] != 3) or kind not in ("uint8", "uint16"):
        raise DataError(
            f"{file}: the array {part}_images is {kind} of shape {shape}; expected uint8 of (N, height, width) or (N, height, width, 3)"
        )
    labels = _labels(file, part, shape[0], shapes)
    return [
        Record(
            key=f"{part}/{index}",
            image=Inside(file, part, index).address,
            label=_name(file, flavour, label),
            patient=f"{part}/{index}",
            division=_DIVISIONS[part],
            attributes={"part": part},
        )
        for index, label in enumerate(labels.tolist())
    ]


def _labels(file: Path, part: str, count: int, shapes: Mapping[str, tuple[tuple[int, ...], str]]) -> NDArray[np.int64]:
    name = f"{part}_labels"
    if name not in shapes:
        raise DataError(f"{file}: the array {name} is missing beside {part}_images")
    shape, kind = shapes[name]
    if shape not in ((count,), (count, 1)):
        reason = (
            "an image has several labels" if len(shape) == 2 and shape[0] == count else "that fits no label an image"
        )
        raise DataError(
            f"{file}: the array {name} has the shape {shape}, {reason}; expected ({count},) or ({count}, 1)"
        )
    if not kind.startswith(("int", "uint")):
        raise DataError(f"{file}: the array {name} is of type {kind}, expected whole numbers")
    return read_array(file, name).reshape(-1).astype(np.int64)


def _name(file: Path, flavour: str, label: int) -> str:
    names = LABELS.get(flavour)
    if names is None:
        return f"{flavour}_{label}"
    if not 0 <= label < len(names):
        raise DataError(f"{file}: a label is {label}, but {flavour} has 0 to {len(names) - 1} ({', '.join(names)})")
    return names[label]
