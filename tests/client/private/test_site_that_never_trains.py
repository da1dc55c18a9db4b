"""A hospital of the external test from the gate inwards: all its patients are test, and they are charged with the figures alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from test_one_hospital import STUDY, Hospital, data, start  # noqa: F401  (fixtures)

from client.roll import load_roll
from shared.ledger.chain import read_chain
from shared.ledger.entries import Geometric
from shared.ledger.spending import charged_events
from shared.study import Study
from shared.study_cost import evaluation_mechanism, events_of, study_events
from shared.wire import Flat, Manifest

Start = tuple[Flat, Manifest, str]


def test_a_private_run_charges_its_patients_with_the_evaluation_alone(
    data: Path,  # noqa: F811
    start: Start,  # noqa: F811
    tmp_path: Path,
) -> None:
    anna = Hospital(tmp_path / "anna", data, start, role="external_test")
    prepared = anna.answer("prepare", 0).prepared
    assert prepared is not None and prepared.external and prepared.parts == {}
    reserved = read_chain((anna.folder.path / "ledger.jsonl").read_bytes()).rules.runs["run-1"]
    assert charged_events(reserved) == study_events(STUDY)
    roll = load_roll(anna.folder.run_folder("run-1"))
    assert roll is not None and len(roll.parts["train"]) == len(roll.parts["validation"]) == 0
    assert len(roll.parts["test"]) == len(roll.keys)
    refused = anna.answer("train", 1).refused
    assert refused is not None and refused.code == "CONS-230"
    evaluated = anna.answer("evaluate", 2).evaluated
    assert evaluated is not None and evaluated.svm is None and evaluated.images is None
    assert evaluated.network.noise == "2"  # all of it: there is no SVM to share it with
    assert anna.entries() == ["GENESIS", "COHORT", "RESERVE", "RELEASE", "CLOSE"]
    closed = read_chain((anna.folder.path / "ledger.jsonl").read_bytes()).rules.runs["run-1"]
    assert charged_events(closed) == events_of(evaluation_mechanism(STUDY)) == events_of(Geometric(epsilon="2"))
    page = (anna.folder.run_folder("run-1") / "evaluation.html").read_text()
    assert "External test: this hospital never trained" in page
    again = anna.answer("evaluate", 2)
    assert again.evaluated == evaluated and len(anna.entries()) == 5


def test_a_plain_run_evaluates_the_round_0_and_the_final_model_with_the_networks_head(
    data: Path,  # noqa: F811
    start: Start,  # noqa: F811
    tmp_path: Path,
) -> None:
    values: dict[str, Any] = STUDY.to_data() | {"privacy": None, "evaluation": {"resamples": 100}}
    values["training"] |= {"local_epochs": 1, "batch_size": 8}
    plain = Study.model_validate(values)
    anna = Hospital(tmp_path / "anna", data, start, study=plain, role="external_test", lifetime=None)
    prepared = anna.answer("prepare", 0).prepared
    assert prepared is not None and prepared.external
    assert prepared.parts["train"].patients == prepared.parts["validation"].patients == 0
    assert prepared.parts["test"].patients == 24
    assert prepared.baseline is not None and prepared.baseline.svm is None
    evaluated = anna.answer("evaluate", 2).evaluated
    assert evaluated is not None and evaluated.svm is None and plain.head is not None
    assert (evaluated.patients, evaluated.train_patients) == (24, 0)
    assert anna.entries() == ["GENESIS", "COHORT", "RESERVE", "RELEASE", "RELEASE", "CLOSE"]
    page = (anna.folder.run_folder("run-1") / "evaluation.html").read_text()
    assert "External test: this hospital never trained" in page and "Grad-CAM" in page
