"""What a model card says of a network that finds masks: how it was measured, and what was found."""

from __future__ import annotations

from server.documents.parts import Block, Fill, Paragraph, Table
from server.report.mask_page import columns
from server.report.mask_words import withheld
from server.report.noised_words import noised
from server.report.schema import MaskReport, PooledMasks, Report
from server.report.words import all_hospitals, class_words, improvement, name_of, with_interval


def mask_metrics(report: Report) -> list[Block]:
    """How the figures were obtained."""
    confidence = f"{100 * report.confidence:g} %"
    how = (
        "All figures are computed from counts of test patients by IoU, in 20 bins and with two-sided geometric noise, one vote a patient. "
        f"The {confidence} intervals account for the choice of patients, for the noise and for the width of the bins. No figure by class "
        "or of pixels left."
        if noised(report)
        else f"{confidence} intervals by bootstrap, resampled by patient at each hospital; over all hospitals as the report says."
    )
    return [
        Paragraph(
            f"Every figure is a mean over the test {'patients' if noised(report) else 'images'}. IoU (Jaccard index) and Dice of an image "
            f"without a lesion where none was found are 1; the thresholded IoU counts an image below 0.65 as 0. {how}"
        ),
        Paragraph(
            "A pixel is found where the network's chance of a lesion is at least one half; no threshold was tuned."
        ),
        Paragraph(
            Fill("the owner", "which errors matter most for the intended use, and what would be good enough")
        ),
    ]  # fmt: skip


def mask_tables(report: Report, pooled: PooledMasks) -> list[Block]:
    """The figures by hospital and by class, and what they show."""
    trained = [name for name in report.sites if name not in report.external_sites]
    shown = columns(report)
    rows = [_row(name, masks, shown) for name in trained if (masks := report.sites[name].masks) is not None]
    rows.append(_row(all_hospitals(report), pooled, shown))
    rows += [
        _row(name_of(report, name), masks, shown)
        for name in report.external_sites
        if (masks := report.sites[name].masks) is not None
    ]
    classes = [
        [class_words(one.name), str(one.images), with_interval(one.iou), with_interval(one.dice)]
        for one in pooled.classes
    ]
    blocks: list[Block] = [
        Table("Masks of the final model, by hospital.", ["Hospital", *(title for _, title in shown)], rows)
    ]
    if classes:
        caption = f"Masks of the final model, {all_hospitals(report).lower()}, by class."
        blocks.append(Table(caption, ["Class", "Images", "IoU", "Dice"], classes))
    return [
        *blocks,
        *([Paragraph(why)] if (why := withheld(report)) is not None else []),
        Paragraph(_verdict(report, pooled)),
    ]


def _row(name: str, masks: MaskReport | PooledMasks, shown: list[tuple[str, str]]) -> list[str]:
    return [name, *(with_interval(getattr(masks, field)) for field, _ in shown)]


def _verdict(report: Report, pooled: PooledMasks) -> str:
    gain = pooled.gain.get("iou") if pooled.gain else None
    if gain is None:
        return "What the rounds taught is not known: there is no evaluation of round 0."
    shown = {"shown": "is shown to be better", "worse": "is worse"}.get(improvement(gain), "is not shown to be better")
    return (
        f"Over {all_hospitals(report).lower()} the final model {shown} than that of round 0: its mean IoU differs by {gain.value:+.2f} "
        f"({gain.low:+.2f} to {gain.high:+.2f})."
    )
