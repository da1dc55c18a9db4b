"""The hospital's own page about a run that learned to find masks: single images with both outlines. It is sent to nobody."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.data.records import Part
from client.masks import PartMasks
from client.outlines import outlined
from client.page_figures import ImageOf, png_data_uri
from client.page_masks_template import PAGE
from client.page_words import cell, gain_cell
from client.page_writing import about, write
from shared.metrics.segmentation import mask_figures
from shared.profile import Profile
from shared.results import (
    MASK_GAINS,
    MASK_METRICS,
    Difference,
    Estimate,
    Evaluated,
    MaskClassRow,
    MaskGain,
    MaskResult,
    PartCounts,
)
from shared.study import Study

#: True and found mask (H, W) of the i-th test image.
MasksOf = Callable[[int], tuple[NDArray[np.bool_], NDArray[np.bool_]]]

TITLES = {
    "iou": "IoU (Jaccard)",
    "dice": "Dice",
    "thresholded_iou": "Thresholded IoU",
    "pixel_accuracy": "Pixel accuracy",
    "sensitivity": "Sensitivity (pixels)",
    "specificity": "Specificity (pixels)",
}
_BARS = 20
_WIDTH, _HEIGHT = 600.0, 200.0


def write_mask_page(
    folder: Path,
    *,
    run: str,
    profile: Profile,
    study: Study,
    evaluated: Evaluated,
    test: PartMasks,
    parts: Mapping[Part, PartCounts],
    image_of: ImageOf,
    masks_of: MasksOf,
    shown: int = 4,
) -> Path:
    """Write `folder`/evaluation.html, one self-contained file, and return its path.

    `image_of(i)` and `masks_of(i)` are asked for the shown test images only: the `shown` best, median and worst by Dice. Raises
    StorageError where the file can't be written, ValueError where `evaluated` holds no masks.
    """
    masks = evaluated.masks
    if masks is None:
        raise ValueError("Expected an evaluation of masks, but got one of classes")
    figures = mask_figures(test.counts)
    frame = about(run, profile, study)
    values: dict[str, Any] = {
        **frame,
        "headline": _headline(evaluated, masks, frame["percent"]),
        "boxes": [{"title": TITLES[name], **cell(getattr(masks, name))} for name in ("iou", "dice", "thresholded_iou")],
        "rows": _rows(masks),
        "has_gain": masks.gain is not None,
        "classes": study.task.class_names,
        "class_rows": [
            {
                "name": name,
                "images": row.images,
                "stays": row.withheld,
                "cells": [cell(_own(row, metric, figures[metric][test.labels == index])) for metric in MASK_GAINS],
            }
            for index, (name, row) in enumerate(zip(study.task.class_names, masks.classes, strict=True))
        ],
        "bars": _bars(figures["dice"]),
        "width": _WIDTH,
        "height": _HEIGHT,
        "groups": [
            {"title": title, "cards": [_card(row, test, figures, study, image_of, masks_of) for row in rows]}
            for title, rows in _chosen(figures["dice"], shown).items()
        ],
        "parts": {name: parts[name] for name in ("train", "validation", "test") if name in parts},
    }
    return write(folder, PAGE, values)


def _own(row: MaskClassRow, metric: MaskGain, values: NDArray[np.float64]) -> Estimate:
    """What leaves of a class; the exact mean of its images' `values` where its figures stay here."""
    return Estimate(value=float(values.mean())) if row.withheld and values.size else getattr(row, metric)


def _chosen(dice: NDArray[np.float64], most: int) -> dict[str, list[int]]:
    """Rows of the worst, the median and the best images, none of them twice."""
    order = np.argsort(dice, kind="stable")
    each = min(most, len(order) // 3) or len(order)
    worst = order[:each]
    if each == len(order):
        return {"All test images, the worst first": worst.tolist()}
    middle = max(each, min((len(order) - each) // 2, len(order) - 2 * each))
    return {
        "The worst": worst.tolist(),
        "The middle": order[middle : middle + each].tolist(),
        "The best": order[: -each - 1 : -1].tolist(),
    }


def _card(
    row: int,
    test: PartMasks,
    figures: Mapping[Any, NDArray[np.float64]],
    study: Study,
    image_of: ImageOf,
    masks_of: MasksOf,
) -> dict[str, str]:
    image = image_of(row)
    truth, found = masks_of(row)
    return {
        "key": test.keys[row],
        "patient": str(test.counts.patients[row]),
        "truth": study.task.class_names[int(test.labels[row])],
        "dice": f"{figures['dice'][row]:.3f}",
        "iou": f"{figures['iou'][row]:.3f}",
        "image": png_data_uri(image),
        "outlined": png_data_uri(outlined(image, truth, found)),
    }


def _headline(evaluated: Evaluated, masks: MaskResult, percent: str) -> str:
    what = f"{evaluated.images} test images of {evaluated.patients} patients, none of whom is in the training part"
    iou = masks.iou
    if iou.value is None:
        return f"On {what}, no figure is defined."
    between = ""
    if iou.low is not None and iou.high is not None:
        between = f" ({percent} % interval {100 * iou.low:.0f} to {100 * iou.high:.0f} %)"
    return (
        f"On {what}, {100 * iou.value:.0f} % of the area that the found mask or the true one covers is in both{between}, on the mean over "
        "the images."
    )


def _rows(masks: MaskResult) -> list[dict[str, str]]:
    rows = [{"title": TITLES[name], **cell(getattr(masks, name))} for name in MASK_METRICS]
    gains: Mapping[Any, Difference] = masks.gain or {}
    rows += [{"title": f"Gain in {TITLES[name]} over round 0", **gain_cell(gain)} for name, gain in gains.items()]
    return rows


def _bars(dice: NDArray[np.float64]) -> Sequence[dict[str, float | int | str]]:
    counts, edges = np.histogram(dice, bins=_BARS, range=(0.0, 1.0))
    highest, width = max(1, int(counts.max())), _WIDTH / _BARS
    return [
        {
            "x": round(place * width + 1, 1),
            "y": round(_HEIGHT * (1 - count / highest), 1),
            "width": round(width - 2, 1),
            "height": round(_HEIGHT * count / highest, 1),
            "count": int(count),
            "between": f"{low:.2f} to {high:.2f}",
        }
        for place, (count, low, high) in enumerate(zip(counts, edges[:-1], edges[1:], strict=True))
    ]
