"""Which patients have withdrawn, kept so that the file itself names nobody.

keys/withdrawal.key   32 random bytes, mode 0600
withdrawn.json        for each patient a tag, HMAC-SHA256 of the id under that key, and what was spent on record before

Two spellings of an id are one patient where they differ only in case, in spaces around or between words, or in how Unicode writes the
same letters (NFKC). So a patient stays out when a later export spells the id otherwise.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, ValidationError

from client.data.records import Part
from client.site_folder import SiteFolder
from shared.errors import InputError, StorageError
from shared.private_file import write_private
from shared.schema import Sha256, Strict


class Spent(Strict):
    """What one run had used of a patient when the patient withdrew. Models keep what they have learnt."""

    run: str
    study_name: str
    study_digest: Sha256
    part: Part
    rounds: list[int] = Field(description="rounds of training that had begun with the patient among the data")
    evaluations: int = Field(description="evaluations that had begun with the patient among the data")


class Withdrawal(Strict):
    """One patient."""

    tag: Sha256
    withdrawn_at: str
    reason: str = ""
    purged: bool = Field(description="whether everything that named the patient was taken out of caches and runs")
    spent: list[Spent] = Field(default_factory=list)


class _File(Strict):
    format: Literal["consilium/withdrawn/1"] = "consilium/withdrawn/1"
    key_digest: Sha256 = Field(description="SHA-256 of withdrawal.key: with another key no tag would fit any patient")
    patients: list[Withdrawal]


@dataclass(frozen=True, slots=True)
class Tags:
    """Turns patients' ids into tags."""

    key: bytes

    @classmethod
    def of(cls, folder: SiteFolder) -> Tags:
        """With the folder's key, made at the first call. Raises InputError where it is not the key of the list, StorageError."""
        path = folder.path / "keys" / "withdrawal.key"
        file = _read(folder)
        try:
            if file is None and not path.exists():
                _create(folder)
            key = path.read_bytes()
        except OSError as problem:
            raise InputError(
                f"{path}: can't be read: {problem.strerror or problem}; without it nobody knows who has withdrawn, so no data is opened"
            ) from None
        if len(key) != 32 or (file is not None and hashlib.sha256(key).hexdigest() != file.key_digest):
            raise InputError(
                f"{path}: not the key under which withdrawn.json was written; put the right one back: until then nobody knows who "
                "has withdrawn, so no data is opened"
            )
        return cls(key)

    def tag(self, patient: str) -> str:
        """64 hex digits."""
        return hmac.new(self.key, normalised(patient).encode(), hashlib.sha256).hexdigest()

    def image(self, pixels: str) -> str:
        """Of the digest of an image's pixels (`client.data.pixel_digests`), 64 hex digits."""
        return hmac.new(self.key, f"image/{pixels}".encode(), hashlib.sha256).hexdigest()

    def place(self, seed: int | str, patient: str) -> float:
        """A number in [0, 1) that depends on this hospital's key, the study's `split_seed` and the id alone."""
        digest = hmac.new(self.key, f"place/{seed}/{normalised(patient)}".encode(), hashlib.sha256).digest()
        return (int.from_bytes(digest[:8], "big") >> 11) * 2.0**-53


def normalised(patient: str) -> str:
    """NFKC, case folded, no spaces around, one space between words."""
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", patient).casefold()).split())


def withdrawn(folder: SiteFolder) -> list[Withdrawal]:
    """All withdrawals, in order. Raises InputError where the file is damaged: it never counts as empty."""
    file = _read(folder)
    return list(file.patients) if file is not None else []


def withdrawn_tags(folder: SiteFolder) -> frozenset[str]:
    """Raises InputError."""
    return frozenset(one.tag for one in withdrawn(folder))


def write_withdrawn(folder: SiteFolder, tags: Tags, patients: Iterable[Withdrawal]) -> None:
    """Replace the list, atomically. Raises StorageError."""
    file = _File(key_digest=hashlib.sha256(tags.key).hexdigest(), patients=list(patients))
    write_private(folder.path / "withdrawn.json", file.model_dump_json(indent=2).encode() + b"\n")


def _create(folder: SiteFolder) -> None:
    """Whoever comes second finds the first one's key."""
    path = folder.path / "keys" / "withdrawal.key"
    hidden = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    write_private(hidden, secrets.token_bytes(32))
    try:
        with contextlib.suppress(FileExistsError):
            os.link(hidden, path)
    except OSError as problem:
        raise StorageError(f"{path}: can't be written: {problem.strerror or problem}") from None
    finally:
        with contextlib.suppress(OSError):
            hidden.unlink(missing_ok=True)


def _read(folder: SiteFolder) -> _File | None:
    path = folder.path / "withdrawn.json"
    try:
        return _File.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as problem:
        first = str(problem).splitlines()[0]
        raise InputError(
            f"{path}: damaged ({first}); until it is put right nobody knows who has withdrawn, so no data is opened"
        ) from None
