"""Part of a study: what is told apart."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from shared.schema import Name, Strict

#: What a network answers with: a class of each image, or a mask over it.
Kind = Literal["classification", "segmentation"]


class Task(Strict):
    """What is told apart. `classes` maps each class to the labels of the data layouts that mean it (case does not matter).

    A record whose label stands in no class is left out and counted. The outputs are in the order of the classes' names, whatever their
    order in the file: the digest is over JSON with sorted keys, and must not leave two meanings to one approval.
    """

    kind: Kind = Field(
        default="classification",
        description="classification: a class for each image; segmentation: the lesion's mask in each image, whatever its class, while "
        "the classes select the records, keep the split even and divide the figures",
    )
    classes: dict[Name, list[str]] = Field(min_length=2)
    positive_class: str = Field(
        description="the class that sensitivity, specificity, precision, F1 and ROC are about; in a segmentation study only the one "
        "that data.scarce_classes never leaves out"
    )
    unit: Literal["finding", "view", "image"] = Field(
        description="what one label belongs to: a finding, a whole view (positive if any finding is), or an image"
    )

    @field_validator("classes")
    @classmethod
    def _by_name(cls, value: dict[str, list[str]]) -> dict[str, list[str]]:
        return dict(sorted(value.items()))

    @model_validator(mode="after")
    def _check(self) -> Task:
        if self.positive_class not in self.classes:
            raise ValueError(
                f"positive_class '{self.positive_class}' is not one of the classes {', '.join(self.classes)}"
            )
        seen: dict[str, str] = {}
        for name, labels in self.classes.items():
            for label in labels or [name]:
                other = seen.setdefault(label.lower(), name)
                if other != name:
                    raise ValueError(f"label '{label}' stands in two classes, {other} and {name}")
        return self

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.classes)

    @property
    def positive_index(self) -> int:
        return self.class_names.index(self.positive_class)

    def class_of(self, label: str) -> int | None:
        """Index of the class that `label` means, or None where no class lists it."""
        wanted = label.strip().lower()
        for index, (name, labels) in enumerate(self.classes.items()):
            if wanted in {entry.lower() for entry in (labels or [name])}:
                return index
        return None
