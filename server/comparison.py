"""Two runs side by side, hospital by hospital: what each released of itself, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from server.report.build import build_report
from server.report.schema import ErrorCount, Figure, HeadReport, MaskReport, PooledHead, PooledMasks, Report
from server.run_folder import RunFolder
from shared.errors import InputError, RunFolderError
from shared.metrics.over_classes import NOISED

FIGURES = {"balanced_accuracy": "balanced accuracy", "accuracy": "accuracy"}
WEIGHTED = {"specificity": "weighted specificity", "f1": "weighted F1"}
ERRORS = {"errors": "FP + FN", "rare_errors": "FP + FN, rare"}
HEADS = {"network": "network", "svm": "SVM"}
MISSING = "–"


@dataclass(frozen=True, slots=True)
class Side:
    """One of the runs. `privacy` is what it costs a patient at one hospital, in words."""

    name: str
    report: Report
    privacy: str


def side_of(path: Path) -> Side:
    """Raises RunFolderError where the folder is no run's, or it has no evaluation."""
    run = RunFolder(path)
    report = build_report(run)
    if not report.evaluated:
        raise RunFolderError(f"{path}: the run has no evaluation, so there is nothing to compare")
    if report.privacy is None:
        return Side(path.name, report, "no bound")
    sites = report.privacy.sites.values()
    worst = max([report.privacy.epsilon_pld, *(one.epsilon_begun_again or one.epsilon for one in sites)])
    return Side(path.name, report, f"epsilon {worst:.2f}, delta {report.privacy.delta}")


def comparison(sides: list[Side]) -> Table:
    """One row a hospital, head and figure, one column a run. Figures of noised counts carry the noise in their intervals.

    Raises InputError where one run is of classes and another of masks.
    """
    table = Table(title="Test figures side by side", title_justify="left")
    for heading in ("hospital", "head", "figure"):
        table.add_column(heading)
    for side in sides:
        table.add_column(f"{side.name}\n{side.privacy}", justify="right")
    kinds = {side.report.kind for side in sides}
    if len(kinds) > 1:
        raise InputError(
            "one of the runs tells classes apart and another finds masks, so they share no figure to compare"
        )
    figures = {"iou": "IoU", "dice": "Dice"} if kinds == {"segmentation"} else FIGURES
    heads = {"masks": "network"} if kinds == {"segmentation"} else HEADS
    sites = sorted({site for side in sides for site in side.report.sites})
    for site in [*sites, None]:
        for head, title in heads.items():
            found = [_head(side.report, site, head) for side in sides]
            if all(one is None for one in found):
                continue
            for figure, name in figures.items():
                cells = [_cell(getattr(one, figure) if one is not None else None) for one in found]
                table.add_row(_title(site, sides), title, name, *cells)
            if head == "masks":
                continue
            over = [one.over_classes if isinstance(one, HeadReport | PooledHead) else None for one in found]
            for figure, name in WEIGHTED.items():
                cells = [_cell(getattr(one.weighted, figure) if one is not None else None) for one in over]
                table.add_row(_title(site, sides), title, name, *cells)
            for figure, name in ERRORS.items():
                counts = [_count(getattr(one, figure) if one is not None else None) for one in over]
                if figure == "errors" or any(count != MISSING for count in counts):
                    table.add_row(_title(site, sides), title, name, *counts)
    return table


def notes(sides: list[Side]) -> list[str]:
    """What a reader of the table must know of its rows, a sentence each."""
    heads = [
        head for side in sides for head in (side.report.pooled.network, side.report.pooled.svm) if head is not None
    ]
    if not heads:
        return []
    said = [
        "FP + FN is added over all classes, each against the rest: every wrong image counts twice. "
        "Weighted figures count each class as often as it has images."
    ]
    rare = sorted({", ".join(side.report.study["task"].get("rare_classes", [])) for side in sides} - {""})
    said += [f"Rare: {classes}." for classes in rare]
    if any(head.over_classes is None for head in heads):
        said.append(f"Where a dash stands, weighted figures and errors are {NOISED}.")
    return said


def _title(site: str | None, sides: list[Side]) -> str:
    if site is None:
        return "all that trained" if any(side.report.external_sites for side in sides) else "all"
    return f"{site} (external test)" if any(site in side.report.external_sites for side in sides) else site


def _head(report: Report, site: str | None, head: str) -> HeadReport | PooledHead | MaskReport | PooledMasks | None:
    if site is None:
        pooled: PooledHead | PooledMasks | None = getattr(report.pooled, head)
        return pooled
    one = report.sites.get(site)
    result: HeadReport | MaskReport | None = getattr(one, head) if one is not None else None
    return result


def _count(count: ErrorCount | None) -> str:
    if count is None:
        return MISSING
    interval = f" ({count.low:.0f} to {count.high:.0f})" if count.low is not None and count.high is not None else ""
    return f"{count.value}{interval}"


def _cell(figure: Figure | None) -> str:
    if figure is None or figure.value is None:
        return MISSING
    interval = f" ({figure.low:.2f} to {figure.high:.2f})" if figure.low is not None and figure.high is not None else ""
    return f"{figure.value:.2f}{interval}"
