"""DICOM files of the phantom: mammogram, region mask, cropped region.

Headers follow CBIS-DDSM, where PatientID is the folder name and nothing else names a person; every text says that the
image is synthetic. UIDs are `2.25.` + a name-based UUID (PS3.5 annex B.2), so equal arguments give equal files.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import (
    UID,
    DigitalMammographyXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)

from client.phantom.acquisition import FULL_SCALE
from client.phantom.cases import Projection, Side
from client.phantom.scanners import Encoding, Scanner

MANUFACTURER = "Consilium synthetic phantom"

_IMPLEMENTATION = UID(f"2.25.{uuid.uuid5(uuid.NAMESPACE_DNS, 'phantom.consilium').int}")
_DATE = "20000101"

#: Named, since pydicom otherwise takes what it finds first, and GDCM's RLE encoder can end the process on odd sizes.
_ENCODERS = {Encoding.RLE: "pydicom", Encoding.JPEG2000_LOSSLESS: "pylibjpeg"}


def uid_for(*names: str | int) -> str:
    """The UID that belongs to a list of names: the same for the same names."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_DNS, '/'.join(['phantom.consilium', *map(str, names)])).int}"


@dataclass(frozen=True, kw_only=True)
class Header:
    """What differs between the headers of two files of one phantom."""

    subject: str
    """Folder name, which is also PatientID, e.g. `Calc-Training_P_00005_RIGHT_CC_1`."""
    side: Side
    projection: Projection
    study_uid: str
    series_uid: str
    instance_uid: str
    instance_number: int
    series_description: str | None


def write_image(
    path: Path,
    pixels: NDArray[np.uint16] | NDArray[np.uint8],
    header: Header,
    scanner: Scanner,
    *,
    inverted: bool = False,
    encoding: Encoding = Encoding.EXPLICIT,
) -> None:
    """Write `pixels` `(H, W)` to `path`: uint16 as 12 bits in 16, uint8 (a mask, 0 or 255) as 8 in 8.

    `inverted`: the values are a negative and PhotometricInterpretation is MONOCHROME1.
    """
    sop_class = (
        SecondaryCaptureImageStorage if scanner.digitised_film else DigitalMammographyXRayImageStorageForPresentation
    )
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = UID(header.instance_uid)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = _IMPLEMENTATION
    meta.ImplementationVersionName = "CONSILIUM_1"
    image = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    _identify(image, header, scanner)
    image.SOPClassUID = sop_class
    wide = pixels.dtype == np.uint16
    image.SamplesPerPixel = 1
    image.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    image.Rows, image.Columns = pixels.shape
    image.BitsAllocated, image.BitsStored, image.HighBit = (16, 12, 11) if wide else (8, 8, 7)
    image.PixelRepresentation = 0
    image.PixelSpacing = [scanner.pixel_spacing_mm, scanner.pixel_spacing_mm]
    if wide:
        image.WindowCenter, image.WindowWidth = (FULL_SCALE + 1) // 2, FULL_SCALE + 1
        image.PresentationLUTShape = "INVERSE" if inverted else "IDENTITY"
    stored = np.ascontiguousarray(pixels).astype(pixels.dtype.newbyteorder("<")).tobytes()
    image.PixelData = stored + b"\0" * (len(stored) % 2)
    image["PixelData"].VR = "OW" if wide else "OB"
    if encoding is not Encoding.EXPLICIT:
        image.compress(UID(encoding.value), generate_instance_uid=False, encoding_plugin=_ENCODERS[encoding])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save_as(path, enforce_file_format=True)


def _identify(image: Any, header: Header, scanner: Scanner) -> None:
    image.SpecificCharacterSet = "ISO_IR 100"
    image.ImageType = ["DERIVED", "SECONDARY"] if scanner.digitised_film else ["DERIVED", "PRIMARY"]
    image.SOPInstanceUID = header.instance_uid
    image.StudyDate = image.ContentDate = _DATE
    image.StudyTime = image.ContentTime = "000000"
    image.AccessionNumber = ""
    image.Modality = "MG"
    if scanner.digitised_film:
        image.ConversionType = "WSD"
    else:
        image.PresentationIntentType = "FOR PRESENTATION"
    image.Manufacturer = MANUFACTURER
    image.ManufacturerModelName = scanner.model_name
    image.ReferringPhysicianName = ""
    image.StudyDescription = "Synthetic phantom, no patient"
    if header.series_description is not None:
        image.SeriesDescription = header.series_description
    image.PatientName = image.PatientID = header.subject
    image.PatientBirthDate = image.PatientSex = ""
    image.PatientIdentityRemoved = "YES"
    image.DeidentificationMethod = "Synthetic: drawn from a seed"
    image.BodyPartExamined = "BREAST"
    image.StudyInstanceUID = header.study_uid
    image.SeriesInstanceUID = header.series_uid
    image.StudyID = ""
    image.SeriesNumber = 1
    image.InstanceNumber = header.instance_number
    image.PatientOrientation = str(header.projection)
    image.Laterality = image.ImageLaterality = header.side[0]
    image.ViewPosition = str(header.projection)
    image.BurnedInAnnotation = "NO"
