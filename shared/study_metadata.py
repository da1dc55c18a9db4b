"""Part of a study: what a network is told of a patient besides the image. Encoded by public constants alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from shared.schema import Strict


class Number(Strict):
    """Two inputs: (x - low) / (high - low), cut to [0, 1], and 1. Both are 0 where it is not known."""

    kind: Literal["number"]
    name: str = Field(min_length=1, description="as the layout's metadata call it, e.g. age")
    low: float
    high: float

    @model_validator(mode="after")
    def _check(self) -> Number:
        if not self.low < self.high:
            raise ValueError(f"low is {self.low:g}, which is not below high, {self.high:g}")
        return self

    @property
    def width(self) -> int:
        """Inputs of the network that it takes."""
        return 2


class Category(Strict):
    """One input a value, 1 for the record's own (case does not matter). All are 0 where it is not known, or not listed."""

    kind: Literal["category"]
    name: str = Field(min_length=1, description="as the layout's metadata call it, e.g. sex")
    values: list[str] = Field(min_length=1, description="in the order of the inputs")

    @field_validator("values")
    @classmethod
    def _distinct(cls, values: list[str]) -> list[str]:
        if len({value.strip().lower() for value in values}) < len(values):
            raise ValueError("two values are the same but for case")
        return values

    @property
    def width(self) -> int:
        """Inputs of the network that it takes."""
        return len(self.values)


Metadatum = Annotated[Number | Category, Field(discriminator="kind")]


def width_of(metadata: Sequence[Number | Category]) -> int:
    """Inputs of all of them together."""
    return sum(one.width for one in metadata)
