"""Scanner presets: what differs between the images of one hospital and another.

Sites of a federation differ in detector, processing and case mix. Each preset fixes those differences as public
constants, so that a demonstration with three presets has three visibly different hospitals. The vendor strings are
invented.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class Encoding(StrEnum):
    """Transfer syntaxes the phantom writes (DICOM PS3.5, annexes A.2, A.4.4 and G), by UID."""

    EXPLICIT = "1.2.840.10008.1.2.1"
    JPEG2000_LOSSLESS = "1.2.840.10008.1.2.4.90"
    RLE = "1.2.840.10008.1.2.5"


class FolderNaming(StrEnum):
    """The two directory styles of the NBIA Data Retriever."""

    CLASSIC = "classic"
    """Folders are named by Study and Series Instance UID."""
    DESCRIPTIVE = "descriptive"
    """Folders are named by date and series description; the UIDs of the table are found in the headers only."""


@dataclass(frozen=True, kw_only=True)
class Scanner:
    """One imaging chain and the population in front of it.

    Lengths are in pixels of the stored image; `noise` and `grain` are standard deviations on the signal scale [0, 1].
    """

    name: str
    model_name: str
    digitised_film: bool
    """True: Secondary Capture Image Storage, as CBIS-DDSM; False: Digital Mammography X-Ray, For Presentation."""
    rows: int
    columns: int
    pixel_spacing_mm: float
    blur: float
    """Standard deviation of the Gaussian point spread function."""
    noise: float
    """Uncorrelated noise at mid grey; it grows with the square root of the signal."""
    grain: float
    """Correlated noise (film grain, or the anti-scatter grid)."""
    gamma: float
    """Exponent of the contrast curve: below 1 lifts the shadows, above 1 deepens them."""
    shoulder: float
    """Compression of the highlights, 0 (none) to 1."""
    black: float
    """Stored level of empty background, as a fraction of full scale."""
    white: float
    """Stored level of the brightest tissue, as a fraction of full scale."""
    monochrome1_share: float
    """Share of the mammograms stored as MONOCHROME1 (low values bright); the others are MONOCHROME2."""
    encodings: Mapping[Encoding, float]
    """Share of each transfer syntax; sums to 1."""
    folders: FolderNaming
    prevalence: float
    """Share of patients whose main finding is malignant."""


def _mix(explicit: float, jpeg2000: float, rle: float) -> Mapping[Encoding, float]:
    return MappingProxyType({Encoding.EXPLICIT: explicit, Encoding.JPEG2000_LOSSLESS: jpeg2000, Encoding.RLE: rle})


_PRESETS = (
    Scanner(
        name="halide",
        model_name="Halide film digitiser",
        digitised_film=True,
        rows=576,
        columns=448,
        pixel_spacing_mm=0.32,
        blur=0.9,
        noise=0.012,
        grain=0.012,
        gamma=1.15,
        shoulder=0.45,
        black=0.06,
        white=0.93,
        monochrome1_share=0.5,
        encodings=_mix(0.6, 0.25, 0.15),
        folders=FolderNaming.CLASSIC,
        prevalence=0.45,
    ),
    Scanner(
        name="cassette",
        model_name="Cassette plate reader",
        digitised_film=True,
        rows=512,
        columns=416,
        pixel_spacing_mm=0.36,
        blur=1.1,
        noise=0.020,
        grain=0.006,
        gamma=0.85,
        shoulder=0.2,
        black=0.02,
        white=0.80,
        monochrome1_share=0.25,
        encodings=_mix(0.35, 0.5, 0.15),
        folders=FolderNaming.DESCRIPTIVE,
        prevalence=0.50,
    ),
    Scanner(
        name="panel",
        model_name="Panel flat detector",
        digitised_film=False,
        rows=640,
        columns=512,
        pixel_spacing_mm=0.28,
        blur=0.6,
        noise=0.009,
        grain=0.003,
        gamma=1.0,
        shoulder=0.0,
        black=0.0,
        white=0.98,
        monochrome1_share=0.15,
        encodings=_mix(0.3, 0.55, 0.15),
        folders=FolderNaming.CLASSIC,
        prevalence=0.55,
    ),
)

SCANNERS: Mapping[str, Scanner] = MappingProxyType({scanner.name: scanner for scanner in _PRESETS})
"""The presets by name."""
