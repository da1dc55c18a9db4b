"""Tables and charts of the report's section on masks."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from markupsafe import Markup

from server.report import charts, words
from server.report.charts import Interval, Series
from server.report.figure_chart import figure_chart, figure_row
from server.report.gain_chart import Change, gain_chart
from server.report.mask_words import withheld
from server.report.noised_words import noised
from server.report.schema import MaskReport, PooledDifference, PooledMasks, Report
from shared.metrics.noised_masks import IOU_EDGES
from shared.results import NOISED_MASK_METRICS, Difference

#: Columns of the tables of figures: field and title.
COLUMNS = (
    ("iou", "IoU"),
    ("dice", "Dice"),
    ("thresholded_iou", "Thresholded IoU"),
    ("sensitivity", "Pixel sensitivity"),
    ("specificity", "Pixel specificity"),
    ("pixel_accuracy", "Pixel accuracy"),
)


def columns(report: Report) -> list[tuple[str, str]]:
    """Without the figures of pixels where only noised counts have left."""
    return [one for one in COLUMNS if one[0] in NOISED_MASK_METRICS or not noised(report)]


def mask_values(report: Report) -> dict[str, Any]:
    """What the template's section on masks needs; no `mask_sites` where there are no figures of masks."""
    pooled = report.pooled.masks
    external = [site for site in report.external_sites if report.sites[site].masks is not None]
    if pooled is None and not external:
        return {"masks": None, "mask_sites": []}
    return {
        "masks": pooled,
        "mask_sites": [site for site in report.sites if report.sites[site].masks is not None],
        "mask_columns": columns(report),
        "mask_bins": _bins(report),
        "masks_withheld": withheld(report),
        "mask_chart": _figures_chart(report),
        "mask_gain_chart": _gain_chart(report),
        "dice_chart": _dice_chart(report),
    }


def _bins(report: Report) -> list[tuple[str, list[int]]]:
    """Each bin of IoU with the noised counts of the hospitals that have any, then of all; none of exact figures."""
    counts = [site.masks.counts for site in report.sites.values() if site.masks is not None and site.masks.counts]
    if report.pooled.masks is not None and report.pooled.masks.counts:
        counts.append(report.pooled.masks.counts)
    return [
        (f"{low:.2f} to {high:.2f}", [one[place] for one in counts])
        for place, (low, high) in enumerate(pairwise(IOU_EDGES))
        if counts
    ]


def _figures_chart(report: Report) -> Markup | None:
    rows: list[Interval] = []
    for style, (name, site) in enumerate(report.sites.items()):
        if site.masks is not None:
            rows.append(figure_row(words.name_of(report, name), style, site.masks.iou))
    if report.pooled.masks is not None:
        rows.append(figure_row(words.all_hospitals(report).lower(), 0, report.pooled.masks.iou, pooled=True))
    return figure_chart(report, rows, title="mean IoU")


def _gain_chart(report: Report) -> Markup | None:
    sites = [
        Change(words.name_of(report, name), style, _iou_gain(site.masks), True, False)
        for style, (name, site) in enumerate(report.sites.items())
    ]
    together = Change(words.all_hospitals(report).lower(), 0, _iou_gain(report.pooled.masks), True, True)
    return gain_chart([*sites, together], of="mean IoU")


def _iou_gain(masks: MaskReport | PooledMasks | None) -> Difference | PooledDifference | None:
    return masks.gain.get("iou") if masks is not None and masks.gain else None


def _dice_chart(report: Report) -> Markup | None:
    curves = [
        Series(name, style, [(point.dice, point.share) for point in site.masks.reaching])
        for style, (name, site) in enumerate(report.sites.items())
        if site.masks is not None and site.masks.reaching is not None
    ]
    if not curves:
        return None
    return charts.line_chart(
        curves, label="Share of the test images whose Dice is at least so much, by hospital", x_label="Dice",
        y_label="share of the images", y_range=(0.0, 1.0), whole=False,
    )  # fmt: skip
