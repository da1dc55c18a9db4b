"""From what the hospitals sent of masks to the report's figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from server.report.how import HOW
from server.report.schema import (
    Figure,
    MaskClassFigures,
    MaskReport,
    PooledDifference,
    PooledFigure,
    PooledMasks,
    ReachingPoint,
)
from shared.metrics.mask_pooling import pool_masks, quantiles, shares_reaching
from shared.results import MASK_METRICS, Evaluated, MaskClassRow, NoisedMasks
from shared.study import Study

_QUARTERS = (0.25, 0.5, 0.75)


def mask_report(evaluated: Evaluated, study: Study) -> MaskReport | None:
    """None where it is no evaluation of masks."""
    if evaluated.noised_masks is not None:
        return _noised(evaluated.noised_masks)
    masks, images = evaluated.masks, evaluated.images or 0
    if masks is None:
        return None
    histogram = masks.histogram
    return MaskReport(
        patients=evaluated.patients or 0,
        images=images,
        noise=None,
        counts=None,
        **{name: Figure.of(getattr(masks, name), images) for name in MASK_METRICS},
        classes=_rows(masks.classes, study),
        reaching=None
        if histogram is None
        else [
            ReachingPoint(dice=dice, share=min(1.0, max(0.0, share)))
            for dice, share in zip(*(one.tolist() for one in shares_reaching(histogram)), strict=True)
        ],
        quartiles=None if histogram is None else quantiles(histogram, _QUARTERS),
        gain=dict(masks.gain.items()) if masks.gain else None,
    )


def _noised(masks: NoisedMasks) -> MaskReport:
    votes, nothing = max(0, sum(masks.counts)), Figure(value=None, low=None, high=None, images=0)
    return MaskReport(
        patients=None,
        images=None,
        noise=masks.noise,
        counts=masks.counts,
        iou=Figure.of(masks.iou, votes),
        dice=Figure.of(masks.dice, votes),
        thresholded_iou=Figure.of(masks.thresholded_iou, votes),
        pixel_accuracy=nothing,
        sensitivity=nothing,
        specificity=nothing,
        classes=[],
        reaching=None,
        quartiles=None,
        gain=None,
    )


def pooled_masks(sites: Mapping[str, Evaluated], study: Study) -> PooledMasks | None:
    """None where no hospital sent masks."""
    present = {site: one for site, one in sorted(sites.items()) if one.of_masks}
    pooled = pool_masks(list(present.values()), confidence=study.evaluation.confidence)
    if pooled is None:
        return None
    votes = pooled.images if pooled.counts is None else max(0, sum(pooled.counts))
    how = HOW["masks"] if pooled.counts is None else HOW["noised masks"]
    return PooledMasks(
        patients=pooled.patients,
        images=pooled.images,
        counts=pooled.counts,
        sites=list(present),
        **{name: PooledFigure.pooled(one, votes or 0, how) for name, one in pooled.figures.items()},
        classes=_rows(pooled.classes, study) if pooled.counts is None else [],
        gain=None
        if pooled.gain is None
        else {name: PooledDifference.of(one, HOW["gain"]) for name, one in pooled.gain.items()},
    )


def _rows(rows: Sequence[MaskClassRow], study: Study) -> list[MaskClassFigures]:
    return [
        MaskClassFigures(
            name=name, images=row.images, iou=Figure.of(row.iou, row.images), dice=Figure.of(row.dice, row.images)
        )
        for name, row in zip(study.task.class_names, rows, strict=True)
    ]
