"""Part of a study: which records of a hospital's holding take part, and how they are divided."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from shared.schema import Name, Strict


class Balanced(Strict):
    """Balanced subsample drawn at each site, by seed: `per_class` units of every class."""

    per_class: int = Field(ge=2)
    if_fewer: Literal["refuse", "equalise"] = Field(
        description="refuse the study, or draw as many of each class as the smallest has"
    )


class Folds(Strict):
    """Cross-validation: one seed divides the patients into `of` folds, stratified by label, and one fold is the test part.

    A study for each value of `test`, and nothing else different, tests every patient once (`consilium-server folds`).
    """

    of: int = Field(ge=2, le=20)
    test: int = Field(ge=0, description="the fold that is the test part, from 0")

    @model_validator(mode="after")
    def _check(self) -> Folds:
        if self.test >= self.of:
            raise ValueError(
                f"folds are counted from 0: with of: {self.of}, test is at most {self.of - 1}, not {self.test}"
            )
        return self


class Split(Strict):
    """Division into train, validation and test, always by patient (law 8)."""

    id: Name | None = Field(
        default=None,
        description="takes the seed's place in drawing the split: studies with one id that select, classify and share out alike divide "
        "the same patients alike, whatever their seeds",
    )
    division: Literal["by_patient", "official"] = "by_patient"
    train: float = Field(default=0.70, gt=0, lt=1)
    validation: float = Field(default=0.15, gt=0, lt=1)
    test: float = Field(
        default=0.15, gt=0, lt=1, description="ignored share where the division is official, or into folds"
    )
    folds: Folds | None = Field(
        default=None,
        description="one of several folds is the test part, in place of the share test; the rest is divided as train to validation",
    )

    @model_validator(mode="after")
    def _check(self) -> Split:
        total = self.train + self.validation + self.test
        if abs(total - 1.0) > 1e-9:
            raise ValueError(f"train, validation and test must add up to 1, but add up to {total:g}")
        if self.folds is not None and self.division != "by_patient":
            raise ValueError("folds divide by patient; with division: official the test part is the published one")
        return self

    def shares(self) -> dict[Literal["train", "validation", "test"], float]:
        """Of the patients, where they are divided by patient; they add up to 1."""
        if self.folds is None:
            return {"train": self.train, "validation": self.validation, "test": self.test}
        rest = (1.0 - 1.0 / self.folds.of) / (self.train + self.validation)
        return {"train": rest * self.train, "validation": rest * self.validation, "test": 1.0 / self.folds.of}


class Duplicates(Strict):
    """Copies of one image under several names, patients or labels, told by perceptual hash (256-bit pHash) of the whole image."""

    distance: int | None = Field(
        default=20,
        ge=0,
        le=64,
        description="images of one hospital are copies where their hashes differ in no more bits, directly or through others; one copy "
        "stays, none where their classes differ; null: all stay",
    )
    across: Literal["none", "report"] = Field(
        default="none",
        description="report: how many images each two hospitals both hold (64-bit pHash equal), counted by the coordinator from keyed "
        "tags; they all stay",
    )

    @model_validator(mode="after")
    def _check(self) -> Duplicates:
        if self.distance is None and self.across == "none":
            raise ValueError("distance is null and across is none, so nothing is asked for: leave duplicates out")
        return self


class Data(Strict):
    """Which records of a hospital's holding take part."""

    select: dict[str, list[str]] = Field(
        default_factory=dict,
        description="keep records whose attribute has one of these values, e.g. abnormality: [calcification]",
    )
    balanced: Balanced | None = None
    scarce_classes: Literal["refuse", "leave_out"] = Field(
        default="refuse",
        description="at a site where a class has too few patients for every part and the SVM's folds: refuse the study, or leave "
        "that class out there and say so (never the positive class)",
    )
    split: Split = Split()
    duplicates: Duplicates | None = Field(default=None, description="None: copies are not looked for")
