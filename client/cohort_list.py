"""Which patients a cohort of the ledger is: their keyed tags, in a file that only the hospital has.

cohorts/ROOT.json   mode 0600; ROOT is the Merkle root that stands in the ledger

The same patients give the same root, whatever the folder or the file names of their images: the tags are of the ids alone.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from client.site_folder import SiteFolder
from client.withdrawn import Tags
from shared.errors import LedgerError, StorageError
from shared.ledger.merkle import cohort_root
from shared.private_file import write_private
from shared.study import Sha256, Strict


class _File(Strict):
    format: Literal["consilium/cohort/1"] = "consilium/cohort/1"
    tags: list[Sha256]


def root_of(tags: Iterable[str], key: Tags) -> str:
    """The Merkle root, salted with what only this hospital's key gives."""
    return cohort_root(tags, hmac.digest(key.key, b"consilium cohort salt", "sha256"))


def keep_list(folder: SiteFolder, root: str, tags: Iterable[str]) -> None:
    """Raises StorageError."""
    path = _path(folder, root)
    try:
        path.parent.mkdir(exist_ok=True, mode=0o700)
    except OSError as problem:
        raise StorageError(f"{path.parent}: can't be made: {problem.strerror or problem}") from None
    write_private(path, _File(tags=sorted(tags)).model_dump_json().encode())


def require_within(folder: SiteFolder, root: str, tags: frozenset[str], key: Tags) -> None:
    """Nobody may have been added since the run was reserved; who has withdrawn may be missing. Raises LedgerError."""
    if root_of(tags, key) == root:
        return
    path = _path(folder, root)
    try:
        reserved = frozenset(_File.model_validate_json(path.read_bytes()).tags)
    except (OSError, ValidationError):
        reserved = frozenset()
    if root_of(reserved, key) != root:
        raise LedgerError(f"{path}: missing or damaged, so nobody knows whom the run was reserved for; put it back")
    added = len(tags - reserved)
    if added:
        raise LedgerError(
            f"the data now holds {added} patient(s) who are not of the cohort {root[:12]} that the run was reserved for; "
            "a new run would reserve for them"
        )


def _path(folder: SiteFolder, root: str) -> Path:
    return folder.path / "cohorts" / f"{root}.json"
