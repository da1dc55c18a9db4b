"""What a stage of training holds stays in the hospital: no update has it, and none leaves where it changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from publications import profile_of

from benchmarks.bare_run import staged_study, study_values
from benchmarks.ledgered_run import ARRAYS, LedgeredFederation
from client import gate, work
from client.gate import Result, Task
from client.held_layers import without_held
from client.phantom import write_phantom
from client.site_folder import SiteFolder
from shared.errors import EgressError
from shared.messages import Instruction
from shared.models import build_network
from shared.models.state import travelling_arrays
from shared.release import Release
from shared.study import Study
from shared.wire import Manifest, encode, flat_digest, flatten, unflatten

WHOLE = Manifest.of(ARRAYS)
STAGED = staged_study(["w"], [])


def instruction_of(study: Study, manifest: Manifest, number: int, model_digest: str = "0" * 64) -> Instruction:
    return Instruction(
        kind="train", run="run-1", site="anna", round=number, issued=number, expires=1 << 50, study=study.to_data(),
        study_digest=study.digest(), model_digest=model_digest, manifest_digest=manifest.digest(), previous=None,
        compare_with=None, release=Release.installed(),
    )  # fmt: skip


def test_only_the_rounds_own_stage_counts() -> None:
    update = flatten({"w": np.zeros((10, 20), np.float32), "b": np.arange(5, dtype=np.float32)}, WHOLE)
    assert without_held(update, WHOLE, instruction_of(STAGED, WHOLE, 1), STAGED).tolist() == [0, 1, 2, 3, 4]
    assert without_held(update, None, instruction_of(STAGED, WHOLE, 2), STAGED) is update


@pytest.mark.parametrize("value", [1e-30, -1.0, np.nan])
def test_a_change_of_what_is_held_is_named(value: float) -> None:
    update = np.zeros(205, np.float32)
    update[199] = value
    with pytest.raises(EgressError, match="'w' is held in round 1, but training changed it"):
        without_held(update, WHOLE, instruction_of(STAGED, WHOLE, 1), STAGED)


@pytest.mark.parametrize("tensors", [None, Manifest.of({"v": ARRAYS["w"], "b": ARRAYS["b"]})])
def test_names_that_are_not_the_instructions_are_refused(tensors: Manifest | None) -> None:
    with pytest.raises(EgressError, match="not the instruction's"):
        without_held(np.zeros(205, np.float32), tensors, instruction_of(STAGED, WHOLE, 1), STAGED)


SPOILT: dict[str, Callable[[Result], Result]] = {
    "what is held has changed": lambda result: replace(result, update=np.full(205, 1e-3, np.float32)),
    "the values that are free, alone": lambda result: replace(result, update=np.ones(5, np.float32)),
    "no tensors": lambda result: replace(result, tensors=None),
    "other tensors": lambda result: replace(result, tensors=Manifest.of({"v": ARRAYS["w"], "b": ARRAYS["b"]})),
}


@pytest.mark.parametrize("name", SPOILT)
def test_at_the_gate_it_becomes_a_refusal(tmp_path: Path, name: str) -> None:
    federation = LedgeredFederation.make(tmp_path, STAGED)
    anna = federation.hospitals["anna"]

    def spoilt(task: Task) -> Result:
        return SPOILT[name](anna.work(task))

    anna.instead["train 1"] = lambda hospital, message: gate.answer(message, hospital.folder, spoilt)
    federation.conduct()
    first, second = federation.folder.rounds()[1:]
    assert [(miss.site, miss.reason, miss.code) for miss in first.missing] == [("anna", "refused", "CONS-220")]
    assert sorted(second.trained) == ["anna", "berta", "clara"]


def test_a_hospitals_training_moves_all_that_its_stage_leaves_free_and_nothing_else(tmp_path: Path) -> None:
    """With batch norm, weight decay and an optimiser that goes on: all that could move a layer besides its gradient."""
    write_phantom(tmp_path / "data", patients=24, seed=1, scanner="halide", prevalence=0.5)
    folder = SiteFolder.create(tmp_path / "anna", profile_of(root=str(tmp_path / "data"), minimum_patients=1))
    stages = [["conv1", "bn1", "layer1", "layer2"], ["layer3", "layer4", "fc"]]
    values = study_values(rounds=2)
    values["task"] = {
        "classes": {"benign": ["BENIGN", "BENIGN_WITHOUT_CALLBACK"], "malignant": ["MALIGNANT"]},
        "positive_class": "malignant",
        "unit": "finding",
    }
    values["preprocessing"] = {"region": "finding", "size": 32, "channels": 3}
    values["model"] = {"name": "resnet18"}
    values["training"] |= {
        "optimiser": "adamw", "weight_decay": 0.1, "learning_rate": 1e-3, "optimiser_state": "keep",
        "stages": [{"rounds": 1, "freeze": held} for held in stages],
    }  # fmt: skip
    study = Study.model_validate(values)
    arrays = travelling_arrays(build_network(study))
    manifest = Manifest.of(arrays)
    model = flatten(arrays, manifest)
    digest = flat_digest(encode(model, "fp32"))
    for number, held in enumerate(stages, 1):
        instruction = instruction_of(study, manifest, number, digest)
        result = work.do(Task(instruction, study, folder.profile(), folder, model, "0" * 64))
        assert result.update is not None and result.tensors == manifest
        moved = {name.split(".")[0] for name, array in unflatten(result.update, manifest).items() if array.any()}
        assert moved == {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"} - set(held)
        leaving = without_held(result.update, result.tensors, instruction, study)
        assert leaving.size == sum(array.size for name, array in arrays.items() if name.split(".")[0] not in held)
