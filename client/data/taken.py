"""What was made of a cohort's words: labels that no class lists, and descriptors. For the hospital's own eyes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from client.data.selection import Cohort
from shared.study import Study
from shared.study_descriptors import ABSENT

_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Folded:
    """Records with a label that no class lists, taken to a class through `listed`, the nearest ancestor that one lists."""

    label: str
    listed: str
    class_name: str
    records: int

    def __str__(self) -> str:
        return f"{self.records} labelled '{self.label}' as {self.class_name} (through '{self.listed}')"


@dataclass(frozen=True, slots=True)
class Coverage:
    """One descriptor: records of each value, records that have none, and the words among those that stand in no value."""

    name: str
    by_value: dict[str, int]
    absent: int
    unlisted: dict[str, int]

    def __str__(self) -> str:
        counts = ", ".join(f"{value} {count}" for value, count in self.by_value.items())
        words = ", ".join(f"'{word}' {count}" for word, count in list(self.unlisted.items())[:_SHOWN])
        if len(self.unlisted) > _SHOWN:
            words += f" and {len(self.unlisted) - _SHOWN} other words"
        return f"{counts}; without: {self.absent}" + (f", of which in no value: {words}" if words else "")


def folded(cohort: Cohort, study: Study) -> list[Folded]:
    """By label, of the records that the cohort holds; none where every label stands in a class."""
    counts = Counter(record.label.strip().lower() for record in cohort.records)
    found = []
    for label, count in sorted(counts.items()):
        place = study.task.placed(label)
        if place is not None and place.listed != label:
            found.append(Folded(label, place.listed, study.task.class_names[place.index], count))
    return found


def coverage(cohort: Cohort, study: Study) -> list[Coverage]:
    """Of each descriptor of the study, in its order."""
    found = []
    for column, (name, one) in zip(cohort.descriptors.T, study.task.descriptors.items(), strict=True):
        counts = np.bincount(column[column != ABSENT], minlength=len(one.values)).tolist()
        without = np.flatnonzero(column == ABSENT)
        words = Counter(word for row in without if (word := one.word_of(cohort.records[row].attributes, name)))
        by_value = dict(zip(one.value_names, counts, strict=True))
        found.append(Coverage(name, by_value, len(without), dict(words.most_common())))
    return found
