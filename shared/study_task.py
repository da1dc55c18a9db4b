"""Part of a study: what is told apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from shared.schema import Name, Strict
from shared.study_descriptors import Descriptor
from shared.study_hierarchy import Placed, ordered, placed, spelled, written_out

#: What a network answers with: a class of each image, or a mask over it.
Kind = Literal["classification", "segmentation"]


class Task(Strict):
    """What is told apart. `classes` maps each class to the labels of the data layouts that mean it (case does not matter).

    A record whose label stands in no class is taken to the class of its nearest ancestor in `hierarchy`; one that has none is left out and
    counted. The outputs are in the order of the classes' names, whatever their
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
    rare_classes: list[str] = Field(
        default_factory=list,
        description="classes whose false positives and false negatives reports add up apart; they are trained like the others",
    )
    hierarchy: dict[str, str] = Field(
        default_factory=dict,
        description="the label above each label, for labels that no class lists (case does not matter); or the name of one that comes with "
        "the release, which is then written out in full and part of the digest: `isic`",
    )
    descriptors: dict[Name, Descriptor] = Field(
        default_factory=dict,
        description="what else the network says of a lesion, by the descriptor's name; training.descriptor_weight must be given with it",
    )

    @field_validator("classes")
    @classmethod
    def _by_name(cls, value: dict[str, list[str]]) -> dict[str, list[str]]:
        return dict(sorted(value.items()))

    @field_validator("rare_classes")
    @classmethod
    def _in_one_order(cls, value: list[str]) -> list[str]:
        return sorted(set(value))

    @field_validator("hierarchy", mode="before")
    @classmethod
    def _written_out(cls, value: Any) -> Any:
        return written_out(value)

    @field_validator("hierarchy")
    @classmethod
    def _ordered(cls, value: dict[str, str]) -> dict[str, str]:
        return ordered(value)

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
        if unknown := [name for name in self.rare_classes if name not in self.classes]:
            raise ValueError(
                f"rare_classes: {', '.join(unknown)} {'is' if len(unknown) == 1 else 'are'} not among the classes "
                f"{', '.join(self.classes)}"
            )
        seen: dict[str, str] = {}
        for name, labels in self.classes.items():
            for label in labels or [name]:
                other = seen.setdefault(spelled(label), name)
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

    def placed(self, label: str) -> Placed | None:
        """Class of a label, and the label through which it has it; None where neither it nor an ancestor stands in a class."""
        listed = {
            spelled(one): index
            for index, (name, labels) in enumerate(self.classes.items())
            for one in (labels or [name])
        }
        return placed(label, listed, self.hierarchy)

    def class_of(self, label: str) -> int | None:
        """Index of the class that `label` means, or None where it means none."""
        found = self.placed(label)
        return None if found is None else found.index

    @property
    def descriptor_sizes(self) -> tuple[int, ...]:
        """Number of values of each descriptor, in the order of the outputs."""
        return tuple(len(one.values) for one in self.descriptors.values())

    def described(self, attributes: Mapping[str, str]) -> tuple[int, ...]:
        """Index of the value that a record with these attributes has of each descriptor; ABSENT where it has none."""
        return tuple(one.index_of(attributes, name) for name, one in self.descriptors.items())
