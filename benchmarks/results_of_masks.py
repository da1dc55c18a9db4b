"""What docs/results.md says of a run that finds masks."""

from __future__ import annotations

from benchmarks.results_of_a_run import named, signed, table
from server.report.paper import figure_text
from server.report.schema import MaskReport, PooledMasks, Report
from shared.results import MASK_METRICS

TITLES = {
    "iou": "IoU",
    "dice": "Dice",
    "thresholded_iou": "IoU, 0 below .65",
    "pixel_accuracy": "pixel accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
}


def masks(report: Report) -> str:
    """Each hospital's figures, all together, and what training gained; nothing for a run that tells classes apart."""
    if report.pooled.masks is None:
        return ""
    found: list[tuple[str, MaskReport | PooledMasks]] = [
        (named(site, report), one.masks) for site, one in report.sites.items() if one.masks is not None
    ]
    if len(found) > 1:
        found.append(("all", report.pooled.masks))
    rows = [(name, one.images, *(figure_text(getattr(one, metric)) for metric in MASK_METRICS)) for name, one in found]
    gains = [
        (name, signed(one.gain.get("iou")), signed(one.gain.get("dice"))) for name, one in found if one.gain is not None
    ]
    parts = [
        "### Masks on each hospital's own test part\n\nMeans over the test images; sensitivity and specificity are of pixels.",
        table(("hospital", "images", *(TITLES[name] for name in MASK_METRICS)), rows),
    ]
    if gains:
        parts += [
            "What training gained over the round-0 model on the same images:",
            table(("hospital", "IoU", "Dice"), gains),
        ]
    return "\n\n".join(parts)
