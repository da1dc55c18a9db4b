"""The table of the paper that a study carries out, with the run's own figures in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from server.report.published import COUNTS, TITLES, Paper, PublishedRow, contradictions, papers
from server.report.schema import Figure, HeadReport, MaskReport, PooledFigure, PooledHead, PooledMasks, Report
from shared.metrics.over_classes import errors, weighted_rates

#: Figures that a report holds by these very names; the others are made of its confusion counts.
REPORTED = ("accuracy", "sensitivity", "specificity", "precision", "f1", "auc")


Head = HeadReport | PooledHead | MaskReport | PooledMasks


@dataclass(frozen=True, slots=True)
class Row:
    """A model of the paper: its published figures and, where the run is of it, ours, in the order of the table's figures."""

    model: str
    published: tuple[str, ...]
    ours: tuple[str, ...] | None
    contradictions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PaperTable:
    """`where` says whose figures ours are."""

    paper: Paper
    titles: tuple[str, ...]
    rows: tuple[Row, ...]
    small: bool
    where: str


def paper_table(report: Report) -> PaperTable | None:
    """None where the run's study is none of a paper's, or it has no figures."""
    name = str(report.study["name"])
    paper = next((one for one in papers().values() if any(name in (row.study, row.small) for row in one.rows)), None)
    if paper is None or not report.evaluated:
        return None
    names = figures_of(paper)
    rows = tuple(
        Row(
            row.model,
            tuple(row.published.get(figure, "–") for figure in names),
            tuple(figure_in(head_of(report, row, paper), figure, report, paper) for figure in names)
            if name in (row.study, row.small)
            else None,
            tuple(contradictions(row)),
        )
        for row in paper.rows
    )
    return PaperTable(
        paper, tuple(TITLES[figure] for figure in names), rows, name.endswith("_small"), whose(report, paper)
    )


def figures_of(paper: Paper) -> list[str]:
    """Names of the figures that some model of the paper has."""
    return [name for name in TITLES if any(name in row.published for row in paper.rows)]


def whose(report: Report, paper: Paper) -> str:
    """Words for what our figures are of."""
    if paper.tested == "external" and len(report.external_sites) == 1:
        return f"the external test at {report.external_sites[0]}"
    return "all hospitals together" if len(report.sites) > 1 else "the one hospital"


def head_of(report: Report, row: PublishedRow, paper: Paper) -> Head | None:
    """The head that the row is about: of the external test where the paper's is one and we have one, else pooled."""
    place = report.sites[report.external_sites[0]] if whose(report, paper).startswith("the external") else report.pooled
    head: Head | None = getattr(place, row.head)
    return head


def figure_in(head: Head | None, name: str, report: Report, paper: Paper) -> str:
    """A figure of ours as text, with its interval where it has one."""
    if head is None:
        return "–"
    if isinstance(head, MaskReport | PooledMasks):
        return figure_text(head.iou) if name == "mean_iou" else "–"
    if name in REPORTED:
        return figure_text(getattr(head, name))
    rare = {label.lower() for label in paper.rare}
    rows = [index for index, label in enumerate(report.classes) if label.lower() in rare]
    value = from_confusion(np.array(head.confusion), rows).get(name)
    if value is None:
        return "–"
    if name == "errors" and head.over_classes is not None:  # of noised counts it is not the number of images
        return f"{value:.0f} ({value / 2:.0f} wrong images)"
    return f"{value:.0f}" if name in COUNTS else f"{value:.3f}"


def figure_text(figure: Figure | PooledFigure) -> str:
    if figure.value is None:
        return "–"
    ends = "" if figure.low is None or figure.high is None else f" ({figure.low:.2f} to {figure.high:.2f})"
    return f"{figure.value:.3f}{ends}"


def from_confusion(counts: np.ndarray, rare: Sequence[int]) -> dict[str, float]:
    """Figures over all classes of confusion[true][predicted] (K, K), by `shared.metrics.over_classes`; what is undefined is left out.

    `rare` are rows of the classes that the paper calls rare.
    """
    counts = counts.astype(np.float64)
    found = {"errors": float(errors(counts))}
    if rare:
        found["rare_errors"] = float(errors(counts, rare))
    weighted = weighted_rates(counts)
    found |= {f"weighted_{name}": float(weighted[name]) for name in ("f1", "specificity")}
    return {name: value for name, value in found.items() if np.isfinite(value)}
