"""Two runs side by side, hospital by hospital: what each released of itself, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from server.report.build import build_report
from server.report.schema import Figure, HeadReport, MaskReport, PooledHead, PooledMasks, Report
from server.run_folder import RunFolder
from shared.errors import RunFolderError

FIGURES = {"balanced_accuracy": "balanced accuracy", "accuracy": "accuracy"}
HEADS = {"network": "network", "svm": "SVM"}


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

    Raises RunFolderError where one run is of classes and another of masks.
    """
    table = Table(title="Test figures side by side", title_justify="left")
    for heading in ("hospital", "head", "figure"):
        table.add_column(heading)
    for side in sides:
        table.add_column(f"{side.name}\n{side.privacy}", justify="right")
    kinds = {side.report.kind for side in sides}
    if len(kinds) > 1:
        raise RunFolderError(
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
    return table


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


def _cell(figure: Figure | None) -> str:
    if figure is None or figure.value is None:
        return "–"
    interval = f" ({figure.low:.2f} to {figure.high:.2f})" if figure.low is not None and figure.high is not None else ""
    return f"{figure.value:.2f}{interval}"
