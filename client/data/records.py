"""What an adapter says of a hospital's holding, before any pixel is prepared. None of it leaves the hospital."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from shared.errors import DataError
from shared.profile import SiteData

Part = Literal["train", "validation", "test"]
Unit = Literal["finding", "view", "image"]


@dataclass(frozen=True, slots=True)
class Record:
    """One labelled image: a finding, a view or an image, as the study's `task.unit` says.

    `masks` are image files whose non-zero pixels mark the finding(s); they may differ in size from the image.
    `division` is the official part of the dataset, where it has one. `attributes` are what `data.select` filters by.
    """

    key: str
    image: Path
    label: str
    patient: str
    masks: tuple[Path, ...] = ()
    division: Literal["train", "test"] | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Problem:
    """A file or table row that can't be used, and why."""

    file: Path
    reason: str
    row: int | None = None

    def __str__(self) -> str:
        place = f"{self.file}:{self.row}" if self.row is not None else str(self.file)
        return f"{place}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Holding:
    """All records of a folder, and all that could not be used.

    `notes` are sentences about what can be used, but should be known. `patient_stand_in` is the id that some record has for its
    patient because the data names none; the profile must say the same.
    """

    records: tuple[Record, ...]
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    patient_stand_in: str | None = None


class Adapter(Protocol):
    """Reads one dataset layout. Raises shared.errors.DataError where the folder is not of that layout at all."""

    @property
    def units(self) -> tuple[Unit, ...]:
        """What one label of the layout can belong to, the usual one first."""

    def __call__(self, root: Path, *, unit: Unit) -> Holding: ...


@runtime_checkable
class Configurable(Protocol):
    """An adapter that has settings of its own in the profile, beside root and layout."""

    def configured(self, data: SiteData) -> Adapter:
        """The same layout as the profile wants it read. Raises ProfileError."""


def require_unit(layout: str, units: tuple[Unit, ...], unit: Unit) -> None:
    """Raise DataError where the study's unit is none that the layout has."""
    if unit not in units:
        raise DataError(f"task.unit is '{unit}', but the layout {layout} has only: {', '.join(units)}")
