"""What images show, as SHA-256 of their decoded pixels: the same under another name, in another folder, with another header or id.

pixels.json in the cache folder   the file's SHA-256 -> the digest of its pixels, so that no image is decoded for it a second time

Other things that are told from pixels alone (`Kind`) are remembered in the same way, each in a file of its own. A copy with one other
pixel is another image. Nothing here depends on a study's preprocessing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.data.cache_files import written_whole
from client.data.source_digests import source_digests
from shared.errors import UnreadableImageError
from shared.imaging.files import read_image
from shared.imaging.pixels import Pixels

#: Of an image of one single value: it tells no patient from another.
NOBODY = ""


def pixel_digest(pixels: Pixels) -> str:
    """64 hex digits over height, width, channels and values; NOBODY where all values are one.

    The same values give the same digest whatever number type they were stored in, and grey stored as RGB is grey.
    """
    array: NDArray[Any] = pixels.array
    least, most = int(array.min()), int(array.max())
    if least == most:
        return NOBODY
    if array.ndim == 3 and (array[..., :1] == array[..., 1:]).all():
        array = array[..., 0]
    width = np.dtype(np.uint8) if most < 1 << 8 else np.dtype("<u2") if most < 1 << 16 else np.dtype("<u4")
    values = np.ascontiguousarray(array, dtype=width)
    found = hashlib.sha256(f"consilium pixels 1 {values.shape}".encode())
    found.update(values.data.cast("B"))
    return found.hexdigest()


@dataclass(frozen=True, slots=True)
class Kind:
    """Something that is told from decoded pixels: `of` says what, and the file `name` of the cache folder remembers it."""

    name: str
    format: str
    of: Callable[[Pixels], str]


PIXELS = Kind("pixels.json", "consilium/pixel-digests/1", pixel_digest)


class PixelDigests:
    """What is known of the files whose SHA-256 is given; the cache's lock is held. What is told beside the digests, `kinds` say."""

    def __init__(self, folder: Path, kinds: Sequence[Kind] = (PIXELS,)) -> None:
        self._folder = folder
        self._known = {kind: _remembered(folder / kind.name, kind.format) for kind in kinds}
        self._changed: set[Kind] = set()

    def of(self, file: str | None, kind: Kind = PIXELS) -> str | None:
        """None where it is not known."""
        return self._known[kind].get(file) if file is not None else None

    def noting(self, file: str | None) -> Callable[[Pixels], None] | None:
        """What to call with the pixels when `file` is decoded; None where nothing is to be learned."""
        if file is None:
            return None
        missing = [kind for kind, known in self._known.items() if file not in known]
        if not missing:
            return None

        def note(pixels: Pixels) -> None:
            for kind in missing:
                self._known[kind][file] = kind.of(pixels)
                self._changed.add(kind)

        return note

    def complete(self, files: Iterable[tuple[str, Path]], workers: int) -> None:
        """Decode those that are not known. What can't be read stays unknown."""

        def decode(file: str, path: Path) -> None:
            if (note := self.noting(file)) is not None:
                try:
                    note(read_image(path))
                except UnreadableImageError:
                    return

        missing = {file: path for file, path in files if self.noting(file) is not None}
        with ThreadPoolExecutor(max(workers, 1)) as pool:
            list(pool.map(decode, missing.keys(), missing.values()))

    def write(self) -> None:
        """Raises OSError."""
        for kind in self._changed:
            _write(self._folder / kind.name, kind.format, self._known[kind])
        self._changed.clear()


def forget_pixels(folder: Path, files: Collection[Path] | None, kinds: Sequence[Kind]) -> None:
    """Know nothing of these files' pixels any more, or of none at all; `kinds` are all that may be remembered. Raises OSError."""
    whose = set(source_digests(folder, files).values()) if files is not None else set()
    for kind in kinds:
        path = folder / kind.name
        if files is None:
            path.unlink(missing_ok=True)
            continue
        known = _remembered(path, kind.format)
        if known.keys() & whose:
            _write(path, kind.format, {file: digest for file, digest in known.items() if file not in whose})


def _write(path: Path, written_as: str, known: dict[str, str]) -> None:
    with written_whole(path) as stream:
        stream.write(json.dumps({"format": written_as, "files": known}).encode())


def _remembered(path: Path, written_as: str) -> dict[str, str]:
    try:
        stored = json.loads(path.read_bytes())
        if stored["format"] != written_as:
            return {}
        return {str(file): str(digest) for file, digest in stored["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
