"""Division of a hospital's records into train, validation and test: always by patient, stratified by label (law 8).

A patient's place depends on the seed (or the split's id that takes its place), the patient's id, and how many patients of the same
stratum there are; never on the order of the records, on file paths, or on how many images the patient has. Inside a stratum patients
are ordered by SHA-256 of seed and id, and the first share goes to test, the next to validation, the rest to train. With folds, patients
are dealt out to these in turn, stratum after stratum, so that neither a fold's patients nor those of any stratum in it differ in number
by more than one from another fold's; one fold is test, and the others' patients are divided as before.

A patient's stratum is one class: the positive class if any of the patient's records has it, else the class of most of the records,
among equally frequent ones the earlier. So a patient with a malignant and a benign view counts as malignant, and the
proportion of malignant patients, which decides how uncertain sensitivity is, is kept.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from client.data.records import Part
from shared.errors import DataError, SplitLeakError
from shared.study_data import Split

Indices = NDArray[np.int64]
PARTS: tuple[Part, ...] = ("train", "validation", "test")


def split_records(
    patients: Sequence[str],
    labels: NDArray[np.int64],
    divisions: Sequence[str | None],
    *,
    split: Split,
    positive: int,
    seed: int | str,
) -> dict[Part, Indices]:
    """Indices (ascending) of the records of each part, by the division that the study asks for.

    `patients`, `labels` and `divisions` have one entry a record; `seed` is the study's `split_seed`. Raises SplitLeakError where the
    official division has a patient in train and in test, DataError where a record has no official part.
    """
    strata = _strata(patients, labels, positive)
    if split.division == "by_patient" and split.folds is not None:
        fold = fold_of(strata, split.folds.of, seed=seed)
        rest = {patient: stratum for patient, stratum in strata.items() if fold[patient] != split.folds.test}
        place = assign_patients(rest, {"validation": split.validation, "train": split.train}, seed=seed)
        parts = _parts([place.get(patient, "test") for patient in patients])
    elif split.division == "by_patient":
        place = assign_patients(
            strata, {"test": split.test, "validation": split.validation, "train": split.train}, seed=seed
        )
        parts = _parts([place[patient] for patient in patients])
    else:
        parts = _official(patients, divisions, strata, split, seed)
    check_no_leak(patients, parts)
    return parts


def assign_patients(strata: Mapping[str, int], shares: Mapping[Part, float], *, seed: int | str) -> dict[str, Part]:
    """Part of each patient, given each patient's stratum and each part's share (> 0).

    In a stratum of n patients every part gets its share rounded by largest remainders, and at least one patient if n allows.
    """
    total = sum(shares.values())
    wanted = {part: share / total for part, share in shares.items()}
    members: dict[int, list[str]] = {}
    for patient, stratum in strata.items():
        members.setdefault(stratum, []).append(patient)
    place: dict[str, Part] = {}
    for stratum_members in members.values():
        ordered = sorted(stratum_members, key=lambda patient: draw_key(seed, "split", patient))
        start = 0
        for part, count in _quotas(len(ordered), wanted).items():
            place.update(dict.fromkeys(ordered[start : start + count], part))
            start += count
    return place


def fold_of(strata: Mapping[str, int], of: int, *, seed: int | str) -> dict[str, int]:
    """Fold of each patient, 0 ... of-1, given each patient's stratum; which fold is tested does not matter to it."""
    dealt = sorted(strata, key=lambda patient: (strata[patient], draw_key(seed, "fold", patient)))
    return {patient: position % of for position, patient in enumerate(dealt)}


def parts_by_id(patients: Sequence[str], split: Split, place: Callable[[str], float]) -> dict[Part, Indices]:
    """Indices (ascending) of the records of each part, each patient's part a function of the patient's id alone.

    `place` gives each id a number in [0, 1), as good as random: below the test share it is test, then validation, then train. The shares
    are met on average only; so nobody's part says anything about how many others there are, or of which class (law 3 of the design).
    Folds are equal pieces of [0, 1): the tested one is moved to the beginning, and those after it come next, those before it last.
    """
    shares, folds = split.shares(), split.folds
    validation = shares["test"] + shares["validation"]

    def part(number: float) -> Part:
        if folds is None:
            is_test = number < shares["test"]
        else:
            is_test = int(number * folds.of) == folds.test
            number = (number - folds.test / folds.of) % 1.0
        return "test" if is_test else "validation" if number < validation else "train"

    return _parts([part(place(patient)) for patient in patients])


def draw_key(seed: int | str, purpose: str, name: str) -> str:
    """A pseudo-random but repeatable sort key: the order of names by it is a random draw that depends on nothing else."""
    return hashlib.sha256(f"consilium/{purpose}/{seed}/{name}".encode()).hexdigest()


def check_no_leak(patients: Sequence[str], parts: Mapping[Part, Indices]) -> None:
    """Raise SplitLeakError where a patient has records in more than one part. `patients` has one entry a record."""
    places: dict[str, set[Part]] = {}
    for part, indices in parts.items():
        for index in indices:
            places.setdefault(patients[int(index)], set()).add(part)
    leaking = sorted(patient for patient, where in places.items() if len(where) > 1)
    if leaking:
        raise SplitLeakError(_leak_sentence(leaking, "more than one of train, validation and test"))


def _official(
    patients: Sequence[str], divisions: Sequence[str | None], strata: Mapping[str, int], split: Split, seed: int | str
) -> dict[Part, Indices]:
    """Test as published; validation carved out of the published train part, by patient."""
    without = sum(division is None for division in divisions)
    if without:
        raise DataError(
            f"data.split.division is official, but {without} of {len(divisions)} records have no official part; "
            "ask for division: by_patient"
        )
    published: dict[str, set[str]] = {}
    for patient, division in zip(patients, divisions, strict=True):
        published.setdefault(patient, set()).add(str(division))
    leaking = sorted(patient for patient, where in published.items() if len(where) > 1)
    if leaking:
        raise SplitLeakError(_leak_sentence(leaking, "both the official train and the official test part"))
    development = {patient: stratum for patient, stratum in strata.items() if published[patient] == {"train"}}
    place = assign_patients(development, {"validation": split.validation, "train": split.train}, seed=seed)
    return _parts([place.get(patient, "test") for patient in patients])


def _leak_sentence(leaking: Sequence[str], where: str) -> str:
    named = ", ".join(leaking[:3]) + (", ..." if len(leaking) > 3 else "")
    verb = "patient stands" if len(leaking) == 1 else "patients stand"
    return (
        f"{len(leaking)} {verb} in {where} ({named}); select records so that none does, or ask for division: by_patient"
    )


def _strata(patients: Sequence[str], labels: NDArray[np.int64], positive: int) -> dict[str, int]:
    counts: dict[str, Counter[int]] = {}
    for patient, label in zip(patients, labels.tolist(), strict=True):
        counts.setdefault(patient, Counter())[label] += 1
    return {
        patient: positive if positive in count else min(count, key=lambda label: (-count[label], label))
        for patient, count in counts.items()
    }


def _quotas(count: int, shares: Mapping[Part, float]) -> dict[Part, int]:
    """How many of `count` patients each part gets; the quotas add up to `count`."""
    exact = {part: count * share for part, share in shares.items()}
    quotas = {part: int(value + 1e-9) for part, value in exact.items()}
    by_remainder = sorted(shares, key=lambda part: quotas[part] - exact[part])
    for part in by_remainder[: count - sum(quotas.values())]:
        quotas[part] += 1
    if count >= len(quotas):
        for part in quotas:
            if quotas[part] == 0:
                quotas[max(quotas, key=lambda other: quotas[other])] -= 1
                quotas[part] = 1
    return quotas


def _parts(place: Sequence[Part]) -> dict[Part, Indices]:
    names = np.asarray(place)
    return {part: np.flatnonzero(names == part).astype(np.int64) for part in PARTS}
