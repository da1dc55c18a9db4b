"""Adapter of the training part of ISIC 2019 as published (HAM10000, BCN_20000 and MSK; challenge.isic-archive.com, 2019).

`ISIC_2019_Training_GroundTruth.csv` (one column a diagnosis, 1 in one of them), `ISIC_2019_Training_Metadata.csv` and the images, in the
folder or below it. The dataset names no patient: the lesion stands in for it (`patient_stand_in: lesion_id`). Some 2,000 images have no
lesion id; each of these is its own patient, and a note says how many.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from client.data.csv_table import Rows, read_rows
from client.data.image_files import PICTURES, files_under, require_folder
from client.data.records import Holding, Problem, Record, Unit, require_unit
from shared.errors import DataError

_TRUTH = "ISIC_2019_Training_GroundTruth.csv"
_METADATA = "ISIC_2019_Training_Metadata.csv"
_DIAGNOSES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK")
_REQUIRED = ("image", "age_approx", "anatom_site_general", "lesion_id", "sex")


@dataclass(frozen=True)
class Isic2019:
    """One record an image; the label is the diagnosis in lower case (mel, nv, bcc, ak, bkl, df, vasc, scc, unk).

    Attributes: sex, localization (`anatom_site_general`). Metadata: age in years, sex, localization, named as in the layout ham10000 and
    absent where unknown. A row without its image, without exactly one diagnosis, or in one of the tables only is a problem. Raises
    DataError where a table, a column or all images are missing.
    """

    units: tuple[Unit, ...] = ("image",)

    def __call__(self, root: Path, *, unit: Unit) -> Holding:
        require_unit("isic2019", self.units, unit)
        require_folder(root, f"{_TRUTH}, {_METADATA} and the images")
        truth, metadata = _table(root, _TRUTH), _table(root, _METADATA)
        images = {path.stem: path for path in files_under(root) if path.suffix.lower() in PICTURES}
        rows, problems = read_rows(truth, ("image", *_DIAGNOSES[:-1]))
        described, more = read_rows(metadata, _REQUIRED)
        problems.extend(more)
        by_image = _by_image(metadata, described, problems)
        records: dict[str, Record] = {}
        without_lesion = 0
        for row, cells in rows:
            item = _record(truth, metadata, row, cells, by_image.get(cells["image"]), images)
            if isinstance(item, Record) and item.key in records:
                item = Problem(truth, f"image {item.key} already stands in an earlier row", row)
            if isinstance(item, Problem):
                problems.append(item)
                continue
            records[item.key] = item
            without_lesion += item.patient == item.key
        listed = {cells["image"] for _, cells in rows}
        problems.extend(
            Problem(metadata, f"image '{name}' stands in no row of {truth.name}, so it has no diagnosis", row)
            for name, (row, _) in by_image.items()
            if name not in listed
        )
        if not records:
            first = f"; the first problem: {problems[0]}" if problems else ", which has no rows"
            raise DataError(f"{root}: no image can be used of those in {truth.name}{first}")
        notes: tuple[str, ...] = ()
        if without_lesion:
            notes = (
                f"{without_lesion} of {len(records)} images have no lesion_id; each is its own patient, so that images of one such lesion "
                "can stand in training and in test",
            )
        return Holding(tuple(records.values()), tuple(problems), notes, patient_stand_in="lesion_id")


def _table(root: Path, name: str) -> Path:
    places = [path for path in (root / name, *sorted(root.glob(f"*/{name}"))) if path.is_file()]
    if not places:
        raise DataError(f"{root}: holds no {name}, nor does a folder in it; expected both tables and the images")
    if len(places) > 1:
        raise DataError(f"{root}: {name} is there more than once ({', '.join(map(str, places))}); keep one of them")
    return places[0]


_Described = dict[str, tuple[int, dict[str, str]]]


def _by_image(table: Path, rows: Rows, problems: list[Problem]) -> _Described:
    """Row number and cells of each image in the metadata."""
    found: _Described = {}
    for row, cells in rows:
        if cells["image"] in found:
            problems.append(Problem(table, f"image {cells['image']} already stands in an earlier row", row))
        else:
            found[cells["image"]] = (row, cells)
    return found


def _record(
    truth: Path,
    metadata: Path,
    row: int,
    cells: Mapping[str, str],
    described: tuple[int, dict[str, str]] | None,
    images: Mapping[str, Path],
) -> Record | Problem:
    name = cells["image"]
    if not name:
        return Problem(truth, "'image' is empty", row)
    label = _diagnosis(cells)
    if label is None:
        given = ", ".join(
            f"{one} {cells[one] or 'empty'}" for one in _DIAGNOSES if cells.get(one, "0") not in ("0", "0.0")
        )
        return Problem(truth, f"one diagnosis must be 1 and all others 0, but there is {given or 'no 1'}", row)
    if described is None:
        return Problem(truth, f"image '{name}' stands in no row of {metadata.name}", row)
    if name not in images:
        return Problem(truth, f"no image file called {name}.jpg under {truth.parent}", row)
    line, about = described
    known = {"sex": about["sex"], "localization": about["anatom_site_general"]}
    values: dict[str, float | str] = {key: value for key, value in known.items() if value}
    if about["age_approx"]:
        try:
            values["age"] = float(about["age_approx"])
        except ValueError:
            reason = f"'age_approx' must be a number of years or empty, but is '{about['age_approx']}'"
            return Problem(metadata, reason, line)
    return Record(
        key=name,
        image=images[name],
        label=label,
        patient=about["lesion_id"] or name,
        attributes={key: value.lower() for key, value in known.items() if value},
        metadata=values,
    )


def _diagnosis(cells: Mapping[str, str]) -> str | None:
    """The one column that is 1 where all others are 0, in lower case."""
    try:
        values = {name: float(cells[name]) for name in _DIAGNOSES if name in cells}
    except ValueError:
        return None
    ones = [name for name, value in values.items() if value == 1.0]
    return ones[0].lower() if len(ones) == 1 and sum(value != 0.0 for value in values.values()) == 1 else None
