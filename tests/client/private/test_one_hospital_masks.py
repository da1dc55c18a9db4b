"""A private run of masks at one hospital, from the gate inwards, on phantoms: what leaves, what stays, and what is charged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_one_hospital import FLAT, UPDATE, Hospital, data  # noqa: F401  (fixture)
from test_one_hospital import STUDY as CLASSES

from client import evaluation_work
from client.own_runs import read_run
from shared.ledger.chain import read_chain
from shared.ledger.entries import Geometric
from shared.ledger.spending import charged_events
from shared.models import build_network
from shared.models.state import frozen_digest, travelling_arrays
from shared.noised_answers import differing_masks
from shared.study import Study
from shared.study_cost import evaluation_mechanism, events_of, solved, study_events
from shared.wire import Flat, Manifest, flatten

Start = tuple[Flat, Manifest, str]


def study_of_masks() -> Study:
    values: dict[str, Any] = CLASSES.to_data()
    values["task"] |= {"kind": "segmentation"}
    values["preprocessing"] |= {"mask": {"from": "annotated"}}
    values["model"] = {"name": "split_attention_unet", "widths": [8, 8], "norm": "group"}
    values["head"] = None
    values["training"] = {"optimiser": "sgd", "learning_rate": 0.1, "loss": "cross_entropy_dice"}
    values["privacy"] |= {"svm": None}
    return solved(Study.model_validate(values))


STUDY = study_of_masks()


@pytest.fixture(scope="module")
def start() -> Start:
    network = build_network(STUDY)
    arrays = travelling_arrays(network)
    manifest = Manifest.of(arrays)
    return flatten(arrays, manifest), manifest, frozen_digest(network)


def test_a_whole_run_tells_the_noised_counts_and_no_exact_figure(
    data: Path,  # noqa: F811
    start: Start,
    tmp_path: Path,
) -> None:
    anna = Hospital(tmp_path / "anna", data, start, study=STUDY)
    prepared = anna.answer("prepare", 0).prepared
    assert prepared is not None and prepared.parts == {} and prepared.baseline is None
    first, second = anna.asked("train", 1), anna.asked("train", 2)
    for reply in (first, second):
        trained = anna.read(reply).trained
        assert trained is not None and trained.steps == 2
        assert (trained.images, trained.epochs, trained.validation, trained.seconds) == (None, [], None, {})
    updates = [reply.content.array_records[UPDATE][FLAT].numpy() for reply in (first, second)]
    assert updates[0].any() and (updates[0] != updates[1]).any()
    evaluated = anna.answer("evaluate", 2).evaluated
    assert evaluated is not None and evaluated.of_masks
    assert (evaluated.masks, evaluated.network, evaluated.patients, evaluated.images) == (None, None, None, None)
    masks = evaluated.noised_masks
    assert masks is not None and masks.noise == "2" and differing_masks(masks, STUDY) is None
    assert anna.answer("evaluate", 2).evaluated == evaluated, "what has left is not made anew"
    assert anna.entries() == ["GENESIS", "COHORT", "RESERVE", "START", "SETTLE", "START", "SETTLE", "RELEASE", "CLOSE"]
    charged = charged_events(read_chain((anna.folder.path / "ledger.jsonl").read_bytes()).rules.runs["run-1"])
    assert charged == study_events(STUDY) and events_of(Geometric(epsilon="2"))[0] in charged

    folder = anna.folder.run_folder("run-1")
    page = (folder / "evaluation.html").read_text()
    assert "The figures on this page are exact, without noise." in page and "Worst, middle and best" in page
    own = read_run(folder)
    figures = own.figures() if own is not None else None
    assert figures is not None and figures.evaluated.masks is not None and figures.evaluated.masks.iou.value is not None


def test_a_hospital_that_never_trains_is_charged_with_the_counts_alone(
    data: Path,  # noqa: F811
    start: Start,
    tmp_path: Path,
) -> None:
    anna = Hospital(tmp_path / "anna", data, start, study=STUDY, role="external_test")
    assert anna.answer("prepare", 0).prepared is not None
    evaluated = anna.answer("evaluate", 2).evaluated
    assert evaluated is not None and evaluated.noised_masks is not None and evaluated.noised_masks.noise == "2"
    closed = read_chain((anna.folder.path / "ledger.jsonl").read_bytes()).rules.runs["run-1"]
    assert charged_events(closed) == events_of(evaluation_mechanism(STUDY))


def test_whether_there_is_a_test_image_is_private_too(
    data: Path,  # noqa: F811
    start: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Noise alone leaves where exact figures can't be computed, and there is no page."""
    anna = Hospital(tmp_path / "anna", data, start, study=STUDY)
    anna.answer("prepare", 0)
    whole = evaluation_work.Bench.masks

    def nobody(bench: evaluation_work.Bench, part: Any) -> Any:
        bench.cohort.parts[part] = bench.cohort.parts[part][:0]  # type: ignore[index]
        return whole(bench, part)

    monkeypatch.setattr(evaluation_work.Bench, "masks", nobody)
    evaluated = anna.answer("evaluate", 2).evaluated
    assert evaluated is not None and evaluated.noised_masks is not None
    assert not (anna.folder.run_folder("run-1") / "evaluation.html").exists()
