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
from shared.results import MASK_METRICS, Evaluated, MaskClassRow
from shared.study import Study

_QUARTERS = (0.25, 0.5, 0.75)


def mask_report(evaluated: Evaluated, study: Study) -> MaskReport | None:
    """None where it is no evaluation of masks."""
    masks, images = evaluated.masks, evaluated.images or 0
    if masks is None:
        return None
    histogram = masks.histogram
    return MaskReport(
        patients=evaluated.patients or 0,
        images=images,
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


def pooled_masks(sites: Mapping[str, Evaluated], study: Study) -> PooledMasks | None:
    """None where no hospital sent masks."""
    present = {site: one for site, one in sorted(sites.items()) if one.masks is not None}
    pooled = pool_masks(list(present.values()), confidence=study.evaluation.confidence)
    if pooled is None:
        return None
    return PooledMasks(
        patients=pooled.patients,
        images=pooled.images,
        sites=list(present),
        **{name: PooledFigure.pooled(one, pooled.images, HOW["masks"]) for name, one in pooled.figures.items()},
        classes=_rows(pooled.classes, study),
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
