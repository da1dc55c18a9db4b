"""A hospital's own table of its images: which file, what it shows, whose it is, and whatever else is known.

Columns: `file` (relative to the folder of the table) or another that identifies the image, and, all optional, `label`, `patient`, `mask`
(relative too; several are separated by `;`), `division` (train or test), `frame` (from 1, of a multi-frame file); case does not matter in
these names. Any other column is an attribute that studies can select by, and metadata: a number where the cell is one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from client.data.csv_table import read_rows
from client.data.records import Problem
from shared.errors import DataError

_KNOWN = ("label", "patient", "mask", "division", "frame")


@dataclass(frozen=True, slots=True)
class Entry:
    """One row. `named` holds the cells of the identifying columns; `label` and `patient` can be empty; `frame` counts from 0."""

    row: int
    named: Mapping[str, str]
    label: str
    patient: str
    masks: tuple[Path, ...]
    division: Literal["train", "test"] | None
    frame: int | None
    others: Mapping[str, str]

    @property
    def attributes(self) -> dict[str, str]:
        """The other columns in lower case, without empty cells."""
        return {name: value.lower() for name, value in self.others.items() if value}

    @property
    def metadata(self) -> dict[str, float | str]:
        """The other columns, numbers as numbers, without empty cells."""
        found: dict[str, float | str] = {}
        for name, value in self.others.items():
            if value:
                found[name] = value
                with contextlib.suppress(ValueError):
                    found[name] = float(value)
        return found


@dataclass(frozen=True, slots=True)
class Index:
    """The usable rows, the columns that are there, and the rows that can't be used."""

    table: Path
    entries: tuple[Entry, ...]
    columns: frozenset[str]
    problems: tuple[Problem, ...]

    @property
    def masks(self) -> frozenset[Path]:
        return frozenset(mask for entry in self.entries for mask in entry.masks)


def read_index(table: Path, identifying: Sequence[str]) -> Index:
    """Read the table; at least one of the `identifying` columns must be there, and filled in every row. Raises DataError."""
    rows, problems = read_rows(table)
    written = [name.lower() for name in (rows[0][1] if rows else ())]
    known = {name.lower(): name for name in (*_KNOWN, *identifying)}  # `Patient` is no attribute
    rows = [(row, {known.get(name.lower(), name): cell for name, cell in cells.items()}) for row, cells in rows]
    columns = frozenset(rows[0][1]) if rows else frozenset()
    if not rows:
        raise DataError(f"{table}: the table has no rows")
    twice = next((name for key, name in known.items() if written.count(key) > 1), None)
    if twice is not None:
        raise DataError(f"{table}: the column '{twice}' is there more than once")
    if not columns.intersection(identifying):
        there = ", ".join(f"'{name}'" for name in rows[0][1])
        raise DataError(
            f"{table}: a column {' or '.join(repr(name) for name in identifying)} must say which image a row is about; the columns "
            f"there are {there}; separate the cells by commas"
        )
    entries = []
    for row, cells in rows:
        item = _entry(table, row, cells, identifying)
        if isinstance(item, Problem):
            problems.append(item)
        else:
            entries.append(item)
    return Index(table, tuple(entries), columns, tuple(problems))


def relative_name(cell: str) -> str:
    """A file cell as the adapters write names: forward slashes, no `./`."""
    return PurePosixPath(cell.replace("\\", "/")).as_posix()


def _entry(table: Path, row: int, cells: Mapping[str, str], identifying: Sequence[str]) -> Entry | Problem:
    named = {name: cells[name] for name in identifying if cells.get(name)}
    if not named:
        return Problem(table, f"{' or '.join(repr(name) for name in identifying)} is empty", row)
    division = cells.get("division", "").lower()
    if division not in ("", "train", "test"):
        return Problem(table, f"'division' must be train, test or empty, but is '{division}'", row)
    frame = cells.get("frame", "")
    if frame and not (frame.isascii() and frame.isdigit() and int(frame) >= 1):
        return Problem(table, f"'frame' must be a whole number from 1 or empty, but is '{frame}'", row)
    masks = tuple(
        table.parent / relative_name(cell.strip()) for cell in cells.get("mask", "").split(";") if cell.strip()
    )
    for mask in masks:
        if ".." in mask.parts or not mask.is_relative_to(table.parent):
            return Problem(table, f"its mask {mask} must lie under {table.parent}", row)
        if not mask.is_file():
            return Problem(table, f"its mask {mask} is not there", row)
    return Entry(
        row=row,
        named=named,
        label=cells.get("label", ""),
        patient=cells.get("patient", ""),
        masks=masks,
        division="train" if division == "train" else "test" if division else None,
        frame=int(frame) - 1 if frame else None,
        others={name: value for name, value in cells.items() if name and name not in (*_KNOWN, *identifying)},
    )
