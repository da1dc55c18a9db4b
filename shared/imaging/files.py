"""Image files of any supported kind, told apart by content rather than by name."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from shared.errors import UnreadableImageError
from shared.imaging.arrays import read_row
from shared.imaging.decoder import decode_dicom
from shared.imaging.inside import Inside, inside
from shared.imaging.pixels import MAXIMUM_PIXELS, Pixels, checked, unreadable

_DICOM_SUFFIXES = {".dcm", ".dicom", ".ima"}


def read_image(path: Path, frame: int = 0) -> Pixels:
    """The pixels of a DICOM, PNG, JPEG, TIFF, BMP ... file.

    DICOM is known by its magic (PS3.10, bytes 128 to 131) or, where the preamble is missing, by its suffix. `frame`
    counts from 0 in multi-frame DICOM and multi-page TIFF. `path` can also be the address of an image inside a file
    (`shared.imaging.inside`). Raises UnreadableImageError naming the file.
    """
    place = inside(path)
    if place is not None:
        return _read_inside(place)
    try:
        with path.open("rb") as stream:
            head = stream.read(132)
    except OSError as problem:
        raise unreadable(
            path, f"it can't be opened ({problem.strerror})", "check the path and its permissions"
        ) from None
    if not head:
        raise unreadable(path, "it is empty (0 bytes)")
    if head[128:132] == b"DICM" or path.suffix.lower() in _DICOM_SUFFIXES:
        return decode_dicom(path, frame)
    return _read_picture(path, frame)


def _read_inside(place: Inside) -> Pixels:
    if place.part != "frame":
        return read_row(place)
    try:
        return read_image(place.file, place.index)
    except UnreadableImageError as problem:
        raise UnreadableImageError(str(problem).replace(str(place.file), str(place.address), 1)) from None


def _read_picture(path: Path, frame: int) -> Pixels:
    """Pillow's formats. Alpha is dropped, EXIF orientation applied; 16-bit colour is read as 8-bit by Pillow."""
    try:
        with warnings.catch_warnings():
            # A large image is no attack here: MAXIMUM_PIXELS below is the limit that counts.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                if opened.width * opened.height > MAXIMUM_PIXELS:
                    raise unreadable(
                        path, f"its header says {opened.width} x {opened.height} pixels, which is too large"
                    )
                if frame:
                    opened.seek(frame)
                opened.load()
                picture = ImageOps.exif_transpose(opened)
                return _from_pillow(picture, path)
    except UnidentifiedImageError:
        raise unreadable(path, "it is not an image of a known format (DICOM, PNG, JPEG, TIFF, BMP)") from None
    except EOFError:
        raise unreadable(path, f"it has no frame {frame}") from None
    # Pillow's decoders answer damage with any of these; each means the same to the reader.
    except (
        OSError,
        SyntaxError,
        ValueError,
        IndexError,
        TypeError,
        KeyError,
        MemoryError,
        Image.DecompressionBombError,
    ) as problem:
        raise unreadable(path, f"it is damaged or cut off ({_one_line(problem)})") from None


def _from_pillow(picture: Image.Image, path: Path) -> Pixels:
    mode = picture.mode
    if mode in ("L", "LA", "1"):
        return checked(np.asarray(picture.convert("L")), 8, path)
    if mode.startswith("I;16"):
        return checked(np.asarray(picture).astype(np.uint16), 16, path)
    if mode == "I":
        values = np.asarray(picture)
        if values.min() < 0 or values.max() > 65535:
            raise unreadable(path, "its pixels are 32-bit integers", "save it with 8 or 16 bits a pixel")
        return checked(values.astype(np.uint16), 16, path)
    if mode == "F":
        raise unreadable(
            path, "its pixels are floating-point numbers of unknown range", "save it with 8 or 16 bits a pixel"
        )
    rgb = np.asarray(picture.convert("RGB"))
    return checked(rgb, 8, path)


def _one_line(problem: BaseException) -> str:
    text = " ".join(str(problem).split())
    return (text or type(problem).__name__)[:200]
