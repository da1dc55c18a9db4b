"""Addresses of images that lie inside a file: one frame of many, one row of an array.

`loop.dcm/frame/3` is the fourth frame of a DICOM or TIFF file, `breastmnist.npz/train/17` row 17 of the array `train_images` in a NumPy
archive; both count from 0. They are ordinary paths, so that records, caches and errors need to know no other kind of name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Inside:
    """Image `index` (from 0) of `part` of a file. `part` is `frame`, or the name of an array."""

    file: Path
    part: str
    index: int

    @property
    def address(self) -> Path:
        return self.file / self.part / str(self.index)


def inside(path: Path) -> Inside | None:
    """The place that `path` addresses inside a file; None where it is a path like any other."""
    if not (path.name.isascii() and path.name.isdigit()) or len(path.parts) < 3:
        return None
    file = path.parent.parent
    return Inside(file, path.parent.name, int(path.name)) if file.is_file() else None


def source_file(path: Path) -> Path:
    """The file that has to be read for `path`: itself, or the one that it lies inside."""
    place = inside(path)
    return path if place is None else place.file
