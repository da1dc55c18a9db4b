"""Labels that no class lists: where a hierarchy takes them, and what a study's digest says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.bare_run import study_values
from shared.diagnosis_vocabularies import VOCABULARIES
from shared.errors import StudyError
from shared.study import Study, load_study, study_from_data
from shared.study_task import Task

NINE = {name: [] for name in ("mel", "nv", "bcc", "ak", "bkl", "df", "vasc", "scc")} | {
    "unk": ["unk", "benign", "malignant", "indeterminate"]
}
#: By hand, from the papers and the challenges' own words: not from the vocabulary.
EXPECTED = {
    "mel": ["melanoma", "Melanoma in situ", "lentigo maligna", "Melanoma Invasive, Superficial spreading", "melanoma metastasis", "MEL"],
    "nv": ["nevus", "blue nevus", "Blue nevus, Sclerosing", "Nevus, Dysplastic", "Nevus, Congenital, by history", "nv"],
    "bcc": ["basal cell carcinoma", "Basal cell carcinoma, Nodular"],
    "ak": ["akiec", "actinic keratosis", "Solar or actinic keratosis", "Actinic keratosis, Lichenoid"],
    "bkl": [
        "seborrheic keratosis", "solar lentigo", "lichenoid keratosis", "lichen planus-like keratosis", "pigmented benign keratosis",
        "Seborrheic keratosis, Clonal",
    ],
    "df": ["dermatofibroma", "Dermatofibroma, Hemosiderotic"],
    "vasc": ["angioma", "angiokeratoma", "pyogenic granuloma", "vascular lesion", "Hemangioma, Cherry", "Subungual hemorrhage"],
    "scc": ["squamous cell carcinoma", "Squamous cell carcinoma, Invasive, Spindle cell"],
    "unk": ["unknown", "other", "scar", "AIMP", "cafe-au-lait macule", "lentigo NOS", "atypical melanocytic proliferation", "Lipoma"],
}  # fmt: skip


def task_of(classes: dict[str, list[str]], hierarchy: Any, positive: str = "mel") -> Task:
    return Task.model_validate(
        {"classes": classes, "positive_class": positive, "unit": "image", "hierarchy": hierarchy}
    )


def test_labels_of_the_archive_and_the_challenges_come_into_nine_classes() -> None:
    task = task_of(NINE, "isic")
    found = {
        label: task.class_names[index]
        for labels in EXPECTED.values()
        for label in labels
        if (index := task.class_of(label)) is not None
    }
    assert found == {label: name for name, labels in EXPECTED.items() for label in labels}
    assert task.class_of("a word of nobody") is None
    assert all(task.class_of(label) is not None for label in VOCABULARIES["isic"])


def test_without_a_hierarchy_only_what_a_class_lists_counts() -> None:
    task = task_of({"mel": ["melanoma"], "nv": []}, {})
    assert [task.class_of(one) for one in ("Melanoma ", "melanoma in situ", "nevus", "NV")] == [0, None, None, 1]


def test_the_nearest_ancestor_counts_whatever_stands_above_it() -> None:
    tree = {
        "lentigo maligna": "melanoma in situ",
        "melanoma in situ": "melanoma",
        "melanoma": "malignant",
        "naevus": "benign",
    }
    task = task_of({"mel": ["Malignant"], "in_situ": ["melanoma in situ"]}, tree)
    names = {label: task.placed(label) for label in ("lentigo maligna", "melanoma in situ", "MELANOMA", "naevus")}
    assert {label: (task.class_names[p.index], p.listed) if p else None for label, p in names.items()} == {
        "lentigo maligna": ("in_situ", "melanoma in situ"),
        "melanoma in situ": ("in_situ", "melanoma in situ"),
        "MELANOMA": ("mel", "malignant"),
        "naevus": None,
    }


@pytest.mark.parametrize(
    ("hierarchy", "said"),
    [
        ({"a": "b", "b": "c", "c": "a"}, "label 'a' stands above itself: a < b < c < a"),
        ({"x": "a", "a": " A"}, "label 'a' stands above itself: a < a"),
        ({"Nevus": "nv", "nevus ": "mel"}, "label 'nevus' stands under two labels, nv and mel"),
        ({" ": "nv"}, "a label is empty"),
        ("isik", "unknown hierarchy 'isik'; did you mean 'isic'"),
    ],
)
def test_what_has_no_meaning_is_refused_with_a_sentence(hierarchy: Any, said: str, tmp_path: Path) -> None:
    values = study_values()
    values["task"] = {
        "classes": {"mel": [], "nv": []},
        "positive_class": "mel",
        "unit": "image",
        "hierarchy": hierarchy,
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(StudyError) as problem:
        load_study(path)
    assert said in str(problem.value) and "study.yaml:" in str(problem.value)


def digest_of(hierarchy: Any) -> str:
    return study_with(hierarchy).digest()


def study_with(hierarchy: Any) -> Study:
    values = study_values()
    task = {"classes": {"mel": [], "nv": []}, "positive_class": "mel", "unit": "image", "hierarchy": hierarchy}
    return Study.model_validate({**values, "task": task})


def test_the_digest_covers_what_a_named_hierarchy_holds() -> None:
    named, written = study_with("isic"), dict(VOCABULARIES["isic"])
    assert named.to_data()["task"]["hierarchy"] == dict(sorted(written.items()))
    assert study_from_data(named.to_data()).digest() == named.digest()  # as a hospital gets it
    assert digest_of(dict(reversed(written.items()))) == named.digest()
    assert digest_of({child.upper(): parent for child, parent in written.items()}) == named.digest()
    assert digest_of({**written, "angioma": "nv"}) != named.digest()
    assert digest_of({}) != named.digest()
