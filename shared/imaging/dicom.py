"""DICOM pixels (PS3.3 C.7.6.3, PS3.5 section 8) to plain unsigned arrays in which larger is brighter.

Run it through `shared.imaging.decoder`, which keeps a crashing native codec away from the calling process.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
from pydicom.uid import UID, ImplicitVRLittleEndian, JPEGExtended12Bit, RLELossless

from shared.errors import UnreadableImageError
from shared.imaging.pixels import MAXIMUM_PIXELS, Pixels, checked, unreadable

#: What pydicom needs besides the pixels, and what decides on brightness.
_PIXEL_ELEMENTS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_COLOUR = {"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"}


def read_dicom(path: Path, frame: int = 0) -> Pixels:
    """Frame `frame` (from 0) of a DICOM file, in this process. Raises UnreadableImageError naming the file.

    - Values are the stored ones, 0 .. 2**BitsStored - 1; signed values are shifted by 2**(BitsStored-1). Bits above
      BitsStored (old overlays) are cleared. A linear rescale does not change an image that is mapped to [0, 1], except
      that a negative RescaleSlope inverts it; a Modality LUT Sequence is applied.
    - MONOCHROME1 is inverted; pixels equal to the Pixel Padding Value (range) become 0, black, in both (PS3.3 C.7.5.1.1.2).
    - PALETTE COLOR comes out as 8-bit RGB; YBR as RGB.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = _dataset(path)
            _check_header(dataset, path, frame)
            return _resolved(_stored_values(dataset, path, frame), dataset, path)
    except UnreadableImageError:
        raise
    # A damaged file can make pydicom and its plugins fail in any way at all; all of them mean the same to the reader.
    except Exception as problem:
        text = " ".join(str(problem).split())[:300] or type(problem).__name__
        raise unreadable(path, f"its pixels can't be decoded ({text})") from None


def transfer_syntax(path: Path) -> UID | None:
    """The transfer syntax in the file's meta header, None where there is none or it can't be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return UID(pydicom.filereader.read_file_meta_info(path).TransferSyntaxUID)
    except Exception:
        return None


def _dataset(path: Path) -> FileDataset:
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    try:
        dataset = pydicom.dcmread(path, force=True)
    except Exception as problem:
        raise unreadable(path, f"it can't be read as DICOM ({' '.join(str(problem).split())[:200]})") from None
    if "TransferSyntaxUID" not in dataset.file_meta:
        # Without a meta header the default transfer syntax applies (PS3.5 section 10).
        implicit, little = dataset.original_encoding
        if implicit is False:
            syntax = pydicom.uid.ExplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian
        else:
            syntax = ImplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def _check_header(dataset: Dataset, path: Path, frame: int) -> None:
    if not any(name in dataset for name in _PIXEL_ELEMENTS):
        if "SOPClassUID" not in dataset and "Rows" not in dataset:
            raise unreadable(path, "it is not a DICOM file, or it is cut off before its image")
        kind = UID(dataset.get("SOPClassUID", "")).name or "unknown"
        raise unreadable(path, f"it holds no image: there is no Pixel Data (SOP class: {kind})")
    if "PixelData" not in dataset:
        raise unreadable(path, "its pixels are floating-point numbers of unknown range")
    missing = [
        name
        for name in ("Rows", "Columns", "BitsAllocated", "BitsStored", "SamplesPerPixel", "PhotometricInterpretation")
        if dataset.get(name) in (None, "")
    ]
    if missing:
        raise unreadable(path, f"it lacks {', '.join(missing)}, without which the pixels have no meaning")
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if rows * columns == 0 or rows * columns > MAXIMUM_PIXELS:
        raise unreadable(path, f"its header says {rows} x {columns} pixels")
    frames = _frames(dataset)
    if not 0 <= frame < frames:
        raise unreadable(path, f"it has {frames} frame(s), but frame {frame} (counted from 0) was asked for")


def _stored_values(dataset: Dataset, path: Path, frame: int) -> NDArray[Any]:
    """(H, W) or (H, W, 3) as stored; YBR already RGB."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax == JPEGExtended12Bit and int(dataset.BitsStored) > 8:
        return _jpeg_12_bit(dataset, frame)
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise unreadable(path, f"its transfer syntax '{UID(syntax).name}' is not supported", _REMEDY) from None
    if not decoder.is_available:
        raise unreadable(path, f"no decoder for its transfer syntax '{UID(syntax).name}' is installed", _REMEDY)
    if UID(syntax).is_encapsulated and syntax != RLELossless:
        _check_end(get_frame(dataset.PixelData, frame, number_of_frames=_frames(dataset)))
    array, after = decoder.as_array(dataset, index=frame, raw=False)
    dataset.PhotometricInterpretation = after["photometric_interpretation"]
    return array


_REMEDY = "convert it to Explicit VR Little Endian or JPEG 2000 Lossless"


def _jpeg_12_bit(dataset: Dataset, frame: int) -> NDArray[Any]:
    """JPEG Extended (Process 4) with 12 bits, which pydicom does not hand to GDCM; (H, W) uint16.

    GDCM decodes one frame well; it wrongs some *multi-frame* files, so that it is given one frame at a time.
    """
    import gdcm

    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if int(dataset.SamplesPerPixel) != 1 or int(dataset.BitsAllocated) != 16:
        raise ValueError("12-bit JPEG in colour is not supported")
    source = get_frame(dataset.PixelData, frame, number_of_frames=_frames(dataset))
    _check_end(source)
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(source)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((columns, rows, 1))
    image.SetDataElement(element)
    kind = gdcm.PhotometricInterpretation.GetPIType(str(dataset.PhotometricInterpretation))
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str.__str__(JPEGExtended12Bit))))
    bits, signed = int(dataset.BitsStored), int(dataset.PixelRepresentation)
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, bits, bits - 1, signed))
    decoded = image.GetBuffer().encode("utf-8", "surrogateescape")
    if len(decoded) != rows * columns * 2:
        raise ValueError(f"{len(decoded)} bytes decoded, expected {rows * columns * 2}")
    return np.frombuffer(decoded, "<i2" if signed else "<u2").reshape(rows, columns)


def _check_end(source: bytes) -> None:
    # Most decoders of the JPEG family notice a cut, some fill it with grey and report success. A whole stream ends in
    # FF D9 (EOI, EOC); writers pad it to an even length with 00 or FF.
    if b"\xff\xd9" not in source[-16:]:
        raise ValueError("the compressed stream is cut off: it has no end marker")


def _frames(dataset: Dataset) -> int:
    return int(dataset.get("NumberOfFrames") or 1)


def _resolved(stored: NDArray[Any], dataset: Dataset, path: Path) -> Pixels:
    photometric = str(dataset.PhotometricInterpretation)
    bits = int(dataset.BitsStored)
    if photometric == "PALETTE COLOR":
        rgb = apply_color_lut(stored, dataset)
        return checked((rgb >> 8).astype(np.uint8) if rgb.dtype.itemsize > 1 else rgb, 8, path)
    if photometric in _COLOUR:
        return checked(stored, bits, path)
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise unreadable(path, f"its photometric interpretation '{photometric}' is not supported")
    if stored.ndim != 2:
        raise unreadable(path, f"its pixels are {photometric}, but have the shape {stored.shape}")
    padding = _padding(stored, dataset)
    if dataset.get("ModalityLUTSequence"):
        levels = apply_modality_lut(stored, dataset)
        bits = int(dataset.ModalityLUTSequence[0].LUTDescriptor[2])
    else:
        levels = _shifted(stored, bits, signed=int(dataset.get("PixelRepresentation", 0)) == 1)
    negative_slope = "ModalityLUTSequence" not in dataset and float(dataset.get("RescaleSlope") or 1) < 0
    if (photometric == "MONOCHROME1") != negative_slope:
        levels = (2**bits - 1) - levels
    if padding is not None:
        levels[padding] = 0
    return checked(levels, bits, path)


def _shifted(stored: NDArray[Any], bits: int, *, signed: bool) -> NDArray[Any]:
    """Unsigned values of the same width, 0 .. 2**bits - 1, in the same order as the stored ones."""
    unsigned = stored.astype(np.dtype(f"u{stored.dtype.itemsize}"))
    mask = unsigned.dtype.type(2**bits - 1)
    if signed:
        # Adding half of the range modulo 2**bits maps two's complement onto 0 .. 2**bits - 1.
        unsigned = unsigned + unsigned.dtype.type(2 ** (bits - 1))
    unsigned &= mask
    return unsigned


def _padding(stored: NDArray[Any], dataset: Dataset) -> NDArray[np.bool_] | None:
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((int(value), int(limit if limit is not None else value)))
    marked = (stored >= low) & (stored <= high)
    return marked if bool(marked.any()) else None
