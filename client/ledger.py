"""The hospital's ledger: every entry is on disk before the act that it announces. The entries stay in the hospital.

ledger.jsonl   one signed entry a line (shared.ledger), mode 0600, only ever appended to
ledger.head    where it ended last, signed: a ledger that does not reach so far was cut off, or comes from an old backup
ledger.lock    held while one entry is written

What the head covers was verified when it was written: of these bytes only the SHA-256 is looked at again. An instruction is a process
of its own, so verifying every signature each time would make rounds slower as the ledger grows.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict

from client.data.cache_files import sync_folder
from client.ledger_files import FILE, HEAD, append, kept_head, locked, read_file, write_head
from client.site_folder import SiteFolder
from client.withdrawn import Tags
from shared.errors import LedgerError, StorageError
from shared.exact import exact
from shared.ledger.chain import (
    Chain,
    Head,
    payload_of,
    payloads_holding,
    read_chain,
    require_sound,
)
from shared.ledger.entries import ENTRY, Entry, Genesis, entry_of
from shared.ledger.rules import Rules, RunOnLedger
from shared.privacy.orders import ORDERS
from shared.private_file import write_private
from shared.signing import SigningKey, payload_digest, seal, unseal

log = logging.getLogger("consilium.site")


class Place(TypedDict):
    """Where and when an entry stands."""

    seq: int
    prev: str | None
    at: str


@dataclass(slots=True)
class OpenLedger:
    """The ledger while its lock is held. `rules` know the cohorts and one run; `add` entries, then `write` them."""

    folder: SiteFolder
    key: SigningKey
    rules: Rules
    seq: int
    digest: str | None
    whole: bytes
    _lines: list[str] = field(default_factory=list)

    def place(self) -> Place:
        """Of the next entry."""
        return Place(seq=self.seq, prev=self.digest, at=datetime.now(UTC).isoformat(timespec="seconds"))

    def run(self, name: str) -> RunOnLedger | None:
        return self.rules.runs.get(name)

    def everything(self) -> Rules:
        """What all entries that are on disk add up to, of every run. Raises LedgerError."""
        rules = Rules()
        for payload in payloads_holding(self.whole, ('"type":',)):
            rules.take(entry_of(payload))
        return rules

    def holds(self, seq: int, digest: str) -> bool:
        """Whether entry `seq` is on disk with this digest of its payload."""
        lines = self.whole.split(b"\n", seq + 1)
        if len(lines) <= seq + 1:
            return False
        return payload_digest(payload_of(lines[seq])) == digest

    def lines_of(self, run: str, after: int | None) -> list[str]:
        """The sealed entries that a reader of `run` needs, with numbers above `after`: the run's, its cohort's, and the ledger's own."""
        found: list[str] = []
        cohort: str | None = run_cohort(self.rules, run)
        for line in self.whole.decode().splitlines()[(after + 1) if after is not None else 0 :]:
            said = json.loads(payload_of(line))
            if said["type"] in ("GENESIS", "BUDGET", "ROTATE", "REVOKE") or (
                said.get("run") == run or (said["type"] == "COHORT" and said["cohort"] == cohort)
            ):
                found.append(line)
        return found

    def add(self, entry: Entry) -> None:
        """Raises LedgerError where it may not come next."""
        if (problem := self.rules.problem(entry)) is not None:
            raise LedgerError(f"{self.folder.path / FILE}: {problem}")
        self.rules.take(entry)
        line = seal(ENTRY, entry.model_dump(mode="json"), self.key)
        self._lines.append(line)
        self.seq, self.digest = entry.seq + 1, payload_digest(unseal(line, ENTRY, self.key.public))

    def write(self) -> None:
        """On disk when this returns; nothing of what was added is, where it raises StorageError for the ledger itself."""
        if not self._lines or self.digest is None:
            return
        block = "".join(f"{line}\n" for line in self._lines).encode()
        append(self.folder.path / FILE, len(self.whole), block)
        self.whole, self._lines = self.whole + block, []
        write_head(self.folder, self.key, self.seq - 1, self.digest, self.whole)


def run_cohort(rules: Rules, run: str) -> str | None:
    """The cohort of a run, where it is reserved."""
    known = rules.runs.get(run)
    return known.reserve.cohort if known is not None else None


@contextlib.contextmanager
def open_ledger(folder: SiteFolder, run: str) -> Iterator[OpenLedger]:
    """To write of `run`; begun with GENESIS where there is none yet.

    Raises LedgerError where it is not sound, is shorter than it was, or belongs to another key; StorageError, InputError.
    """
    with locked(folder):
        key = _present_key(folder)
        ledger = _opened(folder, key, run)
        tags = Tags.of(folder)
        commitment = hashlib.sha256(tags.key).hexdigest()
        if ledger.rules.genesis is None:
            profile = folder.profile()
            budget = profile.policy.lifetime
            ledger.add(
                Genesis(
                    **ledger.place(),
                    site=profile.site,
                    key=str(key.public),
                    tag_key_digest=commitment,
                    rdp_orders=[exact(order) for order in ORDERS],
                    lifetime=budget.entry() if budget is not None else None,
                )
            )
            ledger.write()
        elif ledger.rules.genesis.tag_key_digest != commitment:
            raise LedgerError(
                f"{folder.path / 'keys' / 'withdrawal.key'}: not the key that the ledger was begun with, so patients would not be known "
                "again; put the right one back"
            )
        yield ledger


def read_ledger(folder: SiteFolder) -> tuple[Chain, bytes] | None:
    """The whole ledger, every signature verified, and its bytes up to the last whole entry; None where nothing was entered yet.

    Raises LedgerError, StorageError, InputError.
    """
    folder.profile()
    with locked(folder):
        key = _present_key(folder)
        data, head = read_file(folder), kept_head(folder, key)
        if not data and head is None:
            return None
        chain = _verified(folder, key, data, head)
        return chain, data[: len(data) - len(chain.torn)]


def lines_on_file(folder: SiteFolder) -> list[str]:
    """The sealed entries as they stand in the file, none of them verified. Raises LedgerError."""
    return read_file(folder).decode("ascii", errors="replace").splitlines()


def accept_as_newest(folder: SiteFolder) -> int:
    """Write the head anew where it was lost: the number of entries from which the ledger goes on.

    Raises LedgerError where the ledger is not sound, or a head is there: an older ledger is never accepted against it.
    """
    with locked(folder):
        key = _present_key(folder)
        if kept_head(folder, key) is not None:
            raise LedgerError(f"{folder.path / HEAD}: is there; only in the place of a lost one is a new one written")
        data = read_file(folder)
        chain = read_chain(data)
        _require_ours(chain, key, folder)
        last = chain.links[-1]
        write_head(folder, key, last.entry.seq, last.digest, data[: len(data) - len(chain.torn)])
        return len(chain.links)


def settle_rotation(folder: SiteFolder) -> bool:
    """Bring a rotation of the signing key to its end that was cut off, or take it back; whether the key is another one now.

    Raises LedgerError, StorageError, InputError.
    """
    if not waiting_key(folder).exists():
        return False
    before = folder.signing_key().public
    with locked(folder):
        return _present_key(folder).public != before


def waiting_key(folder: SiteFolder) -> Path:
    """Where the next signing key lies as long as a rotation goes on; what happens to it, ROTATE on disk decides."""
    return folder.path / "keys" / "signing.key.next"


def _present_key(folder: SiteFolder) -> SigningKey:
    """The key that signs the next entry. Where a rotation was cut off, it is ended here: each step can be done again."""
    key, waiting = folder.signing_key(), waiting_key(folder)
    if not waiting.exists():
        return key
    following, data = SigningKey.load(waiting), read_file(folder)
    chain = read_chain(data)
    try:
        if chain.key is None or chain.key.raw != following.public.raw:
            kept_head(folder, key)  # one that the next key has signed says that ROTATE was on disk, and is lost now
            waiting.unlink()
            return key
        chain = _verified(folder, following, data, kept_head(folder, key, following))
        last = chain.links[-1]
        write_head(folder, following, last.entry.seq, last.digest, data[: len(data) - len(chain.torn)])
        write_private(folder.path / "keys" / "signing.pub", f"{following.public}\n".encode())
        waiting.replace(waiting.with_suffix(""))
        sync_folder(waiting.parent)
    except OSError as problem:
        raise StorageError(
            f"{waiting}: can't take the place of the key before: {problem.strerror or problem}"
        ) from None
    return following


def _opened(folder: SiteFolder, key: SigningKey, run: str) -> OpenLedger:
    data, head = read_file(folder), kept_head(folder, key)
    whole = data[: data.rfind(b"\n") + 1]
    torn = data[len(whole) :]
    if torn:
        log.warning(
            "the last line of the ledger was cut off while it was written: it is dropped, its act had not begun"
        )
    if head is not None and len(whole) == head.size and hashlib.sha256(whole).hexdigest() == head.sha256:
        return OpenLedger(folder, key, _rules_of(whole, run), head.seq + 1, head.digest, whole)
    if not whole and head is None:
        return OpenLedger(folder, key, Rules(), 0, None, b"")
    chain = _verified(folder, key, data, head)
    last = chain.links[-1]
    write_head(folder, key, last.entry.seq, last.digest, whole)
    return OpenLedger(folder, key, chain.rules, last.entry.seq + 1, last.digest, whole)


def _rules_of(whole: bytes, run: str) -> Rules:
    """Of what the head covers: what all runs need to know, and this run."""
    rules = Rules()
    always = ("GENESIS", "BUDGET", "COHORT")
    for payload in payloads_holding(whole, (*(f'"type":"{kind}"' for kind in always), f'"run":"{run}"')):
        said = json.loads(payload)
        if said["type"] in always or said.get("run") == run:
            rules.take(entry_of(payload))
    return rules


def _verified(folder: SiteFolder, key: SigningKey, data: bytes, head: Head | None) -> Chain:
    """Every signature. Raises LedgerError."""
    chain = read_chain(data)
    path = folder.path / FILE
    if head is None:
        if len(chain.links) > 1:
            raise LedgerError(
                f"{folder.path / HEAD}: missing, so nobody knows whether {path} is the newest; put it back, or, where the ledger is "
                "surely complete, run consilium-site ledger with --accept-as-newest"
            )
    elif head.seq >= len(chain.links) and not chain.faults:
        found = f"ends with entry {len(chain.links) - 1}" if chain.links else "is gone or empty"
        raise LedgerError(
            f"{path}: {found}, but entry {head.seq} was written: it is an older copy, or its end was cut off. Put the newest copy back; "
            "with the older one, patients would be charged for less than was released"
        )
    _require_ours(chain, key, folder)
    if head is not None and chain.links[head.seq].digest != head.digest:
        raise LedgerError(
            f"{path}: entry {head.seq} is another than the one that was written (ledger.head): the history was written anew; put the "
            "newest untouched copy back"
        )
    return chain


def _require_ours(chain: Chain, key: SigningKey, folder: SiteFolder) -> None:
    path = folder.path / FILE
    site = folder.profile().site
    require_sound(chain, str(path))
    if not chain.links:
        raise LedgerError(f"{path}: holds no entry; put the newest copy back")
    if chain.key is None or chain.key.raw != key.public.raw or chain.genesis.site != site:
        raise LedgerError(
            f"{path}: the ledger of {chain.genesis.site} under another key than keys/signing.key; put this site's own back"
        )
