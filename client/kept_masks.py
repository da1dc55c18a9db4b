"""What was counted of a hospital's test masks in a file of its own run folder (mode 0600). It never leaves."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from shared.errors import DataError
from shared.metrics.segmentation import MaskCounts
from shared.private_file import write_private


@dataclass(frozen=True, slots=True)
class KeptMasks:
    """Counts of the test images whose records' keys are `keys`."""

    keys: tuple[str, ...]
    counts: MaskCounts


def save_masks(path: Path, masks: KeptMasks) -> None:
    """Write atomically, readable by the owner only. Raises StorageError."""
    arrays = {one.name: getattr(masks.counts, one.name) for one in fields(MaskCounts)}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, keys=np.array(masks.keys, dtype=np.str_), **arrays)
    write_private(path, buffer.getvalue())


def load_masks(path: Path) -> KeptMasks:
    """Read what `save_masks` wrote. Raises DataError where the file is missing or something else."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            counts = MaskCounts(**{one.name: stored[one.name] for one in fields(MaskCounts)})
            return KeptMasks(tuple(stored["keys"].tolist()), counts)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as problem:
        raise DataError(f"{path}: can't be read as a file of counted masks: {problem}") from None
