"""A hospital's images as one study sees them: opened in full at the first message of a run, and in a moment at all later ones.

Reading tables, telling masks from crops, hashing files and decoding images is done once. What the later messages need - labels, patients,
parts, and where the prepared images lie - is kept in the run's own folder (mode 0600), so the data of a run is fixed at its round 0.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.data.cache import ImageStore, prepare_store
from client.data.records import Part
from client.data.registry import open_holding
from client.data.selection import choose
from client.data.splits import PARTS
from client.private_file import write_private
from shared.errors import DataError
from shared.profile import Profile
from shared.results import PartCounts
from shared.study import Study

log = logging.getLogger("consilium.site")

_FILE = "cohort.npz"
_UNREADABLE_NAMED = 10


@dataclass(frozen=True, slots=True)
class OpenCohort:
    """N images of a study at this hospital; `parts` hold ascending rows of `store`, of readable images only."""

    keys: tuple[str, ...]
    labels: NDArray[np.int64]
    patients: NDArray[np.int64]
    parts: Mapping[Part, NDArray[np.int64]]
    store: ImageStore
    left_out: int
    unreadable: int

    def counts(self, classes: int) -> dict[Part, PartCounts]:
        """Patients and images of each part, images by class."""
        return {
            part: PartCounts(
                patients=len(np.unique(self.patients[rows])),
                images=len(rows),
                by_class=np.bincount(self.labels[rows], minlength=classes).tolist(),
            )
            for part, rows in self.parts.items()
        }


def open_cohort(
    study: Study, profile: Profile, cache: Path, run_folder: Path, progress: Callable[[int, int], None] | None = None
) -> OpenCohort:
    """The run's cohort: from its file where this run has opened it before, else from the hospital's data.

    Raises DataError, UnreadableImageError, SplitLeakError, PolicyError, StorageError.
    """
    kept = _read(run_folder / _FILE, study)
    if kept is not None:
        return kept
    holding = open_holding(profile, unit=study.task.unit)
    cohort = choose(study, holding, minimum_patients=profile.policy.minimum_patients)
    store = prepare_store(
        cohort.records, study.preprocessing, cache, unreadable=profile.data.unreadable, progress=progress
    )
    for problem in (*cohort.problems, *store.problems)[:_UNREADABLE_NAMED]:
        log.warning("left out: %s", problem)
    parts = {part: rows[store.readable[rows]] for part, rows in cohort.parts.items()}
    _require_classes(cohort.labels, parts, study)
    opened = OpenCohort(
        keys=tuple(record.key for record in cohort.records),
        labels=cohort.labels,
        patients=cohort.patients,
        parts=parts,
        store=store,
        left_out=cohort.left_out,
        unreadable=len(cohort.problems) + len(store.problems),
    )
    _write(run_folder / _FILE, opened, study)
    return opened


def _require_classes(labels: NDArray[np.int64], parts: Mapping[Part, NDArray[np.int64]], study: Study) -> None:
    """Images that can't be read may have been a class's last ones."""
    for part in ("train", "test"):
        rows = parts[part]
        if len(np.unique(labels[rows])) < 2:
            raise DataError(
                f"the {part} part has {len(rows)} readable images of {len(np.unique(labels[rows]))} class(es)"
            )


def _write(path: Path, cohort: OpenCohort, study: Study) -> None:
    arrays: dict[str, NDArray[Any]] = {
        "study": np.array(study.digest()),
        "keys": np.array(cohort.keys, dtype=np.str_),
        "labels": cohort.labels,
        "patients": cohort.patients,
        "images": np.array(str(getattr(cohort.store.images, "filename", ""))),
        "readable": cohort.store.readable,
        "counts": np.array([cohort.left_out, cohort.unreadable]),
        **{f"part.{part}": cohort.parts[part] for part in PARTS},
    }
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    write_private(path, buffer.getvalue())


def _read(path: Path, study: Study) -> OpenCohort | None:
    """None where there is none, it is another study's, or its images are gone from the cache."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["study"]) != study.digest():
                return None
            images = np.load(str(stored["images"]), mmap_mode="r", allow_pickle=False)
            left_out, unreadable = (int(value) for value in stored["counts"])
            return OpenCohort(
                keys=tuple(stored["keys"].tolist()),
                labels=stored["labels"],
                patients=stored["patients"],
                parts={part: stored[f"part.{part}"] for part in PARTS},
                store=ImageStore(images, stored["readable"], ()),
                left_out=left_out,
                unreadable=unreadable,
            )
    except (OSError, ValueError, KeyError, EOFError):
        return None
