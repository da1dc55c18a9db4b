"""The four case-description tables of CBIS-DDSM (Lee et al., Scientific Data 4:170177, 2017), read without any pixel.

Each row is one finding in one view. The reader's `assessment` (BI-RADS) is not read at all: it is an opinion formed with the
answer at hand and would leak it. Path cells of the published tables hold stray newlines.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from client.data.records import Problem
from shared.errors import DataError

Division = Literal["train", "test"]

TABLES: dict[str, Division] = {
    "calc_case_description_train_set.csv": "train",
    "calc_case_description_test_set.csv": "test",
    "mass_case_description_train_set.csv": "train",
    "mass_case_description_test_set.csv": "test",
}
"""The published file names and the official part that each one is."""

PATHOLOGIES = ("malignant", "benign", "benign_without_callback")
"""Published labels, from the most to the least positive."""

_REQUIRED = (
    "patient id",
    "breast density",
    "left or right breast",
    "image view",
    "abnormality id",
    "abnormality type",
    "pathology",
    "image file path",
    "roi mask file path",
)
_DESCRIPTORS = ("calc type", "calc distribution", "mass shape", "mass margins")


@dataclass(frozen=True, slots=True)
class Finding:
    """One row: a calcification or mass in one mammogram.

    `view_folder` and `roi_folder` are the top folders of the download in which the mammogram and the finding's crop and mask
    lie (e.g. `Calc-Training_P_00005_RIGHT_CC` and `Calc-Training_P_00005_RIGHT_CC_1`); `view_series` and `roi_series` are the
    series UIDs that the table's paths name, where they name one. `descriptors` are lower case, without those given as N/A.
    """

    table: Path
    row: int
    division: Division
    patient: str
    side: Literal["left", "right"]
    view: Literal["cc", "mlo"]
    abnormality: Literal["calcification", "mass"]
    number: str
    pathology: str
    breast_density: str
    view_folder: str
    view_series: str | None
    roi_folder: str
    roi_series: str | None
    descriptors: dict[str, str] = field(default_factory=dict)

    @property
    def mammogram(self) -> tuple[str, str, str, str]:
        """What identifies the mammogram: one file of the download each (a view with both kinds of finding has two)."""
        return (self.abnormality, self.patient, self.side, self.view)


@dataclass(frozen=True, slots=True)
class Tables:
    """All findings of the tables that are there, and the rows that can't be used."""

    paths: tuple[Path, ...]
    findings: tuple[Finding, ...]
    problems: tuple[Problem, ...]


def read_tables(root: Path) -> Tables:
    """Read the case-description tables that lie in `root` or in one of its direct subfolders; any subset may be there.

    Raises DataError where the folder or every table is missing, or where a table lacks a column.
    """
    paths = _tables_in(root)
    findings: list[Finding] = []
    problems: list[Problem] = []
    seen: dict[tuple[str, ...], str] = {}
    for path in paths:
        for item in _rows(path):
            if isinstance(item, Problem):
                problems.append(item)
                continue
            place = f"{path.name}:{item.row}"
            first = seen.setdefault((item.division, *item.mammogram, item.number), place)
            if first != place:
                reason = f"the same finding of the same view already stands at {first}"
                problems.append(Problem(path, reason, item.row))
            else:
                findings.append(item)
    return Tables(tuple(paths), tuple(findings), tuple(problems))


def _tables_in(root: Path) -> list[Path]:
    if not root.is_dir():
        raise DataError(
            f"{root}: no such folder; data.root of the profile must be the folder that holds the CBIS-DDSM tables"
        )
    for pattern in ("", "*/"):
        paths = [path for name in TABLES for path in sorted(root.glob(f"{pattern}{name}"))]
        names = [path.name for path in paths]
        for path in paths:
            if names.count(path.name) > 1:
                places = ", ".join(str(other) for other in paths if other.name == path.name)
                raise DataError(f"{root}: the table {path.name} is there more than once ({places}); keep one of them")
        if paths:
            return paths
    state = "is empty" if not any(root.iterdir()) else "holds no CBIS-DDSM table"
    raise DataError(f"{root}: the folder {state}; expected at least one of {', '.join(TABLES)}")


def _rows(path: Path) -> Iterator[Finding | Problem]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            header = next(reader, [])
            columns = {_column(name): place for place, name in enumerate(header)}
            missing = [name for name in _REQUIRED if name not in columns]
            if missing:
                had = ", ".join(f"'{name}'" for name in header) or "none"
                raise DataError(
                    f"{path}: column{'s' if len(missing) > 1 else ''} {', '.join(f'{name!r}' for name in missing)} missing; "
                    f"the columns there are {had}"
                )
            start = reader.line_num + 1
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    yield _finding(path, start, columns, cells)
                start = reader.line_num + 1
    except (csv.Error, UnicodeDecodeError) as problem:
        raise DataError(f"{path}: not a readable CSV table: {problem}") from None
    except OSError as problem:
        raise DataError(f"{path}: can't be read: {problem.strerror}") from None


def _column(name: str) -> str:
    return " ".join(name.replace("_", " ").lower().split())


def _finding(path: Path, row: int, columns: dict[str, int], cells: list[str]) -> Finding | Problem:
    if len(cells) < len(columns):
        return Problem(path, f"the row has {len(cells)} cells, but the table has {len(columns)} columns", row)

    def cell(name: str) -> str:
        return "".join(cells[columns[name]].splitlines()).strip()

    side, view = cell("left or right breast").lower(), cell("image view").lower()
    kind, pathology = cell("abnormality type").lower(), cell("pathology").lower().replace(" ", "_")
    if side not in ("left", "right"):
        return Problem(path, f"'left or right breast' must be LEFT or RIGHT, but is '{side}'", row)
    if view not in ("cc", "mlo"):
        return Problem(path, f"'image view' must be CC or MLO, but is '{view}'", row)
    if kind not in ("calcification", "mass"):
        return Problem(path, f"'abnormality type' must be calcification or mass, but is '{kind}'", row)
    if pathology not in PATHOLOGIES:
        return Problem(path, f"'pathology' must be one of {', '.join(PATHOLOGIES).upper()}, but is '{pathology}'", row)
    for name in ("patient id", "abnormality id", "image file path", "roi mask file path"):
        if not cell(name):
            return Problem(path, f"'{name}' is empty", row)
    view_folder, view_series = _place(cell("image file path"))
    roi_folder, roi_series = _place(cell("roi mask file path"))
    named = {name: cell(name).lower() for name in _DESCRIPTORS if name in columns}
    return Finding(
        table=path,
        row=row,
        division=TABLES[path.name],
        patient=cell("patient id"),
        side=side,  # type: ignore[arg-type]
        view=view,  # type: ignore[arg-type]
        abnormality=kind,  # type: ignore[arg-type]
        number=cell("abnormality id"),
        pathology=pathology,
        breast_density=cell("breast density"),
        view_folder=view_folder,
        view_series=view_series,
        roi_folder=roi_folder,
        roi_series=roi_series,
        descriptors={name.replace(" ", "_"): value for name, value in named.items() if value not in ("", "n/a")},
    )


def _place(cell: str) -> tuple[str, str | None]:
    """Top folder and series UID of a path cell `FOLDER/STUDY UID/SERIES UID/000000.dcm`."""
    parts = PurePosixPath(cell.replace("\\", "/")).parts
    return parts[0], parts[-2] if len(parts) >= 3 else None
