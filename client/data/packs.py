"""Packs: the prepared images of one list of records, row after row in one .npy file that is memory-mapped.

A folder of packs belongs to one recipe. `<list>.npy` holds the pixels (N, C, H, W); `<list>.json`, written after it,
says for each row which record and which content it is, so that other lists can take over rows without decoding
and the rows of a withdrawn patient can be found. `parts.rows` and `parts.journal` hold what a run prepared
before it was stopped: a row counts when its line in the journal is whole and its checksum is right.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from client.data.cache_files import open_private, written_whole

_FORMAT = "consilium/image-pack/1"
_ROWS, _JOURNAL = "parts.rows", "parts.journal"
_WITHDRAWN = "the patient has withdrawn"
Rows = NDArray[Any]


@dataclass(frozen=True, slots=True)
class PackRow:
    """One row of a pack. `content` is None and `problem` says why where the image could not be read (pixels all 0).

    `channels` and `dtype` are those of the image itself; a pack of mixed images holds them in the wider form.
    """

    record: str
    content: str | None
    channels: int = 1
    dtype: str = "uint8"
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Pack:
    images: Rows
    rows: tuple[PackRow, ...]


def open_pack(folder: Path, name: str) -> Pack | None:
    """The pack, its pixels mapped into memory read-only; None where there is none that is whole."""
    try:
        index = json.loads((folder / f"{name}.json").read_bytes())
        if index["format"] != _FORMAT:
            return None
        rows = tuple(PackRow(**row) for row in index["rows"])
        images = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Pack(images, rows) if images.ndim == 4 and len(images) == len(rows) else None


def write_pack(folder: Path, name: str, rows: Sequence[PackRow], size: int, parts: Iterator[Rows | None]) -> None:
    """Write the pack of `rows`, whose pixels (C, size, size) come from `parts` in the same order, None where unreadable.

    One row at a time is in memory. Raises OSError with nothing left behind.
    """
    channels = max((row.channels for row in rows), default=1)
    deep = any(row.dtype == "float16" for row in rows)
    dtype = np.dtype(np.float16 if deep else np.uint8)
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": (len(rows), channels, size, size),
    }
    blank = np.zeros((channels, size, size), dtype=dtype)
    with written_whole(folder / f"{name}.npy") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for part in parts:
            stream.write((blank if part is None else widened(part, channels, dtype)).tobytes())
    with written_whole(folder / f"{name}.json") as stream:
        stream.write(json.dumps({"format": _FORMAT, "rows": [asdict(row) for row in rows]}).encode())


def widened(part: Rows, channels: int, dtype: np.dtype[Any]) -> Rows:
    """`part` (C, H, W) with at least as many channels and as wide a type: grey repeated, 0..255 divided by 255."""
    if part.dtype != dtype:
        part = (part.astype(np.float32) / np.float32(255)).astype(dtype)
    return np.repeat(part, channels, axis=0) if len(part) < channels else part


def narrowed(part: Rows, row: PackRow) -> Rows:
    """The image as it was before `widened`, to the bit: float16 keeps 256 levels apart."""
    part = part[: row.channels]
    if part.dtype != np.dtype(row.dtype):
        part = np.rint(part.astype(np.float32) * np.float32(255)).astype(row.dtype)
    return part


def blank_rows(folder: Path, name: str, records: Collection[str]) -> bool:
    """Zero the pixels of these records and forget which they were; all other rows stay where they are. False where none is in the pack.

    Killed in the middle, it is done again by the next call: the index names the records until their pixels are gone, but gives the pixels
    to nobody from the beginning. Raises OSError.
    """
    pack = open_pack(folder, name)
    if pack is None or not any(row.record in records for row in pack.rows):
        return False
    gone = [row.record in records for row in pack.rows]

    def index(record_of_gone: str | None) -> bytes:
        rows = [
            PackRow(row.record if record_of_gone is None else record_of_gone, None, problem=_WITHDRAWN)
            if blank
            else row
            for row, blank in zip(pack.rows, gone, strict=True)
        ]
        return json.dumps({"format": _FORMAT, "rows": [asdict(row) for row in rows]}).encode()

    with written_whole(folder / f"{name}.json") as stream:
        stream.write(index(None))
    header = {
        "descr": np.lib.format.dtype_to_descr(pack.images.dtype),
        "fortran_order": False,
        "shape": pack.images.shape,
    }
    with written_whole(folder / f"{name}.npy") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for image, blank in zip(pack.images, gone, strict=True):
            stream.write((np.zeros_like(image) if blank else np.ascontiguousarray(image)).tobytes())
    with written_whole(folder / f"{name}.json") as stream:
        stream.write(index(""))
    return True


def remove_pack(folder: Path, name: str) -> None:
    """The index goes first, so that no index ever names pixels that are gone."""
    (folder / f"{name}.json").unlink(missing_ok=True)
    (folder / f"{name}.npy").unlink(missing_ok=True)


def discard_parts(folder: Path) -> None:
    """Forget what a stopped run had prepared and not packed: it is decoded again when it is wanted. Raises OSError."""
    for leftover in (folder / _JOURNAL, folder / _ROWS, *folder.glob("*.tmp")):
        leftover.unlink(missing_ok=True)


class Parts:
    """Rows that were prepared but not packed yet; they survive a kill."""

    def __init__(self, folder: Path, size: int) -> None:
        self._rows_path, self._journal_path = folder / _ROWS, folder / _JOURNAL
        self._size = size
        self._places: dict[str, tuple[int, int, str]] = {}
        self._rows: IO[bytes] | None = None
        self._journal: IO[bytes] | None = None
        self._read_journal()

    def __contains__(self, content: str) -> bool:
        return content in self._places

    def shape_of(self, content: str) -> tuple[int, str]:
        """(channels, dtype)"""
        _, channels, dtype = self._places[content]
        return channels, dtype

    def add(self, content: str, part: Rows) -> None:
        """Append (C, size, size). Raises OSError."""
        if self._rows is None or self._journal is None:
            self._rows, self._journal = open_private(self._rows_path, "ab"), open_private(self._journal_path, "ab")
            self._journal.write(b"\n")  # closes a line that a kill cut off
        offset = self._rows.seek(0, 2)
        pixels = np.ascontiguousarray(part).tobytes()
        self._rows.write(pixels)
        self._rows.flush()
        line = [content, offset, len(part), part.dtype.name, zlib.crc32(pixels)]
        self._journal.write(json.dumps(line).encode() + b"\n")
        self._journal.flush()
        self._places[content] = (offset, len(part), part.dtype.name)

    def get(self, content: str) -> Rows:
        offset, channels, dtype = self._places[content]
        shape = (channels, self._size, self._size)
        return np.fromfile(self._rows_path, dtype=dtype, count=int(np.prod(shape)), offset=offset).reshape(shape)

    def discard(self) -> None:
        """Forget all of them, on disk too."""
        for stream in (self._rows, self._journal):
            if stream is not None:
                with contextlib.suppress(OSError):  # what could not be written is thrown away here
                    stream.close()
        self._rows = self._journal = None
        self._journal_path.unlink(missing_ok=True)
        self._rows_path.unlink(missing_ok=True)
        self._places.clear()

    def close(self) -> None:
        for stream in (self._rows, self._journal):
            if stream is not None:
                stream.close()
        self._rows = self._journal = None

    def _read_journal(self) -> None:
        try:
            lines = self._journal_path.read_bytes().splitlines()
            with self._rows_path.open("rb") as rows:
                for line in lines:
                    try:
                        content, offset, channels, dtype, checksum = json.loads(line)
                        count = channels * self._size**2 * np.dtype(dtype).itemsize
                        rows.seek(offset)
                    except (ValueError, TypeError):
                        continue
                    if zlib.crc32(rows.read(count)) == checksum:
                        self._places[content] = (offset, channels, dtype)
        except OSError:
            self._places.clear()
