"""What a study takes of a holding."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.data.records import Holding, Problem, Record
from client.data.selection import Cohort, choose
from client.data.splits import PARTS
from shared.errors import DataError, PolicyError, SplitLeakError
from shared.study import Study, study_from_data

CLASSES = {"benign": ["benign", "benign_without_callback"], "malignant": ["malignant"]}


def study(*, classes: Mapping[str, list[str]] = CLASSES, seed: int = 1, head: bool = True, **data: Any) -> Study:
    names = list(classes)
    return study_from_data(
        {
            "schema": "consilium/study/1",
            "name": "test",
            "title": "Test",
            "governance": {"purpose": "test", "ethics": "none", "retention": "none"},
            "seed": seed,
            "task": {"classes": classes, "positive_class": names[-1], "unit": "finding"},
            "data": data,
            "preprocessing": {"region": "whole", "size": 32, "channels": 1},
            "model": {"name": "resnet34"},
            "head": {"calibration_folds": 3} if head else None,
            "training": {
                "local_epochs": 1,
                "batch_size": 4,
                "optimiser": "adam",
                "learning_rate": 1e-4,
                "loss": "cross_entropy",
            },
            "federation": {"rounds": 1, "quorum": 1, "weighting": "counts"},
        }
    )


def record(number: int, label: str, *, patient: str | None = None, **more: Any) -> Record:
    return Record(f"{label}-{number:04d}", Path(f"{number}.dcm"), label, patient or f"{label}-{number}", **more)


def holding(**counts: int) -> Holding:
    return Holding(tuple(record(number, label) for label, count in counts.items() for number in range(count)))


def take(study: Study, holding: Holding, minimum_patients: int = 1) -> Cohort:
    return choose(study, holding, minimum_patients=minimum_patients)


def same(first: Cohort, second: Cohort) -> bool:
    return (
        first.records == second.records
        and np.array_equal(first.labels, second.labels)
        and np.array_equal(first.patients, second.patients)
        and all(np.array_equal(first.parts[part], second.parts[part]) for part in PARTS)
    )


def test_labels_are_the_classes_that_the_study_gives_them_and_others_are_left_out_and_counted() -> None:
    given = holding(benign=20, benign_without_callback=10, malignant=20, unproven=7)
    cohort = take(study(), given)
    assert cohort.left_out == 7
    assert np.bincount(cohort.labels).tolist() == [30, 20]
    assert all(
        (record.label == "malignant") == (label == 1)
        for record, label in zip(cohort.records, cohort.labels, strict=True)
    )


def test_records_of_one_patient_have_one_code_and_one_part() -> None:
    given = Holding(tuple(record(n, label, patient=f"P{n % 15}-{label}") for label in CLASSES for n in range(60)))
    cohort = take(study(), given)
    assert cohort.patients_in(np.arange(120)) == 30
    for one, code in zip(cohort.records, cohort.patients, strict=True):
        assert {other.patient for other, own in zip(cohort.records, cohort.patients, strict=True) if own == code} == {
            one.patient
        }
    assert sum(cohort.patients_in(cohort.parts[part]) for part in PARTS) == 30


@settings(max_examples=30)
@given(st.randoms(use_true_random=False), st.integers(0, 1000), st.booleans())
def test_the_order_in_which_an_adapter_lists_records_does_not_matter(
    order: random.Random, seed: int, balanced: bool
) -> None:
    given = holding(benign=31, malignant=23)
    shuffled = list(given.records)
    order.shuffle(shuffled)
    asked = study(seed=seed, **({"balanced": {"per_class": 20, "if_fewer": "refuse"}} if balanced else {}))
    assert same(take(asked, given), take(asked, Holding(tuple(shuffled))))


def test_moving_the_image_files_changes_nothing() -> None:
    given = holding(benign=30, malignant=30)
    moved = Holding(tuple(Record(r.key, Path("/elsewhere") / r.image, r.label, r.patient) for r in given.records))
    asked = study(balanced={"per_class": 20, "if_fewer": "refuse"})
    first, second = take(asked, given), take(asked, moved)
    assert [r.key for r in first.records] == [r.key for r in second.records]
    assert all(np.array_equal(first.parts[part], second.parts[part]) for part in PARTS)


def test_balancing_draws_the_same_number_of_each_class_and_another_seed_draws_others() -> None:
    given = holding(benign=80, malignant=40)
    first = take(study(balanced={"per_class": 30, "if_fewer": "refuse"}), given)
    second = take(study(balanced={"per_class": 30, "if_fewer": "refuse"}, seed=2), given)
    assert np.bincount(first.labels).tolist() == [30, 30]
    assert {r.key for r in first.records} != {r.key for r in second.records}


def test_balancing_prefers_no_unit_of_a_class() -> None:
    given = holding(benign=30, malignant=30)
    drawn = np.zeros(30)
    for seed in range(200):
        for chosen in take(
            study(balanced={"per_class": 15, "if_fewer": "refuse"}, seed=seed, head=False), given
        ).records:
            if chosen.label == "benign":
                drawn[int(chosen.key[-4:])] += 1
    # Binomial(200, 1/2): mean 100, standard deviation 7.1; five of them either side.
    assert drawn.min() > 64 and drawn.max() < 136


def test_too_few_for_balancing_is_refused_with_counts_or_equalised() -> None:
    given = holding(benign=80, malignant=40)
    with pytest.raises(DataError, match="50 units of every class, but this site has benign 80, malignant 40"):
        take(study(balanced={"per_class": 50, "if_fewer": "refuse"}), given)
    cohort = take(study(balanced={"per_class": 50, "if_fewer": "equalise"}), given)
    assert np.bincount(cohort.labels).tolist() == [40, 40]


def marked() -> Holding:
    return Holding(
        tuple(
            record(number, label, attributes={"abnormality": kind, "view": "cc"})
            for label in CLASSES
            for number, kind in enumerate(["calcification"] * 20 + ["mass"] * 30)
        )
    )


def test_selection_keeps_the_records_with_one_of_the_values() -> None:
    cohort = take(study(select={"abnormality": ["Calcification"]}), marked())
    assert len(cohort.records) == 40
    assert {r.attributes["abnormality"] for r in cohort.records} == {"calcification"}


def test_selecting_by_an_attribute_that_the_layout_lacks_names_those_it_has() -> None:
    with pytest.raises(DataError, match=r"no attribute 'abnormalty'; it has abnormality, view"):
        take(study(select={"abnormalty": ["mass"]}), marked())


def test_selecting_a_value_that_no_record_has_names_those_there_are() -> None:
    with pytest.raises(DataError, match="calcification, mass"):
        take(study(select={"abnormality": ["masses"]}), marked())


def test_one_class_only_is_refused() -> None:
    with pytest.raises(DataError, match="class malignant has no patient at all"):
        take(study(), holding(benign=50))


def test_labels_of_no_class_are_refused_naming_what_is_there() -> None:
    with pytest.raises(DataError, match="the labels there are cyst"):
        take(study(), holding(cyst=50))


def test_no_record_at_all_is_refused() -> None:
    with pytest.raises(DataError, match="no usable record"):
        take(study(), Holding(()))


def test_a_class_with_fewer_patients_than_parts_is_refused_with_its_counts() -> None:
    with pytest.raises(DataError, match=r"class malignant has no patient in .*patients: train"):
        take(study(head=False), holding(benign=50, malignant=2))


def test_fewer_training_patients_of_a_class_than_folds_are_refused_only_where_an_svm_is_asked_for() -> None:
    given = holding(benign=50, malignant=4)
    with pytest.raises(DataError, match=r"class malignant has 2 patients in train, but the SVM's 3 folds need 3"):
        take(study(), given)
    assert len(take(study(head=False), given).records) == 54


def test_many_images_of_few_patients_do_not_make_up_for_folds() -> None:
    many = tuple(record(n, "malignant", patient=f"M{n % 4}") for n in range(80))
    with pytest.raises(DataError, match="2 patients in train"):
        take(study(), Holding(holding(benign=50).records + many))


THREE = {"nevus": ["nv"], "vascular": ["vasc"], "melanoma": ["mel"]}


def test_a_scarce_class_refuses_the_study_unless_it_says_leave_out() -> None:
    given = holding(nv=40, vasc=2, mel=20)
    with pytest.raises(DataError, match="class vascular"):
        take(study(classes=THREE), given)
    cohort = take(study(classes=THREE, scarce_classes="leave_out"), given)
    assert cohort.classes_left_out == ("vascular",)
    assert np.bincount(cohort.labels, minlength=3).tolist() == [20, 40, 0]


def test_a_class_that_is_nowhere_at_the_site_may_be_left_out_too() -> None:
    cohort = take(study(classes=THREE, scarce_classes="leave_out"), holding(nv=40, mel=20))
    assert cohort.classes_left_out == ("vascular",)


def test_balancing_counts_only_the_classes_that_stay() -> None:
    asked = study(classes=THREE, scarce_classes="leave_out", balanced={"per_class": 15, "if_fewer": "equalise"})
    assert np.bincount(take(asked, holding(nv=40, vasc=2, mel=20)).labels, minlength=3).tolist() == [15, 15, 0]


@pytest.mark.parametrize("counts", [{"nv": 40, "vasc": 20, "mel": 2}, {"nv": 2, "vasc": 2, "mel": 40}])
def test_neither_the_positive_class_nor_all_others_can_be_left_out(counts: dict[str, int]) -> None:
    with pytest.raises(DataError, match="can't serve"):
        take(study(classes=THREE, scarce_classes="leave_out"), holding(**counts))


def test_fewer_patients_than_the_policy_allows_are_refused_with_both_numbers() -> None:
    given = holding(benign=30, malignant=30)
    assert len(take(study(), given, minimum_patients=60).records) == 60
    with pytest.raises(PolicyError, match=r"60 patients.*61"):
        take(study(), given, minimum_patients=61)


def test_a_patient_in_both_official_parts_is_a_leak() -> None:
    records = [
        record(n, label, patient=f"P{n}", division="train" if label == "benign" else "test")
        for label in CLASSES
        for n in range(20)
    ]
    with pytest.raises(SplitLeakError, match=r"^20 patients"):
        take(study(split={"division": "official"}), Holding(tuple(records)))


def test_two_records_with_one_key_are_refused() -> None:
    with pytest.raises(DataError, match="benign-0001"):
        take(study(), Holding((record(1, "benign"), record(1, "benign"))))


def test_problems_of_the_holding_come_along_and_arrays_cannot_be_written() -> None:
    problem = Problem(Path("table.csv"), "no mask", 7)
    cohort = take(study(), Holding(holding(benign=30, malignant=30).records, (problem,)))
    assert cohort.problems == (problem,)
    for array in (cohort.labels, cohort.patients, *cohort.parts.values()):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def external(study: Study, holding: Holding, minimum_patients: int = 1) -> Cohort:
    return choose(study, holding, minimum_patients=minimum_patients, external=True)


def test_for_an_external_test_all_that_is_selected_is_test() -> None:
    records = [record(number, label, division="train") for number in range(4) for label in ("benign", "malignant")]
    official = {"split": {"division": "official"}, "balanced": {"per_class": 2, "if_fewer": "refuse"}}
    for data in ({}, official):
        cohort = external(study(**data), Holding(tuple(records)))
        assert cohort.parts["test"].tolist() == list(range(8))
        assert len(cohort.parts["train"]) == len(cohort.parts["validation"]) == 0
    assert len(external(study(), holding(benign=1, malignant=1)).records) == 2
    gone = choose(
        study(), Holding(tuple(records)), minimum_patients=1, external=True, withdrawn=lambda name: name == "benign-0"
    )
    assert [one.patient for one in gone.records] == [one.patient for one in sorted(records, key=lambda one: one.key)][
        1:
    ]


def test_an_external_test_needs_the_classes_and_the_patients_that_the_study_and_the_hospital_ask_for() -> None:
    with pytest.raises(DataError, match="malignant has no patient at all"):
        external(study(), holding(benign=9))
    three = {"classes": {"a": [], "b": [], "c": []}}
    with pytest.raises(DataError, match="b has no patient at all"):
        external(study(**three), holding(a=3, c=3))
    assert len(external(study(**three, scarce_classes="leave_out"), holding(a=3, c=3)).parts["test"]) == 6
    with pytest.raises(PolicyError, match="reaches 2 patients"):
        external(study(), holding(benign=1, malignant=1), minimum_patients=3)


def fold(of: int, test: int) -> dict[str, Any]:
    return {"folds": {"of": of, "test": test}}


def test_every_fold_leaves_out_the_same_classes_and_all_folds_together_test_everybody_once() -> None:
    classes = {"benign": [], "rare": [], "malignant": []}
    given = holding(benign=30, rare=4, malignant=20)
    with pytest.raises(DataError, match="class rare has no patient in test"):
        take(study(classes=classes, head=False, split=fold(5, 0)), given)
    tested: list[str] = []
    for test in range(5):
        asked = study(classes=classes, head=False, scarce_classes="leave_out", split=fold(5, test))
        cohort = take(asked, given)
        assert cohort.classes_left_out == ("rare",)
        tested += [cohort.records[row].patient for row in cohort.parts["test"]]
    assert len(tested) == len(set(tested)) == 50


@pytest.mark.parametrize("test", [0, 2])
def test_an_external_test_is_the_same_in_every_fold(test: int) -> None:
    cohort = external(study(split=fold(3, test)), holding(benign=3, malignant=3))
    assert len(cohort.parts["test"]) == 6
