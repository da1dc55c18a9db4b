"""The runs of a study's folds together: mean and standard deviation over the folds, and all test patients at once.

Each patient is tested in one fold, by a model that was not trained on it, so the folds' confusion counts add up to counts over all
patients (`together`). Its intervals are about the choice of test patients. The standard deviation is over the folds, whose train parts
overlap: it says how much folds differ, and no unbiased standard error can be made of it (Bengio and Grandvalet, "No Unbiased Estimator of
the Variance of K-Fold Cross-Validation", 2004).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from server.report.build import build_report, pooled_head
from server.report.build_masks import pooled_masks
from server.report.descriptors import descriptor_reports
from server.report.schema import ErrorCount, Figure, PooledDescriptor, PooledHead, PooledMasks, Report
from server.run_folder import RunFolder
from shared.errors import InputError, RunFolderError
from shared.results import DESCRIPTOR_METRICS, MASK_METRICS, METRICS, NOISED_MASK_METRICS, Evaluated, MaskMetric
from shared.schema import Strict
from shared.study import Study
from shared.study_data import Folds

HeadKey = Literal["network", "svm", "svm_paper"]
_HEADS: tuple[HeadKey, ...] = ("network", "svm", "svm_paper")


class OverFolds(Strict):
    """One figure."""

    by_fold: list[float | None] = Field(description="in the order of the folds; all hospitals that trained, pooled")
    mean: float | None
    standard_deviation: float | None = Field(description="over the folds (n - 1); null for fewer than two")


class HeadOverFolds(Strict):
    """One head."""

    figures: dict[str, OverFolds] = Field(
        description="by the name of the pooled head's field; `weighted_` before those weighted over the classes"
    )
    together: PooledHead = Field(description="all folds' test patients at once")


class MasksOverFolds(Strict):
    """The masks of a segmentation study."""

    figures: dict[MaskMetric, OverFolds] = Field(description="by the name of the pooled masks' field")
    together: PooledMasks = Field(description="all folds' test patients at once")


class DescriptorOverFolds(Strict):
    """One descriptor of lesions."""

    figures: dict[str, OverFolds] = Field(description="by the name of the pooled descriptor's field")
    together: PooledDescriptor = Field(
        description="mean of all hospitals' and folds' figures, weighted by the test images that have the descriptor"
    )


class CrossValidation(Strict):
    """What `consilium-server cross-validated` found."""

    format: Literal["consilium/cross-validation/1"] = Field(default="consilium/cross-validation/1", alias="schema")
    of: int
    runs: dict[int, str] = Field(description="name of the run by its fold, from 1")
    heads: dict[HeadKey, HeadOverFolds] = Field(description="none of a segmentation study")
    masks: MasksOverFolds | None = Field(default=None, description="of a segmentation study only")
    descriptors: dict[str, DescriptorOverFolds] = Field(
        default_factory=dict, description="by name; without one that a fold has no figures of"
    )
    notes: list[str] = Field(description="what a reader must know of it, a sentence each")


def cross_validation(paths: Sequence[Path]) -> CrossValidation:
    """Put the runs together. Raises RunFolderError, InputError where they are no folds of one study or lack an evaluation."""
    runs = _by_fold(paths)
    first = next(iter(runs.values()))
    study, folds = first.study(), _folds_of(first)
    reports = {fold: build_report(run) for fold, run in runs.items()}
    tested: dict[str, Evaluated] = {}
    for fold, run in runs.items():
        final = run.final()
        if final is None or not final.sites:
            raise RunFolderError(f"{run.path}: the run has no evaluation")
        aside = reports[fold].external_sites
        tested |= {f"{site}, fold {fold}": one for site, one in final.sites.items() if site not in aside}
    heads: dict[HeadKey, HeadOverFolds] = {}
    for key in _HEADS:
        pooled = [getattr(report.pooled, key) for report in reports.values()]
        together = pooled_head(tested, key, study)
        if together is None or any(one is None for one in pooled):
            continue
        heads[key] = HeadOverFolds(
            figures={name: _over([_value(figure_of(one, name)) for one in pooled]) for name in _figures(together)},
            together=together,
        )
    names = {fold: run.name for fold, run in runs.items()}
    return CrossValidation(
        of=folds.of, runs=names, heads=heads, masks=_masks(tested, study, reports),
        descriptors=_descriptors(tested, study, reports), notes=_notes(study, folds, reports),
    )  # fmt: skip


def _masks(tested: Mapping[str, Evaluated], study: Study, reports: Mapping[int, Report]) -> MasksOverFolds | None:
    together, pooled = pooled_masks(tested, study), [report.pooled.masks for report in reports.values()]
    there = [one for one in pooled if one is not None]
    if together is None or len(there) < len(pooled):
        return None
    names = MASK_METRICS if together.counts is None else NOISED_MASK_METRICS
    figures = {name: _over([getattr(one, name).value for one in there]) for name in names}
    return MasksOverFolds(figures=figures, together=together)


def _descriptors(
    tested: Mapping[str, Evaluated], study: Study, reports: Mapping[int, Report]
) -> dict[str, DescriptorOverFolds]:
    found = {}
    for name, whole in descriptor_reports(tested, study, external=[]).items():
        pooled = [one.pooled for report in reports.values() if (one := report.descriptors.get(name)) is not None]
        there = [one for one in pooled if one is not None]
        if whole.pooled is None or len(there) < len(reports):
            continue
        figures = {metric: _over([getattr(one, metric).value for one in there]) for metric in DESCRIPTOR_METRICS}
        found[name] = DescriptorOverFolds(figures=figures, together=whole.pooled)
    return found


def _by_fold(paths: Sequence[Path]) -> dict[int, RunFolder]:
    """The runs by the number of their fold, from 1, in order."""
    found: dict[int, RunFolder] = {}
    like: tuple[RunFolder, dict[str, Any]] | None = None
    for path in paths:
        run = RunFolder(path)
        number = _folds_of(run).test + 1
        if number in found:
            raise InputError(f"{path}: it tests fold {number}, as {found[number].path} does; give each fold once")
        rest = _without_fold(run.study())
        if like is not None and rest != like[1]:
            keys = [key for key in rest if rest[key] != like[1].get(key)]
            raise InputError(
                f"{path}: its study differs from that of {like[0].path} in more than the fold: {', '.join(keys)}"
            )
        like = like or (run, rest)
        found[number] = run
    if not found:
        raise InputError("expected the folders of the folds' runs, but got none")
    return dict(sorted(found.items()))


def _folds_of(run: RunFolder) -> Folds:
    folds = run.study().data.split.folds
    if folds is None:
        raise InputError(
            f"{run.path}: its study has no data.split.folds; `consilium-server folds` writes studies that do"
        )
    return folds


def _without_fold(study: Study) -> dict[str, Any]:
    data = study.to_data()
    data["data"]["split"]["folds"].pop("test")
    return {key: value for key, value in data.items() if key != "name"}


def _figures(like: PooledHead) -> list[str]:
    """Names of what is averaged over the folds."""
    over = like.over_classes
    if over is None:
        return list(METRICS)
    names = [*METRICS, "weighted_precision", "weighted_specificity", "weighted_f1", "errors"]
    return names if over.rare_errors is None else [*names, "rare_errors"]


def figure_of(head: PooledHead, name: str) -> Figure | ErrorCount | None:
    """The figure of that name, wherever in the head it stands."""
    place: object = head
    if name in ("errors", "rare_errors"):
        place = head.over_classes
    elif name.startswith("weighted_"):
        place, name = head.over_classes and head.over_classes.weighted, name.removeprefix("weighted_")
    found: Figure | ErrorCount | None = getattr(place, name) if place is not None else None
    return found


def _value(found: Figure | ErrorCount | None) -> float | None:
    return None if found is None or found.value is None else float(found.value)


def _over(values: list[float | None]) -> OverFolds:
    there = [value for value in values if value is not None]
    whole = len(there) == len(values)
    return OverFolds(
        by_fold=values,
        mean=statistics.fmean(there) if whole else None,
        standard_deviation=statistics.stdev(there) if whole and len(there) > 1 else None,
    )


def _notes(study: Study, folds: Folds, reports: Mapping[int, Report]) -> list[str]:
    said = [
        "Mean and sd are over the folds, all hospitals that trained pooled. Train parts of folds overlap, so the sd is no standard error.",
        "All together: every test patient of every fold, each tested once; intervals are about the choice of patients"
        + (", and about the noise." if study.evaluation.release is not None else "."),
    ]
    if missing := sorted(set(range(1, folds.of + 1)) - set(reports)):
        said.append(f"NOT WHOLE: fold {', '.join(map(str, missing))} is missing, so its patients are in no figure.")
    sites = {
        fold: {site for site, one in report.sites.items() if one.network is not None or one.masks is not None}
        for fold, report in reports.items()
    }
    every = set().union(*sites.values())
    for fold, there in sites.items():
        if away := sorted(every - there):
            said.append(f"NOT WHOLE: {', '.join(away)} sent no evaluation of fold {fold}.")
    for name in study.task.descriptors if study.evaluation.release is None else ():
        for fold, report in reports.items():
            if kept := [site for site in report.descriptors[name].not_reported if site in sites[fold]]:
                said.append(f"NOT WHOLE: {', '.join(kept)} gave no figures of {name} in fold {fold}.")
    for site in sorted(every):
        totals = {
            sum(counts.patients for counts in one.data.parts.values())
            for report in reports.values()
            if (one := report.sites.get(site)) is not None and one.data is not None and one.data.parts
        }
        if len(totals) > 1:
            said.append(
                f"NOT ONE DIVISION: {site} had {' and '.join(map(str, sorted(totals)))} patients in different folds' runs."
            )
    if any(report.external_sites for report in reports.values()):
        said.append("Hospitals that only test are in no figure: they test all their patients in every fold.")
    if study.privacy is not None:
        said.append("Each fold's run was charged to the patients' budget by itself.")
    return said
