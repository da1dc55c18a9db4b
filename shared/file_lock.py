"""Whether a process holds a lock on a file; the kernel lets go of it when that process ends, however it ends."""

from __future__ import annotations

import fcntl
from pathlib import Path


def is_locked(path: Path) -> bool:
    """Whether a living process has locked this file for itself alone."""
    try:
        stream = path.open("rb")
    except OSError:
        return False
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        return False
