"""Showing log files: their last lines, and what is added; a file that is set aside while it grows is followed to its successor."""

from __future__ import annotations

import contextlib
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.console import Console

from server.home import Home
from server.live import plain_line
from server.run_folder import RunFolder
from server.run_progress import EventTail, RunProgress, SiteState
from server.running import existing_run
from shared.errors import InputError

#: Seconds between two looks.
PAUSE_S = 0.5

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def log_files(home: Home, run: str | None) -> list[Path]:
    """The coordinator's log, or a run's events and whatever its processes wrote. Raises InputError, RunFolderError."""
    if run is not None:
        folder = existing_run(home, run)
        return [folder.path / "events.jsonl", *sorted((folder.path / "logs").glob("*.log"))]
    home.record()
    path = home.path / "logs" / "superlink.log"
    if not path.exists():
        raise InputError(f"{path}: no log yet; it begins with `consilium-server up {home.path}`")
    return [path]


def show_logs(paths: list[Path], console: Console, *, lines: int, follow: bool) -> None:
    """The last `lines` of each file, and with `follow` what comes after, until Ctrl-C."""
    tails = [_tail(path) for path in paths]
    for tail in tails:
        _print(console, deque(tail.fresh(), maxlen=lines))
    with contextlib.suppress(KeyboardInterrupt):
        while follow:
            time.sleep(PAUSE_S)
            for tail in tails:
                _print(console, tail.fresh())


def _print(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def _tail(path: Path) -> _Text | _Events:
    return _Events(RunFolder(path.parent)) if path.name == "events.jsonl" else _Text(path)


class _Text:
    """Whole lines that were added to a text file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._inode: int | None = None

    def fresh(self) -> Iterator[str]:
        try:
            with self._path.open("rb") as stream:
                inode = self._path.stat().st_ino
                if inode != self._inode:
                    self._inode, self._offset = inode, 0
                stream.seek(self._offset)
                whole, newline, _ = stream.read().rpartition(b"\n")
        except OSError:
            return
        self._offset += len(whole) + len(newline)
        for line in whole.decode(errors="replace").splitlines():
            plain = _COLOUR.sub("", line)
            yield "".join(letter if letter.isprintable() or letter == "\t" else " " for letter in plain)


class _Events:
    """Events of a run as the live view writes them where there is no terminal."""

    def __init__(self, folder: RunFolder) -> None:
        self._tail = EventTail(folder.path / "events.jsonl")
        sites = {site: SiteState() for site in folder.expected_sites()}
        self._progress = RunProgress(folder.study().federation.rounds, sites)

    def fresh(self) -> Iterator[str]:
        for event in self._tail.fresh():
            self._progress.take(event)
            yield plain_line(event, self._progress)
