"""A hospital's evaluation of one global model that finds masks: counts of pixels become figures, and nothing of a single image leaves."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np

from client.kept_masks import KeptMasks, load_masks, save_masks
from client.masks import PartMasks
from shared.errors import DataError
from shared.metrics.mask_result import mask_result
from shared.metrics.segmentation import MaskCounts, mask_figures
from shared.results import Evaluated, Validation
from shared.study import Study

_log = logging.getLogger(__name__)


def evaluate_masks(
    test: PartMasks,
    study: Study,
    *,
    train_patients: int,
    train_images: int,
    minimum_cell: int,
    seed: int,
    baseline: Path | None,
    keep: Path,
    masks_seconds: float = 0.0,
) -> Evaluated:
    """Figures of the `test` part. As `client.evaluation.evaluate`: `baseline` is the file that the round-0 model's masks were counted into,
    `keep` where this model's go, and the same `seed` for both pairs them.

    Raises DataError (no test image) and StorageError (the counts can't be written).
    """
    begun = time.perf_counter()
    if test.images == 0:
        raise DataError("the test part holds no image, so there is nothing to evaluate on; change the study's split")
    settings = study.evaluation
    kept = KeptMasks(test.keys, test.counts)
    masks = mask_result(
        test.counts,
        test.labels,
        classes=len(study.task.classes),
        resamples=settings.resamples,
        confidence=settings.confidence,
        bins=settings.histogram_bins,
        minimum_cell=max(minimum_cell, settings.minimum_cell),
        seed=seed,
        baseline=_baseline(baseline, kept),
    )
    save_masks(keep, kept)
    seconds = time.perf_counter() - begun
    return Evaluated(
        patients=test.patient_count,
        images=test.images,
        train_patients=train_patients,
        train_images=train_images,
        masks=masks,
        seconds={"features": masks_seconds, "metrics": seconds, "total": masks_seconds + seconds},
    )


def validation_of(part: PartMasks) -> Validation:
    """The validation figures of the incoming model, from at least one image."""
    figures = mask_figures(part.counts)
    return Validation(
        loss=float(part.losses.mean()),
        accuracy=float(figures["pixel_accuracy"].mean()),
        auc=None,
        dice=float(figures["dice"].mean()),
        images=part.images,
    )


def _baseline(path: Path | None, final: KeptMasks) -> MaskCounts | None:
    """The round-0 model's counts of the same test images; None where they can't be compared."""
    if path is None:
        return None
    try:
        before = load_masks(path)
    except DataError as problem:
        _log.warning("no gain over round 0 is reported: %s", problem)
        return None
    same = before.keys == final.keys and np.array_equal(before.counts.patients, final.counts.patients)
    if not (same and np.array_equal(before.counts.lesions, final.counts.lesions)):
        _log.warning("no gain over round 0 is reported: %s is of other test images than the final model's", path)
        return None
    return before.counts
