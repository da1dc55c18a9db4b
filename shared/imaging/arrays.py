"""Images in NumPy archives (`.npz`): arrays of unsigned 8- or 16-bit pixels, (N, H, W) grey or (N, H, W, 3) colour."""

from __future__ import annotations

import functools
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.imaging.inside import Inside
from shared.imaging.pixels import MAXIMUM_PIXELS, Pixels, checked, unreadable

#: Bytes of one array that is unpacked whole, since a compressed one can't be read in pieces.
MAXIMUM_BYTES = 16 * 2**30

_guard = threading.Lock()


def array_shapes(file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type (e.g. `uint8`) of each array, by name, from the headers alone. Raises UnreadableImageError naming the file."""
    found = {}
    try:
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                with archive.open(name) as stream:
                    version = np.lib.format.read_magic(stream)
                    header = (
                        np.lib.format.read_array_header_1_0
                        if version == (1, 0)
                        else np.lib.format.read_array_header_2_0
                    )
                    shape, _, dtype = header(stream)
                found[name.removesuffix(".npy")] = (shape, str(dtype))
    except OSError as problem:
        raise unreadable(
            file, f"it can't be opened ({problem.strerror})", "check the path and its permissions"
        ) from None
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, RuntimeError) as problem:
        raise unreadable(file, f"it is no NumPy archive, or damaged ({problem})") from None
    return found


def read_array(file: Path, name: str) -> NDArray[Any]:
    """One array of the archive. The last ones stay in memory until the file changes. Raises UnreadableImageError naming the file."""
    try:
        status = file.stat()
        with _guard:  # or several threads would unpack the same array at once
            return _array(file, name, (status.st_size, status.st_mtime_ns, status.st_ino))
    except OSError as problem:
        raise unreadable(file, f"it can't be opened ({problem.strerror or problem})") from None
    except KeyError:
        raise unreadable(file, f"it holds no array '{name}'") from None
    # zlib and zipfile answer damage with errors of many kinds.
    except Exception as problem:
        raise unreadable(file, f"its array '{name}' can't be read ({problem})") from None


def read_row(place: Inside) -> Pixels:
    """Row `index` of the array `PART_images`. Raises UnreadableImageError naming the address."""
    images = read_array(place.file, f"{place.part}_images")
    if place.index >= len(images):
        raise unreadable(place.address, f"the array '{place.part}_images' has {len(images)} images only")
    pixels = images[place.index]
    if pixels.dtype.kind != "u" or pixels.dtype.itemsize > 2:
        raise unreadable(place.address, f"its pixels are of type {pixels.dtype}, expected uint8 or uint16")
    if pixels.ndim >= 2 and pixels.shape[0] * pixels.shape[1] > MAXIMUM_PIXELS:
        raise unreadable(place.address, f"it has {pixels.shape[0]} x {pixels.shape[1]} pixels, which is too large")
    return checked(pixels, 8 * pixels.dtype.itemsize, place.address)


@functools.lru_cache(maxsize=4)
def _array(file: Path, name: str, _stamp: tuple[int, ...]) -> NDArray[Any]:
    shape, dtype = array_shapes(file)[name]
    size = int(np.prod(shape, dtype=np.float64)) * np.dtype(dtype).itemsize
    if size > MAXIMUM_BYTES:
        raise ValueError(f"it takes {size / 2**30:.0f} GiB, more than {MAXIMUM_BYTES // 2**30} GiB")
    with np.load(file, allow_pickle=False) as archive:
        array: NDArray[Any] = archive[name]
    array.setflags(write=False)
    return array
