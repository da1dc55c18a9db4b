"""Part of a study: what else a network is to say of a lesion, beside its class."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field, field_validator, model_validator

from shared.schema import Name, Strict

#: The value of a descriptor that a record does not have, among indices from 0.
ABSENT = -1


class Descriptor(Strict):
    """One descriptor of a lesion, such as its shape: a further linear head on the same features, with classes of its own.

    `values` maps each value to the words of the data layouts that mean it (case does not matter). A record without a word, or with one
    that stands in no value, has no such descriptor: the head learns nothing from its image. The outputs are in the order of the values'
    names.
    """

    values: dict[Name, list[str]] = Field(min_length=2)
    attributes: list[str] = Field(
        default_factory=list,
        description="attributes of the data layouts that hold the word, e.g. mass_shape of cbis_ddsm or a column of a hospital's own "
        "table (case does not matter); the first that a record has counts. None: the descriptor's own name",
    )

    @field_validator("values")
    @classmethod
    def _by_name(cls, value: dict[str, list[str]]) -> dict[str, list[str]]:
        return dict(sorted(value.items()))

    @model_validator(mode="after")
    def _check(self) -> Descriptor:
        seen: dict[str, str] = {}
        for name, words in self.values.items():
            for word in words or [name]:
                other = seen.setdefault(word.strip().lower(), name)
                if other != name:
                    raise ValueError(f"the word '{word}' stands in two values, {other} and {name}")
        return self

    @property
    def value_names(self) -> tuple[str, ...]:
        return tuple(self.values)

    def word_of(self, attributes: Mapping[str, str], name: str) -> str:
        """What a record with these attributes says of the descriptor called `name`, in lower case; empty where nothing."""
        held = {one.lower(): value.strip().lower() for one, value in attributes.items()}
        return next((held[one.lower()] for one in self.attributes or [name] if held.get(one.lower())), "")

    def index_of(self, attributes: Mapping[str, str], name: str) -> int:
        """Index of the value that a record with these attributes has of the descriptor called `name`; ABSENT where it has none."""
        word = self.word_of(attributes, name)
        for index, (value, words) in enumerate(self.values.items()):
            if word in {one.strip().lower() for one in (words or [value])}:
                return index
        return ABSENT
