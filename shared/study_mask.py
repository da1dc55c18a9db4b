"""Part of a study: where the lesion's mask comes from that stands beside the pixels as one more plane."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from shared.schema import Strict
from shared.study_model import WeightsFile


class AnnotatedMask(Strict):
    """The hospital's own mask files, all of an image's together. An image that has none counts as unreadable."""

    source: Literal["annotated"] = Field(alias="from")

    model_config = ConfigDict(populate_by_name=True)


class PredictedMask(Strict):
    """What a segmentation network says, once, when the image is prepared.

    The file must say by itself which network it is of: `consilium-server export` writes the run's study into it. Image and mask are those
    of that study's preprocessing, in the square that this study cuts out.
    """

    source: Literal["model"] = Field(alias="from")
    weights: WeightsFile
    threshold: float = Field(default=0.5, gt=0, lt=1, description="probability from which a pixel is marked")

    model_config = ConfigDict(populate_by_name=True)


MaskSource = AnnotatedMask | PredictedMask
