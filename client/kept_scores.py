"""The exact scores of a hospital's test images in a file of its own run folder (mode 0600). It never leaves."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shared.canonical import digest
from shared.errors import DataError
from shared.metrics.classification import Predictions
from shared.private_file import write_private


@dataclass(frozen=True, slots=True)
class KeptScores:
    """What each head (`network`, `svm`, `svm_paper`) says of the test images whose records' keys are `keys`."""

    keys: tuple[str, ...]
    heads: Mapping[str, Predictions]

    def digest(self) -> str:
        """SHA-256 over keys, labels and patients in order: the same for two models exactly where they can be paired."""
        first = next(iter(self.heads.values()))
        return digest([list(self.keys), first.truth.tolist(), first.patients.astype(np.str_).tolist()])


def save_scores(path: Path, scores: KeptScores) -> None:
    """Write atomically, readable by the owner only. Raises StorageError."""
    first = next(iter(scores.heads.values()))
    arrays = {
        "keys": np.array(scores.keys, dtype=np.str_),
        "truth": first.truth,
        "patients": first.patients.astype(np.str_),
        "positive": np.array(first.positive),
    }
    for name, head in scores.heads.items():
        arrays[f"{name}.predicted"], arrays[f"{name}.scores"] = head.predicted, head.scores
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    write_private(path, buffer.getvalue())


def load_scores(path: Path) -> KeptScores:
    """Read what `save_scores` wrote. Raises DataError where the file is missing or something else."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        heads = {
            name.removesuffix(".scores"): Predictions(
                arrays["truth"],
                arrays[f"{name.removesuffix('.scores')}.predicted"],
                arrays[name],
                arrays["patients"],
                int(arrays["positive"]),
            )
            for name in arrays
            if name.endswith(".scores")
        }
        if not heads:
            raise ValueError("no head's scores in it")
        return KeptScores(tuple(arrays["keys"].tolist()), heads)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as problem:
        raise DataError(f"{path}: can't be read as a file of test scores: {problem}") from None
