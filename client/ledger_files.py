"""The files of a hospital's ledger: read, appended to, and locked. What they must say to each other is for `client.ledger`."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from client.data.cache_files import sync_folder
from client.site_folder import SiteFolder
from shared.errors import LedgerError, SignatureError, StorageError
from shared.ledger.chain import Head, read_head, seal_head
from shared.private_file import write_private
from shared.signing import SigningKey

FILE, HEAD, LOCK = "ledger.jsonl", "ledger.head", "ledger.lock"


def read_file(folder: SiteFolder) -> bytes:
    """Empty where there is none. Raises LedgerError."""
    path = folder.path / FILE
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as problem:
        raise LedgerError(f"{path}: can't be read: {problem.strerror or problem}") from None


def kept_head(folder: SiteFolder, *keys: SigningKey) -> Head | None:
    """Signed by one of the keys; None where there is none. Raises LedgerError where it can't be used."""
    path = folder.path / HEAD
    try:
        text = path.read_text(encoding="utf-8")
        for key in keys[:-1]:
            with contextlib.suppress(SignatureError):
                return read_head(text, key.public)
        return read_head(text, keys[-1].public)
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, SignatureError, LedgerError) as problem:
        raise LedgerError(
            f"{path}: can't be used ({problem}); put the newest copy back, or remove it where the ledger surely is complete and run "
            "consilium-site ledger with --accept-as-newest"
        ) from None


def write_head(folder: SiteFolder, key: SigningKey, seq: int, digest: str, whole: bytes) -> None:
    """That the ledger ends with entry `seq`, and is these bytes. Raises StorageError."""
    head = Head(seq=seq, digest=digest, size=len(whole), sha256=hashlib.sha256(whole).hexdigest())
    write_private(folder.path / HEAD, seal_head(head, key).encode() + b"\n")


def append(path: Path, size: int, block: bytes) -> None:
    """After `size` bytes, on disk; what stood there (a line that was cut off) is gone. Raises StorageError with the file as before."""
    new = not path.exists()
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.ftruncate(handle, size)
            _write_all(handle, size, block)
            os.fsync(handle)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(handle, size)
            raise
        finally:
            os.close(handle)
        if new:
            sync_folder(path.parent)
    except OSError as problem:
        raise StorageError(
            f"{path}: can't be written: {problem.strerror or problem}; nothing leaves that is not on record"
        ) from None


def _write_all(handle: int, place: int, block: bytes) -> None:
    written = 0
    while written < len(block):
        written += os.pwrite(handle, block[written:], place + written)


@contextlib.contextmanager
def locked(folder: SiteFolder) -> Iterator[None]:
    """One process at a time; the kernel lets go when the holder dies. Raises StorageError."""
    path = folder.path / LOCK
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as problem:
        raise StorageError(f"{path}: can't be opened: {problem.strerror or problem}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
