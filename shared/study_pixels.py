"""Part of a study: from an image file to the pixels that a network gets."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator, model_validator

from shared.schema import Strict
from shared.study_mask import AnnotatedMask, MaskSource, PredictedMask


class Clahe(Strict):
    """Contrast-limited adaptive histogram equalisation (Zuiderveld, Graphics Gems IV, 1994), of each image by itself.

    OpenCV's `clipLimit` is this `clip_limit` times 256.
    """

    clip_limit: float = Field(
        default=0.01, gt=0, lt=1, description="share of a tile's pixels that one of 256 histogram bins may hold"
    )
    tiles: int = Field(default=8, ge=1, le=64, description="along each side of the prepared image")


class LayerNormalise(Strict):
    """gamma (x - m) / s + beta with mean m and deviation s of each image by itself, over all its pixels and channels.

    Ba, Kiros, Hinton, "Layer Normalization" (arXiv:1607.06450), with constants for gamma and beta. Nothing is learned or counted.
    """

    gamma: float = Field(default=1.0, gt=0)
    beta: float = 0.0


class Normalise(Strict):
    """(x - mean) / std for each channel, on pixels in [0, 1]."""

    mean: list[float] = Field(min_length=1, max_length=3)
    std: list[Annotated[float, Field(gt=0)]] = Field(min_length=1, max_length=3)


#: What `preprocessing.remove` can name, in the order in which it is kept.
Removed = Literal["borders", "vignette", "hair", "ruler"]


class Preprocessing(Strict):
    """From an image file to a (channels, size, size) array in [0, 1], and a plane of the lesion's mask; done once, into the cache."""

    region: Literal["finding", "whole"] = Field(description="a square around the finding's mask, or the whole image")
    margin: float = Field(
        default=0.25, ge=0, le=4, description="added around the finding's box, as a share of its longer side"
    )
    size: int = Field(ge=16, le=1024)
    channels: Literal[1, 3] = Field(description="channels of the network's input; grey images are repeated")
    intensity: Literal["region_percentiles", "bit_depth"] = Field(
        default="bit_depth",
        description="what maps pixels to [0, 1]: the region's 0.5th and 99.5th percentiles, or the stored bit depth",
    )
    remove: tuple[Removed, ...] = Field(
        default=(),
        description="of each image by itself: borders (black bars) and vignette (dark corners of a round field of view) are cut off before "
        "anything else is done; hair and ruler (its marks) are filled from the skin around, before the image is resized",
    )
    denoise: Literal["none", "median", "bilateral", "nlm"] = Field(
        default="none", description="of the resized image: 3 x 3 median, bilateral, or non-local means; before CLAHE"
    )
    clahe: Clahe | None = Field(default=None, description="of the resized and denoised image")
    normalise: Normalise | None = Field(default=None, description="public constants; None leaves [0, 1]")
    layer_normalise: LayerNormalise | None = Field(default=None, description="in place of normalise")
    mask: MaskSource | None = Field(
        default=None,
        discriminator="source",
        description="the lesion's mask as one more plane, 0 or 1, behind the image's channels; None: no such plane",
    )

    @field_validator("remove")
    @classmethod
    def _one_order(cls, value: tuple[Removed, ...]) -> tuple[Removed, ...]:
        if len(set(value)) != len(value):
            raise ValueError(f"remove names something twice: {', '.join(value)}")
        return tuple(one for one in get_args(Removed) if one in value)

    @property
    def cuts(self) -> tuple[Removed, ...]:
        """What is removed by cutting the image to what it shows."""
        return tuple(one for one in self.remove if one in ("borders", "vignette"))

    @property
    def fills(self) -> tuple[Removed, ...]:
        """What is removed by filling it from the skin around."""
        return tuple(one for one in self.remove if one in ("hair", "ruler"))

    @model_validator(mode="after")
    def _check(self) -> Preprocessing:
        if self.normalise is not None and self.layer_normalise is not None:
            raise ValueError("normalise and layer_normalise exclude each other: leave one of them out")
        if self.clahe is not None and 2 * self.clahe.tiles > self.size:
            raise ValueError(
                f"clahe.tiles is {self.clahe.tiles}, but a tile of {self.size} pixels must have at least 2 a side"
            )
        if self.normalise is not None:
            for key in ("mean", "std"):
                count = len(getattr(self.normalise, key))
                if count not in (1, self.channels):
                    raise ValueError(f"normalise.{key} must have 1 or {self.channels} values, but has {count}")
        return self

    @property
    def planes(self) -> int:
        """Planes of a prepared image, as the cache holds it: the image's channels, and one of the mask where there is one."""
        return self.channels + (self.mask is not None)

    @property
    def masks_needed_by(self) -> str | None:
        """Why an image without a mask file of the hospital's own can't be prepared, as a clause; None where it can."""
        if self.region == "finding":
            return "preprocessing.region is 'finding'"
        return "preprocessing.mask is from: annotated" if isinstance(self.mask, AnnotatedMask) else None

    def mask_in_words(self) -> str | None:
        """Which mask it is, as a clause for people; None where there is none."""
        if self.mask is None:
            return None
        if isinstance(self.mask, PredictedMask):
            return (
                f"predicted by a segmentation network, {self.mask.weights.file} (SHA-256 {self.mask.weights.sha256}; source: "
                f"{self.mask.weights.source}), marked from a probability of {self.mask.threshold:g}"
            )
        return "from the hospital's own mask files"
