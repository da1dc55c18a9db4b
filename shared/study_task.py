"""Part of a study: what is told apart."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from shared.schema import Name, Strict


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
    rare_classes: list[str] = Field(
        default_factory=list,
        description="classes whose false positives and false negatives reports add up apart; they are trained like the others",
    )

    @field_validator("classes")
    @classmethod
    def _by_name(cls, value: dict[str, list[str]]) -> dict[str, list[str]]:
        return dict(sorted(value.items()))

    @field_validator("rare_classes")
    @classmethod
    def _in_one_order(cls, value: list[str]) -> list[str]:
        return sorted(set(value))

    @model_validator(mode="after")
    def _check(self) -> Task:
        if self.positive_class not in self.classes:
            raise ValueError(
                f"positive_class '{self.positive_class}' is not one of the classes {', '.join(self.classes)}"
            )
        if unknown := [name for name in self.rare_classes if name not in self.classes]:
            raise ValueError(
                f"rare_classes: {', '.join(unknown)} {'is' if len(unknown) == 1 else 'are'} not among the classes "
                f"{', '.join(self.classes)}"
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

    @property
    def rare_indices(self) -> tuple[int, ...]:
        return tuple(self.class_names.index(name) for name in self.rare_classes)

    def class_of(self, label: str) -> int | None:
        """Index of the class that `label` means, or None where no class lists it."""
        wanted = label.strip().lower()
        for index, (name, labels) in enumerate(self.classes.items()):
            if wanted in {entry.lower() for entry in (labels or [name])}:
                return index
        return None
