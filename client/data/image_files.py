"""The image files of a folder tree, told by their names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from shared.errors import DataError

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
"""Suffixes of pictures, in lower case."""


def files_under(root: Path) -> Iterator[Path]:
    """All files under `root` in a fixed order; hidden ones and what lies in hidden folders are not looked at.

    Symbolic links are followed, each real folder once.
    """
    visited: set[str] = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                yield Path(folder, name)


def require_folder(root: Path, holds: str) -> None:
    """Raise DataError where `root` is no folder that can be listed, or an empty one. `holds` says what should lie there."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; data.root of the profile must be the folder that holds {holds}")
    try:
        empty = not any(root.iterdir())
    except OSError as problem:
        raise DataError(f"{root}: can't be listed: {problem.strerror}") from None
    if empty:
        raise DataError(f"{root}: the folder is empty; expected {holds}")
