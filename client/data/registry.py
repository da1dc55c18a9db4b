"""Which dataset layouts there are, and how a profile's holding is opened. A new layout is a new file and one line here."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from client.data.busi import Busi
from client.data.cbis_ddsm import CbisDdsm
from client.data.dicom_folder import DicomFolder
from client.data.ham10000 import Ham10000
from client.data.image_folder import ImageFolder
from client.data.isic2019 import Isic2019
from client.data.medmnist import MedMnist
from client.data.own_words import in_studies_words
from client.data.records import Adapter, Configurable, Holding, Unit
from client.data.splits import draw_key
from shared.errors import DataError, ProfileError
from shared.profile import ArtificialPart, Profile, SiteData

ADAPTERS: Mapping[str, Adapter] = {
    "busi": Busi(),
    "cbis_ddsm": CbisDdsm(),
    "dicom_folder": DicomFolder(),
    "ham10000": Ham10000(),
    "image_folder": ImageFolder(),
    "isic2019": Isic2019(),
    "medmnist": MedMnist(),
}
"""Adapter of each layout, by the name that `data.layout` of a profile gives."""


def adapter_named(layout: str) -> Adapter:
    """The adapter of a layout. Raises ProfileError with the nearest known name."""
    if layout in ADAPTERS:
        return ADAPTERS[layout]
    close = difflib.get_close_matches(layout, ADAPTERS, n=1, cutoff=0.4)
    hint = f"; did you mean '{close[0]}'?" if close else f"; known layouts are {', '.join(sorted(ADAPTERS))}"
    raise ProfileError(f"data.layout: unknown layout '{layout}'{hint}")


def adapter_for(data: SiteData) -> Adapter:
    """The adapter of a profile's layout with the profile's settings.

    Raises ProfileError for an unknown layout, and where a setting is given that the layout does not have.
    """
    adapter = adapter_named(data.layout)
    if isinstance(adapter, Configurable):
        return adapter.configured(data)
    if data.label_field is not None:
        raise ProfileError(
            f"data.label_field: the layout {data.layout} has no such setting; remove it, or use the layout dicom_folder"
        )
    return adapter


def read_holding(data: SiteData, *, unit: Unit) -> Holding:
    """Read a profile's data in its layout, problems and all, with labels as studies name them; of a part, its patients only.

    Raises ProfileError for an unknown layout, a setting that it lacks, or a stand-in for the patient that the profile does not name (every
    report repeats what it names); DataError where the data is not of that layout.
    """
    read = in_studies_words(adapter_for(data)(Path(data.root), unit=unit), data.labels)
    holding = _part_of(read, data.part)
    stand_in = holding.patient_stand_in
    if stand_in is not None and stand_in != data.patient_stand_in:
        said = "nothing" if data.patient_stand_in is None else f"'{data.patient_stand_in}'"
        raise ProfileError(
            f"data.patient_stand_in: the data in {data.root} does not name its patients, and {stand_in} stands in, but the profile says "
            f"{said}; write patient_stand_in: {stand_in}"
        )
    return holding


def _part_of(holding: Holding, part: ArtificialPart | None) -> Holding:
    """The records of the part's patients; what could not be used has no patient, and stays."""
    if part is None:
        return holding
    records = tuple(record for record in holding.records if in_part(record.patient, part))
    all_patients, patients = (len({record.patient for record in some}) for some in (holding.records, records))
    note = (
        f"artificial division: this site is part {part.index + 1} of {part.of} of the data and sees {patients} of {all_patients} patients "
        f"({len(records)} of {len(holding.records)} records); every report says so"
    )
    return replace(holding, records=records, notes=(*holding.notes, note))


def in_part(patient: str, part: ArtificialPart) -> bool:
    """Whether the patient with this id is in the part: a matter of the id and the part's seed alone."""
    return int(draw_key(part.seed, "part", patient), 16) % part.of == part.index


def open_holding(profile: Profile, *, unit: Unit) -> Holding:
    """Read the profile's data in its layout; with `data.unreadable: stop`, files and rows that can't be used are an error.

    Raises ProfileError and DataError as `read_holding`, DataError also where problems must stop it.
    """
    holding = read_holding(profile.data, unit=unit)
    if holding.problems and profile.data.unreadable == "stop":
        shown = "; ".join(str(problem) for problem in holding.problems[:3])
        more = f"; and {len(holding.problems) - 3} more" if len(holding.problems) > 3 else ""
        raise DataError(
            f"{_count(len(holding.problems))} can't be used: {shown}{more}. "
            "Repair or remove what is at fault, or let the profile say data.unreadable: skip"
        )
    return holding


def _count(problems: int) -> str:
    return "1 file or row" if problems == 1 else f"{problems} files or rows"
