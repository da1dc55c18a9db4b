"""What somebody with a hospital's key, or the coordinator's, can do to a run's files: change what was signed, and sign it again."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shared.audit.exchanges import Exchange, SignedTexts
from shared.audit.records import read_run
from shared.canonical import canonical_json
from shared.ledger.entries import ENTRY
from shared.signing import SigningKey, payload_digest, seal

Body = dict[str, Any]


def body_of(text: str) -> Body:
    """What an envelope says."""
    body: Body = json.loads(base64.b64decode(json.loads(text)["payload"]))
    return body


def exchanges_of(run: Path, site: str) -> list[Exchange]:
    """In the order of the instructions."""
    kept = [one for one in SignedTexts(read_run(run)).kept() if one.site == site]
    return sorted(kept, key=lambda one: int(body_of(one.text("instruction"))["issued"]))


def change_answers(run: Path, site: str, key: SigningKey, change: Callable[[Exchange, Body], object]) -> None:
    """Each answer of the hospital, signed again."""
    for exchange in exchanges_of(run, site):
        body = body_of(exchange.text("answer"))
        change(exchange, body)
        path = exchange.folder / f"{site}.{exchange.kind}.answer.json"
        path.write_text(seal("answer", body, key) + "\n")


def change_entries(run: Path, site: str, key: SigningKey, change: Callable[[Body], object]) -> None:
    """The hospital writes its history anew: every entry changed, chained and signed again, and every answer after them."""
    digests: dict[int, str] = {}

    def anew(_exchange: Exchange, body: Body) -> None:
        lines = []
        for line in body["entries"]:
            entry = body_of(line)
            change(entry)
            entry["prev"] = digests.get(entry["seq"] - 1, entry["prev"])
            digests[entry["seq"]] = payload_digest(canonical_json(entry))
            lines.append(seal(ENTRY, entry, key))
        seq = body["receipt"]["seq"]
        body.update(entries=lines, receipt={"seq": seq, "digest": digests.get(seq, body["receipt"]["digest"])})

    change_answers(run, site, key, anew)


def without(entry_type: str, nth: int = 0) -> Callable[[Exchange, Body], None]:
    """Leaves the `nth` entry of that type out of the answers, and nothing else is changed."""
    seen = iter(range(1000))

    def change(_exchange: Exchange, body: Body) -> None:
        body["entries"] = [line for line in body["entries"] if body_of(line)["type"] != entry_type or next(seen) != nth]

    return change


def sign_instruction_again(exchange: Exchange, key: SigningKey, **changes: Any) -> None:
    path = exchange.folder / f"{exchange.site}.{exchange.kind}.instruction.json"
    path.write_text(seal("instruction", {**body_of(path.read_text()), **changes}, key) + "\n")
