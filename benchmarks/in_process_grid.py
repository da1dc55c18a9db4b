"""Flower's Grid without a network: messages go to functions of this process, through Flower's own serialisation.

It holds no reply before it is pulled, so that what a coordinator keeps is all that memory is measured of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import cast

from flwr.app import Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

#: What a site does with a message: a reply, or None where none ever comes.
Site = Callable[[Message], Message | None]


def transported(message: Message) -> Message:
    """The message as the other end gets it: deflated into Flower's objects and built again from their bytes."""
    identifier = message.object_id
    contents = {key: one.deflate() for key, one in get_all_nested_objects(message).items()}
    copy = cast(Message, inflate_object_from_contents(identifier, contents))
    copy.metadata.__dict__["_message_id"] = identifier
    return copy


class InProcessGrid(Grid):
    """Sites by name. While a run goes on, a site may be `offline`, its replies `held` back, or its node started anew (`activated`)."""

    def __init__(self, sites: Mapping[str, Site]) -> None:
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
        self.sites = dict(sites)
        self.offline: set[str] = set()
        self.held: set[str] = set()
        self.activated: dict[str, str] = {}
        self._names = dict(enumerate(sorted(sites), start=100))
        self._waiting: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        raise NotImplementedError

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [
            NodeInfo(node_id=node, name=name, last_activated_at=self.activated.get(name, ""))
            for node, name in self._names.items()
            if name not in self.offline
        ]

    def get_node_ids(self) -> Iterable[int]:
        return [node.node_id for node in self.get_nodes()]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        identifiers = []
        for message in messages:
            identifier = message.object_id
            message.metadata.__dict__["_message_id"] = identifier
            self._waiting[identifier] = message
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = []
        for identifier in list(message_ids):
            message = self._waiting.get(identifier)
            if message is None or self._names[message.metadata.dst_node_id] in self.held:
                continue
            del self._waiting[identifier]
            reply = self.sites[self._names[message.metadata.dst_node_id]](transported(message))
            if reply is not None:
                replies.append(transported(reply))
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise NotImplementedError
