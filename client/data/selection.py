"""Which records of a holding a study works on, with their classes and parts. Decided by keys, patients and labels, before any pixel.

The same holding, study and seed (or `data.split.id` in its place) give the same cohort, whatever the order in which an adapter lists
the records. A patient who has withdrawn is divided with all the others and then taken out: nobody else changes part, so no test patient is
ever trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from client.data.records import Holding, Part, Problem, Record
from client.data.splits import PARTS, Indices, draw_key, parts_by_id, split_records
from shared.errors import DataError, PolicyError
from shared.study import Study
from shared.study_data import Balanced


@dataclass(frozen=True, slots=True)
class Cohort:
    """The records of a study at one hospital, N of them, ordered by key.

    `labels` (N,) int64 are class indices, `patients` (N,) int64 are codes 0 ... P-1 in the order of the patients' ids, `parts` maps each
    part to ascending indices into `records`; the parts are disjoint by patient and together hold every record. `left_out` counts
    selected records whose label stands in no class; `classes_left_out` names classes that this hospital can't serve
    (`data.scarce_classes: leave_out`). `descriptors` (N, D) int64 are the indices of each record's descriptors, ABSENT where it lacks one.
    Arrays are read-only.
    """

    records: tuple[Record, ...]
    labels: NDArray[np.int64]
    patients: NDArray[np.int64]
    parts: Mapping[Part, Indices]
    left_out: int
    problems: tuple[Problem, ...]
    descriptors: NDArray[np.int64]
    classes_left_out: tuple[str, ...] = ()

    def patients_in(self, indices: Indices) -> int:
        """Number of different patients among the records at `indices`."""
        return len(np.unique(self.patients[indices]))


_Labelled = list[tuple[Record, int]]
#: Whether the patient with this id has withdrawn.
Withdrawn = Callable[[str], bool]


def _nobody(_patient: str) -> bool:
    return False


def choose(
    study: Study,
    holding: Holding,
    *,
    minimum_patients: int,
    withdrawn: Withdrawn = _nobody,
    place: Callable[[str], float] | None = None,
    external: bool = False,
) -> Cohort:
    """Select, balance and divide a holding's records as the study says; those of patients who have withdrawn are in no part.

    A private study's patients are divided by `place` (`client.data.splits.parts_by_id`; without it by a hash of seed and id), and no class
    is looked for. Else every class that remains has records in all three parts and, in train, at least as many patients as the SVM's
    largest number of folds; with `data.split.folds` that is so whichever fold is tested.

    For an `external` test all that is selected is test: nothing is balanced, no official division is followed, and each class needs a
    patient (in a private study none is looked for).

    Raises DataError (nothing selected, an attribute that the layout lacks, too few of a class), SplitLeakError (official division), and
    PolicyError where fewer than `minimum_patients` patients are reached.
    """
    ordered = sorted(holding.records, key=lambda record: record.key)
    for first, second in pairwise(ordered):
        if first.key == second.key:
            raise DataError(f"two records have the key '{first.key}': {first.image} and {second.image}")
    selected = _select(ordered, study.data.select)
    labelled = [(record, label) for record in selected if (label := study.task.class_of(record.label)) is not None]
    left_out = sum(not withdrawn(record.patient) for record in selected) - sum(
        not withdrawn(record.patient) for record, _ in labelled
    )
    if not labelled:
        had = ", ".join(sorted({record.label for record in selected})) or "none"
        raise DataError(
            f"no record has a label of the study's classes {_class_list(study)}; the labels there are {had}"
        )
    dropped: list[int] = []
    by_id = (place or _public_place(study)) if study.privacy is not None else None
    if external:
        by_id = _all_test(study)

    def divided(items: _Labelled, by: Study = study) -> Cohort:
        return _divide(items, by, left_out, holding.problems, dropped, withdrawn, by_id)

    def scarce_in(items: _Labelled) -> dict[int, str]:
        """In any fold, where there are folds: all of them must leave out the same classes, or a patient would be tested twice."""
        found: dict[int, str] = {}
        for one in _folds(study):
            found = {**_scarce(divided(items, one), study, dropped), **found}
        return found

    if external and study.privacy is None:
        _require_classes(divided(labelled), study)
    while by_id is None and (scarce := scarce_in(labelled)):
        if not _may_leave_out(scarce, study, dropped):
            raise _unservable(scarce, study)
        dropped.extend(scarce)
        labelled = [(record, label) for record, label in labelled if label not in scarce]
    if study.data.balanced is not None and not external:
        labelled = _balance(labelled, study, study.data.balanced)
        if scarce := scarce_in(labelled):
            raise _unservable(scarce, study)
    cohort = divided(labelled)
    reached = len(np.unique(cohort.patients))
    if reached < minimum_patients:
        raise PolicyError(
            f"the study reaches {_plural(reached, 'patient')}, but policy.minimum_patients of the profile is {minimum_patients}"
        )
    return cohort


def _folds(study: Study) -> list[Study]:
    """The study with each of its folds as test; the study itself where it has none."""
    folds = study.data.split.folds
    if folds is None:
        return [study]
    splits = [
        study.data.split.model_copy(update={"folds": folds.model_copy(update={"test": test})})
        for test in range(folds.of)
    ]
    return [study.model_copy(update={"data": study.data.model_copy(update={"split": split})}) for split in splits]


def _all_test(study: Study) -> Callable[[str], float]:
    folds = study.data.split.folds
    number = 0.0 if folds is None else (folds.test + 0.5) / folds.of
    return lambda _patient: number


def _require_classes(cohort: Cohort, study: Study) -> None:
    """Raise DataError where an external test lacks a class, unless the study lets a site leave it out and two remain."""
    there = set(cohort.labels[cohort.parts["test"]].tolist())
    absent = {index: "has no patient at all" for index in range(len(study.task.classes)) if index not in there}
    if absent and not _may_leave_out(absent, study, ()):
        raise _unservable(absent, study)


def _public_place(study: Study) -> Callable[[str], float]:
    return lambda patient: int(draw_key(study.split_seed, "split", patient)[:13], 16) / 16**13


def _select(records: Sequence[Record], wanted: Mapping[str, Sequence[str]]) -> list[Record]:
    if not records:
        raise DataError("the hospital's data holds no usable record")
    known = sorted({name for record in records for name in record.attributes})
    kept = list(records)
    for name, values in wanted.items():
        if name not in known:
            raise DataError(f"data.select: the layout has no attribute '{name}'; it has {', '.join(known) or 'none'}")
        accepted = {value.strip().lower() for value in values}
        before, kept = kept, [record for record in kept if record.attributes.get(name, "").lower() in accepted]
        if not kept:
            there = (
                ", ".join(sorted({record.attributes[name] for record in before if name in record.attributes})) or "none"
            )
            raise DataError(f"data.select: no record has {name} {' or '.join(values)}; the values there are {there}")
    return kept


def _balance(labelled: _Labelled, study: Study, balanced: Balanced) -> _Labelled:
    """The same number of units of every class, each unit as likely as any other of its class, ordered by key again."""
    members: dict[int, _Labelled] = {}
    for item in labelled:
        members.setdefault(item[1], []).append(item)
    smallest = min(len(units) for units in members.values())
    if smallest < balanced.per_class and balanced.if_fewer == "refuse":
        counts = ", ".join(f"{study.task.class_names[index]} {len(members[index])}" for index in sorted(members))
        raise DataError(
            f"data.balanced asks for {balanced.per_class} units of every class, but this site has {counts}; "
            "a study that says if_fewer: equalise draws as many of each as the smallest has"
        )
    count = min(balanced.per_class, smallest)
    drawn = [
        item
        for units in members.values()
        for item in sorted(units, key=lambda item: draw_key(study.split_seed, "balance", item[0].key))[:count]
    ]
    return sorted(drawn, key=lambda item: item[0].key)


def _divide(
    labelled: _Labelled,
    study: Study,
    left_out: int,
    problems: tuple[Problem, ...],
    dropped: Sequence[int],
    withdrawn: Withdrawn,
    by_id: Callable[[str], float] | None = None,
) -> Cohort:
    records = tuple(record for record, _ in labelled)
    labels = np.array([label for _, label in labelled], dtype=np.int64)
    names = [record.patient for record in records]
    patients = np.unique(np.array(names, dtype=np.str_), return_inverse=True)[1].astype(np.int64).reshape(-1)
    if by_id is not None:
        parts = parts_by_id(names, study.data.split, by_id)
    else:
        parts = split_records(
            names,
            labels,
            [record.division for record in records],
            split=study.data.split,
            positive=study.task.positive_index,
            seed=study.split_seed,
        )
    staying = np.array([not withdrawn(name) for name in names], dtype=np.bool_)
    if not staying.all():
        place = np.cumsum(staying) - 1  # of each record among those that stay
        parts = {part: place[rows[staying[rows]]] for part, rows in parts.items()}
        records = tuple(record for record, stays in zip(records, staying, strict=True) if stays)
        labels = labels[staying]
        patients = np.unique(patients[staying], return_inverse=True)[1].astype(np.int64).reshape(-1)
    described = np.array([study.task.described(record.attributes) for record in records], dtype=np.int64)
    descriptors = described.reshape(len(records), len(study.task.descriptors))
    for array in (labels, patients, descriptors, *parts.values()):
        array.setflags(write=False)
    left = tuple(study.task.class_names[index] for index in sorted(dropped))
    return Cohort(records, labels, patients, parts, left_out, problems, descriptors, left)


def _scarce(cohort: Cohort, study: Study, dropped: Sequence[int]) -> dict[int, str]:
    """The classes that can't be trained on and evaluated here, each with the reason as a clause."""
    folds = 1
    if study.head is not None:
        folds = max(study.head.calibration_folds, study.head.grid.folds if study.head.grid is not None else 0)
    scarce: dict[int, str] = {}
    for index in range(len(study.task.classes)):
        if index in dropped:
            continue
        there = {part: cohort.parts[part][cohort.labels[cohort.parts[part]] == index] for part in PARTS}
        counts = {part: cohort.patients_in(there[part]) for part in PARTS}
        empty = [part for part in PARTS if counts[part] == 0]
        if len(empty) == len(PARTS):
            scarce[index] = "has no patient at all"
        elif empty:
            numbers = ", ".join(f"{part} {counts[part]}" for part in PARTS)
            scarce[index] = f"has no patient in {' and '.join(empty)} (patients: {numbers})"
        elif counts["train"] < folds:
            scarce[index] = (
                f"has {_plural(counts['train'], 'patient')} in train, but the SVM's {folds} folds need {folds}"
            )
    return scarce


def _may_leave_out(scarce: Mapping[int, str], study: Study, dropped: Sequence[int]) -> bool:
    remaining = len(study.task.classes) - len(dropped) - len(scarce)
    allowed = study.data.scarce_classes == "leave_out"
    return allowed and study.task.positive_index not in scarce and remaining >= 2


def _unservable(scarce: Mapping[int, str], study: Study) -> DataError:
    clauses = "; ".join(f"class {study.task.class_names[index]} {reason}" for index, reason in scarce.items())
    return DataError(f"this site's data can't serve the study: {clauses}")


def _class_list(study: Study) -> str:
    return ", ".join(f"{name} ({', '.join(labels or [name])})" for name, labels in study.task.classes.items())


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
