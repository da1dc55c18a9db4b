"""A dataset's CSV table, row by row, with errors that name the file, the line and the columns."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from client.data.records import Problem
from shared.errors import DataError

Rows = list[tuple[int, dict[str, str]]]
"""Line number (of the row's last line, from 1) and cells by column, without the blanks around them."""


def read_rows(table: Path, required: Iterable[str] = ()) -> tuple[Rows, list[Problem]]:
    """The rows of a comma-separated table with a header line, and those that have more cells than there are columns.

    Absent cells at a row's end are empty. UTF-8, with or without a byte-order mark. Raises DataError where the file can't be read, is no
    such table, names a column twice or lacks one of `required`.
    """
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, restval="", strict=True)
            _check_columns(table, list(reader.fieldnames or []), required)
            rows: Rows = []
            problems: list[Problem] = []
            for cells in reader:
                extra = cells.pop(None, None)  # where DictReader keeps cells beyond the last column
                if extra is not None:
                    count, expected = len(cells) + len(extra), len(cells)
                    reason = f"the row has {count} cells, but the table has {expected} columns"
                    problems.append(Problem(table, reason, reader.line_num))
                else:
                    rows.append((reader.line_num, {name.strip(): cell.strip() for name, cell in cells.items()}))
            return rows, problems
    except (csv.Error, UnicodeDecodeError) as problem:
        raise DataError(f"{table}: not a readable CSV table: {problem}; save it as CSV with commas, UTF-8") from None
    except OSError as problem:
        raise DataError(f"{table}: can't be read: {problem.strerror}") from None


def _check_columns(table: Path, header: list[str], required: Iterable[str]) -> None:
    columns = [name.strip() for name in header]
    missing = [name for name in required if name not in columns]
    if missing:
        named = ", ".join(f"{name!r}" for name in missing)
        there = ", ".join(f"{name!r}" for name in columns) or "none"
        hint = "; separate the cells by commas" if len(columns) == 1 and ";" in columns[0] else ""
        raise DataError(
            f"{table}: column{'s' if len(missing) > 1 else ''} {named} missing; the columns there are {there}{hint}"
        )
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise DataError(f"{table}: the column '{twice[0]}' is there more than once")
