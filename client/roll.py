"""The roll of a run: whose images, in which part, in which row of the prepared images. A file of the run's own folder (mode 0600)."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.data.records import Part
from client.data.splits import PARTS
from shared.private_file import write_private
from shared.results import CopiesLeftOut
from shared.study_descriptors import ABSENT

_FILE = "cohort.npz"


@dataclass(frozen=True, slots=True)
class Roll:
    """N rows of the prepared images in the file `images`; `parts` hold ascending rows, of readable images only, and of none
    that is left out as a copy (`copies` counts them; None where nobody looked). `hashes` are
    64-bit perceptual hashes of the images, where the study counts those that two hospitals hold.

    `labels` (N,) are class indices, `descriptors` (N, D) indices of the study's descriptors (ABSENT where a record lacks one), `patients`
    (N,) codes, `tags` the patients' and `pixels` the images' (`client.withdrawn.Tags`; empty where nothing is known), `readable` (N,)
    bool, `metadata` (N, M) what the network is told besides the image, `files` each record's image and then its masks. A row of a patient
    who has withdrawn since is empty, and in no part.
    """

    study: str
    images: str
    keys: tuple[str, ...]
    files: tuple[tuple[Path, ...], ...]
    labels: NDArray[np.int64]
    descriptors: NDArray[np.int64]
    patients: NDArray[np.int64]
    tags: tuple[str, ...]
    pixels: tuple[str, ...]
    readable: NDArray[np.bool_]
    metadata: NDArray[np.float32]
    parts: Mapping[Part, NDArray[np.int64]]
    left_out: int
    unreadable: int
    copies: CopiesLeftOut | None = None
    hashes: tuple[str, ...] = ()

    @property
    def withdrawn(self) -> bool:
        """Whether anybody has withdrawn since the data was first opened."""
        return "" in self.tags

    def known(self, *parts: Part) -> dict[str, frozenset[str]]:
        """Tags of all patients who are still there, or of those of some parts, each with the keyed digests of the images' pixels."""
        rows = np.concatenate([self.parts[part] for part in parts]).tolist() if parts else range(len(self.tags))
        found: dict[str, set[str]] = {}
        for row in rows:
            if self.tags[row]:
                found.setdefault(self.tags[row], set()).update({self.pixels[row]} - {""})
        return {tag: frozenset(images) for tag, images in found.items()}

    def keys_of(self, tag: str) -> set[str]:
        """The records of the patient with this tag."""
        return {key for key, whose in zip(self.keys, self.tags, strict=True) if whose == tag}

    def part_of(self, tag: str) -> Part | None:
        """Where the patient with this tag stands; None where in no part, as no image could be read."""
        whose = np.array(self.tags)
        return next((part for part in PARTS if (whose[self.parts[part]] == tag).any()), None)

    def without(self, tags: Collection[str]) -> Roll:
        """Without the rows of patients with these tags: they stay in their places, so that the others' rows mean what they meant."""
        gone = np.array([tag in tags for tag in self.tags], dtype=np.bool_)
        if not gone.any():
            return self
        labels, patients, readable = self.labels.copy(), self.patients.copy(), self.readable.copy()
        labels[gone], patients[gone], readable[gone] = 0, -1, False
        metadata = self.metadata.copy()
        metadata[gone] = 0
        descriptors = self.descriptors.copy()
        descriptors[gone] = ABSENT
        return replace(
            self,
            keys=tuple("" if empty else key for key, empty in zip(self.keys, gone, strict=True)),
            files=tuple(() if empty else files for files, empty in zip(self.files, gone, strict=True)),
            tags=tuple("" if empty else tag for tag, empty in zip(self.tags, gone, strict=True)),
            pixels=tuple("" if empty else image for image, empty in zip(self.pixels, gone, strict=True)),
            hashes=tuple("" if gone[row] else one for row, one in enumerate(self.hashes)),
            labels=labels,
            descriptors=descriptors,
            patients=patients,
            readable=readable,
            metadata=metadata,
            parts={part: rows[~gone[rows]] for part, rows in self.parts.items()},
        )


def roll_path(run_folder: Path) -> Path:
    return run_folder / _FILE


def load_roll(run_folder: Path) -> Roll | None:
    """None where there is none, or it can't be read."""
    try:
        with np.load(run_folder / _FILE, allow_pickle=False) as stored:
            left_out, unreadable, *copies = (int(value) for value in stored["counts"])
            return Roll(
                study=str(stored["study"]),
                images=str(stored["images"]),
                keys=tuple(stored["keys"].tolist()),
                files=tuple(tuple(Path(path) for path in json.loads(row)) for row in stored["files"].tolist()),
                labels=stored["labels"],
                descriptors=_columns(stored, "descriptors", np.int64),
                patients=stored["patients"],
                tags=tuple(stored["tags"].tolist()),
                pixels=tuple(stored["pixels"].tolist()) if "pixels" in stored else ("",) * len(stored["tags"]),
                readable=stored["readable"],
                metadata=_columns(stored, "metadata", np.float32),
                parts={part: stored[f"part.{part}"] for part in PARTS},
                left_out=left_out,
                unreadable=unreadable,
                hashes=tuple(stored["hashes"].tolist()) if "hashes" in stored else (),
                copies=CopiesLeftOut(copies=copies[0], contradicting=copies[1]) if copies else None,
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _columns(stored: Mapping[str, NDArray[Any]], name: str, dtype: type[Any]) -> NDArray[Any]:
    """(N, 0) in a file of a release that knew nothing of them: earlier runs' rolls say who was trained on."""
    return stored[name] if name in stored else np.empty((len(stored["tags"]), 0), dtype)


def save_roll(run_folder: Path, roll: Roll) -> None:
    """Replace the run's file, atomically. Raises StorageError."""
    arrays: dict[str, NDArray[Any]] = {
        "study": np.array(roll.study),
        "images": np.array(roll.images),
        "keys": np.array(roll.keys, dtype=np.str_),
        "files": np.array([json.dumps([str(path) for path in files]) for files in roll.files], dtype=np.str_),
        "labels": roll.labels,
        "descriptors": roll.descriptors,
        "patients": roll.patients,
        "tags": np.array(roll.tags, dtype=np.str_),
        "pixels": np.array(roll.pixels, dtype=np.str_),
        "readable": roll.readable,
        "metadata": roll.metadata,
        "counts": np.array([roll.left_out, roll.unreadable]),
        **{f"part.{part}": roll.parts[part] for part in PARTS},
    }
    if roll.hashes:
        arrays["hashes"] = np.array(roll.hashes, dtype=np.str_)
    if roll.copies is not None:
        arrays["counts"] = np.array([roll.left_out, roll.unreadable, roll.copies.copies, roll.copies.contradicting])
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    write_private(run_folder / _FILE, buffer.getvalue())


def forget_in_roll(run_folder: Path, tags: Collection[str]) -> None:
    """Empty the rows of patients with these tags in the run's file; one that can't be read is removed. Raises StorageError."""
    roll = load_roll(run_folder)
    if roll is None:
        (run_folder / _FILE).unlink(missing_ok=True)
        return
    left = roll.without(tags)
    if left is not roll:
        save_roll(run_folder, left)
