"""Messages to sites and their answers, over Flower's Grid: one message a site, one answer pulled at a time, every wait with a deadline.

Flower's own `send_and_receive` polls every 3 s and pulls all answers at once; here answers are pulled singly, as they come, so that
the coordinator's memory holds one update and not one a site.
"""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from server.registry import Registry
from shared.errors import InstructionError, RevokedError, SignatureError
from shared.flower_settings import allow_answers_before_all_is_sent, shorten_back_off
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
from shared.pacing import Pacing
from shared.run_records import Miss
from shared.signing import PublicKey, SigningKey
from shared.wire import from_npy

FIRST_POLL_SECONDS, LONGEST_POLL_SECONDS = 0.05, 0.75
ONLINE_CHECK_SECONDS = 5.0

#: A message lives this many deadlines in Flower, so that an answer that comes too late is seen to be late.
LATE_FACTOR = 2.0

#: The instruction for one site: its name, the moments it is issued and expires (Unix time, ms).
Instruct = Callable[[str, int, int], Instruction]


@dataclass(frozen=True, slots=True)
class Asked:
    """One message on its way."""

    site: str
    node: int
    kind: Kind
    round: int
    sent: float
    deadline: float
    activated: str
    text: str
    digest: str


@dataclass(frozen=True, slots=True)
class Arrival:
    """What came back for one message: an answer (with its signed text, and its flat array as it travelled), or why there is none."""

    asked: Asked
    after: float
    answer: Answer | None = None
    text: str | None = None
    array: npt.NDArray[np.generic] | None = None
    miss: Miss | None = None
    unavailable: bool = False


class Exchange:
    """Outstanding messages of one run: what is sent is signed with `key`, what arrives is judged by the registry of that moment.

    `expected` are the sites of the run. Flower's nodes are known by the name under which they were registered.
    """

    def __init__(self, grid: Grid, expected: Iterable[str], *, registry: Registry, key: SigningKey) -> None:
        shorten_back_off()
        allow_answers_before_all_is_sent()
        self._grid = grid
        self._expected = frozenset(expected)
        self._registry = registry
        self._key = key
        self._issued = 0
        self._open: dict[str, Asked] = {}
        self._given_up: dict[str, Asked] = {}
        self._away: dict[str, Asked] = {}
        self._activated: dict[str, str] = {}

    def admitted(self) -> set[str]:
        """Sites of the run that are not revoked."""
        return set(self._expected & self._registry.active().keys())

    def keys(self) -> dict[str, Any]:
        """Under which keys instructions and answers are signed, as run.json names them: of every site of the run that was admitted."""
        known = {site: record.signing_key for site, record in self._registry.all().items() if site in self._expected}
        return {"coordinator_key": str(self._key.public), "site_keys": known}

    def online(self) -> dict[str, int]:
        """Node id of every expected site that is admitted and online now."""
        admitted = self._registry.active()
        nodes = [
            node
            for node in self._grid.get_nodes()
            if node.name in self._expected
            and node.name in admitted
            and admitted[node.name].node_id in (None, str(node.node_id))
        ]
        self._activated.update({node.name: node.last_activated_at for node in nodes})
        return {node.name: node.node_id for node in nodes}

    def send(
        self,
        kind: Kind,
        number: int,
        nodes: Mapping[str, int],
        instruct: Instruct,
        model: npt.NDArray[np.generic],
        deadline_s: float,
    ) -> int:
        """Send each of `nodes` its own signed instruction with `model`; returns array bytes for each. All share one array on the wire."""
        record = ArrayRecord({FLAT: Array(model)})
        now = time.time()
        self._issued = max(self._issued + 1, int(now * 1000))
        expires = self._issued + int(deadline_s * 1000)
        asked, messages = [], []
        for site in sorted(nodes):
            text, digest = sign_instruction(instruct(site, self._issued, expires), self._key)
            activated = self._activated.get(site, "")
            asked.append(Asked(site, nodes[site], kind, number, now, now + deadline_s, activated, text, digest))
            self._away.pop(site, None)
            messages.append(
                Message(
                    RecordDict({INSTRUCTION: ConfigRecord({BODY: text}), MODEL: record}),
                    dst_node_id=nodes[site],
                    message_type=MESSAGE_TYPES[kind],
                    ttl=deadline_s * LATE_FACTOR,
                    group_id=str(number),
                )
            )
        for one, identifier in zip(asked, self._grid.push_messages(messages), strict=True):
            if identifier:
                self._open[identifier] = one
        return int(model.nbytes)

    def outstanding(self, kind: Kind, number: int) -> set[str]:
        """Sites that have not answered this message yet."""
        return {asked.site for asked in self._open.values() if (asked.kind, asked.round) == (kind, number)}

    def wait(
        self,
        kind: Kind,
        number: int,
        *,
        limit: float,
        settled: Callable[[], bool],
        again: Callable[[Mapping[str, int], set[str]], None],
    ) -> Iterator[Arrival]:
        """Arrivals until every site has answered this message or its deadline has passed. A site that goes offline is not waited
        for once the round is `settled()`; before that until `limit` (of time.monotonic).

        `again(online, away)` is called every few seconds with the sites that are online and those of them that lost their message when
        they went offline or started anew: it may send it again. Arrivals of other messages (late ones) are among them: look at `asked`.
        """
        checked = time.monotonic()
        pacing = Pacing(FIRST_POLL_SECONDS, LONGEST_POLL_SECONDS)
        self._away.clear()
        yield from self._late(kind, number)
        while self.outstanding(kind, number) or (not settled() and time.monotonic() < limit):
            for arrival in self._collected(kind, number):
                pacing.restart()
                yield arrival
            if time.monotonic() - checked > ONLINE_CHECK_SECONDS:
                checked = time.monotonic()
                online = self._look(kind, number)
                again(online, self._away.keys() & online.keys())
                yield from self._late(kind, number)
            if self.outstanding(kind, number) or not settled():
                time.sleep(pacing.wait_s())
        yield from self._late(kind, number)  # what came since the last look
        for asked in self._away.values():
            yield Arrival(asked, time.time() - asked.sent, miss=Miss(site=asked.site, reason="offline"))
        self._away.clear()

    def _collected(self, kind: Kind, number: int) -> Iterator[Arrival]:
        """Every answer that has come since the last call, and every message whose deadline has passed."""
        for identifier, asked in list(self._open.items()):
            if (arrival := self._pulled(identifier, asked)) is not None:
                del self._open[identifier]
                if arrival.unavailable and (asked.kind, asked.round) == (kind, number):
                    self._away[asked.site] = asked  # Flower has given the message up
                else:
                    self._forget_earlier(asked)
                    yield arrival
            elif time.time() > asked.deadline:
                self._given_up[identifier] = self._open.pop(identifier)
                yield Arrival(asked, time.time() - asked.sent, miss=Miss(site=asked.site, reason="no answer"))

    def _forget_earlier(self, answered: Asked) -> None:
        """This question was answered: who lost its first message may answer that one too, which is nobody's concern."""
        same = (answered.site, answered.kind, answered.round)
        for identifier, asked in list(self._given_up.items()):
            if (asked.site, asked.kind, asked.round) == same:
                del self._given_up[identifier]

    def _look(self, kind: Kind, number: int) -> dict[str, int]:
        """Who is online; of those that were asked, who is away, or started anew since and has lost the message."""
        online = self.online()
        for identifier, asked in list(self._open.items()):
            same = online.get(asked.site) == asked.node and self._activated.get(asked.site) == asked.activated
            if (asked.kind, asked.round) == (kind, number) and not same:
                self._given_up[identifier] = self._away[asked.site] = self._open.pop(identifier)
        return online

    def _pulled(self, identifier: str, asked: Asked) -> Arrival | None:
        """The answer to one message, if it is there; of Flower's message nothing is kept but that."""
        arrivals = [self._judged(message, asked) for message in self._grid.pull_messages([identifier])]
        if not arrivals:
            return None
        gc.collect()  # Flower's messages are full of reference cycles: each would hold a model until Python happens to look
        return arrivals[0]

    def _late(self, kind: Kind, number: int) -> Iterator[Arrival]:
        """Answers to messages that were given up, without their arrays; each message is forgotten when Flower forgets it.

        Of the message that is waited for now, (`kind`, `number`), none: whoever lost it was asked again, and the answer to that counts.
        Both can be answered, since a node that starts anew still finds the first one.
        """
        for identifier, asked in list(self._given_up.items()):
            if (arrival := self._pulled(identifier, asked)) is not None:
                del self._given_up[identifier]
                same = (asked.kind, asked.round) == (kind, number)
                if not same and (arrival.miss is None or arrival.miss.reason != "no answer"):
                    yield Arrival(asked, arrival.after, arrival.answer, arrival.text, miss=arrival.miss)
            elif time.time() > asked.sent + (asked.deadline - asked.sent) * LATE_FACTOR:
                self._given_up.pop(identifier, None)

    def _judged(self, message: Message, asked: Asked) -> Arrival:
        record = self._registry.get(asked.site)
        if record is None or record.revoked is not None:
            miss = Miss(site=asked.site, reason="invalid", code=RevokedError.code)
            return Arrival(asked, time.time() - asked.sent, miss=miss)
        return _arrival(message, asked, PublicKey.read(record.signing_key))


def _arrival(message: Message, asked: Asked, key: PublicKey) -> Arrival:
    after = time.time() - asked.sent
    if message.has_error():
        code = message.error.reason or ""  # not signed: a hint for people
        known = code if re.fullmatch(r"CONS-\d{3}", code) else None
        miss = Miss(site=asked.site, reason="no answer", code=known)
        return Arrival(asked, after, miss=miss, unavailable=message.error.code == ErrorCode.NODE_UNAVAILABLE)
    try:
        text = str(message.content.config_records[ANSWER][BODY])
        answer = read_answer(text, key)
        trusted = answer.instruction == asked.digest and answer.round == asked.round
        if answer.hello.site != asked.site or not (
            trusted or (answer.instruction is None and answer.refused is not None)
        ):
            raise InstructionError("the answer is another site's or another instruction's")
        records = message.content.array_records
        array = from_npy(records[UPDATE][FLAT].data) if UPDATE in records else None
    except SignatureError as problem:
        return Arrival(asked, after, miss=Miss(site=asked.site, reason="invalid", code=problem.code))
    except Exception:  # whatever bytes a site sends, they must not end the run of the others
        return Arrival(asked, after, miss=Miss(site=asked.site, reason="invalid"))
    if answer.refused is not None:
        miss = Miss(site=asked.site, reason="refused", code=answer.refused.code)
        return Arrival(asked, after, answer, text, miss=miss)
    return Arrival(asked, after, answer, text, array)
