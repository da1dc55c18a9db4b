"""Flower's nodes, made equal to the registry: who is admitted is registered, whoever else is there is unregistered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from server.home import Home
from server.registry import SiteRecord
from server.superlink import Control, Node, key_in_flower
from shared.errors import ProcessError

#: Flower's words.
UNREGISTERED, ONLINE = "unregistered", "online"


@dataclass(frozen=True, slots=True)
class Changes:
    """What had to be done: names of nodes."""

    registered: tuple[str, ...]
    unregistered: tuple[str, ...]


def bring_into_line(home: Home, control: Control) -> Changes:
    """Register and unregister nodes until Flower knows the active sites and nobody else; note their ids in the registry.

    Raises ProcessError where Flower has a site's key as unregistered, which is for good.
    """
    with home.registry.changing():
        active = home.registry.active()
        wanted = {key_in_flower(record.node_key): record for record in active.values()}
        known = {node.key: node for node in control.nodes()}
        removed = []
        for node in known.values():
            if node.state != UNREGISTERED and (node.key not in wanted or wanted[node.key].site != node.name):
                control.unregister(node.node_id)
                removed.append(node.name)
        added = []
        for key, record in wanted.items():
            node_id = _standing(record, known.get(key))
            if node_id is None:
                node_id = control.register_key(record.site, record.node_key)
                added.append(record.site)
            if record.node_id != str(node_id):
                home.registry.put(record.model_copy(update={"node_id": str(node_id)}))
        return Changes(tuple(added), tuple(removed))


def node_of(record: SiteRecord, nodes: Mapping[str, Node]) -> Node | None:
    """The node of this site, by the id in the registry; `nodes` by id."""
    return nodes.get(record.node_id) if record.node_id is not None else None


def _standing(record: SiteRecord, node: Node | None) -> int | None:
    if node is None:
        return None
    if node.state == UNREGISTERED or node.name != record.site:
        raise ProcessError(
            f"{record.site}: its node key was registered before under another name or was unregistered, and Flower does not take it "
            "again; revoke the site, and ask the hospital for a request with a new node key"
        )
    return node.node_id
