"""Parts of a study that say what becomes of pixels beyond region and size: enhancement, normalisation, and the stronger augmentations."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from shared.schema import Strict

Probability = Annotated[float, Field(ge=0.0, le=1.0)]


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


class Cutout(Strict):
    """Black squares at random places (DeVries, Taylor, arXiv:1708.04552), wholly inside the image; they may overlap."""

    probability: Probability
    fewest: int = Field(default=1, ge=1, le=64)
    most: int = Field(default=1, ge=1, le=64)
    side: int = Field(default=16, ge=1, le=1024, description="pixels of the prepared image")

    @model_validator(mode="after")
    def _check(self) -> Cutout:
        if self.most < self.fewest:
            raise ValueError(f"most is {self.most}, which is less than fewest, {self.fewest}")
        return self


class Distortion(Strict):
    """One of `kinds`, drawn for each image that is distorted; what comes in from outside is black.

    elastic: smooth random displacements; grid: the cells of a grid grow and shrink along each axis; optical: a lens's barrel or cushion.
    """

    probability: Probability
    kinds: list[Literal["elastic", "grid", "optical"]] = Field(
        default=["elastic", "grid", "optical"], min_length=1, description="each as likely as it is listed"
    )
    elastic: float = Field(default=0.04, gt=0, le=0.5, description="largest displacement, as a share of the side")
    elastic_points: int = Field(default=4, ge=2, le=32, description="points along each side that are displaced")
    grid: float = Field(default=0.3, gt=0, lt=1, description="a cell's side is drawn from 1-grid to 1+grid")
    grid_cells: int = Field(default=5, ge=2, le=32, description="along each side")
    optical: float = Field(default=0.1, gt=0, le=0.5, description="radial coefficient k of r (1 + k r^2), +-")


class Blur(Strict):
    """One of `kinds`, drawn for each image that is blurred; the border is reflected."""

    probability: Probability
    kinds: list[Literal["motion", "gaussian"]] = Field(default=["motion", "gaussian"], min_length=1)
    motion: int = Field(default=7, ge=2, le=63, description="longest path in pixels; drawn from 2 up, in any direction")
    gaussian: float = Field(
        default=1.5, gt=0, le=10, description="largest deviation in pixels; drawn from a third of it up"
    )

    @property
    def reach(self) -> int:
        """Pixels beyond the image that a kernel may look at: half the longest path, or three deviations."""
        return max((self.motion + 1) // 2, max(1, round(3 * self.gaussian)))
