"""What a hospital is told of its own words: labels that it calls otherwise, labels taken by the hierarchy, descriptors of no value."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from rich.console import Console

from benchmarks.bare_run import study_values
from client.data.check import check_profile
from client.data.registry import read_holding
from client.data.selection import choose
from client.data.taken import coverage, folded
from client.review import _below, _patients
from shared.profile import Profile
from shared.study import Study

#: Label, shape.
ROWS = [
    ("Nävus", "rund"), ("nevus", "round"), ("blue nevus", ""), ("MELANOMA IN SITU", "oval-round"), ("mel", "oval-round"),
    ("wart", "oval"), ("mel", "Oval"), ("nv", "round"),
] * 3  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    with (folder / "index.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["file", "label", "patient", "Shape"])
        for number, (label, shape) in enumerate(ROWS):
            Image.fromarray(np.full((16, 16), 5 * number, np.uint8)).save(folder / f"{number}.png")
            table.writerow([f"{number}.png", label, f"p{number}", shape])
    return folder


def profile_of(root: Path, **data: Any) -> Profile:
    values = {
        "layout": "image_folder",
        "root": str(root),
        "synthetic": True,
        "labels": {"nävus ": "nevus", "Muttermal": "nv"},
    }
    return Profile.model_validate(
        {
            "schema": "consilium/profile/1", "site": "anna", "title": "Anna", "device": "cpu", "data": {**values, **data},
            "policy": {"minimum_patients": 2},
        }
    )  # fmt: skip


def study_of() -> Study:
    values = study_values()
    values["task"] = {
        "classes": {"mel": [], "nv": []}, "positive_class": "mel", "unit": "image", "hierarchy": "isic",
        "descriptors": {"form": {"attributes": ["shape"], "values": {"oval": [], "round": []}}},
    }  # fmt: skip
    values["training"] = {**values["training"], "descriptor_weight": 1}
    return Study.model_validate(values)


def test_own_labels_are_read_as_the_profile_says_and_counted(root: Path) -> None:
    holding = read_holding(profile_of(root).data, unit="image")
    plain = read_holding(profile_of(root, labels={}).data, unit="image")
    assert [(a.label, b.label) for a, b in zip(holding.records, plain.records, strict=True) if a.label != b.label] == [
        ("nevus", "Nävus")
    ] * 3
    assert holding.notes[-2:] == (
        "data.labels: 3 record(s) labelled 'nävus' are read as 'nevus'",
        "data.labels: no record is labelled 'muttermal'",
    )


def test_what_is_folded_and_what_is_left_is_counted(root: Path) -> None:
    study = study_of()
    cohort = choose(study, read_holding(profile_of(root).data, unit="image"), minimum_patients=2)
    assert [(one.label, one.listed, one.class_name, one.records) for one in folded(cohort, study)] == [
        ("blue nevus", "nv", "nv", 3), ("melanoma in situ", "mel", "mel", 3), ("nevus", "nv", "nv", 6),
    ]  # fmt: skip
    assert cohort.left_out == 3
    (form,) = coverage(cohort, study)
    assert (form.by_value, form.absent, form.unlisted) == ({"oval": 3, "round": 6}, 12, {"oval-round": 6, "rund": 3})


def test_check_and_review_say_it(root: Path) -> None:
    stream = io.StringIO()
    assert check_profile(profile_of(root), study_of(), Console(file=stream, width=200))
    said = stream.getvalue()
    assert "By the study's hierarchy: 3 labelled 'melanoma in situ' as mel (through 'mel')" in said
    assert "Descriptor form: oval 3, round 6; without: 12, of which in no value: 'oval-round' 6, 'rund' 3" in said
    rows = _patients(study_of(), profile_of(root))
    below = next(words for name, words in rows if "hierarchy" in words)
    assert "lentigo maligna" in below and "angioma" not in below
    assert ("Descriptor form", "also learnt where a record has it (from shape): oval, round") in rows
    assert len(_below(study_of().task, 0)) + len(_below(study_of().task, 1)) < len(study_of().task.hierarchy)


def test_an_own_label_has_one_meaning(root: Path) -> None:
    with pytest.raises(ValidationError, match="'SK' means two labels, bkl and scc"):
        profile_of(root, labels={"sk": "bkl", "SK": "scc"})
    with pytest.raises(ValidationError, match="a label is empty"):
        profile_of(root, labels={"sk": " "})
