"""The report's part on descriptors of lesions: each hospital's figures, and those of all together."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist

import numpy as np

from server.report.how import HOW
from server.report.schema import DescriptorFigures, DescriptorReport, Figure, PooledDescriptor, PooledFigure
from shared.metrics.pooling import mean_of_estimates
from shared.results import DESCRIPTOR_METRICS, DescriptorResult, Evaluated
from shared.study import Study


def descriptor_reports(
    sites: Mapping[str, Evaluated], study: Study, *, external: list[str]
) -> dict[str, DescriptorReport]:
    """By the descriptor's name, in the study's order; of hospitals that sent an evaluation. Pooled are those that trained."""
    reports = {}
    for name, descriptor in study.task.descriptors.items():
        found = {site: given[name] for site, one in sorted(sites.items()) if name in (given := one.descriptors or {})}
        values = list(descriptor.value_names)
        reports[name] = DescriptorReport(
            values=values,
            sites={site: _figures(result, len(values)) for site, result in found.items()},
            not_reported=[site for site in sorted(sites) if site not in found],
            pooled=_pooled({site: one for site, one in found.items() if site not in external}, study),
        )
    return reports


def _figures(result: DescriptorResult, values: int) -> DescriptorFigures:
    counts = result.by_value
    return DescriptorFigures(
        patients=result.patients,
        images=result.images,
        by_value=counts if counts is not None and len(counts) == values else None,
        **{name: Figure.of(getattr(result, name), result.images) for name in DESCRIPTOR_METRICS},
    )


def _pooled(found: Mapping[str, DescriptorResult], study: Study) -> PooledDescriptor | None:
    if not found:
        return None
    weights = [one.images for one in found.values()]
    z = NormalDist().inv_cdf(0.5 + study.evaluation.confidence / 2.0)
    figures = {}
    for name in DESCRIPTOR_METRICS:
        mean = mean_of_estimates([getattr(one, name) for one in found.values()], np.array(weights, dtype=np.float64), z)
        figures[name] = PooledFigure.pooled(mean, sum(weights), HOW["descriptor"])
    return PooledDescriptor(
        patients=sum(one.patients for one in found.values()), images=sum(weights), sites=list(found), **figures
    )
