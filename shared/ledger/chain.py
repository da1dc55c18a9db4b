"""Reads a ledger and says what is wrong with it: form, signatures, chain, order. One DSSE envelope a line.

The file alone proves that nothing before its last entry was changed, taken out or put in. That nothing was cut off at its end only a head
shows that somebody kept: `Head`.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import ValidationError

from shared.errors import LedgerError, SignatureError
from shared.ledger.entries import ENTRY, Entry, Genesis, Revoke, Rotate, entry_of
from shared.ledger.rules import Rules
from shared.schema import Sha256, Strict
from shared.signing import PublicKey, SigningKey, payload_digest, seal, unseal

Question = Literal["form", "signature", "chain", "order"]

_HEAD = "ledger-head"


class Head(Strict):
    """Where a ledger ended once: signed, so that whoever keeps it can tell an older ledger from it."""

    format: Literal["consilium/ledger-head/1"] = "consilium/ledger-head/1"
    seq: int
    digest: Sha256
    size: int
    sha256: Sha256


@dataclass(frozen=True, slots=True)
class Link:
    """One entry as it stands in the file: the digest of its payload, and the key that has signed it."""

    entry: Entry
    digest: str
    signer: PublicKey


@dataclass(frozen=True, slots=True)
class Fault:
    """What contradicts what, at which line (from 1)."""

    question: Question
    line: int
    why: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.why}"


@dataclass(slots=True)
class Chain:
    """A ledger as far as it was read. `torn` is what stands after the last end of line: a write that was cut off."""

    links: list[Link] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    rules: Rules = field(default_factory=Rules)
    torn: bytes = b""
    revoked: set[bytes] = field(default_factory=set)
    key: PublicKey | None = None

    @property
    def genesis(self) -> Genesis:
        """Raises LedgerError where there is none."""
        if self.rules.genesis is None:
            raise LedgerError("the ledger has no GENESIS that can be read")
        return self.rules.genesis

    @property
    def next_seq(self) -> int:
        return self.links[-1].entry.seq + 1 if self.links else 0

    @property
    def last_digest(self) -> str | None:
        return self.links[-1].digest if self.links else None


def read_chain(data: bytes) -> Chain:
    """Every line, whatever is wrong with the ones before. The keys are the ledger's own: whom they belong to is not asked here."""
    chain = Chain()
    lines, chain.torn = whole_lines(data)
    for number, line in enumerate(lines, start=1):
        _take(chain, number, line)
    return chain


def require_sound(chain: Chain, where: str) -> None:
    """Raises LedgerError with the first fault."""
    if chain.faults:
        raise LedgerError(
            f"{where}: {chain.faults[0]}; something else than this program has changed it. No data of this hospital is used until the "
            "newest untouched copy is back in its place"
        )


def whole_lines(data: bytes) -> tuple[list[bytes], bytes]:
    """The lines that were written to their end, and what stands after them."""
    *lines, torn = data.split(b"\n")
    return lines, torn


def payload_of(line: str | bytes) -> bytes:
    """What an entry's line says, whoever signed it. Raises LedgerError where it is no entry's."""
    try:
        return base64.b64decode(json.loads(line)["payload"], validate=True)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise LedgerError("the ledger holds a line that is no entry") from None


def payloads_holding(data: bytes, texts: Sequence[str]) -> list[bytes]:
    """Payloads that hold one of the texts, in the file's order, of whole lines that were verified before; no other is decoded.

    Raises LedgerError. There can be more than those: who asks looks again.
    """
    starts: set[int] = set()
    for text in texts:
        for pattern in _in_base64(text.encode()):
            place = data.find(pattern)
            while place >= 0:
                starts.add(data.rfind(b"\n", 0, place) + 1)
                place = data.find(pattern, data.index(b"\n", place))
    return [payload_of(data[start : data.index(b"\n", start)]) for start in sorted(starts)]


def _in_base64(text: bytes) -> list[bytes]:
    """How `text` looks inside base64, by where it begins in a group of three bytes; signs that its neighbours share are left out."""
    return [
        base64.b64encode(bytes(before) + text)[(before * 8 + 5) // 6 : (before + len(text)) * 8 // 6]
        for before in range(3)
    ]


def seal_head(head: Head, key: SigningKey) -> str:
    return seal(_HEAD, head.model_dump(mode="json"), key)


def read_head(text: str, key: PublicKey) -> Head:
    """A head that `key` signed. Raises SignatureError, LedgerError."""
    try:
        return Head.model_validate_json(unseal(text, _HEAD, key))
    except ValidationError:
        raise LedgerError("expected the head of a ledger, but got something else") from None


def _take(chain: Chain, number: int, line: bytes) -> None:
    def fault(question: Question, why: str) -> None:
        chain.faults.append(Fault(question, number, why))

    try:
        text = line.decode()
        payload = base64.b64decode(json.loads(text)["payload"], validate=True)
        entry = entry_of(payload)
    except (ValidationError, ValueError, KeyError, TypeError, RecursionError, binascii.Error):
        return fault("form", "no entry of a ledger")
    what = f"entry {entry.seq} ({entry.type})"
    if chain.key is None and isinstance(entry, Genesis):
        chain.key = PublicKey.read(entry.key)
    if chain.key is None:
        fault("signature", f"{what} comes before any GENESIS, so nobody knows whose signature to expect")
    else:
        try:
            if chain.key.raw in chain.revoked:
                raise SignatureError(f"it follows the revocation of the key {chain.key.spoken}")
            unseal(text, ENTRY, chain.key)
        except SignatureError as problem:
            fault("signature", f"{what}: {problem}")
    if entry.seq != chain.next_seq:
        fault("chain", f"{what} stands where entry {chain.next_seq} belongs")
    elif entry.prev != chain.last_digest:
        fault("chain", f"{what} follows another entry than the one before it")
    if (against := chain.rules.problem(entry)) is not None:
        fault("order", f"{what}: {against}")
    chain.rules.take(entry)
    if chain.key is not None:
        chain.links.append(Link(entry, payload_digest(payload), chain.key))
    if isinstance(entry, Rotate):
        chain.key = PublicKey.read(entry.key)
        if chain.key.raw in chain.revoked:
            fault("signature", f"{what} passes on to a key that was revoked")
    elif isinstance(entry, Revoke):
        chain.revoked.add(PublicKey.read(entry.key).raw)
    return None
