"""Writes a study file that is whole and valid, or none."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from server.run_folder import write_atomic
from shared.errors import StorageError, StudyError
from shared.study import Study, load_study


def write_study(path: Path, data: dict[str, Any], *, check: Callable[[Study], object] | None = None) -> Study:
    """Write `data` to `path` and read it; its folder is made. Nothing is written, and a file that is there stays, where it is no study or
    `check` raises.

    Raises StudyError, StorageError, and what `check` raises.
    """
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=110).encode()
    tried = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.yaml")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise StorageError(f"{path.parent}: can't be made: {problem.strerror or problem}") from None
    try:
        write_atomic(tried, text)
        study = load_study(tried)
        if check is not None:
            check(study)
        write_atomic(path, text, mode=0o644)
    except (StudyError, StorageError) as problem:
        raise type(problem)(str(problem).replace(str(tried), str(path))) from None
    finally:
        tried.unlink(missing_ok=True)
    return study
