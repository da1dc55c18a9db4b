"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from shared.errors import StorageError


def write_atomic(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Write `data` so that `path` holds either its old content or all of the new. Raises StorageError.

    `mode` is less what the umask takes away. A link stays one; what is no file, such as /dev/stdout, is written to as it is.
    """
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return
        target = Path(os.path.realpath(path))
        hidden = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        try:
            with os.fdopen(os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            hidden.replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                hidden.unlink()
            raise
    except OSError as problem:
        raise StorageError(f"{path}: can't be written: {problem.strerror or problem}") from None
