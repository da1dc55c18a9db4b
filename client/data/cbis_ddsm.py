"""Adapter of CBIS-DDSM as published: case-description tables beside the DICOM folders of the TCIA download.

Lee et al., A curated mammography data set for use in computer-aided detection and diagnosis research, Sci Data 4:170177, 2017.
The patient is the table's `patient_id`; `division` is the published train / test part. Calcifications and masses have tables of their
own, and 31 patients are in the train part of one and the test part of the other: pooling them with the official division is a leak.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from client.data.cbis_ddsm_files import Header, index_folders, mammogram_of, mask_of
from client.data.cbis_ddsm_tables import PATHOLOGIES, Finding, read_tables
from client.data.records import Holding, Problem, Record, Unit, require_unit
from shared.errors import DataError


@dataclass(frozen=True)
class CbisDdsm:
    """Records of a folder with at least one CBIS-DDSM table.

    Unit `finding`: one record for each table row, with its mask. Unit `view`: one record for each mammogram file, i.e. each (abnormality,
    patient, side, view); malignant if any finding is, all masks; an attribute on which its findings differ is left out.
    Attributes: abnormality, view, side, breast_density, and calc_type, calc_distribution, mass_shape, mass_margins where given.
    Raises DataError where tables or columns are missing or no row has its files; single rows become problems.
    """

    units: tuple[Unit, ...] = ("finding", "view")

    def __call__(self, root: Path, *, unit: Unit) -> Holding:
        require_unit("cbis_ddsm", self.units, unit)
        tables = read_tables(root)
        names = {name for finding in tables.findings for name in (finding.view_folder, finding.roi_folder)}
        files = index_folders(root, names)
        if tables.findings and not files:
            raise DataError(
                f"{root}: the tables list {len(tables.findings)} findings, but none of their DICOM folders is there "
                f"(e.g. {tables.findings[0].view_folder}); put the TCIA download under this folder"
            )
        problems = list(tables.problems)
        located = _locate(tables.findings, files, problems)
        if not located:
            first = f"; the first problem: {problems[0]}" if problems else ""
            raise DataError(f"{root}: no row of the tables can be used{first}")
        records = _finding_records(located) if unit == "finding" else _view_records(located)
        return Holding(tuple(records), tuple(problems))


@dataclass(frozen=True, slots=True)
class _Located:
    finding: Finding
    image: Path
    mask: Path


def _locate(
    findings: Sequence[Finding], files: Mapping[str, Sequence[Path]], problems: list[Problem]
) -> list[_Located]:
    mammograms: dict[str, Header | str] = {}
    located: list[_Located] = []
    for finding in findings:
        folder = finding.view_folder
        if folder not in mammograms:
            try:
                mammograms[folder] = mammogram_of(folder, files, finding.view_series)
            except DataError as problem:
                mammograms[folder] = str(problem)
        mammogram = mammograms[folder]
        if isinstance(mammogram, str):
            problems.append(Problem(finding.table, f"mammogram: {mammogram}", finding.row))
            continue
        try:
            mask = mask_of(finding.roi_folder, files, mammogram)
        except DataError as problem:
            problems.append(Problem(finding.table, f"mask: {problem}", finding.row))
            continue
        located.append(_Located(finding, mammogram.path, mask))
    return located


def _attributes(finding: Finding) -> dict[str, str]:
    return {
        "abnormality": finding.abnormality,
        "view": finding.view,
        "side": finding.side,
        "breast_density": finding.breast_density,
        **finding.descriptors,
    }


def _key(finding: Finding) -> str:
    return f"{finding.abnormality}_{finding.division}_{finding.patient}_{finding.side}_{finding.view}"


def _finding_records(located: Sequence[_Located]) -> list[Record]:
    return [
        Record(
            key=f"{_key(item.finding)}_{item.finding.number}",
            image=item.image,
            label=item.finding.pathology,
            patient=item.finding.patient,
            masks=(item.mask,),
            division=item.finding.division,
            attributes=_attributes(item.finding),
        )
        for item in located
    ]


def _view_records(located: Sequence[_Located]) -> list[Record]:
    views: dict[tuple[str, ...], list[_Located]] = {}
    for item in located:
        views.setdefault((*item.finding.mammogram, item.finding.division), []).append(item)
    records = []
    for items in views.values():
        first = items[0]
        described = [_attributes(item.finding) for item in items]
        agreed = {
            name: value for name, value in described[0].items() if all(other.get(name) == value for other in described)
        }
        records.append(
            Record(
                key=_key(first.finding),
                image=first.image,
                label=min((item.finding.pathology for item in items), key=PATHOLOGIES.index),
                patient=first.finding.patient,
                masks=tuple(item.mask for item in items),
                division=first.finding.division,
                attributes=agreed,
            )
        )
    return records
