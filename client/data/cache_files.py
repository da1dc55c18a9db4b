"""Files of the image cache: private, written whole or not at all, with a sentence when the disk is full."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from shared.errors import StorageError


def make_private_folder(folder: Path) -> None:
    """Create `folder` for this user alone (mode 0700); one that exists is left as it is. Raises StorageError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as problem:
        raise storage_error(folder, problem) from None


def open_private(path: Path, mode: str) -> IO[bytes]:
    """`path` opened for writing (`wb`, `ab`), created with mode 0600."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags, 0o600)

    return open(path, mode, opener=opener)  # Path.open takes no opener


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """A stream whose bytes appear under `path` all at once when the block ends, and not at all when it raises.

    The data is on disk before the name is. Raises OSError.
    """
    temporary = path.with_name(path.name + ".tmp")
    stream = open_private(temporary, "wb")
    try:
        with stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            stream.close()
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Names created in `folder` survive a power cut after this."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process (and thread) at a time for the block; others wait. The kernel lets go when the holder dies."""
    try:
        stream = open_private(folder / "lock", "ab")
    except OSError as problem:
        raise storage_error(folder, problem) from None
    with stream:
        fcntl.flock(stream.fileno(), fcntl.LOCK_EX)
        yield


def storage_error(folder: Path, problem: OSError, needed: int | None = None) -> StorageError:
    """The sentence of a cache that can't be written. `needed` is in bytes."""
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free
        size = f"{needed / 1e6:.0f} MB are needed and " if needed is not None else ""
        reason = (problem.strerror or str(problem)).lower()
        return StorageError(
            f"{folder}: the image cache could not be written ({reason}); {size}{free / 1e6:.0f} MB are free there. "
            "Free some space, check the permissions, or name another folder as `cache` in the site's profile"
        )
    return StorageError(f"{folder}: the image cache could not be written ({problem})")
