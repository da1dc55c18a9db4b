"""What a study may say of the lesion's mask, and what it means for the network and for the files that hospitals need."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from benchmarks.bare_run import study_values
from shared.errors import StudyError
from shared.models import build_network
from shared.study import Study, load_study
from shared.study_page import EXAMPLE

FILE = {"file": "unet.safetensors", "sha256": "a" * 64, "source": "run 1"}
PREDICTED = {"from": "model", "weights": FILE}


def study(mask: Any, **changes: Any) -> Study:
    values = {**study_values(), "model": {"name": "resnet18"}, **changes}
    return Study.model_validate(
        {**values, "preprocessing": {"region": "whole", "size": 32, "channels": 1, "mask": mask}}
    )


def test_the_network_gets_one_plane_more() -> None:
    assert study(None).input_shape == (1, 32, 32)
    for mask in ({"from": "annotated"}, PREDICTED):
        assert study(mask).input_shape == (2, 32, 32)
    masked = study({"from": "annotated"}, model={"name": "rcdnet"})
    assert build_network(masked)(torch.rand(2, *masked.input_shape)).shape == (2, masked.outputs)


def test_yaml_reads_as_it_is_meant_and_mistakes_are_sentences_about_what_was_written(tmp_path: Path) -> None:
    def read(mask: Any) -> Study:
        data = copy.deepcopy(study(None).to_data())
        data["preprocessing"]["mask"] = mask
        (tmp_path / "s.yaml").write_text(yaml.safe_dump(data))
        return load_study(tmp_path / "s.yaml")

    assert read({"from": "annotated"}) == study({"from": "annotated"})
    assert read(PREDICTED).to_data()["preprocessing"]["mask"] == {
        "from": "model", "threshold": 0.5, "weights": {**FILE, "origin": "public"},
    }  # fmt: skip
    assert Study.model_validate(read(PREDICTED).to_data()) == read(PREDICTED)
    for mask, said in (
        ({"from": "modell"}, r"preprocessing\.mask\.from: expected one of 'annotated', 'model', but got 'modell'"),
        ({"weights": FILE}, r"key 'preprocessing\.mask\.from' is missing"),
        ({"from": "model"}, r"key 'preprocessing\.mask\.weights' is missing"),
        (
            {"from": "annotated", "threshold": 0.5},
            r"unknown key 'threshold' in preprocessing\.mask; known keys are from",
        ),
        ({**PREDICTED, "treshold": 0.5}, r"unknown key 'treshold' in preprocessing\.mask; did you mean 'threshold'"),
        ({**PREDICTED, "threshold": 1}, r"preprocessing\.mask\.threshold: input should be less than 1, but got 1"),
        ({**PREDICTED, "weights": {**FILE, "sha256": "x"}}, r"preprocessing\.mask\.weights\.sha256: "),
    ):
        with pytest.raises(StudyError, match=said):
            read(mask)


def test_every_file_is_named_by_its_key_and_two_files_have_two_names() -> None:
    assert study({"from": "annotated"}).weight_files == {}
    other = {**FILE, "file": "start.safetensors", "sha256": "b" * 64}
    both = study(PREDICTED, model={"name": "resnet18", "weights": other})
    assert {key: one.file for key, one in both.weight_files.items()} == {
        "model.weights": "start.safetensors",
        "preprocessing.mask.weights": "unet.safetensors",
    }
    with pytest.raises(ValueError, match=r"unet\.safetensors is named twice with different SHA-256"):
        study(PREDICTED, model={"name": "resnet18", "weights": {**FILE, "sha256": "b" * 64}})


def test_a_private_study_takes_no_mask_of_a_network_that_was_trained_on_a_federations_patients() -> None:
    data = yaml.safe_load(EXAMPLE)

    def private(mask: Any) -> Study:
        return Study.model_validate({**data, "preprocessing": {**data["preprocessing"], "mask": mask}})

    assert private({"from": "annotated"}).input_shape == private(PREDICTED).input_shape == (4, 64, 64)
    federation = {**PREDICTED, "weights": {**FILE, "origin": "federation"}}
    with pytest.raises(
        ValueError, match=r"can't be private: preprocessing\.mask\.weights\.origin: weights trained on a federation's"
    ):
        private(federation)
