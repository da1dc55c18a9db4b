"""Files that only the own account may read: keys, and what a hospital keeps to itself."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from shared.errors import StorageError


def write_private(path: Path, content: bytes) -> None:
    """Write atomically with mode 0600, replacing what is there. Raises StorageError, and leaves nothing half-written."""
    hidden = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        hidden.unlink(missing_ok=True)
        with os.fdopen(os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        hidden.replace(path)
    except OSError as problem:
        with contextlib.suppress(OSError):
            hidden.unlink(missing_ok=True)
        raise StorageError(f"{path}: can't be written: {problem.strerror or problem}") from None
