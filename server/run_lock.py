"""Whether a run is being led: its ServerApp holds a lock for as long as it lives, and the kernel lets it go however it ends.

Flower notices only after about a minute that a ServerApp was killed.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import IO

from server.run_folder import RunFolder
from shared.errors import RunFolderError, StorageError
from shared.file_lock import is_locked

#: Beside the run's files; holds the leader's process id.
LED = ".led"
#: Whoever only looks holds the lock for a moment; a leader tries this long before it believes in another leader.
PATIENCE_S = 1.0

_held: dict[Path, IO[str]] = {}


def hold_run_lock(folder: RunFolder) -> None:
    """Lead this run until the process ends. Raises RunFolderError where another process leads it, StorageError."""
    path = (folder.path / LED).resolve()
    if path in _held:
        return
    try:
        stream = path.open("a+", encoding="utf-8")
    except OSError as problem:
        raise StorageError(f"{path}: can't be written: {problem.strerror or problem}") from None
    if not lock_within(stream, PATIENCE_S):
        stream.close()
        raise RunFolderError(f"{folder.path}: another process leads this run")
    _held[path] = stream
    stream.truncate(0)
    stream.write(f"{os.getpid()}\n")
    stream.flush()


def is_led(folder: RunFolder) -> bool:
    """Whether a living process leads this run."""
    return is_locked(folder.path / LED)


def leader(folder: RunFolder) -> int | None:
    """Process id of whoever leads this run."""
    path = folder.path / LED
    try:
        told = path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(told) if told.isdecimal() and is_locked(path) else None


def lock_within(stream: IO[str], seconds: float) -> bool:
    """Lock the open file for this process alone, and wait so long for it at most."""
    limit = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            if time.monotonic() >= limit:
                return False
            time.sleep(0.02)
