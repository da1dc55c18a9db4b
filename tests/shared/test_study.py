"""Studies: every mistake is a sentence with file and line, and the digest is of the meaning."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.bare_run import study_values
from shared.canonical import canonical_json, digest
from shared.errors import StudyError
from shared.study import Study, load_study, study_from_data


def written(folder: Path, values: dict[str, Any]) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def line_of(path: Path, text: str) -> int:
    return next(number for number, line in enumerate(path.read_text().splitlines(), start=1) if text in line)


def changed(*key: str, to: Any) -> dict[str, Any]:
    values = copy.deepcopy(study_values())
    place = values
    for part in key[:-1]:
        place = place.setdefault(part, {})
    place[key[-1]] = to
    return values


def test_a_valid_study_is_read_with_its_defaults(tmp_path: Path) -> None:
    study = load_study(written(tmp_path, study_values()))
    assert study.name == "bare"
    assert study.outputs == 1
    assert study.task.positive_index == 1
    assert study.federation.wire == "fp32"
    assert study.to_data()["evaluation"]["resamples"] == 1000


@pytest.mark.parametrize(
    ("key", "right"),
    [
        (("training", "batchsize"), "batch_size"),
        (("training", "optimizer"), "optimiser"),
        (("federation", "qourum"), "quorum"),
        (("federation", "optimiser", "learning-rate"), "learning_rate"),
        (("preprocessing", "normalize"), "normalise"),
        (("head", "grid", "gama"), "gamma"),
        (("titel",), "title"),
    ],
)
def test_an_unknown_key_is_named_with_its_line_and_the_nearest_right_one(
    tmp_path: Path, key: tuple[str, ...], right: str
) -> None:
    path = written(tmp_path, changed(*key, to=1))
    with pytest.raises(StudyError) as problem:
        load_study(path)
    assert f"{path}:{line_of(path, key[-1] + ':')}: unknown key '{key[-1]}'" in str(problem.value)
    assert f"did you mean '{right}'?" in str(problem.value)


def test_a_key_that_resembles_none_gets_the_known_ones_listed(tmp_path: Path) -> None:
    with pytest.raises(
        StudyError, match=r"unknown key 'xyzzy' in governance; known keys are ethics, purpose, retention"
    ):
        load_study(written(tmp_path, changed("governance", "xyzzy", to=1)))


def test_the_suggestion_for_the_schema_is_the_key_that_stands_in_files(tmp_path: Path) -> None:
    values = study_values()
    values["shema"] = values.pop("schema")
    with pytest.raises(StudyError) as problem:
        load_study(written(tmp_path, values))
    assert "did you mean 'schema'?" in str(problem.value)
    assert "key 'schema' is missing" in str(problem.value)


def test_every_mistake_of_a_file_is_told_at_once(tmp_path: Path) -> None:
    values = study_values()
    del values["seed"]
    values["training"]["batch_size"] = 0
    values["model"]["depth"] = 3
    with pytest.raises(StudyError) as problem:
        load_study(written(tmp_path, values))
    assert len(str(problem.value).splitlines()) == 3
    assert "key 'seed' is missing" in str(problem.value)
    assert "training.batch_size: input should be greater than or equal to 1, but got 0" in str(problem.value)


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        (
            ("task", "rare_classes"),
            ["malignant", "scc"],
            "rare_classes: scc is not among the classes benign, malignant",
        ),
        (("task", "positive_class"), "cancer", "positive_class 'cancer' is not one of the classes benign, malignant"),
        (("task", "classes"), {"a": ["x"], "malignant": ["X"]}, "label 'X' stands in two classes, a and malignant"),
        (("task", "classes"), {"malignant": []}, "at least 2 items"),
        (("model", "freeze"), ["conv1"], "freeze needs starting weights"),
        (("model", "attention"), "cbam", "cbam_at must be given with attention: cbam"),
        (("model", "cbam_at"), "before_add", "cbam_at must be given with attention: cbam"),
        (("training", "momentum"), 0.9, "momentum is a setting of sgd, but the optimiser is adam"),
        (("training", "batch_size"), "eight", "but got 'eight'"),
        (("training", "learning_rate"), float("nan"), "finite number"),
        (("data", "split"), {"train": 0.7, "validation": 0.2, "test": 0.2}, "must add up to 1, but add up to 1.1"),
        (("data", "split"), {"folds": {"of": 3, "test": 3}}, "with of: 3, test is at most 2, not 3"),
        (("data", "split"), {"division": "official", "folds": {"of": 3, "test": 0}}, "folds divide by patient"),
        (("preprocessing", "normalise"), {"mean": [0.5, 0.5], "std": [1]}, "normalise.mean must have 1 or 3 values"),
        (("title",), "two\nlines", "the title must be one line"),
        (("federation", "weighting"), {"anna": 0}, "greater than 0"),
        (("federation", "round_deadline_s"), 0, "greater than 0"),
        (("name",), "Übung 1", "should match pattern"),
        (("schema",), "consilium/study/2", "consilium/study/1"),
    ],
)
def test_a_wrong_value_is_told_with_its_key_and_line(
    tmp_path: Path, key: tuple[str, ...], value: Any, sentence: str
) -> None:
    path = written(tmp_path, changed(*key, to=value))
    with pytest.raises(StudyError) as problem:
        load_study(path)
    text = str(problem.value)
    assert sentence in text
    assert text.startswith(f"{path}:")
    assert "Traceback" not in text and "pydantic" not in text


def test_binary_cross_entropy_needs_two_classes(tmp_path: Path) -> None:
    path = written(tmp_path, changed("task", "classes", to={"a": [], "b": [], "malignant": []}))
    with pytest.raises(StudyError, match="binary_cross_entropy needs two classes, but the study has 3"):
        load_study(path)


def test_the_digest_is_that_of_the_values_with_defaults_filled_in() -> None:
    study = Study.model_validate(study_values())
    assert study.digest() == digest(json.loads(json.dumps(study.to_data())))
    assert Study.model_validate(changed("federation", "wire", to="fp32")).digest() == study.digest()
    assert study_from_data(json.loads(json.dumps(study.to_data()))).digest() == study.digest()


def test_the_order_of_keys_in_the_file_does_not_change_the_digest(tmp_path: Path) -> None:
    values = study_values()
    backwards = {key: values[key] for key in reversed(values)}
    assert load_study(written(tmp_path, values)).digest() == load_study(written(tmp_path, backwards)).digest()


def leaves(data: Any, key: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    if isinstance(data, dict):
        return [leaf for name, value in data.items() for leaf in leaves(value, (*key, name))]
    return [key]


ALL_KEYS = leaves(Study.model_validate(study_values()).to_data())


@pytest.mark.parametrize("key", ALL_KEYS, ids=lambda key: ".".join(map(str, key)))
def test_every_value_of_the_study_is_in_the_digest(key: tuple[str | int, ...]) -> None:
    data = Study.model_validate(study_values()).to_data()
    place: Any = data
    for part in key[:-1]:
        place = place[part]
    place[key[-1]] = f"{place[key[-1]]} changed"
    assert digest(data) != Study.model_validate(study_values()).digest()


def test_the_outputs_are_in_the_order_of_names_so_that_one_digest_has_one_meaning() -> None:
    """RFC 8785 sorts keys: two studies that differ in the order of their classes alone have one digest."""
    other = Study.model_validate(changed("task", "classes", to={"malignant": [], "benign": []}))
    assert other.digest() == Study.model_validate(study_values()).digest()
    assert other.task.class_names == ("benign", "malignant")
    assert other.task.positive_index == 1
    assert study_from_data(json.loads(canonical_json(other.to_data()))).task == other.task


def test_what_travelled_is_validated_again() -> None:
    with pytest.raises(StudyError, match="the study that was received is not valid"):
        study_from_data({**study_values(), "rounds": 3})
    with pytest.raises(StudyError):
        study_from_data("a study")


@given(st.text(max_size=12), st.sampled_from(["benign", "Malignant ", "callback"]))
def test_a_label_means_the_class_that_lists_it_whatever_its_case(noise: str, label: str) -> None:
    values = changed("task", "classes", to={"benign": ["BENIGN", "callback"], "malignant": []})
    task = Study.model_validate(values).task
    assert task.class_of(label) == (1 if "alignant" in label else 0)
    if noise.strip().lower() not in ("benign", "callback", "malignant"):
        assert task.class_of(noise) is None


@pytest.mark.parametrize("key", ["local_epochs", "batch_size"])
def test_a_plain_study_names_its_passes_and_batches(key: str) -> None:
    values = study_values()
    del values["training"][key]
    with pytest.raises(ValueError, match=f"training.{key} must be given"):
        Study.model_validate(values)
