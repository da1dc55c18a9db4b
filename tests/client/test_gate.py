"""The hospital's one door: what is not approved does not come in, and what the contract does not name does not go out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.bare_run import bare_study, evaluated_answer, prepared_answer, trained_answer
from client import gate
from client.gate import Result, Task
from client.site_folder import SiteFolder
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
)
from shared.profile import Policy, Profile, SiteData
from shared.results import Estimate, Evaluated, Prepared, ScoreHistogram, Trained
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


@pytest.fixture
def folder(tmp_path: Path) -> SiteFolder:
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    made = SiteFolder.create(tmp_path / "anna", PROFILE)
    for wire in ("fp32", "bf16"):
        made.approve(bare_study(wire=wire), by="the test", study_folder=Path("/nowhere"))
    return made


def instruction_of(kind: Kind, study: Study, model: np.ndarray, **changes: Any) -> Instruction:
    values = {
        "kind": kind, "run": "run-1", "round": 0 if kind == "prepare" else 1, "study": study.to_data(),
        "study_digest": study.digest(), "model_digest": flat_digest(model), "manifest_digest": "0" * 64,
    }  # fmt: skip
    return Instruction.model_validate({**values, **changes})


def message_of(
    kind: Kind = "train", study: Study | None = None, received: dict[str, Any] | None = None, **changes: Any
) -> Message:
    """An instruction as the coordinator sends it; `received` stands in the place of the study's values."""
    study = study or bare_study()
    model = encode(MODEL_VALUES, study.federation.wire)
    body = instruction_of(kind, study, model, **changes).model_copy(update={"study": received or study.to_data()})
    content = RecordDict(
        {INSTRUCTION: ConfigRecord({BODY: body.model_dump_json()}), MODEL: ArrayRecord({FLAT: Array(model)})}
    )
    message = Message(content, dst_node_id=7, message_type=MESSAGE_TYPES[kind])
    message.metadata.__dict__["_message_id"] = message.object_id
    return message


def answer_in(reply: Message) -> Answer:
    """The reply's answer, read strictly; fails where the reply holds anything else."""
    assert reply.has_content() and not reply.has_error()
    answer = read_answer(str(reply.content.config_records[ANSWER][BODY]))
    assert set(reply.content) == ({ANSWER, UPDATE} if answer.trained else {ANSWER})
    assert set(reply.content[ANSWER]) == {BODY}
    results = (answer.prepared, answer.trained, answer.evaluated, answer.refused)
    assert sum(one is not None for one in results) == 1
    assert answer.hello.site == "anna"
    return answer


def bytes_of(reply: Message) -> bytes:
    """Every byte that Flower sends of a message: its objects, and its metadata."""
    return b"".join(one.deflate() for one in get_all_nested_objects(reply).values()) + repr(reply.metadata).encode()


def refused(reply: Message) -> str:
    answer = answer_in(reply)
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

    answer = answer_in(gate.answer(message_of(), folder, work))
    assert answer.trained == trained_answer()
    (task,) = seen
    assert task.study == bare_study()
    np.testing.assert_array_equal(task.model, MODEL_VALUES, strict=True)


def test_an_unapproved_study_is_refused_before_any_work(folder: SiteFolder) -> None:
    reply = gate.answer(message_of(study=bare_study(rounds=4)), folder, never)
    assert refused(reply) == "CONS-210"


def test_an_approval_under_another_digests_name_is_none(folder: SiteFolder) -> None:
    other = bare_study(rounds=4)
    approvals = folder.path / "approvals"
    (approvals / f"{other.digest()}.json").write_text((approvals / f"{bare_study().digest()}.json").read_text())
    assert refused(gate.answer(message_of(study=other), folder, never)) == "CONS-210"


def test_a_study_that_differs_from_its_digest_is_refused(folder: SiteFolder) -> None:
    digest = bare_study().digest()
    off_by_one = digest[:-1] + ("0" if digest[-1] != "0" else "1")
    assert refused(gate.answer(message_of(study_digest=off_by_one), folder, never)) == "CONS-240"
    changed = message_of(study=bare_study(rounds=4), study_digest=digest)
    assert refused(gate.answer(changed, folder, never)) == "CONS-240"


def test_altered_model_bytes_are_refused(folder: SiteFolder) -> None:
    message = message_of()
    altered = MODEL_VALUES.copy()
    altered[3] += 1
    message.content[MODEL] = ArrayRecord({FLAT: Array(altered)})
    assert refused(gate.answer(message, folder, never)) == "CONS-240"


def test_a_model_of_another_type_is_refused(folder: SiteFolder) -> None:
    message = message_of(model_digest=flat_digest(MODEL_VALUES.astype(np.float64)))
    message.content[MODEL] = ArrayRecord({FLAT: Array(MODEL_VALUES.astype(np.float64))})
    assert refused(gate.answer(message, folder, never)) == "CONS-200"


@pytest.mark.parametrize("kind", ["prepare", "train", "evaluate"])
def test_more_rounds_than_the_policy_allows_are_refused(folder: SiteFolder, kind: Kind) -> None:
    long = bare_study(rounds=6)
    folder.approve(long, by="the test", study_folder=Path("/nowhere"))
    assert refused(gate.answer(message_of(kind, long), folder, never)) == "CONS-230"


def test_a_round_after_the_studys_last_is_refused(folder: SiteFolder) -> None:
    assert refused(gate.answer(message_of(round=4), folder, never)) == "CONS-230"


def test_a_study_that_is_none_is_refused(folder: SiteFolder) -> None:
    assert refused(gate.answer(message_of(received={"name": PATIENT}), folder, never)) == "CONS-101"


@pytest.mark.parametrize("missing", [INSTRUCTION, MODEL])
def test_a_message_without_its_records_is_refused(folder: SiteFolder, missing: str) -> None:
    message = message_of()
    del message.content[missing]
    assert refused(gate.answer(message, folder, never)) == "CONS-240"


@settings(max_examples=50, deadline=None)
@given(body=st.one_of(st.text(), st.binary().map(repr), st.just('{"kind": "train"}')))
def test_whatever_text_comes_in_a_valid_refusal_goes_out(tmp_path_factory: pytest.TempPathFactory, body: str) -> None:
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    folder = SiteFolder.create(tmp_path_factory.mktemp("site") / "anna", PROFILE)
    message = message_of()
    message.content[INSTRUCTION] = ConfigRecord({BODY: body})
    assert refused(gate.answer(message, folder, never)) == "CONS-240"


# -- on the way out ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wire", ["fp32", "bf16"])
def test_an_update_leaves_in_the_studys_format_with_its_digest(folder: SiteFolder, wire: str) -> None:
    update = np.linspace(-0.1, 0.1, 50, dtype=np.float32)
    reply = gate.answer(message_of(study=bare_study(wire=wire)), folder, ending_in(training(update)))
    array = reply.content.array_records[UPDATE][FLAT].numpy()
    np.testing.assert_array_equal(array, encode(update, wire), strict=True)  # type: ignore[arg-type]
    assert answer_in(reply).update_digest == flat_digest(array)
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
    assert refused(gate.answer(message_of(), folder, ending_in(training(update)))) == code


def test_an_update_at_the_bound_leaves(folder: SiteFolder) -> None:
    assert answer_in(gate.answer(message_of(), folder, ending_in(training(spoilt(10.0))))).trained is not None


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
    assert refused(gate.answer(message_of(kind), folder, ending_in(result))) == "CONS-220"


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
    code = refused(gate.answer(message_of(), folder, ending_in(training(trained=trained))))
    assert code in ("CONS-220", "CONS-999")


def test_a_field_that_the_schema_does_not_name_never_leaves(folder: SiteFolder) -> None:
    reply = gate.answer(message_of(), folder, ending_in(training(trained=Talkative(**dict(trained_answer())))))
    assert PATIENT.encode() not in bytes_of(reply)
    answer_in(reply)


def changed_preparation(**changes: Any) -> Result:
    return Result(prepared=Prepared.model_construct(**{**dict(prepared_answer()), **changes}))


@pytest.mark.parametrize(
    "result",
    [
        changed_preparation(device=PATIENT),
        changed_preparation(patient_stand_in=PATIENT),
        changed_preparation(synthetic=False),
        changed_preparation(frozen_digest=PATIENT),
        changed_preparation(memory_format=PATIENT),
        changed_preparation(parts={PATIENT: prepared_answer().parts["train"]}),
    ],
)
def test_a_preparations_texts_are_those_that_are_known_without_data(folder: SiteFolder, result: Result) -> None:
    assert refused(gate.answer(message_of("prepare"), folder, ending_in(result))) in ("CONS-220", "CONS-999")


def test_fewer_patients_than_the_policy_asks_for_do_not_leave(folder: SiteFolder) -> None:
    reply = gate.answer(message_of("prepare"), folder, ending_in(Result(prepared=prepared_answer(images=6))))
    assert refused(reply) == "CONS-230"
    reply = gate.answer(message_of("prepare"), folder, ending_in(Result(prepared=prepared_answer(images=7))))
    assert answer_in(reply).prepared == prepared_answer(images=7)


def with_histogram(minimum_cell: int) -> Evaluated:
    histogram = ScoreHistogram(edges=[0, 0.5, 1], positive=[9, 0], negative=[0, 9], minimum_cell=minimum_cell)
    result = evaluated_answer()
    return result.model_copy(update={"network": result.network.model_copy(update={"histogram": histogram})})


def test_histograms_keep_the_larger_minimum_of_study_and_site(folder: SiteFolder) -> None:
    for result, kind in (
        (Result(evaluated=with_histogram(6)), "evaluate"),
        (Result(prepared=prepared_answer().model_copy(update={"baseline": with_histogram(6)})), "prepare"),
    ):
        assert refused(gate.answer(message_of(kind), folder, ending_in(result))) == "CONS-220"  # type: ignore[arg-type]
    reply = gate.answer(message_of("evaluate"), folder, ending_in(Result(evaluated=with_histogram(7))))
    assert answer_in(reply).evaluated == with_histogram(7)


def test_a_figure_that_is_not_finite_leaves_as_undefined(folder: SiteFolder) -> None:
    result = evaluated_answer()
    broken = result.model_copy(
        update={"network": result.network.model_copy(update={"auc": Estimate.model_construct(value=float("nan"))})}
    )
    answer = answer_in(gate.answer(message_of("evaluate"), folder, ending_in(Result(evaluated=broken))))
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
        assert refused(gate.answer(message_of(), folder, work)) == code
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
    answer_in(gate.answer(message, folder, ending_in(training())))
