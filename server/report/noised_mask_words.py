"""The sentences of a segmentation study's report where only noised counts of patients by IoU have left, and those of its privacy."""

from __future__ import annotations

from server.report import mask_words
from server.report.noised_words import EPSILON, INTERVAL, noised, privacy, with_noise
from server.report.schema import PooledMasks, Report
from server.report.words import (
    Headline,
    Statement,
    all_hospitals,
    course,
    kept_apart,
    number,
    of_hundred,
)

_INTERVAL = f"{INTERVAL} It also covers where within its bin of 0.05 each patient's IoU is."
_NOISED = ("Loss", "Pixel accuracy", "Sensitivity", "Specificity")


def summary(report: Report) -> list[Statement]:
    """The report in a few sentences."""
    pooled = report.pooled.masks
    if pooled is None or pooled.counts is None:
        said = mask_words.summary(report)
        return [said[0], *privacy(report), *said[1:]]
    return [
        course(report),
        *privacy(report),
        _found(report, pooled),
        *mask_words.external(report),
        Statement(
            "What the rounds taught is not known: figures leave once, of the final model, so there is none of round 0. Nothing is known of "
            "single classes or pixels. Whether a hospital would have done as well alone was not measured either, nor how far two experts' "
            "masks of one image differ.",
            "plain",
            "not measured",
        ),
    ]


def headlines(report: Report) -> list[Headline]:
    """The large figures over all hospitals. Empty without an evaluation."""
    found = mask_words.headlines(report)
    return [with_noise(one) for one in found] if noised(report) else found


def counted_on(report: Report) -> str:
    """Below the large figures: whom they are about."""
    pooled = report.pooled.masks
    if pooled is None or pooled.counts is None:
        return mask_words.counted_on(report)
    return f"{all_hospitals(report)} together, counts with noise: about {pooled.iou.images} test patients, one image of each."


def glossary(report: Report) -> dict[str, str]:
    """The terms that this page uses."""
    terms = mask_words.glossary(report)
    if noised(report):
        terms = {term: meaning for term, meaning in terms.items() if term not in _NOISED}
        terms["IoU"] = f"{terms['IoU']} Here the mean is over the test patients, with one image of each."
        terms["Interval"] = _INTERVAL
    if report.privacy is not None:
        terms["Epsilon, delta"] = EPSILON
    return terms


def _found(report: Report, pooled: PooledMasks) -> Statement:
    text = (
        f"Of every 100 pixels that the found mask or the true one covers, both cover {of_hundred(report, pooled.iou, first=True)}, on the "
        f"mean over the test patients (mean IoU {number(pooled.iou.value)}, mean Dice {number(pooled.dice.value)}). The hospitals' counts "
        f"of patients by IoU left with noise: they add up to about {pooled.iou.images} test patients at {len(pooled.sites)} "
        f"{'hospital' if len(pooled.sites) == 1 else 'hospitals'}, {kept_apart(report, pooled)}; each has one vote, with one image. The "
        "intervals account for the noise and for the width of the bins."
    )
    return Statement(text, "plain", "counted")
