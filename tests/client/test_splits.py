"""Division by patient: no leak, proportions kept, and nothing but seed and patients decides."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from benchmarks.bare_run import study_values
from client.data.splits import PARTS, assign_patients, check_no_leak, draw_key, parts_by_id, split_records
from client.withdrawn import Tags
from shared.errors import DataError, SplitLeakError
from shared.study import Study
from shared.study_data import Folds, Split

Records = list[tuple[str, int]]

records = st.lists(
    st.tuples(st.integers(0, 60).map(lambda number: f"P_{number:05d}"), st.integers(0, 2)), min_size=1, max_size=200
)
seeds = st.integers(0, 2**31 - 1)
splits = st.sampled_from(
    [Split(), Split(train=0.5, validation=0.25, test=0.25), Split(train=0.8, validation=0.1, test=0.1)]
)


def divide(given: Records, *, split: Split | None = None, seed: int = 0, positive: int = 1) -> dict[str, str]:
    """Part of each patient; fails where a patient has two."""
    patients = [patient for patient, _ in given]
    labels = np.array([label for _, label in given], dtype=np.int64)
    parts = split_records(patients, labels, [None] * len(given), split=split or Split(), positive=positive, seed=seed)
    together = np.concatenate([parts[part] for part in PARTS])
    assert sorted(together.tolist()) == list(range(len(given)))
    place: dict[str, str] = {}
    for part in PARTS:
        for index in parts[part]:
            assert place.setdefault(patients[index], part) == part
    return place


@given(records, splits, seeds)
def test_every_record_is_in_one_part_and_every_patient_in_one(given: Records, split: Split, seed: int) -> None:
    divide(given, split=split, seed=seed)


@given(records, seeds, st.randoms(use_true_random=False))
def test_the_order_of_the_records_does_not_matter(given: Records, seed: int, order: random.Random) -> None:
    shuffled = list(given)
    order.shuffle(shuffled)
    assert divide(given, seed=seed) == divide(shuffled, seed=seed)


@given(records, seeds, st.data())
def test_more_records_of_a_patient_that_keep_its_stratum_move_nobody(
    given: Records, seed: int, data: st.DataObject
) -> None:
    index = data.draw(st.integers(0, len(given) - 1))
    patient = given[index][0]
    labels = [label for name, label in given if name == patient]
    usual = 1 if 1 in labels else min(set(labels), key=lambda label: (-labels.count(label), label))
    extra = [(patient, usual)] * data.draw(st.integers(1, 20))
    assert divide(given, seed=seed) == divide(given + extra, seed=seed)


@given(st.lists(st.integers(0, 120), min_size=1, max_size=4), splits, seeds)
def test_every_stratum_keeps_the_shares_to_within_one_patient(sizes: list[int], split: Split, seed: int) -> None:
    strata = {f"{stratum}-{number}": stratum for stratum, size in enumerate(sizes) for number in range(size)}
    shares = {part: getattr(split, part) for part in PARTS}
    place = assign_patients(strata, shares, seed=seed)
    for stratum, size in enumerate(sizes):
        for part in PARTS:
            got = sum(1 for patient, where in place.items() if where == part and strata[patient] == stratum)
            assert abs(got - size * shares[part]) < 1 or (got == 1 and size * shares[part] < 1) or size < 7
            assert got >= 1 or size < 3


def test_a_hundred_patients_are_divided_70_15_15_in_each_stratum() -> None:
    given = [(f"P_{number}", number % 2) for number in range(200)]
    place = divide(given, seed=5)
    for label in (0, 1):
        counts = [sum(place[patient] == part for patient, own in given if own == label) for part in PARTS]
        assert counts == [70, 15, 15]


def test_another_seed_gives_another_division_of_the_same_size() -> None:
    given = [(f"P_{number}", number % 2) for number in range(60)]
    first, second = divide(given, seed=1), divide(given, seed=2)
    assert first != second
    assert sorted(first.values()) == sorted(second.values())


def test_a_patient_with_any_positive_record_counts_as_positive() -> None:
    mixed = [(f"M_{number}", label) for number in range(3) for label in (0, 0, 0, 1)]
    given = mixed + [(f"B_{number}", 0) for number in range(3)]
    place = divide(given)
    assert sorted(place[f"M_{number}"] for number in range(3)) == sorted(PARTS)
    assert sorted(place[f"B_{number}"] for number in range(3)) == sorted(PARTS)


@settings(max_examples=50)
@given(st.integers(6, 80), st.integers(2, 40), seeds)
def test_the_official_division_keeps_test_and_takes_validation_from_train(train: int, test: int, seed: int) -> None:
    patients = [f"A_{n}" for n in range(train)] * 2 + [f"Z_{n}" for n in range(test)]
    divisions = ["train"] * (2 * train) + ["test"] * test
    parts = split_records(
        patients,
        np.zeros(len(patients), dtype=np.int64),
        divisions,
        split=Split(division="official"),
        positive=1,
        seed=seed,
    )
    assert parts["test"].tolist() == list(range(2 * train, 2 * train + test))
    carved = {patients[index] for index in parts["validation"]}
    assert abs(len(carved) - train * 0.15 / 0.85) < 1 or len(carved) == 1
    assert not carved & {patients[index] for index in parts["train"]}


def test_a_patient_in_both_official_parts_is_a_leak_that_says_how_many() -> None:
    patients = ["A", "A", "B", "B", "C", "D"]
    divisions = ["train", "test", "train", "test", "train", "test"]
    with pytest.raises(SplitLeakError, match=r"^2 patients stand in both .*\(A, B\)"):
        split_records(
            patients, np.array([0, 1, 0, 1, 0, 1]), divisions, split=Split(division="official"), positive=1, seed=0
        )


def test_the_official_division_of_data_that_has_none_is_refused() -> None:
    with pytest.raises(DataError, match="1 of 2 records have no official part"):
        split_records(
            ["A", "B"], np.array([0, 1]), ["train", None], split=Split(division="official"), positive=1, seed=0
        )


def test_a_leak_between_given_parts_is_found() -> None:
    patients = ["A", "B", "A", "C"]
    check_no_leak(patients, {"train": np.array([0, 2]), "validation": np.array([1]), "test": np.array([3])})
    with pytest.raises(SplitLeakError, match=r"^1 patient stands .*\(A\)"):
        check_no_leak(patients, {"train": np.array([0]), "validation": np.array([1]), "test": np.array([2, 3])})


@given(records, st.integers(2, 6), seeds, st.randoms(use_true_random=False))
def test_folds_test_every_patient_once_in_equal_shares_of_each_stratum(
    given: Records, of: int, seed: int, order: random.Random
) -> None:
    shuffled = list(given)
    order.shuffle(shuffled)
    tested: list[list[str]] = []
    for fold in range(of):
        split = Split(folds=Folds(of=of, test=fold))
        place = divide(given, split=split, seed=seed)
        assert place == divide(shuffled, split=split, seed=seed)
        tested.append([patient for patient, part in place.items() if part == "test"])
    assert sorted(patient for patients in tested for patient in patients) == sorted({name for name, _ in given})
    assert max(map(len, tested)) - min(map(len, tested)) <= 1
    labels: dict[str, list[int]] = {}
    for name, label in given:
        labels.setdefault(name, []).append(label)
    one_label = {name for name, found in labels.items() if len(set(found)) == 1}
    if one_label == set(labels):  # then strata are labels
        for stratum in range(3):
            counts = [sum(labels[name][0] == stratum for name in patients) for patients in tested]
            assert max(counts) - min(counts) <= 1


def test_folds_are_as_even_as_scikit_learns_and_validation_has_its_share_of_the_rest() -> None:
    """StratifiedGroupKFold balances images by a greedy search; ours deals out patients. Compared where each patient has one image."""
    rng = np.random.default_rng(5)
    labels = rng.choice(4, 403, p=[0.6, 0.25, 0.1, 0.05])
    names = [f"P{number}" for number in range(labels.size)]

    def spread(folds: list[np.ndarray]) -> int:
        counts = np.array([np.bincount(labels[fold], minlength=4) for fold in folds])
        return int((counts.max(0) - counts.min(0)).max())

    ours = []
    for test in range(5):
        split = Split(folds=Folds(of=5, test=test))
        parts = split_records(names, labels, [None] * labels.size, split=split, positive=1, seed=3)
        ours.append(parts["test"])
        rest = len(parts["train"]) + len(parts["validation"])
        assert len(parts["validation"]) == pytest.approx(rest * 15 / 85, abs=2)
        assert set(labels[parts["validation"]]) == set(range(4))
    theirs = StratifiedGroupKFold(5, shuffle=True, random_state=0).split(labels, labels, names)
    assert spread(ours) <= spread([test for _, test in theirs]) and spread(ours) <= 1


@given(st.integers(2, 20), st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=50))
def test_folds_by_id_test_every_patient_once_and_depend_on_nobody_else(of: int, places: list[float]) -> None:
    names = [str(number) for number in range(len(places))]
    tested = []
    for test in range(of):
        split = Split(folds=Folds(of=of, test=test))
        parts = parts_by_id(names, split, lambda name: places[int(name)])
        assert sum(map(len, parts.values())) == len(names)
        tested += parts["test"].tolist()
        alone = parts_by_id(names[:1], split, lambda name: places[0])
        assert [part for part in PARTS if len(alone[part])] == [part for part in PARTS if 0 in parts[part]]
    assert sorted(tested) == list(range(len(names)))


def test_folds_by_id_meet_their_shares_on_average() -> None:
    names = [str(number) for number in range(4000)]
    for test in (0, 2, 4):
        split = Split(folds=Folds(of=5, test=test))
        parts = parts_by_id(names, split, lambda name: int(name) / 4000)
        for part, share in split.shares().items():
            assert len(parts[part]) / 4000 == pytest.approx(share, abs=0.002), (test, part)


def test_a_seed_divides_as_it_always_has() -> None:
    """A study that was run before divides the same patients alike after an update, or its test patients would have trained."""
    names = [f"P_{number:02}" for number in range(20)]
    labels = np.array([number % 2 for number in range(20)], dtype=np.int64)
    split = Split(train=0.5, validation=0.2, test=0.3)
    parts = split_records(names, labels, [None] * 20, split=split, positive=1, seed=7)
    assert {part: rows.tolist() for part, rows in parts.items()} == {
        "train": [0, 2, 5, 6, 7, 10, 11, 13, 14, 19],
        "validation": [3, 12, 15, 16],
        "test": [1, 4, 8, 9, 17, 18],
    }
    divisions = ["train"] * 15 + ["test"] * 5
    official = split_records(names, labels, divisions, split=Split(division="official"), positive=1, seed=7)
    assert official["validation"].tolist() == [8, 9]
    assert draw_key(7, "balance", "P_00").startswith("3ea0ab3d4367c4ac")
    assert Tags(b"k" * 32).place(7, "P_00") == 0.0002586439626309778


def test_a_splits_id_takes_the_seeds_place_and_none_reads_as_a_seed() -> None:
    def study(seed: int, name: str | None) -> Study:
        return Study.model_validate({**study_values(), "seed": seed, "data": {"split": {"id": name}}})

    assert study(1, None).split_seed == 1
    assert study(1, "breast").split_seed == study(2, "breast").split_seed
    assert draw_key(study(1, "7").split_seed, "split", "P") != draw_key(7, "split", "P")
