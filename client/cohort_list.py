"""Which patients a cohort of the ledger is: their keyed tags, in a file that only the hospital has.

cohorts/ROOT.json   mode 0600; ROOT is the Merkle root that stands in the ledger

The same patients give the same root, whatever the folder or the file names of their images: the tags are of the ids alone. Beside each
tag stand keyed digests of the pixels of the patient's images, by which the patient is known under another id. Both stay when a patient
withdraws: they name nobody, and without them a copy under another id would have a new budget.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from client.site_folder import SiteFolder
from client.withdrawn import Tags
from shared.errors import LedgerError, StorageError
from shared.ledger.merkle import cohort_root
from shared.private_file import write_private
from shared.schema import Sha256, Strict


class _File(Strict):
    format: Literal["consilium/cohort/1"] = "consilium/cohort/1"
    tags: list[Sha256]
    images: dict[Sha256, list[Sha256]] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CohortList:
    """The patients of one cohort: tags, each with the keyed digests of the pixels of the patient's images as far as they are known."""

    patients: Mapping[str, frozenset[str]]

    def lacks(self, others: Mapping[str, frozenset[str]]) -> bool:
        """Whether `others` have images that are not on this list."""
        return any(not images <= self.patients.get(tag, frozenset()) for tag, images in others.items())


def root_of(tags: Iterable[str], key: Tags) -> str:
    """The Merkle root, salted with what only this hospital's key gives."""
    return cohort_root(tags, hmac.digest(key.key, b"consilium cohort salt", "sha256"))


def keep_list(folder: SiteFolder, root: str, patients: Mapping[str, frozenset[str]]) -> None:
    """The list of all of the cohort's patients; what is known of their images only grows.

    Raises StorageError, LedgerError where there is one that is damaged.
    """
    path = _path(folder, root)
    try:
        path.parent.mkdir(exist_ok=True, mode=0o700)
    except OSError as problem:
        raise StorageError(f"{path.parent}: can't be made: {problem.strerror or problem}") from None
    if path.exists():
        before = read_list(folder, root, Tags.of(folder)).patients
        patients = {tag: images | patients.get(tag, frozenset()) for tag, images in before.items()}
        if patients == before:
            return
    images = {tag: sorted(digests) for tag, digests in sorted(patients.items()) if digests}
    write_private(path, _File(tags=sorted(patients), images=images).model_dump_json().encode())


def read_list(folder: SiteFolder, root: str, key: Tags) -> CohortList:
    """Raises LedgerError where it is missing, damaged, or another cohort's."""
    path = _path(folder, root)
    try:
        file = _File.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        file = None
    if file is None or root_of(file.tags, key) != root:
        raise LedgerError(f"{path}: missing or damaged, so nobody knows whom runs were reserved for; put it back")
    return CohortList({tag: frozenset(file.images.get(tag, ())) for tag in file.tags})


def require_within(folder: SiteFolder, root: str, tags: frozenset[str], key: Tags) -> None:
    """Nobody may have been added since the run was reserved; who has withdrawn may be missing. Raises LedgerError."""
    if root_of(tags, key) == root:
        return
    added = len(tags - read_list(folder, root, key).patients.keys())
    if added:
        raise LedgerError(
            f"the data now holds {added} patient(s) who are not of the cohort {root[:12]} that the run was reserved for; "
            "a new run would reserve for them"
        )


def _path(folder: SiteFolder, root: str) -> Path:
    return folder.path / "cohorts" / f"{root}.json"
