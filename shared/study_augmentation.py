"""Part of a study: random changes of training images."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from shared.schema import Strict

Probability = Annotated[float, Field(ge=0.0, le=1.0)]


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


class Augmentation(Strict):
    """Random changes of a training batch, on the device. A value of 0 switches one off."""

    horizontal_flip: Probability = 0.0
    vertical_flip: Probability = 0.0
    quarter_turns: bool = Field(default=False, description="rotate by 0, 90, 180 or 270 degrees")
    rotation_degrees: float = Field(default=0.0, ge=0, le=180)
    translate: float = Field(default=0.0, ge=0, le=0.5, description="share of the image's side")
    scale: float = Field(default=0.0, ge=0, le=0.5, description="factor drawn from 1-scale to 1+scale")
    brightness: float = Field(default=0.0, ge=0, le=1, description="added, drawn from -brightness to +brightness")
    contrast: float = Field(default=0.0, ge=0, le=1, description="factor drawn from 1-contrast to 1+contrast")
    movement_probability: Probability = Field(
        default=1.0, description="of an image to be rotated, translated and scaled; flips and turns have their own"
    )
    tone_probability: Probability = Field(default=1.0, description="of an image to change in brightness and contrast")
    validation: bool = Field(
        default=False,
        description="validation images are changed too, by the same draws in every round (as in SkinNet's papers); test images never are",
    )
    distortion: Distortion | None = None
    blur: Blur | None = None
    cutout: Cutout | None = None

    @model_validator(mode="after")
    def _check(self) -> Augmentation:
        changes = {name: field for name, field in type(self).model_fields.items() if name != "validation"}
        if self.validation and all(getattr(self, name) == field.default for name, field in changes.items()):
            raise ValueError("validation is true, but nothing is changed: give what changes images, or leave it out")
        if self.movement_probability != 1 and not (self.rotation_degrees or self.translate or self.scale):
            raise ValueError("movement_probability needs rotation_degrees, translate or scale")
        if self.tone_probability != 1 and not (self.brightness or self.contrast):
            raise ValueError("tone_probability needs brightness or contrast")
        return self

    def require_fits(self, size: int) -> None:
        """Raise ValueError where images of `size` pixels a side are too small for what is asked for."""
        if self.cutout is not None and self.cutout.side > size:
            raise ValueError(f"augmentation.cutout.side is {self.cutout.side}, but images have {size} pixels a side")
        if self.blur is not None and self.blur.reach >= size:
            raise ValueError(f"augmentation.blur reaches {self.blur.reach} pixels, but images have {size} a side")
