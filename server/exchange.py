"""Messages to sites and their answers, over Flower's Grid: one message a site, one answer pulled at a time, every wait with a deadline.

Flower's own `send_and_receive` polls every 3 s and pulls all answers at once; here answers are pulled singly, as they come, so that
the coordinator's memory holds one update and not one a site.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from shared.errors import InstructionError
from shared.flower_settings import shorten_back_off
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
from shared.pacing import Pacing
from shared.run_records import Miss
from shared.wire import from_npy

FIRST_POLL_SECONDS, LONGEST_POLL_SECONDS = 0.05, 0.75
ONLINE_CHECK_SECONDS = 5.0

#: A message lives this many deadlines in Flower, so that an answer that comes too late is seen to be late.
LATE_FACTOR = 2.0


@dataclass(frozen=True, slots=True)
class Asked:
    """One message on its way."""

    site: str
    node: int
    kind: Kind
    round: int
    sent: float
    deadline: float


@dataclass(frozen=True, slots=True)
class Arrival:
    """What came back for one message: an answer (with its flat array, as it travelled), or the reason why there is none."""

    asked: Asked
    after: float
    answer: Answer | None = None
    array: npt.NDArray[np.generic] | None = None
    miss: Miss | None = None


class Exchange:
    """Outstanding messages of one run. `names` are the sites' names as registered, by which Flower's nodes are known."""

    def __init__(self, grid: Grid, expected: Iterable[str]) -> None:
        shorten_back_off()
        self._grid = grid
        self._expected = frozenset(expected)
        self._open: dict[str, Asked] = {}
        self._given_up: dict[str, Asked] = {}

    def online(self) -> dict[str, int]:
        """Node id of every expected site that is online now."""
        return {node.name: node.node_id for node in self._grid.get_nodes() if node.name in self._expected}

    def send(
        self,
        kind: Kind,
        number: int,
        nodes: Mapping[str, int],
        instruction: Instruction,
        model: npt.NDArray[np.generic],
        deadline_s: float,
    ) -> int:
        """Send one instruction with `model` to each of `nodes`; returns array bytes for each. All share one array on the wire."""
        record = ArrayRecord({FLAT: Array(model)})
        body = instruction.model_dump_json()
        now = time.time()
        sites = sorted(nodes)
        messages = [
            Message(
                RecordDict({INSTRUCTION: ConfigRecord({BODY: body}), MODEL: record}),
                dst_node_id=nodes[site],
                message_type=MESSAGE_TYPES[kind],
                ttl=deadline_s * LATE_FACTOR,
                group_id=str(number),
            )
            for site in sites
        ]
        identifiers = list(self._grid.push_messages(messages))
        for site, identifier in zip(sites, identifiers, strict=True):
            if identifier:
                self._open[identifier] = Asked(site, nodes[site], kind, number, now, now + deadline_s)
        return int(model.nbytes)

    def outstanding(self, kind: Kind, number: int) -> set[str]:
        """Sites that have not answered this message yet."""
        return {asked.site for asked in self._open.values() if (asked.kind, asked.round) == (kind, number)}

    def collect(self) -> Iterator[Arrival]:
        """Every answer that has come since the last call, and every message whose deadline has passed."""
        for identifier, asked in list(self._open.items()):
            if (arrival := self._pulled(identifier, asked)) is not None:
                del self._open[identifier]
                yield arrival
            elif time.time() > asked.deadline:
                yield self._give_up(identifier, "no answer")

    def wait(self, kind: Kind, number: int) -> Iterator[Arrival]:
        """Arrivals until every site has answered this message, its deadline has passed, or the rest have gone offline.

        Arrivals of other messages (late ones) are among them: look at `asked`.
        """
        checked = time.monotonic()
        pacing = Pacing(FIRST_POLL_SECONDS, LONGEST_POLL_SECONDS)
        yield from self._late()
        while self.outstanding(kind, number):
            for arrival in self.collect():
                pacing.restart()
                yield arrival
            if time.monotonic() - checked > ONLINE_CHECK_SECONDS:
                checked = time.monotonic()
                yield from self._gone(kind, number)
                yield from self._late()
            if self.outstanding(kind, number):
                time.sleep(pacing.wait_s())

    def _pulled(self, identifier: str, asked: Asked) -> Arrival | None:
        """The answer to one message, if it is there; of Flower's message nothing is kept but that."""
        arrivals = [_arrival(message, asked) for message in self._grid.pull_messages([identifier])]
        if not arrivals:
            return None
        gc.collect()  # Flower's messages are full of reference cycles: each would hold a model until Python happens to look
        return arrivals[0]

    def _late(self) -> Iterator[Arrival]:
        """Answers to messages that were given up, without their arrays; each message is forgotten when Flower forgets it."""
        for identifier, asked in list(self._given_up.items()):
            if (arrival := self._pulled(identifier, asked)) is not None:
                del self._given_up[identifier]
                if arrival.miss is None or arrival.miss.reason != "no answer":
                    yield Arrival(asked, arrival.after, arrival.answer, miss=arrival.miss)
            elif time.time() > asked.sent + (asked.deadline - asked.sent) * LATE_FACTOR:
                self._given_up.pop(identifier, None)

    def _gone(self, kind: Kind, number: int) -> Iterator[Arrival]:
        online = set(self.online().values())
        for identifier, asked in list(self._open.items()):
            if (asked.kind, asked.round) == (kind, number) and asked.node not in online:
                yield self._give_up(identifier, "offline")

    def _give_up(self, identifier: str, reason: Literal["no answer", "offline"]) -> Arrival:
        """Stop waiting for this message; an answer that still comes is late."""
        asked = self._given_up[identifier] = self._open.pop(identifier)
        return Arrival(asked, time.time() - asked.sent, miss=Miss(site=asked.site, reason=reason))


def _arrival(message: Message, asked: Asked) -> Arrival:
    after = time.time() - asked.sent
    if message.has_error():
        return Arrival(asked, after, miss=Miss(site=asked.site, reason="no answer"))
    try:
        answer = read_answer(str(message.content.config_records[ANSWER][BODY]))
        if answer.hello.site != asked.site or answer.round != asked.round:
            raise InstructionError("the answer is another site's or another round's")
        records = message.content.array_records
        array = from_npy(records[UPDATE][FLAT].data) if UPDATE in records else None
    except Exception:  # whatever bytes a site sends, they must not end the run of the others
        return Arrival(asked, after, miss=Miss(site=asked.site, reason="invalid"))
    if answer.refused is not None:
        return Arrival(asked, after, answer, miss=Miss(site=asked.site, reason="refused", code=answer.refused.code))
    return Arrival(asked, after, answer, array)
