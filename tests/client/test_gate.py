"""The hospital's one door: what is not approved does not come in, and what the contract does not name does not go out."""

from __future__ import annotations

import base64
import json
import logging
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.bare_run import (
    FROZEN_DIGEST,
    bare_study,
    evaluated_answer,
    new_key,
    prepared_answer,
    study_values,
    trained_answer,
)
from client import gate
from client.approvals import approve
from client.gate import Result, Task
from client.site_folder import Coordinator, SiteFolder
from shared.documents import Publication, StartingPoint
from shared.errors import DataError
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
    read_instruction,
    sign_instruction,
)
from shared.profile import ArtificialPart, Policy, Profile, SiteData
from shared.release import Release
from shared.results import (
    MASK_METRICS,
    CopiesLeftOut,
    Estimate,
    Evaluated,
    MaskResult,
    Prepared,
    ScoreHistogram,
    Trained,
)
from shared.signing import SigningKey, seal
from shared.study import Study
from shared.wire import Flat, encode, flat_digest

PATIENT = "Mueller, Anna"
MODEL_VALUES = np.linspace(-1, 1, 50, dtype=np.float32)
PROFILE = Profile.model_validate(
    {
        "schema": "consilium/profile/1",
        "site": "anna",
        "title": "Hospital Anna",
        "data": SiteData(layout="cbis_ddsm", root="/nowhere", synthetic=True),
        "device": "cpu",
        "policy": Policy(maximum_update_norm=10.0, maximum_rounds=5, minimum_patients=20, minimum_cell=7),
    }
)


COORDINATOR = new_key()
MANIFEST_DIGEST = "1" * 64


def _moments() -> Iterator[int]:
    """Ever later moments, none far from now: however late in a session a test runs, its instructions are fresh."""
    last = 0
    while True:
        last = max(last + 1, int(time.time() * 1000))
        yield last


ISSUED = _moments()


def site_folder(path: Path) -> SiteFolder:
    """A hospital that has joined the coordinator of these tests."""
    made = SiteFolder.create(path, PROFILE)
    coordinator = Coordinator(
        federation="tests", address="127.0.0.1:1", coordinator_key=str(COORDINATOR.public), joined="today"
    )
    (path / "coordinator.json").write_text(coordinator.model_dump_json())
    return made


@pytest.fixture
def folder(tmp_path: Path) -> SiteFolder:
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    made = site_folder(tmp_path / "anna")
    for wire in ("fp32", "bf16"):
        approved(made, bare_study(wire=wire))
    reserved(made)
    return made


def approved(folder: SiteFolder, study: Study, *, runs: int = 5) -> None:
    """The hospital approves `study`, which starts from MODEL_VALUES."""
    start = StartingPoint(
        manifest_digest=MANIFEST_DIGEST,
        model_digest=flat_digest(encode(MODEL_VALUES, study.federation.wire)),
        frozen_digest=FROZEN_DIGEST,
    )
    publication = Publication(
        federation="tests", coordinator_key=str(COORDINATOR.public), study=study.to_data(), study_digest=study.digest(),
        starting_point=start, runs=runs, expires="2999-12-31", created="today", release=Release.installed(),
    )  # fmt: skip
    approve(folder, publication, by="the test", weights_folder=Path("/nowhere"))


def reserved(folder: SiteFolder, study: Study | None = None, run: str = "run-1", **changes: Any) -> None:
    """The run has been prepared: without that the ledger lets nothing be trained or evaluated."""
    message = message_of("prepare", study, run=run, **changes)
    reply = gate.answer(message, folder, ending_in(Result(prepared=prepared_answer())))
    assert answer_in(reply, folder).prepared is not None


def instruction_of(kind: Kind, study: Study, model: np.ndarray, **changes: Any) -> Instruction:
    issued = next(ISSUED)
    values = {
        "kind": kind, "run": "run-1", "site": "anna", "round": 0 if kind == "prepare" else 1, "issued": issued,
        "expires": issued + 60_000, "study": study.to_data(), "study_digest": study.digest(),
        "model_digest": flat_digest(model), "manifest_digest": MANIFEST_DIGEST, "previous": None,
        "release": Release.installed(),
    }  # fmt: skip
    return Instruction.model_validate({**values, **changes})


def message_of(
    kind: Kind = "train",
    study: Study | None = None,
    received: dict[str, Any] | None = None,
    key: SigningKey = COORDINATOR,
    **changes: Any,
) -> Message:
    """An instruction as the coordinator sends it; `received` stands in the place of the study's values."""
    study = study or bare_study()
    model = encode(MODEL_VALUES, study.federation.wire)
    body = instruction_of(kind, study, model, **changes).model_copy(update={"study": received or study.to_data()})
    text, _ = sign_instruction(body, key)
    content = RecordDict({INSTRUCTION: ConfigRecord({BODY: text}), MODEL: ArrayRecord({FLAT: Array(model)})})
    return sent(content, kind)


def sent(content: RecordDict, kind: Kind = "train") -> Message:
    message = Message(content, dst_node_id=7, message_type=MESSAGE_TYPES[kind])
    message.metadata.__dict__["_message_id"] = message.object_id
    return message


def answer_in(reply: Message, folder: SiteFolder) -> Answer:
    """The reply's answer, signed by the site and read strictly; fails where the reply holds anything else."""
    assert reply.has_content() and not reply.has_error()
    answer = read_answer(str(reply.content.config_records[ANSWER][BODY]), folder.signing_key().public)
    assert set(reply.content) == ({ANSWER, UPDATE} if answer.trained else {ANSWER})
    assert set(reply.content[ANSWER]) == {BODY}
    results = (answer.prepared, answer.trained, answer.evaluated, answer.refused)
    assert sum(one is not None for one in results) == 1
    assert answer.hello.site == "anna"
    return answer


def bytes_of(reply: Message) -> bytes:
    """Every byte that Flower sends of a message: its objects, and its metadata."""
    return b"".join(one.deflate() for one in get_all_nested_objects(reply).values()) + repr(reply.metadata).encode()


def refused(reply: Message, folder: SiteFolder) -> str:
    answer = answer_in(reply, folder)
    assert answer.refused is not None
    assert answer.update_digest is None
    for secret in (PATIENT, "Mueller", "Anna", "/nowhere", "Traceback"):
        assert secret.encode() not in bytes_of(reply)
    return answer.refused.code


def never(_task: Task) -> Result:
    raise AssertionError("the work was called")


def ending_in(result: Result) -> Callable[[Task], Result]:
    return lambda _task: result


def training(update: Any = None, trained: Trained | None = None) -> Result:
    return Result(
        trained=trained or trained_answer(), update=np.full(50, 0.01, np.float32) if update is None else update
    )


# -- on the way in -----------------------------------------------------------------------------------------------------


def test_an_approved_instruction_reaches_the_work_with_its_decoded_model(folder: SiteFolder) -> None:
    seen: list[Task] = []

    def work(task: Task) -> Result:
        seen.append(task)
        return training()

    answer = answer_in(gate.answer(message_of(), folder, work), folder)
    assert answer.trained == trained_answer()
    (task,) = seen
    assert task.study == bare_study()
    np.testing.assert_array_equal(task.model, MODEL_VALUES, strict=True)


def test_an_unapproved_study_is_refused_before_any_work(folder: SiteFolder) -> None:
    reply = gate.answer(message_of(study=bare_study(rounds=4)), folder, never)
    assert refused(reply, folder) == "CONS-210"


def test_an_approval_under_another_digests_name_is_none(folder: SiteFolder) -> None:
    other = bare_study(rounds=4)
    approvals = folder.path / "approvals"
    (approvals / f"{other.digest()}.json").write_text((approvals / f"{bare_study().digest()}.json").read_text())
    assert refused(gate.answer(message_of(study=other), folder, never), folder) == "CONS-210"


def test_a_study_that_differs_from_its_digest_is_refused(folder: SiteFolder) -> None:
    digest = bare_study().digest()
    off_by_one = digest[:-1] + ("0" if digest[-1] != "0" else "1")
    assert refused(gate.answer(message_of(study_digest=off_by_one), folder, never), folder) == "CONS-240"
    changed = message_of(study=bare_study(rounds=4), study_digest=digest)
    assert refused(gate.answer(changed, folder, never), folder) == "CONS-240"


def test_altered_model_bytes_are_refused(folder: SiteFolder) -> None:
    message = message_of()
    altered = MODEL_VALUES.copy()
    altered[3] += 1
    message.content[MODEL] = ArrayRecord({FLAT: Array(altered)})
    assert refused(gate.answer(message, folder, never), folder) == "CONS-240"


def test_a_model_of_another_type_is_refused(folder: SiteFolder) -> None:
    message = message_of(model_digest=flat_digest(MODEL_VALUES.astype(np.float64)))
    message.content[MODEL] = ArrayRecord({FLAT: Array(MODEL_VALUES.astype(np.float64))})
    assert refused(gate.answer(message, folder, never), folder) == "CONS-200"


@pytest.mark.parametrize("kind", ["prepare", "train", "evaluate"])
def test_more_rounds_than_the_policy_allows_are_refused(folder: SiteFolder, kind: Kind) -> None:
    long = bare_study(rounds=6)
    approved(folder, long)
    assert refused(gate.answer(message_of(kind, long), folder, never), folder) == "CONS-230"


def test_a_round_after_the_studys_last_is_refused(folder: SiteFolder) -> None:
    assert refused(gate.answer(message_of(round=4), folder, never), folder) == "CONS-230"


def test_a_study_that_is_none_is_refused(folder: SiteFolder) -> None:
    assert refused(gate.answer(message_of(received={"name": PATIENT}), folder, never), folder) == "CONS-101"


@pytest.mark.parametrize("missing", [INSTRUCTION, MODEL])
def test_a_message_without_its_records_is_refused(folder: SiteFolder, missing: str) -> None:
    message = message_of()
    del message.content[missing]
    assert refused(gate.answer(message, folder, never), folder) == "CONS-240"


@settings(max_examples=50)
@given(body=st.one_of(st.text(), st.binary().map(repr), st.just('{"kind": "train"}')))
def test_whatever_text_comes_in_a_valid_refusal_goes_out(tmp_path_factory: pytest.TempPathFactory, body: str) -> None:
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    folder = site_folder(tmp_path_factory.mktemp("site") / "anna")
    message = message_of()
    message.content[INSTRUCTION] = ConfigRecord({BODY: body})
    assert refused(gate.answer(message, folder, never), folder) == "CONS-241"


def altered(message: Message, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Message:
    """The message with its signed payload changed, under the old signature."""
    envelope = json.loads(str(message.content.config_records[INSTRUCTION][BODY]))
    payload = json.dumps(change(json.loads(base64.b64decode(envelope["payload"])))).encode()
    text = json.dumps({**envelope, "payload": base64.b64encode(payload).decode()})
    return sent(RecordDict({INSTRUCTION: ConfigRecord({BODY: text}), MODEL: message.content[MODEL]}))


@pytest.mark.parametrize(
    "change",
    [
        lambda body: {**body, "round": 2},
        lambda body: {**body, "run": "run-2"},
        lambda body: {**body, "issued": body["issued"] + 1},
        lambda body: {**body, "study": {**body["study"], "seed": body["study"]["seed"] + 1}},
        lambda body: body,  # the same values in other bytes
    ],
)
def test_an_instruction_with_one_changed_value_is_not_opened(folder: SiteFolder, change: Any) -> None:
    assert refused(gate.answer(altered(message_of(), change), folder, never), folder) == "CONS-241"


def test_only_the_coordinator_that_was_joined_instructs(folder: SiteFolder) -> None:
    assert refused(gate.answer(message_of(key=new_key()), folder, never), folder) == "CONS-241"
    assert refused(gate.answer(message_of(key=folder.signing_key()), folder, never), folder) == "CONS-241"


def test_a_signed_answer_is_no_signed_instruction(folder: SiteFolder) -> None:
    """A signature covers what kind of thing it signs."""
    body = instruction_of("train", bare_study(), MODEL_VALUES)
    text = seal("answer", body.model_dump(mode="json"), COORDINATOR)
    message = sent(
        RecordDict({INSTRUCTION: ConfigRecord({BODY: text}), MODEL: ArrayRecord({FLAT: Array(MODEL_VALUES)})})
    )
    assert refused(gate.answer(message, folder, never), folder) == "CONS-241"


def test_a_refused_instruction_names_no_instruction_that_could_not_be_trusted(folder: SiteFolder) -> None:
    reply = gate.answer(message_of(key=new_key()), folder, never)
    assert answer_in(reply, folder).instruction is None
    text = str(message_of(round=4).content.config_records[INSTRUCTION][BODY])
    message = sent(
        RecordDict({INSTRUCTION: ConfigRecord({BODY: text}), MODEL: ArrayRecord({FLAT: Array(MODEL_VALUES)})})
    )
    known = answer_in(gate.answer(message, folder, never), folder)
    assert known.instruction == read_instruction(text, COORDINATOR.public)[1]


def test_an_instruction_is_carried_out_once(folder: SiteFolder) -> None:
    message = message_of()
    assert answer_in(gate.answer(message, folder, ending_in(training())), folder).trained is not None
    assert refused(gate.answer(message, folder, never), folder) == "CONS-242"


def test_an_instruction_that_failed_is_not_carried_out_a_second_time_either(folder: SiteFolder) -> None:
    def fails(_task: Task) -> Result:
        raise ValueError

    message = message_of()
    assert refused(gate.answer(message, folder, fails), folder) == "CONS-999"
    assert refused(gate.answer(message, folder, never), folder) == "CONS-242"


def test_an_older_instruction_that_was_held_back_is_not_carried_out(folder: SiteFolder) -> None:
    held, newer = message_of(round=1), message_of(round=2)
    answer_in(gate.answer(newer, folder, ending_in(training())), folder)
    assert refused(gate.answer(held, folder, never), folder) == "CONS-242"


def test_two_runs_do_not_disturb_each_others_order(folder: SiteFolder) -> None:
    reserved(folder, run="run-2")
    older, newer = message_of(run="run-1"), message_of(run="run-2")
    for message in (newer, older):
        assert answer_in(gate.answer(message, folder, ending_in(training())), folder).trained is not None


@pytest.mark.parametrize("minutes", [-60, -6, 6, 60])
def test_an_instruction_out_of_its_time_is_not_carried_out(folder: SiteFolder, minutes: int) -> None:
    now = int(time.time() * 1000) + minutes * 60_000
    message = message_of(issued=now, expires=now + 1000)
    assert refused(gate.answer(message, folder, never), folder) == "CONS-242"


@pytest.mark.parametrize("minutes", [-4, 4])
def test_clocks_may_differ_by_less_than_five_minutes(folder: SiteFolder, minutes: int) -> None:
    now = int(time.time() * 1000) + minutes * 60_000
    reserved(folder, run="run-2", issued=now - 1000, expires=now)
    message = message_of(run="run-2", issued=now, expires=now + 1000)
    assert answer_in(gate.answer(message, folder, ending_in(training())), folder).trained is not None


def test_the_same_round_of_the_same_model_is_answered_with_the_same_bytes_and_not_trained_again(
    folder: SiteFolder,
) -> None:
    first = gate.answer(message_of(), folder, ending_in(training(spoilt(0.5))))
    second = gate.answer(message_of(), folder, never)
    before, after = answer_in(first, folder), answer_in(second, folder)
    assert after.trained == before.trained and after.update_digest == before.update_digest
    assert after.instruction != before.instruction
    assert second.content[UPDATE].object_id == first.content[UPDATE].object_id


def test_another_round_another_run_or_another_model_is_trained(folder: SiteFolder) -> None:
    reserved(folder, run="run-2")
    gate.answer(message_of(), folder, ending_in(training(spoilt(0.5))))
    other = encode(MODEL_VALUES + np.float32(1), "fp32")
    body = instruction_of("train", bare_study(), other)
    text, _ = sign_instruction(body, COORDINATOR)
    message = sent(RecordDict({INSTRUCTION: ConfigRecord({BODY: text}), MODEL: ArrayRecord({FLAT: Array(other)})}))
    for again in (message, message_of(run="run-2"), message_of(round=2)):
        update = np.full(50, 0.25, np.float32)
        answer = answer_in(gate.answer(again, folder, ending_in(training(update))), folder)
        assert answer.update_digest == flat_digest(update)


@pytest.mark.parametrize("name", ["answered.json", "answered.npy"])
def test_a_kept_answer_that_was_damaged_is_not_sent(folder: SiteFolder, name: str) -> None:
    gate.answer(message_of(), folder, ending_in(training(spoilt(0.5))))
    path = folder.run_folder("run-1") / name
    path.write_bytes(path.read_bytes()[:-3] + b"xyz")
    update = np.full(50, 0.25, np.float32)
    answer = answer_in(gate.answer(message_of(), folder, ending_in(training(update))), folder)
    assert answer.update_digest == flat_digest(update)


def test_a_kept_answer_is_for_the_hospital_alone(folder: SiteFolder) -> None:
    gate.answer(message_of(), folder, ending_in(training()))
    for name in ("answered.json", "answered.npy", "last-instruction"):
        assert stat.S_IMODE((folder.run_folder("run-1") / name).stat().st_mode) == 0o600


def test_another_sites_instruction_is_refused(folder: SiteFolder) -> None:
    assert refused(gate.answer(message_of(site="bertha"), folder, never), folder) == "CONS-240"


def test_another_release_is_refused_and_named_in_the_log(folder: SiteFolder, caplog: pytest.LogCaptureFixture) -> None:
    own = Release.installed()
    other = own.model_copy(update={"code_digest": "f" * 64, "versions": {**own.versions, "consilium": "9.9.9"}})
    with caplog.at_level(logging.ERROR, "consilium.site"):
        assert refused(gate.answer(message_of(release=other), folder, never), folder) == "CONS-245"
    assert "9.9.9 (code ffffffffffff)" in caplog.text
    assert f"{own.versions['consilium']} (code {own.code_digest[:12]})" in caplog.text


def test_a_run_starts_from_the_model_that_was_approved(folder: SiteFolder) -> None:
    """Another model, though its digest is signed; later rounds' models can't be known when a study is approved."""
    other = MODEL_VALUES + np.float32(1)
    body = instruction_of("prepare", bare_study(), other)
    text, _ = sign_instruction(body, COORDINATOR)
    content = RecordDict({INSTRUCTION: ConfigRecord({BODY: text}), MODEL: ArrayRecord({FLAT: Array(other)})})
    assert refused(gate.answer(sent(content, "prepare"), folder, never), folder) == "CONS-240"
    assert refused(gate.answer(message_of(manifest_digest="2" * 64), folder, never), folder) == "CONS-240"


def test_an_approval_for_one_run_serves_one_run(folder: SiteFolder) -> None:
    approved(folder, bare_study(rounds=2), runs=1)
    reserved(folder, bare_study(rounds=2), run="run-2")
    for run, code in (("run-2", None), ("run-3", "CONS-212"), ("run-2", None)):
        reply = gate.answer(message_of(study=bare_study(rounds=2), run=run), folder, ending_in(training()))
        answer = answer_in(reply, folder)
        assert (answer.refused.code if answer.refused else None) == code


def test_a_site_that_has_not_joined_answers_nobody(tmp_path: Path) -> None:
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    alone = SiteFolder.create(tmp_path / "anna", PROFILE)
    assert refused(gate.answer(message_of(), alone, never), alone) == "CONS-100"


def test_the_node_refuses_what_it_did_not_open_with_a_signature(folder: SiteFolder) -> None:
    assert refused(gate.refusal_message(message_of(), folder, "CONS-245"), folder) == "CONS-245"


# -- on the way out ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wire", ["fp32", "bf16"])
def test_an_update_leaves_in_the_studys_format_with_its_digest(folder: SiteFolder, wire: str) -> None:
    update = np.linspace(-0.1, 0.1, 50, dtype=np.float32)
    reserved(folder, bare_study(wire=wire), run="run-2")
    reply = gate.answer(message_of(study=bare_study(wire=wire), run="run-2"), folder, ending_in(training(update)))
    array = reply.content.array_records[UPDATE][FLAT].numpy()
    np.testing.assert_array_equal(array, encode(update, wire), strict=True)  # type: ignore[arg-type]
    assert answer_in(reply, folder).update_digest == flat_digest(array)
    assert set(reply.content[UPDATE]) == {FLAT}


def spoilt(value: float) -> Flat:
    update = np.zeros(50, np.float32)
    update[17] = value
    return update


@pytest.mark.parametrize(
    ("update", "code"),
    [
        (np.zeros(51, np.float32), "CONS-220"),
        (np.zeros((1, 50), np.float32), "CONS-220"),
        (np.zeros(50, np.float64), "CONS-220"),
        (np.zeros(50, np.uint16), "CONS-220"),
        (np.array([PATIENT] * 50), "CONS-220"),
        (np.array([PATIENT] * 50, dtype=object), "CONS-220"),
        (spoilt(np.nan), "CONS-250"),
        (spoilt(np.inf), "CONS-250"),
        (spoilt(-np.inf), "CONS-250"),
        (spoilt(10.001), "CONS-230"),
        (np.full(50, 3e38, np.float32), "CONS-230"),
        ([0.0] * 50, "CONS-999"),
    ],
)  # fmt: skip
def test_an_update_outside_the_contract_does_not_leave(folder: SiteFolder, update: Any, code: str) -> None:
    assert refused(gate.answer(message_of(), folder, ending_in(training(update))), folder) == code


def test_an_update_at_the_bound_leaves(folder: SiteFolder) -> None:
    assert answer_in(gate.answer(message_of(), folder, ending_in(training(spoilt(10.0)))), folder).trained is not None


@pytest.mark.parametrize(
    ("kind", "result"),
    [
        ("train", Result(trained=trained_answer())),
        ("train", Result(trained=trained_answer(), evaluated=evaluated_answer(), update=np.zeros(50, np.float32))),
        ("train", Result(prepared=prepared_answer())),
        ("train", Result()),
        ("prepare", Result(prepared=prepared_answer(), update=np.zeros(50, np.float32))),
        ("prepare", Result(evaluated=evaluated_answer())),
        ("evaluate", Result(evaluated=evaluated_answer(), update=np.zeros(50, np.float32))),
        ("evaluate", Result(trained=trained_answer())),
    ],
)
def test_a_result_of_another_kind_or_with_more_does_not_leave(folder: SiteFolder, kind: Kind, result: Result) -> None:
    assert refused(gate.answer(message_of(kind), folder, ending_in(result)), folder) == "CONS-220"


def built_past_its_schema(**changes: Any) -> Trained:
    return Trained.model_construct(**{**dict(trained_answer()), **changes})


class Talkative(Trained):
    """A result with a field of its own."""

    note: str = PATIENT


@pytest.mark.parametrize(
    "trained",
    [
        built_past_its_schema(seconds={PATIENT: 1.0}),
        built_past_its_schema(images=PATIENT),
        built_past_its_schema(images=-1),
        built_past_its_schema(epochs=[PATIENT]),
        built_past_its_schema(epochs=[{"loss": 0.1, "accuracy": 0.5, PATIENT: 1}]),
        built_past_its_schema(update_norm=float("nan")),
        built_past_its_schema(update_norm=float("inf")),
        built_past_its_schema(validation={"patient": PATIENT}),
    ],
)
def test_a_metric_outside_its_schema_does_not_leave(folder: SiteFolder, trained: Trained) -> None:
    code = refused(gate.answer(message_of(), folder, ending_in(training(trained=trained))), folder)
    assert code in ("CONS-220", "CONS-999")


def test_a_field_that_the_schema_does_not_name_never_leaves(folder: SiteFolder) -> None:
    reply = gate.answer(message_of(), folder, ending_in(training(trained=Talkative(**dict(trained_answer())))))
    assert PATIENT.encode() not in bytes_of(reply)
    answer_in(reply, folder)


def changed_preparation(**changes: Any) -> Result:
    return Result(prepared=Prepared.model_construct(**{**dict(prepared_answer()), **changes}))


@pytest.mark.parametrize(
    "result",
    [
        changed_preparation(device=PATIENT),
        changed_preparation(patient_stand_in=PATIENT),
        changed_preparation(synthetic=False),
        changed_preparation(external=True),
        changed_preparation(artificial_part=ArtificialPart(index=0, of=2)),
        changed_preparation(frozen_digest=PATIENT),
        changed_preparation(tags={"bertha": "AAAAAAAAAAA="}),
        changed_preparation(copies=CopiesLeftOut(copies=1, contradicting=0)),
        changed_preparation(memory_format=PATIENT),
        changed_preparation(parts={PATIENT: prepared_answer().parts["train"]}),
    ],
)
def test_a_preparations_texts_are_those_that_are_known_without_data(folder: SiteFolder, result: Result) -> None:
    assert refused(gate.answer(message_of("prepare"), folder, ending_in(result)), folder) in ("CONS-220", "CONS-999")


def test_fewer_patients_than_the_policy_asks_for_do_not_leave(folder: SiteFolder) -> None:
    reply = gate.answer(message_of("prepare"), folder, ending_in(Result(prepared=prepared_answer(images=6))))
    assert refused(reply, folder) == "CONS-230"
    reply = gate.answer(message_of("prepare"), folder, ending_in(Result(prepared=prepared_answer(images=7))))
    assert answer_in(reply, folder).prepared == prepared_answer(images=7)


def with_histogram(minimum_cell: int) -> Evaluated:
    histogram = ScoreHistogram(edges=[0, 0.5, 1], positive=[9, 0], negative=[0, 9], minimum_cell=minimum_cell)
    result = evaluated_answer()
    return result.model_copy(update={"network": result.network.model_copy(update={"histogram": histogram})})


def test_figures_that_the_hospital_keeps_to_itself_do_not_leave(folder: SiteFolder) -> None:
    profile = PROFILE.model_copy(update={"policy": PROFILE.policy.model_copy(update={"allowed_outputs": ["network"]})})
    (folder.path / "site.json").write_text(profile.model_dump_json(by_alias=True))
    result = with_histogram(7)
    reply = gate.answer(message_of("evaluate"), folder, ending_in(Result(evaluated=result)))
    answer = answer_in(reply, folder)
    assert answer.evaluated is not None and answer.evaluated.network.histogram is None
    assert answer.evaluated.network.auc == result.network.auc
    baseline = prepared_answer().model_copy(update={"baseline": with_histogram(7)})
    reply = gate.answer(message_of("prepare"), folder, ending_in(Result(prepared=baseline)))
    prepared = answer_in(reply, folder).prepared
    assert prepared is not None and prepared.baseline is None


def test_histograms_keep_the_larger_minimum_of_study_and_site(folder: SiteFolder) -> None:
    for result, kind in (
        (Result(evaluated=with_histogram(6)), "evaluate"),
        (Result(prepared=prepared_answer().model_copy(update={"baseline": with_histogram(6)})), "prepare"),
    ):
        assert refused(gate.answer(message_of(kind), folder, ending_in(result)), folder) == "CONS-220"  # type: ignore[arg-type]
    reply = gate.answer(message_of("evaluate"), folder, ending_in(Result(evaluated=with_histogram(7))))
    assert answer_in(reply, folder).evaluated == with_histogram(7)


def test_figures_of_masks_do_not_leave_in_a_study_of_classes(folder: SiteFolder) -> None:
    cell = {"value": 0.5}
    figures = dict.fromkeys(MASK_METRICS, cell)
    masks = MaskResult.model_validate({**figures, "classes": [{"images": 9, "iou": cell, "dice": cell}] * 2})
    of_masks = evaluated_answer().model_copy(update={"network": None, "masks": masks})
    for result, kind in (
        (Result(evaluated=of_masks), "evaluate"),
        (Result(prepared=prepared_answer().model_copy(update={"baseline": of_masks})), "prepare"),
    ):
        assert refused(gate.answer(message_of(kind), folder, ending_in(result)), folder) == "CONS-220"  # type: ignore[arg-type]


def test_figures_of_masks_by_class_keep_the_larger_minimum_of_study_and_site(folder: SiteFolder) -> None:
    values = study_values()
    values["task"] |= {"kind": "segmentation"}
    values["preprocessing"] |= {"mask": {"from": "annotated"}}
    values |= {"model": {"name": "split_attention_unet"}, "head": None}
    values["training"] |= {"loss": "cross_entropy_dice"}
    study, cell = Study.model_validate(values), {"value": 0.5}
    approved(folder, study)
    reserved(folder, study, run="run-2")

    def reply(minimum_cell: int) -> Message:
        row = {"images": 9, "iou": cell, "dice": cell}
        masks = MaskResult.model_validate(
            {**dict.fromkeys(MASK_METRICS, cell), "classes": [row, row], "minimum_cell": minimum_cell}
        )
        result = Result(evaluated=evaluated_answer().model_copy(update={"network": None, "masks": masks}))
        return gate.answer(message_of("evaluate", study, run="run-2"), folder, ending_in(result))

    assert refused(reply(6), folder) == "CONS-220"
    left = answer_in(reply(7), folder).evaluated
    assert left is not None and left.masks is not None and left.masks.minimum_cell == 7


def test_figures_of_classes_do_not_leave_in_a_study_of_masks(folder: SiteFolder) -> None:
    values = study_values() | {"model": {"name": "split_attention_unet", "widths": [8, 8]}}
    values["task"]["kind"] = "segmentation"
    values["preprocessing"]["mask"] = {"from": "annotated"}
    values["training"]["loss"] = "cross_entropy_dice"
    study = Study.model_validate(values)
    approved(folder, study)
    reserved(folder, study, run="run-masks")
    of_classes = evaluated_answer()
    for result, kind in (
        (Result(evaluated=of_classes), "evaluate"),
        (Result(prepared=prepared_answer().model_copy(update={"baseline": of_classes})), "prepare"),
    ):
        message = message_of(kind, study, run="run-masks")  # type: ignore[arg-type]
        assert refused(gate.answer(message, folder, ending_in(result)), folder) == "CONS-220"


def test_a_figure_that_is_not_finite_leaves_as_undefined(folder: SiteFolder) -> None:
    result = evaluated_answer()
    broken = result.model_copy(
        update={"network": result.network.model_copy(update={"auc": Estimate.model_construct(value=float("nan"))})}
    )
    answer = answer_in(gate.answer(message_of("evaluate"), folder, ending_in(Result(evaluated=broken))), folder)
    assert answer.evaluated is not None and answer.evaluated.network.auc == Estimate(value=None)


@pytest.mark.parametrize(
    ("mistake", "code"),
    [
        (ValueError(f"could not parse '{PATIENT}'"), "CONS-999"),
        (DataError(f"/nowhere/{PATIENT}.dcm can't be read"), "CONS-110"),
        (KeyError(PATIENT), "CONS-999"),
        (MemoryError(PATIENT), "CONS-999"),
        (RecursionError(PATIENT), "CONS-999"),
    ],
)
def test_a_mistakes_text_stays_in_the_hospitals_log(
    folder: SiteFolder, caplog: pytest.LogCaptureFixture, mistake: Exception, code: str
) -> None:
    def work(_task: Task) -> Result:
        raise mistake

    with caplog.at_level(logging.ERROR, "consilium.site"):
        assert refused(gate.answer(message_of(), folder, work), folder) == code
    assert PATIENT in caplog.text


def test_a_folder_without_its_profile_answers_with_a_code_alone(folder: SiteFolder) -> None:
    (folder.path / "site.json").write_text(f'{{"site": "{PATIENT}"}}')
    reply = gate.answer(message_of(), folder, never)
    assert reply.error.reason == "CONS-100"
    assert PATIENT.encode() not in bytes_of(reply)


def test_a_reply_holds_no_record_but_the_contracts(folder: SiteFolder) -> None:
    """Whatever stood in the message is not sent back."""
    message = message_of()
    message.content["extra"] = MetricRecord({"leak": 1.0})
    answer_in(gate.answer(message, folder, ending_in(training())), folder)


def test_a_site_of_the_external_test_does_not_train_whoever_asks(folder: SiteFolder) -> None:
    profile = PROFILE.model_dump(mode="json", by_alias=True)
    (folder.path / "site.json").write_text(json.dumps({**profile, "role": "external_test"}))
    assert folder.profile().role == "external_test"
    worked: list[Task] = []

    def work(task: Task) -> Result:
        worked.append(task)
        return training()

    assert refused(gate.answer(message_of("train"), folder, work), folder) == "CONS-230" and not worked
    external = prepared_answer().model_copy(update={"external": True})
    reply = gate.answer(message_of("prepare", run="run-2"), folder, ending_in(Result(prepared=external)))
    assert answer_in(reply, folder).prepared == external
