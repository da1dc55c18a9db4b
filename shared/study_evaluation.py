"""Part of a study: how figures are obtained and what of them leaves."""

from __future__ import annotations

from pydantic import Field, model_validator

from shared.exact import WrittenExact
from shared.schema import Strict


class NoisedCounts(Strict):
    """Of the evaluation only counts leave, once, with two-sided geometric noise: confusion counts, or test patients by IoU where the study
    is of masks. One test image of each patient counts.
    """

    epsilon: WrittenExact = Field(description="of each hospital's counts, of all heads together, for one test patient")


class Evaluation(Strict):
    """How figures are obtained and what of them leaves."""

    resamples: int = Field(default=1000, ge=100, le=20_000, description="bootstrap resamples, drawn by patient")
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    histogram_bins: int = Field(default=100, ge=10, le=1000, description="public equal bins of [0, 1] for the scores")
    minimum_cell: int = Field(
        default=5,
        ge=1,
        description="smallest count of a histogram cell that leaves; neighbours are merged. Fewest images of a class whose masks' "
        "figures leave",
    )
    baseline: bool = Field(
        default=True, description="evaluate the round-0 model too, so that what was learned is a paired figure"
    )
    release: NoisedCounts | None = Field(
        default=None, description="None: exact figures leave; must be given in a private study, with baseline: false"
    )

    @model_validator(mode="after")
    def _check(self) -> Evaluation:
        if self.release is not None and self.baseline:
            raise ValueError("with release the counts leave once, of the final model: set baseline to false")
        return self
