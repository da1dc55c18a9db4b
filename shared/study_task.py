"""Part of a study: what is told apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, field_validator, model_validator

from shared.schema import Name, Strict
from shared.study_descriptors import Descriptor


class Task(Strict):
    """What is told apart. `classes` maps each class to the labels of the data layouts that mean it (case does not matter).

    A record whose label stands in no class is left out and counted. The outputs are in the order of the classes' names, whatever their
    order in the file: the digest is over JSON with sorted keys, and must not leave two meanings to one approval.
    """

    classes: dict[Name, list[str]] = Field(min_length=2)
    positive_class: str = Field(description="the class that sensitivity, specificity, precision, F1 and ROC are about")
    unit: Literal["finding", "view", "image"] = Field(
        description="what one label belongs to: a finding, a whole view (positive if any finding is), or an image"
    )
    descriptors: dict[Name, Descriptor] = Field(
        default_factory=dict,
        description="what else the network says of a lesion, by the descriptor's name; training.descriptor_weight must be given with it",
    )

    @field_validator("classes")
    @classmethod
    def _by_name(cls, value: dict[str, list[str]]) -> dict[str, list[str]]:
        return dict(sorted(value.items()))

    @field_validator("descriptors")
    @classmethod
    def _descriptors_by_name(cls, value: dict[str, Descriptor]) -> dict[str, Descriptor]:
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

    @property
    def descriptor_sizes(self) -> tuple[int, ...]:
        """Number of values of each descriptor, in the order of the outputs."""
        return tuple(len(one.values) for one in self.descriptors.values())

    def described(self, attributes: Mapping[str, str]) -> tuple[int, ...]:
        """Index of the value that a record with these attributes has of each descriptor; ABSENT where it has none."""
        return tuple(one.index_of(attributes, name) for name, one in self.descriptors.items())
