"""A private run at one hospital, from the gate inwards, on phantoms: what leaves, what stays, and what one patient changes of it."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from benchmarks.bare_run import new_key, study_values
from client import gate, work
from client.approvals import approve
from client.cohort import selected
from client.phantom import write_phantom
from client.roll import load_roll
from client.site_folder import Coordinator, SiteFolder
from client.withdrawn import Tags
from shared.documents import Publication, StartingPoint
from shared.ledger.chain import read_chain
from shared.messages import (
    ANSWER,
    BODY,
    FLAT,
    INSTRUCTION,
    MESSAGE_TYPES,
    MODEL,
    UPDATE,
    Answer,
    Instruction,
    Kind,
    read_answer,
    sign_instruction,
)
from shared.models import build_network
from shared.models.state import frozen_digest, travelling_arrays
from shared.profile import Profile
from shared.release import Release
from shared.study import Study, study_from_data
from shared.study_cost import run_epsilon, solved
from shared.wire import Flat, Manifest, encode, flat_digest, flatten, unflatten

KEY = new_key()
STUDY = solved(
    Study.model_validate(
        {
            **study_values(rounds=2, weighting="uniform"),
            "task": {
                "classes": {"benign": ["BENIGN", "BENIGN_WITHOUT_CALLBACK"], "malignant": ["MALIGNANT"]},
                "positive_class": "malignant",
                "unit": "finding",
            },
            "data": {"split": {"train": 0.5, "validation": 0.2, "test": 0.3}},
            "preprocessing": {"region": "finding", "size": 32, "channels": 3},
            "augmentation": {"horizontal_flip": 0.5},
            "model": {"name": "resnet18", "norm": "group", "dropout": 0.1},
            "head": {"grid": None, "calibration_folds": 2},
            "training": {"optimiser": "sgd", "learning_rate": 0.1, "loss": "binary_cross_entropy"},
            "evaluation": {"resamples": 100, "baseline": False, "release": {"epsilon": 2}},
            "privacy": {
                "sampling_rate": "1/4", "steps_per_round": 2, "clipping_norm": 1.0, "normaliser": 4, "noise_multiplier": 1.0,
                "delta": 1e-3, "augmentations": 2, "svm": {"components": 16, "steps": 4, "noise_multiplier": 2},
            },
        }
    )
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "anna"
    write_phantom(root, patients=24, seed=1, scanner="halide", prevalence=0.5)
    return root


@pytest.fixture(scope="module")
def start() -> tuple[Flat, Manifest, str]:
    network = build_network(STUDY)
    arrays = travelling_arrays(network)
    manifest = Manifest.of(arrays)
    return flatten(arrays, manifest), manifest, frozen_digest(network)


class Hospital:
    """A site's folder that approved a study, and what a coordinator would ask of it."""

    def __init__(
        self, path: Path, data: Path, start: tuple[Flat, Manifest, str], *, study: Study = STUDY, role: str = "trains",
        **policy: Any,
    ) -> None:  # fmt: skip
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
        self.model, self.manifest, frozen = start
        self.study = study
        lifetime = {"epsilon": 20, "delta": 1e-3}
        self.folder = SiteFolder.create(
            path,
            Profile.model_validate(
                {
                    "schema": "consilium/profile/1", "site": "anna", "title": "Anna", "device": "cpu", "role": role,
                    "data": {"layout": "cbis_ddsm", "root": str(data), "synthetic": True},
                    "policy": {"minimum_patients": 5, "minimum_cell": 2, "lifetime": lifetime, **policy},
                }
            ),
        )  # fmt: skip
        coordinator = Coordinator(
            federation="t", address="127.0.0.1:1", coordinator_key=str(KEY.public), joined="today"
        )
        (path / "coordinator.json").write_text(coordinator.model_dump_json())
        point = StartingPoint(
            manifest_digest=self.manifest.digest(),
            model_digest=flat_digest(encode(self.model, "fp32")),
            frozen_digest=frozen,
        )
        publication = Publication(
            federation="t", coordinator_key=str(KEY.public), study=study.to_data(), study_digest=study.digest(),
            starting_point=point, runs=5, expires="2999-12-31", created="today", release=Release.installed(),
        )  # fmt: skip
        approve(self.folder, publication, by="the test", weights_folder=Path("/nowhere"))
        self.issued = 0

    def asked(self, kind: Kind, number: int, run: str = "run-1", **changes: Any) -> Message:
        self.issued = max(self.issued + 1, int(time.time() * 1000))
        array = encode(self.model, "fp32")
        values = {
            "kind": kind, "run": run, "site": "anna", "round": number, "issued": self.issued, "expires": self.issued + 600_000,
            "study": self.study.to_data(), "study_digest": self.study.digest(), "model_digest": flat_digest(array),
            "manifest_digest": self.manifest.digest(), "previous": None, "release": Release.installed(),
        }  # fmt: skip
        text, _ = sign_instruction(Instruction.model_validate({**values, **changes}), KEY)
        content = RecordDict({INSTRUCTION: ConfigRecord({BODY: text}), MODEL: ArrayRecord({FLAT: Array(array)})})
        message = Message(content, dst_node_id=7, message_type=MESSAGE_TYPES[kind])
        message.metadata.__dict__["_message_id"] = message.object_id
        return gate.answer(message, self.folder, work.do)

    def answer(self, kind: Kind, number: int, run: str = "run-1", **changes: Any) -> Answer:
        return self.read(self.asked(kind, number, run, **changes))

    def read(self, reply: Message) -> Answer:
        return read_answer(str(reply.content.config_records[ANSWER][BODY]), self.folder.signing_key().public)

    def entries(self) -> list[str]:
        chain = read_chain((self.folder.path / "ledger.jsonl").read_bytes())
        assert chain.faults == []
        return [link.entry.type for link in chain.links]


@pytest.fixture(scope="module")
def story(data: Path, start: tuple[Flat, Manifest, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A whole run; `again` are the same questions once more."""
    anna = Hospital(tmp_path_factory.mktemp("site") / "anna", data, start)
    told: dict[str, Any] = {"anna": anna, "prepared": anna.answer("prepare", 0)}
    first = anna.asked("train", 1)
    told |= {"trained": anna.read(first), "update": first.content.array_records[UPDATE][FLAT].numpy()}
    again = anna.asked("train", 1)
    told |= {"trained again": anna.read(again), "update again": again.content.array_records[UPDATE][FLAT].numpy()}
    told["second"] = anna.answer("train", 2)
    told["too early"] = anna.answer("evaluate", 1)
    told["evaluated"] = anna.answer("evaluate", 2)
    told["evaluated again"] = anna.answer("evaluate", 2)
    return told


def test_of_what_a_stage_holds_nothing_leaves_and_all_else_is_noised(
    data: Path, start: tuple[Flat, Manifest, str], tmp_path: Path
) -> None:
    values = STUDY.to_data()
    held = ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"]
    values["training"]["stages"] = [{"rounds": 1, "freeze": []}, {"rounds": 1, "freeze": held}]
    anna = Hospital(tmp_path / "anna", data, start, study=study_from_data(values))
    assert anna.answer("prepare", 0).prepared is not None
    for number, free in ((1, anna.manifest), (2, Manifest(anna.manifest.tensors[-2:]))):
        reply = anna.asked("train", number)
        update = reply.content.array_records[UPDATE][FLAT].numpy()
        assert update.shape == (free.size,) and anna.read(reply).update_digest == flat_digest(update)
        for name, array in unflatten(update, free).items():
            assert np.count_nonzero(array) > 0.99 * array.size, name
    assert [tensor.name for tensor in free.tensors] == ["fc.weight", "fc.bias"]
    assert anna.entries()[3:] == ["START", "SETTLE", "START", "SETTLE"]


def test_nothing_exact_is_in_any_answer(story: dict[str, Any]) -> None:
    prepared, trained, evaluated = (story[name] for name in ("prepared", "trained", "evaluated"))
    assert prepared.prepared is not None and prepared.prepared.parts == {}
    assert prepared.prepared.left_out is None and prepared.prepared.seconds == {}
    body = trained.trained
    assert (body.images, body.patients, body.epochs, body.validation, body.seconds) == (None, None, [], None, {})
    assert body.steps == 2
    figures = evaluated.evaluated
    assert (figures.patients, figures.images, figures.train_patients, figures.svm_paper) == (None, None, None, None)
    for head in (figures.network, figures.svm):
        assert head.noise == "1"  # half of the study's 2 for each
        assert head.auc.value is None and head.histogram is None


def test_the_exact_page_stays_in_the_hospital(story: dict[str, Any]) -> None:
    page = story["anna"].folder.run_folder("run-1") / "evaluation.html"
    assert "Grad-CAM of <em>malignant</em>" in page.read_text() and "test images with masks" in page.read_text()


def test_the_ledger_has_everything_before_it_leaves(story: dict[str, Any]) -> None:
    assert story["anna"].entries() == [
        "GENESIS", "COHORT", "RESERVE", "START", "SETTLE", "START", "SETTLE", "RELEASE", "RELEASE", "CLOSE",
    ]  # fmt: skip
    assert [len(story[name].entries) for name in ("prepared", "trained")] == [3, 5], "without a receipt all are sent"


def test_a_lost_answer_is_given_again_in_the_same_bytes(story: dict[str, Any]) -> None:
    assert np.array_equal(story["update"], story["update again"])
    assert story["trained"].trained == story["trained again"].trained
    assert story["evaluated"].evaluated == story["evaluated again"].evaluated


def test_only_the_last_model_is_evaluated(story: dict[str, Any]) -> None:
    assert story["too early"].refused is not None and story["too early"].refused.code == "CONS-261"


def test_two_rounds_never_have_the_same_noise(story: dict[str, Any]) -> None:
    assert story["second"].update_digest != story["trained"].update_digest


def test_one_patient_less_changes_no_answer_but_through_noise(
    story: dict[str, Any], data: Path, start: tuple[Flat, Manifest, str], tmp_path: Path
) -> None:
    """The two answers differ in entries and keys, and in nothing that was counted or timed."""
    less = tmp_path / "data"
    shutil.copytree(data, less)
    for table in less.glob("*.csv"):
        lines = table.read_text().splitlines(keepends=True)
        header = lines[0].split(",").index("patient_id")
        gone = lines[1].split(",")[header] if table.name.startswith("calc_case_description_train") else None
        if gone is not None:
            break
    assert gone is not None
    for table in less.glob("*.csv"):
        kept = [line for line in table.read_text().splitlines(keepends=True) if gone not in line]
        table.write_text("".join(kept))
    anna = story["anna"]
    other = Hospital(tmp_path / "anna", less, start)
    prepared, trained = other.answer("prepare", 0), other.answer("train", 1)
    assert prepared.prepared == story["prepared"].prepared
    assert trained.trained is not None
    same = {"update_norm": None}
    assert trained.trained.model_copy(update=same) == story["trained"].trained.model_copy(update=same)
    roll, whole = load_roll(other.folder.run_folder("run-1")), load_roll(anna.folder.run_folder("run-1"))
    assert roll is not None and whole is not None
    assert len(set(roll.tags)) == len(set(whole.tags)) - 1


def test_a_patients_part_depends_on_the_id_and_the_hospitals_key_alone(
    story: dict[str, Any], data: Path, start: tuple[Flat, Manifest, str], tmp_path: Path
) -> None:
    folder = story["anna"].folder
    cohort = selected(STUDY, folder)
    key = Tags.of(folder)
    for part, rows in cohort.parts.items():
        for row in rows:
            place = key.place(STUDY.seed, cohort.records[row].patient)
            assert part == ("test" if place < 0.3 else "validation" if place < 0.5 else "train")
    other = Hospital(tmp_path / "anna", data, start)
    assert selected(STUDY, other.folder).parts["test"].tolist() != cohort.parts["test"].tolist()


def test_beyond_the_budget_no_image_is_opened(data: Path, start: tuple[Flat, Manifest, str], tmp_path: Path) -> None:
    cost = run_epsilon(STUDY)[1]  # by RDP, which is what is charged
    anna = Hospital(tmp_path / "anna", data, start, lifetime={"epsilon": cost * (1 - 1e-9), "delta": 1e-3})
    refused = anna.answer("prepare", 0).refused
    assert refused is not None and refused.code == "CONS-262"
    assert not (anna.folder.cache).exists() or not any(anna.folder.cache.rglob("*.npy"))
    assert "RESERVE" not in anna.entries()


def test_without_a_budget_a_private_study_is_refused(
    data: Path, start: tuple[Flat, Manifest, str], tmp_path: Path
) -> None:
    anna = Hospital(tmp_path / "anna", data, start, lifetime=None)
    refused = anna.answer("prepare", 0).refused
    assert refused is not None and refused.code == "CONS-262"
