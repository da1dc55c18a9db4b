"""Whether the coordinator is up, and how its own commands reach it: `up` holds a lock for as long as it lives and tells its port."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import IO

from pydantic import ValidationError

from server.home import Home
from server.run_folder import write_atomic
from server.run_lock import lock_within
from server.superlink import Control, Endpoint
from shared.errors import InputError, NotUpError, ProcessError, StorageError
from shared.file_lock import is_locked
from shared.schema import Strict

#: Held by `up`.
LOCK = ".up.lock"
RECORD = "superlink.json"


class UpRecord(Strict):
    """superlink.json, while the coordinator is up and answers."""

    pid: int
    port: int
    started: str


@contextlib.contextmanager
def only_one_up(home: Home) -> Iterator[None]:
    """Be the one `up` of this folder. Raises InputError where there is another."""
    stream = _open(home)
    with stream:
        if not lock_within(stream, 1.0):
            other = up_record(home)
            raise InputError(
                f"{home.path}: the coordinator is up already" + (f" (process {other.pid})" if other is not None else "")
            )
        (home.path / RECORD).unlink(missing_ok=True)  # of one that was killed
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                (home.path / RECORD).unlink(missing_ok=True)


def tell_up(home: Home, record: UpRecord) -> None:
    """Other commands find the SuperLink from now on."""
    write_atomic(home.path / RECORD, record.model_dump_json().encode() + b"\n")


def up_record(home: Home) -> UpRecord | None:
    """What the running `up` has told; None where none runs, or it does not answer yet."""
    if not is_locked(home.path / LOCK):
        return None
    try:
        return UpRecord.model_validate_json((home.path / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None


@contextlib.contextmanager
def control_if_up(home: Home) -> Iterator[Control | None]:
    """The SuperLink's control API, or None where the coordinator is not up. Raises ProcessError where a call fails."""
    record = up_record(home)
    if record is None:
        yield None
        return
    from httpx import HTTPError

    control = Control(Endpoint(f"127.0.0.1:{record.port}", home.certificates))
    try:
        yield control
    except HTTPError as problem:
        raise ProcessError(f"the SuperLink did not do what was asked ({problem}); see {home.path}/logs") from None
    finally:
        control.close()


@contextlib.contextmanager
def control_of(home: Home) -> Iterator[Control]:
    """The SuperLink's control API. Raises NotUpError, ProcessError."""
    with control_if_up(home) as control:
        if control is None:
            raise NotUpError(
                f"{home.path}: the coordinator is not up; start it with `consilium-server up {home.path}` or its system service"
            )
        yield control


def _open(home: Home) -> IO[str]:
    path = home.path / LOCK
    try:
        return path.open("w", encoding="utf-8")
    except OSError as problem:
        raise StorageError(f"{path}: can't be written: {problem.strerror or problem}") from None
