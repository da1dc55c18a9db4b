"""Logs of both houses: JSON lines in a file for machines, one line each on the terminal for people; with run, round and site where known.

Several processes of a house write into one file (the node, its executor, the executor's forks): each line is appended under a lock of
the file system, and whoever finds the file full renames it, so that no line is lost, torn or written twice. The files of a house never
take more than `MAXIMUM_BYTES` times `KEPT_FILES`. A hospital's log may name its own files and patients: it stays there.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

House = Literal["site", "coordinator"]

#: A file that is larger is set aside, and this many are kept with the one that is written to.
MAXIMUM_BYTES, KEPT_FILES = 8 << 20, 6

_CONTEXT: ContextVar[dict[str, Any] | None] = ContextVar("consilium_log_context", default=None)


@contextmanager
def log_context(*, run: str | None = None, round: int | None = None, site: str | None = None) -> Iterator[None]:
    """Lines of this thread bear these names until the block ends; what is not given stays as it was."""
    given = {name: value for name, value in (("run", run), ("round", round), ("site", site)) if value is not None}
    token = _CONTEXT.set({**(_CONTEXT.get() or {}), **given})
    try:
        yield
    finally:
        _CONTEXT.reset(token)


def set_up_logs(folder: Path, *, house: House, site: str | None) -> Path:
    """Send all of this process's log lines to `folder/HOUSE.jsonl` and to stderr; returns the file.

    Flower's own lines go the same way. Whatever handlers were set up before are replaced, so it may be called again.
    """
    import flwr.supercore.logger  # noqa: F401  (it sets up its own handler and level when it is imported)

    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / f"{house}.jsonl"
    machines = SharedFileHandler(path)
    machines.setFormatter(JsonLine(site))
    people = logging.StreamHandler(sys.stderr)
    people.setFormatter(HumanLine(site))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    for handler in (machines, people):
        handler.addFilter(_says_something)
        root.addHandler(handler)
    root.setLevel(logging.INFO)
    flower = logging.getLogger("flwr")
    flower.handlers.clear()
    flower.propagate = True
    flower.setLevel(logging.INFO)
    for name in ("httpx", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return path


def _says_something(record: logging.LogRecord) -> bool:
    return bool(record.getMessage().strip())  # Flower logs empty lines, for the eye


class _WithContext(logging.Formatter):
    def __init__(self, site: str | None) -> None:
        super().__init__()
        self._site = site

    def context(self) -> dict[str, Any]:
        """Run, round and site, as far as known."""
        return {**({"site": self._site} if self._site else {}), **(_CONTEXT.get() or {})}


class JsonLine(_WithContext):
    """One JSON object: time (UTC, ISO 8601), level, logger, message, process, and run, round, site, exception where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "process": record.process,
            **self.context(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class HumanLine(_WithContext):
    """Local time, level, where, what; a traceback follows on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        known = self.context()
        number = known.get("round")
        place = " ".join(
            str(part)
            for part in (known.get("site"), known.get("run"), None if number is None else f"round {number}")
            if part
        )
        text = f"{self.formatTime(record)} {record.levelname} {record.name}{f' [{place}]' if place else ''}: {record.getMessage()}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class SharedFile:
    """A file that several processes append to, and that is set aside when it is full (NAME.1 is the youngest of the old ones)."""

    def __init__(self, path: Path, *, maximum_bytes: int = MAXIMUM_BYTES, kept: int = KEPT_FILES) -> None:
        self._path, self._maximum, self._kept = path, maximum_bytes, kept
        self._lock = path.with_name(f".{path.name}.lock")

    def append(self, content: bytes) -> None:
        """Raises OSError where the disk is full.

        Both files are opened each time: the log may have been renamed by another process, and nothing has to be closed.
        """
        lock = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                full = self._path.stat().st_size + len(content) > self._maximum
            except FileNotFoundError:
                full = False
            if full:
                self._set_aside()
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                _write_all(descriptor, content)
            finally:
                os.close(descriptor)
        finally:
            os.close(lock)

    def _set_aside(self) -> None:
        names = [self._path, *(self._path.with_name(f"{self._path.name}.{n}") for n in range(1, self._kept))]
        for older, newer in zip(reversed(names), reversed(names[:-1]), strict=False):
            if newer.exists():
                newer.replace(older)


def _write_all(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]


class SharedFileHandler(logging.Handler):
    """Log lines into a `SharedFile`. A full disk is told once on stderr and ends nothing."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._file = SharedFile(path)
        self._told = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._file.append((self.format(record) + "\n").encode(errors="replace"))
            self._told = False
        except OSError as problem:
            if not self._told:
                self._told = True
                print(f"{self._path}: log lines are lost: {problem.strerror or problem}", file=sys.stderr)
        except Exception:
            self.handleError(record)


class RotatingPipe:
    """Where a child process writes its output, so that its file too is set aside when it is full.

    Give it to `subprocess.Popen(stdout=pipe, stderr=subprocess.STDOUT)`; `close` when the child has ended waits for its last words.
    A thread of this process copies: the child never waits for a full disk.
    """

    def __init__(self, path: Path, *, maximum_bytes: int = MAXIMUM_BYTES, kept: int = KEPT_FILES) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = SharedFile(path, maximum_bytes=maximum_bytes, kept=kept)
        self._reading, self._writing = os.pipe()
        self._thread = threading.Thread(target=self._copy, daemon=True, name=f"log of {path.stem}")
        self._thread.start()

    def fileno(self) -> int:
        """The end that the child writes to."""
        return self._writing

    def close(self, wait_s: float = 5.0) -> None:
        """Give up this process's own end; a grandchild that lives on is not waited for longer than `wait_s`."""
        os.close(self._writing)
        self._thread.join(wait_s)

    def _copy(self) -> None:
        with os.fdopen(self._reading, "rb", buffering=0) as stream:
            rest = b""
            while chunk := stream.read(1 << 16):
                whole, newline, rest = (rest + chunk).rpartition(b"\n")
                if len(rest) > 1 << 16:  # no line: it must not fill the memory
                    whole, newline, rest = whole + newline + rest, b"", b""
                self._keep(whole + newline)
            self._keep(rest)

    def _keep(self, content: bytes) -> None:
        if content:
            with suppress(OSError):  # what can't be kept is lost; the child goes on
                self._file.append(content)
