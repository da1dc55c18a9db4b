"""What really leaves the hospital: one signed answer of a known schema and the update that it names, or a code. Nothing else, whatever
the process that did the work hands over."""

from __future__ import annotations

import io
import itertools
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import RunNotRunningException
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode import start_client_internal as internal
from flwr.supernode.nodestate import NodeStateFactory

from benchmarks.bare_run import new_key, prepared_answer, trained_answer
from client import door as door_module
from client.door import Door
from client.gate import hello
from client.site_folder import SiteFolder
from shared.errors import ProcessError
from shared.messages import ANSWER, BODY, FLAT, UPDATE, Answer, read_answer, sign_answer
from shared.profile import Profile
from shared.results import Refused
from shared.signing import SigningKey, seal
from shared.wire import encode, flat_digest

PATIENT = "Mueller, Anna"
UPDATE_VALUES = np.linspace(-1, 1, 5000, dtype=np.float32)
PROFILE = {
    "schema": "consilium/profile/1", "site": "anna", "title": "Hospital Anna", "device": "cpu",
    "data": {"layout": "cbis_ddsm", "root": "/nowhere", "synthetic": True},
}  # fmt: skip

Content = RecordDict


class Hospital:
    """A node's state and store, a door, and a wire that notes everything that is sent over it."""

    def __init__(self, path: Path) -> None:
        self.folder = SiteFolder.create(path / "site", Profile.model_validate(PROFILE))
        self.key = self.folder.signing_key()
        self.store = ObjectStoreFactory().store()
        self.state = NodeStateFactory(objectstore_factory=ObjectStoreFactory()).state()
        self.state.set_node_id(7)
        self.door = Door(self.folder)
        self.announced: list[tuple[Message, Any, float]] = []
        self.pieces: dict[str, bytes] = {}

    def ask(self) -> Message:
        """A message from the coordinator, as it lies in the node's state: without its content."""
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 5, 1, 11
        message = Message(RecordDict(), dst_node_id=7, message_type="train", ttl=60.0, group_id="3")
        message.metadata.__dict__["_message_id"] = message.object_id
        self.state.store_message(message)
        self.state.get_messages_legacy(is_reply=False)
        self.door.expect(message)
        return message

    def hand_over(self, reply: Message) -> None:
        internal._insert_message(reply, self.state, self.store)

    def leave(self) -> None:
        def send(message: Message, tree: Any, runtime: float) -> tuple[set[str], str]:
            self.announced.append((message, tree, runtime))
            return set(get_all_nested_objects(message)), "session"

        def push_object(run: int, session: str, name: str, content: bytes) -> None:
            assert (run, session) == (5, "session")
            self.pieces[name] = content

        self.door.push(self.state, self.store, send, push_object)

    def sent(self) -> Message:
        """The one message that left, put together from the bytes that left."""
        ((announced, _, _),) = self.announced
        message = inflate_object_from_contents(announced.metadata.message_id, dict(self.pieces))
        assert isinstance(message, Message)
        return message

    def answer(self) -> Answer:
        content = self.sent().content
        return read_answer(str(content.config_records[ANSWER][BODY]), self.key.public)

    def everything(self) -> bytes:
        """All bytes that left, metadata included."""
        described = [repr(message.metadata.__dict__) + str(tree) for message, tree, _ in self.announced]
        return b"".join([*self.pieces.values(), *(text.encode() for text in described)])


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return Hospital(tmp_path)


def signed(hospital: Hospital, key: SigningKey | None = None, **changes: Any) -> str:
    body = Answer(
        **{
            "hello": hello(hospital.folder.profile()), "instruction": "2" * 64, "round": 3,
            "trained": trained_answer(seconds=1.0), "update_digest": flat_digest(UPDATE_VALUES), **changes,
        }
    )  # fmt: skip
    return sign_answer(body, key or hospital.key)


def content_of(text: str, array: np.ndarray[Any, Any] | None = UPDATE_VALUES) -> RecordDict:
    content = RecordDict({ANSWER: ConfigRecord({BODY: text})})
    if array is not None:
        content[UPDATE] = ArrayRecord({FLAT: Array(array)})
    return content


@pytest.mark.parametrize("wire", ["fp32", "bf16"])
def test_an_answer_that_keeps_to_the_contract_leaves_as_it_is(hospital: Hospital, wire: Any) -> None:
    asked, array = hospital.ask(), encode(UPDATE_VALUES, wire)
    content = content_of(signed(hospital, update_digest=flat_digest(array)), array)
    hospital.hand_over(Message(content, reply_to=asked))
    hospital.leave()
    sent = hospital.sent()
    assert sent.content.object_id == content.object_id
    np.testing.assert_array_equal(sent.content.array_records[UPDATE][FLAT].numpy(), array)
    assert hospital.announced[0][2] == 0.0, "how long the work took is nobody's business but the answer's"
    metadata = sent.metadata
    assert (metadata.run_id, metadata.src_node_id, metadata.dst_node_id, metadata.group_id) == (5, 7, 1, "3")
    assert metadata.reply_to_message_id == asked.metadata.message_id


@pytest.mark.parametrize("kind", ["prepared", "refused"])
def test_an_answer_without_an_update_leaves_as_it_is(hospital: Hospital, kind: str) -> None:
    result = {"prepared": prepared_answer(), "refused": Refused(code="CONS-230")}[kind]
    text = signed(hospital, **{"trained": None, "update_digest": None, kind: result})
    content = content_of(text, None)
    hospital.hand_over(Message(content, reply_to=hospital.ask()))
    hospital.leave()
    assert hospital.sent().content.object_id == content.object_id


def extra_record(content: Content, hospital: Hospital) -> None:
    content["more"] = ConfigRecord({"note": PATIENT})


def extra_metrics(content: Content, hospital: Hospital) -> None:
    content["metrics"] = MetricRecord({f"auc of {PATIENT}": 0.9})


def renamed_answer(content: Content, hospital: Hospital) -> None:
    content[PATIENT] = content.pop(ANSWER)


def text_beside_the_body(content: Content, hospital: Hospital) -> None:
    content.config_records[ANSWER]["note"] = PATIENT


def renamed_tensor(content: Content, hospital: Hospital) -> None:
    content[UPDATE] = ArrayRecord({PATIENT: Array(UPDATE_VALUES)})


def second_tensor(content: Content, hospital: Hospital) -> None:
    content.array_records[UPDATE][PATIENT] = Array(np.zeros(2, np.float32))


def wrong_shape(content: Content, hospital: Hospital) -> None:
    content[UPDATE] = ArrayRecord({FLAT: Array(UPDATE_VALUES.reshape(50, 100))})


def wrong_type(content: Content, hospital: Hospital) -> None:
    content[UPDATE] = ArrayRecord({FLAT: Array(UPDATE_VALUES.astype(np.float64))})


def other_values(content: Content, hospital: Hospital) -> None:
    content[UPDATE] = ArrayRecord({FLAT: Array(UPDATE_VALUES + 1)})


def no_update(content: Content, hospital: Hospital) -> None:
    del content[UPDATE]


def pickled(content: Content, hospital: Hospital) -> None:
    stream = io.BytesIO()
    np.save(stream, np.array([PATIENT], dtype=object), allow_pickle=True)
    content[UPDATE] = ArrayRecord({FLAT: Array("object", (1,), "numpy.ndarray", stream.getvalue())})


def text_in_the_arrays_header(content: Content, hospital: Hospital) -> None:
    """NumPy's header is a Python literal with room for spaces, and for comments."""
    data = content.array_records[UPDATE][FLAT].data
    header, body = data[:128], data[128:]
    place = header.rindex(b"}") + 1
    note = f"#{PATIENT}".encode()
    header = header[:place] + note + header[place + len(note) :]
    assert len(header) == 128
    content[UPDATE] = ArrayRecord({FLAT: Array("float32", UPDATE_VALUES.shape, "numpy.ndarray", header + body)})


def name_as_the_kind_of_array(content: Content, hospital: Hospital) -> None:
    data = content.array_records[UPDATE][FLAT].data
    content[UPDATE] = ArrayRecord({FLAT: Array("float32", UPDATE_VALUES.shape, PATIENT, data)})


def unsigned(content: Content, hospital: Hospital) -> None:
    text = json.loads(signed(hospital))["payload"]
    content.config_records[ANSWER][BODY] = text


def signed_by_another(content: Content, hospital: Hospital) -> None:
    content.config_records[ANSWER][BODY] = signed(hospital, new_key())


def named_key(content: Content, hospital: Hospital) -> None:
    envelope = json.loads(signed(hospital))
    envelope["signatures"][0]["keyid"] = PATIENT
    content.config_records[ANSWER][BODY] = json.dumps(envelope, separators=(",", ":"))


def second_signature(content: Content, hospital: Hospital) -> None:
    envelope = json.loads(signed(hospital))
    envelope["signatures"].append({"keyid": PATIENT, "sig": ""})
    content.config_records[ANSWER][BODY] = json.dumps(envelope, separators=(",", ":"))


def spaces_in_the_envelope(content: Content, hospital: Hospital) -> None:
    content.config_records[ANSWER][BODY] = signed(hospital) + " " * len(PATIENT)


def other_schema_though_signed(content: Content, hospital: Hospital) -> None:
    content.config_records[ANSWER][BODY] = seal("answer", {"patient": PATIENT}, hospital.key)


def more_than_the_schema_though_signed(content: Content, hospital: Hospital) -> None:
    body = json.loads(
        Answer(
            hello=hello(hospital.folder.profile()), round=3, trained=trained_answer(seconds=1.0),
            update_digest=flat_digest(UPDATE_VALUES),
        ).model_dump_json()
    )  # fmt: skip
    content.config_records[ANSWER][BODY] = seal("answer", {**body, "patient": PATIENT}, hospital.key)


def another_kind_though_signed(content: Content, hospital: Hospital) -> None:
    body = json.loads(Answer(hello=hello(hospital.folder.profile()), round=3).model_dump_json())
    content.config_records[ANSWER][BODY] = seal("ledger", body, hospital.key)


def another_sites_name(content: Content, hospital: Hospital) -> None:
    other = hello(hospital.folder.profile()).model_copy(update={"site": "mueller-anna"})
    content.config_records[ANSWER][BODY] = signed(hospital, hello=other)


HOSTILE: list[Callable[[Content, Hospital], None]] = [
    extra_record, extra_metrics, renamed_answer, text_beside_the_body, renamed_tensor, second_tensor, wrong_shape, wrong_type,
    other_values, no_update, pickled, text_in_the_arrays_header, name_as_the_kind_of_array, unsigned, signed_by_another, named_key,
    second_signature, spaces_in_the_envelope, other_schema_though_signed, more_than_the_schema_though_signed,
    another_kind_though_signed, another_sites_name,
]  # fmt: skip


@pytest.mark.parametrize("damage", HOSTILE, ids=lambda damage: damage.__name__)
def test_whatever_else_is_in_a_reply_stays_and_a_code_leaves(
    hospital: Hospital, damage: Callable[[Content, Hospital], None], caplog: pytest.LogCaptureFixture
) -> None:
    content = content_of(signed(hospital))
    damage(content, hospital)
    hospital.hand_over(Message(content, reply_to=hospital.ask()))
    with caplog.at_level(logging.ERROR):
        hospital.leave()
    answer = hospital.answer()
    assert answer.refused == Refused(code="CONS-220")
    assert answer.update_digest is None and UPDATE not in hospital.sent().content
    assert PATIENT.encode() not in hospital.everything()
    assert "stopped at the door" in caplog.text


@pytest.mark.parametrize("wire", ["fp32", "bf16"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_update_that_is_not_finite_stays(hospital: Hospital, wire: Any, value: float) -> None:
    values = UPDATE_VALUES.copy()
    values[17] = value
    array = encode(values, wire)
    content = content_of(signed(hospital, update_digest=flat_digest(array)), array)
    hospital.hand_over(Message(content, reply_to=hospital.ask()))
    hospital.leave()
    assert hospital.answer().refused == Refused(code="CONS-250")


def test_an_exceptions_text_stays_and_the_coordinator_learns_that_it_was_unexpected(hospital: Hospital) -> None:
    """Flower's own reply to an exception holds its text, which may hold anything."""
    error = Error(2, f"<class 'ValueError'>:<'can't read {PATIENT}.dcm'>")
    hospital.hand_over(Message(error, reply_to=hospital.ask()))
    hospital.leave()
    assert hospital.answer().refused == Refused(code="CONS-999")
    assert PATIENT.encode() not in hospital.everything() and not hospital.sent().has_error()


def test_nothing_of_the_replys_own_metadata_leaves(hospital: Hospital) -> None:
    asked = hospital.ask()
    reply = Message(content_of(signed(hospital)), reply_to=asked)
    reply.metadata.__dict__.update(_group_id=PATIENT, _created_at=123.25, _run_id=99, _dst_node_id=4)
    hospital.hand_over(reply)
    hospital.leave()
    metadata = hospital.sent().metadata
    assert (metadata.run_id, metadata.dst_node_id, metadata.group_id) == (5, 1, "3")
    assert abs(metadata.created_at - time.time()) < 60
    assert PATIENT.encode() not in hospital.everything()


def test_a_second_reply_and_a_reply_to_nothing_are_dropped(hospital: Hospital) -> None:
    asked = hospital.ask()
    first = Message(content_of(signed(hospital)), reply_to=asked)
    hospital.hand_over(first)
    hospital.leave()
    assert len(hospital.announced) == 1
    hospital.hand_over(Message(content_of(signed(hospital, round=4)), reply_to=asked))
    hospital.leave()
    assert len(hospital.announced) == 1, "one answer a message"
    assert not hospital.state.get_messages_legacy(is_reply=True) and len(hospital.store) == 0


def test_without_a_key_to_refuse_with_nothing_leaves(hospital: Hospital, caplog: pytest.LogCaptureFixture) -> None:
    hospital.hand_over(Message(Error(2, PATIENT), reply_to=hospital.ask()))
    (hospital.folder.path / "keys" / "signing.key").unlink()
    hospital.leave()
    assert not hospital.announced and not hospital.pieces
    assert "no reply leaves" in caplog.text


def test_a_reply_whose_process_ended_while_handing_it_over_becomes_a_code(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door_module, "PIECES_S", 0.2)
    reply = Message(content_of(signed(hospital)), reply_to=hospital.ask())
    reply.metadata.__dict__["_message_id"] = reply.object_id
    hospital.state.store_message(reply)
    hospital.store.preregister(5, get_object_tree(reply))  # announced, but none of its pieces came
    hospital.leave()
    assert hospital.answer().refused == Refused(code="CONS-999")


def test_a_task_that_never_answers_is_given_up_when_the_coordinator_no_longer_waits(hospital: Hospital) -> None:
    asked = hospital.ask()
    hospital.door._asked[asked.metadata.message_id] = door_module._Request(asked, time.monotonic() + 0.3)
    begun = time.monotonic()
    hospital.leave()
    assert not hospital.announced and time.monotonic() - begun < 10
    hospital.hand_over(Message(content_of(signed(hospital)), reply_to=asked))
    hospital.leave()
    assert not hospital.announced, "too late: it is not asked for any more"


def test_what_a_task_of_an_ended_run_hands_over_does_not_take_the_place_of_the_answer(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node was told to stop while it took a message; the next run's first answer must leave all the same."""
    ended = hospital.ask()
    hospital.door.forget(ended)
    asked = hospital.ask()
    hospital.hand_over(Message(content_of(signed(hospital)), reply_to=ended))
    replies, looks = hospital.state.get_messages_legacy, itertools.count()

    def later(**given: Any) -> Any:
        if next(looks) == 1:
            hospital.hand_over(Message(content_of(signed(hospital)), reply_to=asked))
        return replies(**given)

    monkeypatch.setattr(hospital.state, "get_messages_legacy", later)
    hospital.leave()
    assert hospital.sent().metadata.reply_to_message_id == asked.metadata.message_id


def test_an_answer_of_a_run_that_has_ended_is_dropped_without_ending_the_node(hospital: Hospital) -> None:
    def send(_message: Message, _tree: Any, _runtime: float) -> tuple[set[str], str]:
        raise RunNotRunningException

    hospital.hand_over(Message(content_of(signed(hospital)), reply_to=hospital.ask()))
    hospital.door.push(hospital.state, hospital.store, send, lambda *_: None)
    assert not hospital.state.get_messages_legacy(is_reply=True) and len(hospital.store) == 0


def test_another_flower_is_refused(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(internal, "_push_messages", lambda state, object_store, send: None)
    with pytest.raises(ProcessError, match=r"_push_messages is not as expected .* flwr 1\.41\.0"):
        hospital.door.install(internal)
    monkeypatch.delattr(internal, "_push_messages")
    with pytest.raises(ProcessError, match=r"_push_messages is not as expected \(missing\)"):
        hospital.door.install(internal)
