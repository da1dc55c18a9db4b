"""The table of the paper that a study carries out, with the run's own figures in it."""

from __future__ import annotations

from dataclasses import dataclass

from server.report.published import TITLES, FigureName, Paper, PublishedRow, contradictions, papers
from server.report.schema import ErrorCount, Figure, HeadReport, MaskReport, PooledHead, PooledMasks, Report

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
            tuple(figure_in(head_of(report, row, paper), figure) for figure in names)
            if name in (row.study, row.small)
            else None,
            tuple(contradictions(row)),
        )
        for row in paper.rows
    )
    return PaperTable(
        paper, tuple(TITLES[figure] for figure in names), rows, name.endswith("_small"), whose(report, paper)
    )


def figures_of(paper: Paper) -> list[FigureName]:
    """Names of the figures that some model of the paper has."""
    return [name for name in TITLES if any(name in row.published for row in paper.rows)]


def whose(report: Report, paper: Paper) -> str:
    """Words for what our figures are of."""
    if (site := _external(report, paper)) is not None:
        return f"the external test at {site}"
    return "all hospitals together" if len(report.sites) > 1 else "the one hospital"


def head_of(report: Report, row: PublishedRow, paper: Paper) -> Head | None:
    """The head that the row is about: of the external test where the paper's is one and we have one, else pooled."""
    site = _external(report, paper)
    head: Head | None = getattr(report.pooled if site is None else report.sites[site], row.head)
    return head


def _external(report: Report, paper: Paper) -> str | None:
    """The hospital whose external test stands beside the paper's; None where the pooled figures do."""
    return report.external_sites[0] if paper.tested == "external" and len(report.external_sites) == 1 else None


def figure_in(head: Head | None, name: FigureName) -> str:
    """A figure of ours as text, with its interval where it has one; a dash where the report has none, as of noised counts."""
    if head is None:
        return "–"
    if isinstance(head, MaskReport | PooledMasks):
        return figure_text(head.iou) if name == "mean_iou" else "–"
    over = head.over_classes
    if name == "errors" or name == "rare_errors":
        count: ErrorCount | None = getattr(over, name) if over is not None else None
        return "–" if count is None else _count_text(count, wrong_images=name == "errors")
    if name == "weighted_f1" or name == "weighted_specificity":
        return "–" if over is None else figure_text(getattr(over.weighted, name.removeprefix("weighted_")))
    return "–" if name == "mean_iou" else figure_text(getattr(head, name))


def figure_text(figure: Figure) -> str:
    """`0.912 (0.85 to 0.96)`."""
    if figure.value is None:
        return "–"
    ends = "" if figure.low is None or figure.high is None else f" ({figure.low:.2f} to {figure.high:.2f})"
    return f"{figure.value:.3f}{ends}"


def _count_text(count: ErrorCount, *, wrong_images: bool) -> str:
    ends = "" if count.low is None or count.high is None else f" ({count.low:.0f} to {count.high:.0f})"
    return f"{count.value}{ends}" + (f", {count.value // 2} wrong images" if wrong_images else "")
