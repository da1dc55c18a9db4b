"""Taking a patient's rows out of what a run folder keeps of the test images, whichever kind of figures it is of."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Collection
from pathlib import Path

import numpy as np

from shared.private_file import write_private


def forget_rows(path: Path, keys: Collection[str]) -> None:
    """Take the rows of these records out of a file of `client.kept_scores` or `client.kept_masks`, which have a row for each of `keys`.

    A file that can't be read, or that holds nobody else, is removed. Raises StorageError.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        staying = np.array([key not in keys for key in arrays["keys"].tolist()], dtype=np.bool_)
        if staying.all() and len(staying):
            return
        # What has no dimension is about all images alike.
        left = {name: array[staying] if array.ndim else array for name, array in arrays.items()}
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile):
        path.unlink(missing_ok=True)
        return
    if not staying.any():
        path.unlink(missing_ok=True)
        return
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **left)
    write_private(path, buffer.getvalue())
