"""The sentences of a segmentation study's report, computed from its figures."""

from __future__ import annotations

from server.report.schema import PooledMasks, Report
from server.report.words import (
    GLOSSARY,
    Headline,
    Statement,
    all_hospitals,
    course,
    interval_of_hundred,
    joined,
    kept_apart,
    no_evaluation,
    number,
    of_hundred,
    span,
    taught,
    units,
)

_TERMS = {
    "IoU": "Intersection over union, or Jaccard index: of all pixels that are in the true mask or in the found one, the share that is in "
    "both. 1 is perfect, 0 is no overlap. Computed for each image, then the mean. An image without a lesion where none was found counts 1.",
    "Dice": "Twice the pixels in both masks, over the pixels of one and of the other; of an image it is 2 IoU / (1 + IoU), so always at "
    "least the IoU. It is the F1 of the pixels.",
    "Thresholded IoU": "As IoU, but an image whose IoU is below 0.65 counts as 0: such a mask was not found (ISIC challenge 2018).",
    "Pixel accuracy": "Share of all pixels that are told rightly. It is high wherever lesions are small.",
    "Sensitivity": "Of the lesion's pixels, the share that was found; over the images with a lesion.",
    "Specificity": "Of the other pixels, the share that was left out.",
    "Loss": "What training makes small: the mean binary cross-entropy of an image's pixels plus 1 less its (soft) Dice. Only its course "
    "matters here.",
}


def summary(report: Report) -> list[Statement]:
    """The report in a few sentences."""
    pooled = report.pooled.masks
    if pooled is None:
        return [course(report), no_evaluation(report), *external(report)]
    return [
        course(report),
        _found(report, pooled),
        _learned(report, pooled),
        *external(report),
        Statement(
            "Whether a hospital would have done as well with its own images alone was not measured in this run: the gain above is of "
            "training, not of sharing. Nor was how far two experts' masks of one image differ.",
            "plain",
            "not measured",
        ),
    ]


def withheld(report: Report) -> str | None:
    """Why there is a dash in place of a class's figures; None where a hospital withholds none."""
    rows = [one for site in report.sites.values() if site.masks is not None for one in site.masks.classes]
    if not any(one.images and one.iou.value is None for one in rows):
        return None
    return (
        f"Not told: a hospital tells no figures of a class that fewer than {report.study['evaluation']['minimum_cell']} of its test "
        f"{units(report)} are of (or than its own policy asks for, where that is more), nor of the next smallest class where the first "
        "would follow from it and the mean over all, nor of any class where its policy keeps them. They are counted in the number of "
        f"{units(report)}, but are in no figure of the class over all hospitals."
    )


def headlines(report: Report) -> list[Headline]:
    """The large figures over all hospitals. Empty without an evaluation."""
    pooled = report.pooled.masks
    if pooled is None:
        return []
    whom = "images" if pooled.counts is None else "patients"
    wanted = (
        (pooled.iou, f"of every 100 pixels in either mask are in both: mean IoU over the {whom}"),
        (pooled.dice, "mean Dice of 100"),
        (pooled.thresholded_iou, "mean IoU of 100, an image below 65 counted as 0"),
    )
    return [
        Headline(f"{figure.value * 100:.0f}", interval_of_hundred(report, figure), meaning)
        for figure, meaning in wanted
        if figure.value is not None
    ]


def counted_on(report: Report) -> str:
    """Below the large figures: whom they are about."""
    pooled = report.pooled.masks
    if pooled is None:
        return ""
    return f"{all_hospitals(report)} together, {pooled.images} test {units(report)} of {pooled.patients} test patients."


def glossary(report: Report) -> dict[str, str]:
    """The terms that this page uses."""
    return {**_TERMS, **{term: GLOSSARY[term] for term in ("Interval", "Round")}}


def _found(report: Report, pooled: PooledMasks) -> Statement:
    text = (
        f"Of every 100 pixels that the found mask or the true one covers, both cover {of_hundred(report, pooled.iou, first=True)}, on the "
        f"mean over the images (mean IoU {number(pooled.iou.value)}, mean Dice {number(pooled.dice.value)}). This was counted on "
        f"{pooled.images} test {units(report)} of {pooled.patients} patients at {len(pooled.sites)} "
        f"{'hospital' if len(pooled.sites) == 1 else 'hospitals'}, {kept_apart(report, pooled)}."
    )
    return Statement(text, "plain", "counted")


def _learned(report: Report, pooled: PooledMasks) -> Statement:
    gain = pooled.gain.get("iou") if pooled.gain else None
    return taught(report, gain, whom="the network", what="the mean IoU")


def external(report: Report) -> list[Statement]:
    """What hospitals that never trained found; a statement for each."""
    said = []
    for site in report.external_sites:
        masks = report.sites[site].masks
        if masks is None:
            text = f"{site} was to test the final network as an outsider, and sent no evaluation."
            said.append(Statement(text, "plain", "not measured"))
            continue
        on = (
            "counts with noise"
            if masks.images is None
            else f"{masks.images} {units(report)} of {masks.patients} patients"
        )
        text = (
            f"External test: at {joined([site])}, which never trained, the network has mean IoU {number(masks.iou.value)} "
            f"({100 * report.confidence:g} % interval {span(masks.iou) or 'not known'}) and mean Dice {number(masks.dice.value)} on "
            f"{on}."
        )
        said.append(Statement(text, "plain", "external test"))
    return said
