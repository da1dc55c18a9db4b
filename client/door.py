"""The last look at every reply, in the node's process, at what really goes out (law 2 of the design).

The gate builds replies in the process that did the work. Here nothing of that process is believed: Flower's sending loop is replaced by
one that takes a reply apart, checks each piece, builds the message anew from the checked pieces, and sends those bytes. What passes is
exactly a record `answer` with one text `body`, signed by this site's own key and of the answer's schema, and, where the answer is to
training, a record `update` with one array `flat` whose digest the signed text names. Anything else - an error with an exception's text,
a further record, another name, a text with room for more than it should say - is replaced by a refusal that holds a code.
"""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.message.arraychunk import ArrayChunk
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    get_object_body,
    get_object_children_ids_from_object_content,
    get_object_tree,
    get_object_type_from_object_content,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, push_object_contents_from_iterable
from flwr.supercore.run import RunNotRunningException
from numpy.lib import format as npy_format

from client.gate import refusal_message
from client.ledger import lines_on_file
from client.site_folder import SiteFolder
from shared.canonical import canonical_json
from shared.errors import UNEXPECTED_CODE, ConsiliumError, EgressError, NonFiniteUpdateError
from shared.flower_settings import require_parameters
from shared.ledger.chain import payload_of
from shared.messages import ANSWER, BODY, FLAT, UPDATE, Answer, read_answer
from shared.pacing import Pacing
from shared.signing import Envelope, PublicKey, payload_digest, unseal
from shared.wire import flat_digest, from_npy

log = logging.getLogger("consilium.door")

#: A reply that was announced and is not complete after this long comes from a process that has ended.
PIECES_S = 120.0

_PARAMETERS = ("state", "object_store", "send", "push_object")


@dataclass(frozen=True, slots=True)
class _Request:
    """A message that came in, and until when (monotonic seconds) its sender waits."""

    message: Message
    limit: float


class Door:
    """Knows what was asked, and lets out one checked answer to each."""

    def __init__(self, folder: SiteFolder) -> None:
        self._folder = folder
        self._site = folder.profile().site
        self._key = folder.signing_key().public
        self._asked: dict[str, _Request] = {}

    def install(self, internal: ModuleType) -> None:
        """Replace the SuperNode's sending loop. Raises ProcessError where this Flower has another."""
        require_parameters(internal, "_push_messages", *_PARAMETERS)
        internal._push_messages = self.push  # type: ignore[attr-defined]

    def expect(self, message: Message) -> None:
        """A message came in: one answer to it may leave."""
        limit = time.monotonic() + message.metadata.ttl
        self._asked = {name: one for name, one in self._asked.items() if one.limit > time.monotonic()}
        self._asked[message.metadata.message_id] = _Request(message, limit)

    def forget(self, message: Message) -> None:
        """The message was not taken after all: no answer to it may leave, and none is waited for."""
        self._asked.pop(message.metadata.message_id, None)

    def push(self, state: Any, object_store: Any, send: Callable[..., Any], push_object: Callable[..., None]) -> None:
        """What Flower's `_push_messages` does: wait for the reply, and send it. Nothing is sent that was not checked.

        It waits for the reply to what was asked: a task of a run that ended may still hand something over, and comes first.
        """
        while True:
            for reply in self._replies(state):
                try:
                    outgoing = self._outgoing(reply, object_store)
                finally:
                    state.delete_messages(message_ids=[reply.metadata.message_id, reply.metadata.reply_to_message_id])
                    object_store.delete(reply.metadata.message_id)
                if outgoing is not None:
                    _send(outgoing, send, push_object)
            if not self._asked:
                return

    def refusal(self, message: Message, code: str) -> Message | None:
        """A signed refusal of this message; None where this site can't sign."""
        reply = refusal_message(message, self._folder, code)
        if reply.has_content():
            return reply
        log.error("%s: no reply leaves, since none can be signed here", code)
        return None

    def _replies(self, state: Any) -> list[Message]:
        """The replies that wait, or none once nobody waits for them any more."""
        pacing = Pacing(0.1, 0.5)
        while True:
            if found := list(state.get_messages_legacy(is_reply=True)):
                return found
            limits = [request.limit for request in self._asked.values()]
            if limits and time.monotonic() > max(limits):
                log.error("%s: the task ended without a reply in the coordinator's time", UNEXPECTED_CODE)
                state.delete_messages(message_ids=list(self._asked))
                self._asked.clear()
                return []
            time.sleep(pacing.wait_s())

    def _outgoing(self, reply: Message, object_store: Any) -> Message | None:
        request = self._asked.pop(reply.metadata.reply_to_message_id, None)
        if request is None:
            log.error("%s: a reply to nothing that was asked is dropped", EgressError.code)
            return None
        try:
            return self.checked(request.message, _contents(reply.metadata.message_id, object_store))
        except (EgressError, NonFiniteUpdateError) as problem:
            code, said = problem.code, str(problem)
        except ConsiliumError as problem:  # its signature, its schema, its array
            code, said = EgressError.code, f"{problem.code}: {problem}"
        except _CrashError as problem:
            code, said = UNEXPECTED_CODE, str(problem)
        except Exception:
            log.exception("%s: unexpected", UNEXPECTED_CODE)
            code, said = UNEXPECTED_CODE, "see above"
        log.error("%s: a reply was stopped at the door: %s", code, said)
        try:
            refusal = self.refusal(request.message, code)
            return (
                None if refusal is None else self._rebuilt(request.message, refusal.content, refusal.content.object_id)
            )
        except ConsiliumError as problem:
            log.error("%s: no reply leaves: %s", code, problem)
            return None

    def checked(self, request: Message, contents: Mapping[str, bytes]) -> Message:
        """The answer to `request` that these objects hold, built anew; `contents` by object id, in any order, the message among them.

        Raises a ConsiliumError for what must not leave, another exception where the work crashed.
        """
        try:
            received = _inflated(contents)
        except Exception as problem:
            raise EgressError(f"the reply can't be taken apart: {type(problem).__name__}") from None
        if received.has_error():
            raise _CrashError("the task crashed, or Flower could not run it; nothing of its error leaves")
        identifiers = get_object_children_ids_from_object_content(contents[list(contents)[-1]])
        return self._rebuilt(request, received.content, identifiers[0])

    def _rebuilt(self, request: Message, content: RecordDict, identifier: str) -> Message:
        expected = {ANSWER: ConfigRecord, **({UPDATE: ArrayRecord} if UPDATE in content else {})}
        if {name: type(record) for name, record in content.items()} != expected:
            raise EgressError(f"expected the records {' and '.join(expected)}, but there are {len(content)} others")
        texts = content.config_records[ANSWER]
        text = texts.get(BODY)
        if list(texts) != [BODY] or not isinstance(text, str):
            raise EgressError("expected one signed text, but the answer holds something else")
        answer = checked_text(text, self._key, self._site)
        require_on_file(answer, self._folder)
        rebuilt = RecordDict({ANSWER: ConfigRecord({BODY: text})})
        if (UPDATE in content) != (answer.update_digest is not None) or (UPDATE in content) != (
            answer.trained is not None
        ):
            raise EgressError("an update belongs to an answer to training, and to no other")
        if UPDATE in content:
            rebuilt[UPDATE] = ArrayRecord(
                {FLAT: _checked_array(content.array_records[UPDATE], str(answer.update_digest))}
            )
        if rebuilt.object_id != identifier:
            raise EgressError("the reply holds more than its answer and update")
        return Message(rebuilt, reply_to=request)


class _CrashError(Exception):
    """The work ended without an answer of its own."""


def checked_text(text: str, key: PublicKey, site: str) -> Answer:
    """The answer in a signed text that has one way to be written: no space, name or number in it is free to carry anything.

    Raises SignatureError, InstructionError, EgressError.
    """
    answer = read_answer(text, key)
    envelope = Envelope.model_validate_json(text)
    payload = unseal(text, "answer", key)
    if (
        text != envelope.model_dump_json()
        or [signature.keyid for signature in envelope.signatures] != [key.fingerprint]
        or payload != canonical_json(json.loads(answer.model_dump_json()))
    ):
        raise EgressError("the answer's text is not in its canonical form")
    if answer.hello.site != site:
        raise EgressError("the answer speaks for another site")
    return answer


def require_on_file(answer: Answer, folder: SiteFolder) -> None:
    """The ledger entries of an answer are those of the hospital's file, to the byte: no room for anything else. Raises EgressError."""
    if not answer.entries and answer.receipt is None:
        return
    lines = lines_on_file(folder)
    if not set(answer.entries) <= set(lines):
        raise EgressError("the answer holds entries that are not in this hospital's ledger")
    receipt = answer.receipt
    if receipt is not None and (
        receipt.seq >= len(lines) or payload_digest(payload_of(lines[receipt.seq])) != receipt.digest
    ):
        raise EgressError("the answer's receipt is of no entry of this hospital's ledger")


def _checked_array(record: ArrayRecord, digest: str) -> Array:
    """The one flat, finite array of float32 or bfloat16 bits with this digest. Raises EgressError, NonFiniteUpdateError."""
    if list(record) != [FLAT]:
        raise EgressError(f"expected one array '{FLAT}', but the update has {len(record)} of other names")
    sent = record[FLAT]
    flat = from_npy(sent.data)
    if flat.dtype not in (np.dtype("<f4"), np.dtype("<u2")):
        raise EgressError(f"expected float32 or bfloat16 bits, but the update is {flat.dtype}")
    header = io.BytesIO()
    npy_format.write_array_header_1_0(header, npy_format.header_data_from_array_1_0(flat))
    if not sent.data.startswith(header.getvalue()) or len(sent.data) != header.tell() + flat.nbytes:
        raise EgressError("the update's header is not the one that NumPy writes")
    if flat_digest(flat) != digest:
        raise EgressError("the update is not the one that the signed answer names")
    if not _finite(flat):
        raise NonFiniteUpdateError("the update holds NaN or infinity")
    return Array(dtype=str(flat.dtype), shape=flat.shape, stype="numpy.ndarray", data=sent.data)


def _finite(flat: npt.NDArray[np.generic]) -> bool:
    if flat.dtype == np.dtype("<f4"):
        return bool(np.isfinite(flat).all())
    exponent = np.uint16(0x7F80)
    return not bool(((flat.view(np.uint16) & exponent) == exponent).any())


def _contents(message_id: str, object_store: Any) -> dict[str, bytes]:
    """Every object of the reply, once all have come; the message last. Raises EgressError."""
    limit, pacing = time.monotonic() + PIECES_S, Pacing(0.02, 0.5)
    found: dict[str, bytes] = {}
    for tree in iterate_object_tree(object_store.get_object_tree(message_id)):
        while not (content := object_store.get(tree.object_id)):
            if time.monotonic() > limit:
                raise _CrashError("the task ended before its reply was complete")
            time.sleep(pacing.wait_s())
        found[tree.object_id] = content
    return found


def _inflated(contents: Mapping[str, bytes]) -> Message:
    root = list(contents)[-1]
    known: dict[str, InflatableObject] = {
        name: _array(content, contents)
        for name, content in contents.items()
        if get_object_type_from_object_content(content) == Array.__qualname__
    }
    message = inflate_object_from_contents(root, dict(contents), objects=known)
    if not isinstance(message, Message):
        raise TypeError("no message")
    return message


def _array(content: bytes, contents: Mapping[str, bytes]) -> Array:
    """What Flower's `Array.inflate` gives; that grows a buffer piece by piece, which takes half a second for 87 MB."""
    described = json.loads(get_object_body(content, Array))
    children = get_object_children_ids_from_object_content(content)
    pieces = [get_object_body(contents[children[place]], ArrayChunk) for place in described["arraychunk_ids"]]
    return Array(described["dtype"], tuple(described["shape"]), described["stype"], b"".join(pieces))


def _send(message: Message, send: Callable[..., Any], push_object: Callable[..., None]) -> None:
    """As Flower does: the message without its content, then the pieces that the coordinator lacks. How long the work took is not told."""
    run = message.metadata.run_id
    try:
        with no_object_id_recompute():
            message.metadata.__dict__["_message_id"] = message.object_id
            objects = get_all_nested_objects(message)
            wanted, session = send(message, get_object_tree(message), 0.0)
            push_object_contents_from_iterable(
                ((name, piece.deflate()) for name, piece in objects.items() if name in wanted),
                push_object_fn=partial(push_object, run, session),
            )
    except RunNotRunningException:
        log.warning("the run has ended: the answer is not wanted any more")
    except Exception as problem:
        log.error("the answer could not be sent: %s", problem)
    else:
        log.info("answer sent: %s", message.metadata.message_type)
