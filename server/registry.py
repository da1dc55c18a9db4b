"""The hospitals that a coordinator has admitted, one file each: sites/SITE.json. Nothing in it is secret.

Whoever is revoked stays on file: an answer is judged by the state of the registry at the moment it arrives.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field, ValidationError

from server.run_folder import write_atomic
from shared.errors import InputError, StorageError
from shared.release import Release
from shared.schema import Name, Strict
from shared.signing import KeyText, PublicKey


class FormerKeys(Strict):
    """Keys and certificates that a hospital had once. They are never accepted again."""

    node_key: str
    signing_key: KeyText
    certificates: list[str]
    ended: str


class SiteRecord(Strict):
    """One admitted hospital."""

    site: Name
    title: str
    node_key: str = Field(description="OpenSSH form; Flower knows the node by it")
    signing_key: KeyText
    release: Release
    admitted: str
    node_id: str | None = Field(default=None, description="Flower's, once the SuperLink has registered the node")
    certificates: list[str] = Field(default_factory=list, description="serial numbers of its client certificates")
    revoked: str | None = None
    former: list[FormerKeys] = Field(default_factory=list)


class Registry:
    """The folder of records."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def all(self) -> dict[str, SiteRecord]:
        """Every record by site, in name order. Raises InputError where a file is damaged."""
        return {path.stem: self._read(path) for path in sorted(self.path.glob("*.json"))}

    def active(self) -> dict[str, SiteRecord]:
        """Those that are not revoked."""
        return {site: record for site, record in self.all().items() if record.revoked is None}

    def get(self, site: str) -> SiteRecord | None:
        path = self.path / f"{site}.json"
        return self._read(path) if path.exists() else None

    def put(self, record: SiteRecord) -> None:
        """Write it in the place of what was known of this site. Raises StorageError."""
        write_atomic(self.path / f"{record.site}.json", record.model_dump_json(indent=2).encode() + b"\n")

    def keys(self) -> dict[str, PublicKey]:
        """The signing key of every active site."""
        return {site: PublicKey.read(record.signing_key) for site, record in self.active().items()}

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the registry, so that two commands don't write over each other. Raises StorageError."""
        path = self.path / ".lock"
        try:
            stream = path.open("w", encoding="utf-8")
        except OSError as problem:
            raise StorageError(f"{path}: can't be written: {problem.strerror or problem}") from None
        with stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def _read(self, path: Path) -> SiteRecord:
        try:
            return SiteRecord.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValidationError, UnicodeDecodeError) as problem:
            raise InputError(f"{path}: not a hospital's record: {problem}") from None
