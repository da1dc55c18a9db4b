"""The hospitals as the coordinator sees them: what the registry says, and what Flower says while the coordinator is up."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from rich.console import Console
from rich.table import Table
from rich.text import Text

from server.admitted_nodes import ONLINE, node_of
from server.coordinator import control_if_up
from server.home import Home
from server.registry import SiteRecord
from server.superlink import Control, Node
from shared.schema import Strict
from shared.signing import PublicKey

SiteStanding = Literal["online", "offline", "admitted", "revoked"]


class SiteRow(Strict):
    """One hospital."""

    site: str
    title: str
    state: SiteStanding = Field(
        description="online or offline while the coordinator is up; admitted: not known to be either; revoked"
    )
    since: str | None = Field(description="of the state, ISO 8601, UTC")
    admitted: str
    fingerprint: str = Field(description="ten groups of the signing key")
    versions: dict[str, str] = Field(description="what it had installed when it asked to join")
    node_id: str | None


def list_sites(home: Home) -> tuple[list[SiteRow], bool]:
    """Every hospital in name order, and whether the coordinator is up. Raises InputError, ProcessError."""
    home.record()
    with control_if_up(home) as control:
        return site_rows(home, control), control is not None


def site_rows(home: Home, control: Control | None) -> list[SiteRow]:
    """Every hospital in name order; without `control` nothing is known of who is online."""
    nodes = {str(node.node_id): node for node in control.nodes()} if control is not None else {}
    return [_row(record, node_of(record, nodes)) for record in home.registry.all().values()]


def _row(record: SiteRecord, node: Node | None) -> SiteRow:
    state, since = _standing(record, node)
    return SiteRow(
        site=record.site, title=record.title, state=state, since=since, admitted=record.admitted,
        fingerprint=PublicKey.read(record.signing_key).spoken,
        versions={str(name): version for name, version in record.release.versions.items()}, node_id=record.node_id,
    )  # fmt: skip


def _standing(record: SiteRecord, node: Node | None) -> tuple[SiteStanding, str | None]:
    if record.revoked is not None:
        return "revoked", record.revoked
    if node is None:
        return "admitted", record.admitted
    if node.state == ONLINE:
        return "online", node.online_since
    return "offline", node.offline_since or node.registered


def print_sites(rows: list[SiteRow], console: Console, *, up: bool) -> None:
    """A table, and what can't be known while the coordinator is down."""
    if not rows:
        console.print("No hospital is admitted yet; `consilium-server admit` takes a join request.", soft_wrap=True)
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("site", "is", "since (UTC)", "consilium", "fingerprint", "title"):
        table.add_column(heading, overflow="fold", no_wrap=heading != "title")
    colours = {"online": "green", "offline": "yellow", "revoked": "red", "admitted": ""}
    for row in rows:
        since = (row.since or "")[:19].replace("T", " ")
        table.add_row(
            Text(row.site), Text(row.state, style=colours[row.state]), Text(since),
            Text(row.versions.get("consilium", "")), Text(" ".join(row.fingerprint.split()[:3]) + " ..."), Text(row.title),
        )  # fmt: skip
    console.print(table)
    if not up:
        console.print("The coordinator is not up: who is online is not known.", soft_wrap=True)
