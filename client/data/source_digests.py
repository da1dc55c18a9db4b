"""SHA-256 of source files, remembered, so that a second run reads no source file at all."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from client.data.cache_files import written_whole
from shared.canonical import digest, file_digest
from shared.errors import UnreadableImageError
from shared.imaging.arrays import read_row
from shared.imaging.inside import inside, source_file
from shared.imaging.pixels import pixel_digest

_NAME = "sources.json"
_FORMAT = "consilium/source-digests/1"
#: A file changed within the resolution of the clock of its disk could keep its times: a digest this fresh is not kept.
_SETTLED_S = 2.0

Stamp = tuple[int, int, int, int]


def source_digests(folder: Path, files: Iterable[Path], workers: int = 1) -> dict[Path, str | None]:
    """Lower-case hex SHA-256 of each file, None where it can't be read. Remembers them in `folder`; raises OSError.

    A remembered digest stands while size, modification and change time (ns) and inode of the file are the same. An image inside a file
    (`shared.imaging.inside`) has a digest of its own: of its pixels in an archive, else of the file's digest and the frame.
    """
    memory = _remembered(folder)
    wanted = list(dict.fromkeys(files))
    stamps = {path: _stamp(path) for path in wanted}
    result: dict[Path, str | None] = {}
    unknown: list[Path] = []
    for path in wanted:
        known = memory.get(str(path))
        if stamps[path] is not None and known is not None and known[0] == stamps[path]:
            result[path] = known[1]
        else:
            unknown.append(path)
    with ThreadPoolExecutor(workers) as pool:
        result.update(zip(unknown, pool.map(_digest, unknown), strict=True))
    if unknown:
        now = time.time_ns()
        for path in unknown:
            memory.pop(str(path), None)
            stamp, value = stamps[path], result[path]
            # The stamp is from before the reading: had the file changed meanwhile, the next run would see another one.
            if stamp is not None and value is not None and now - max(stamp[1], stamp[2]) > _SETTLED_S * 1e9:
                memory[str(path)] = (stamp, value)
        with written_whole(folder / _NAME) as stream:
            stream.write(json.dumps({"format": _FORMAT, "files": memory}).encode())
    return result


def forget_sources(folder: Path, files: Collection[Path] | None) -> None:
    """Remember these files no longer, or none at all. Raises OSError."""
    if files is None:
        (folder / _NAME).unlink(missing_ok=True)
        return
    gone = {str(path) for path in files}
    memory = _remembered(folder)
    if gone & memory.keys():
        kept = {path: value for path, value in memory.items() if path not in gone}
        with written_whole(folder / _NAME) as stream:
            stream.write(json.dumps({"format": _FORMAT, "files": kept}).encode())


def _remembered(folder: Path) -> dict[str, tuple[Stamp, str]]:
    try:
        stored = json.loads((folder / _NAME).read_bytes())
        if stored["format"] != _FORMAT:
            return {}
        return {path: (tuple(stamp), value) for path, (stamp, value) in stored["files"].items()}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _stamp(path: Path) -> Stamp | None:
    try:
        status = os.stat(source_file(path))  # noqa: PTH116  # called for every file of the holding
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _digest(path: Path) -> str | None:
    place = inside(path)
    try:
        if place is None:
            return file_digest(path)
        if place.part == "frame":
            return digest([file_digest(place.file), place.index])
        return pixel_digest(read_row(place).array)
    except (OSError, UnreadableImageError):
        return None
