"""What hospitals' answers show of their ledgers: entries about one run, with the gaps that other runs leave between them.

An answer carries the entries of its run that the instruction's receipt does not cover, and says where the ledger stands. So a number that
is missing in between belongs to another run, or the hospital withheld it: what it withheld of this run, the entries after it contradict.
A number for which no answer accounts is said to be not in these files; the hospital's exported ledger closes the gap.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import ValidationError

from shared.audit.exchanges import Absent, Exchange, SignedTexts, Violation
from shared.audit.gaps import spans, split
from shared.audit.ledger import ORDER
from shared.audit.verdict import Check, Findings
from shared.errors import LedgerError, SignatureError
from shared.ledger.chain import payload_of
from shared.ledger.entries import ENTRY, Entry, Genesis, Reserve, Revoke, Rotate, entry_of
from shared.ledger.rules import Rules, RunOnLedger
from shared.messages import Answer, Instruction, Receipt
from shared.signing import PublicKey, payload_digest, unseal

SIGNED = "every ledger entry in the answers is its hospital's own, of this run, and signed with its key"
CHAINED = "no ledger entry was changed, moved or taken out of the middle"
RECEIPTS = "hospitals and coordinator name the same entries as the newest ones"

Question = Literal["signed", "chained", "receipts", "order"]
_NAMES: dict[Question, str] = {"signed": SIGNED, "chained": CHAINED, "receipts": RECEIPTS, "order": ORDER}

EXPORTED = "the exported ledger"


@dataclass(frozen=True, slots=True)
class Placed:
    """One entry, and where it was found."""

    site: str
    entry: Entry
    digest: str
    text: str
    where: str

    def __str__(self) -> str:
        return f"{self.site}, entry {self.entry.seq} ({self.entry.type}), {self.where}"


@dataclass(slots=True)
class Shown:
    """What the files show of one hospital's ledger. `entries` ascend; `unseen` are numbers for which nothing accounts; `lost` are answers
    that are not there or can't be trusted, with what they would show.

    `receipts` are the newest entries that an answer or an instruction names, each with who says so, in the order of the instructions.
    """

    site: str
    run_id: str
    entries: list[Placed] = field(default_factory=list)
    receipts: list[tuple[str, Receipt]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    rules: Rules = field(default_factory=Rules)
    elsewhere: list[range] = field(default_factory=list)
    unseen: list[range] = field(default_factory=list)
    wrong: dict[Question, list[str]] = field(default_factory=lambda: {name: [] for name in _NAMES})
    absent: dict[Question, list[str]] = field(default_factory=lambda: {name: [] for name in _NAMES})
    _known: dict[int, tuple[str, str]] = field(default_factory=dict)

    @property
    def run(self) -> RunOnLedger | None:
        """What the entries say of the run that is audited; None where no RESERVE of it is among them."""
        return self.rules.runs.get(self.run_id)

    def missing(self, findings: Findings, why: str) -> None:
        """`why` says what is not among the entries: a contradiction, unless it can stand among those that are not in these files."""
        if self.unseen:
            findings.absent.append(f"{why}; it may be among entries {spans(self.unseen)}, which are not in these files")
        elif self.lost:
            findings.absent.append(f"{why}; it may be in an answer that is not in these files: {self.lost[0]}")
        else:
            findings.violated.append(why)

    def names(self, seq: int, digest: str, by: str, question: Question) -> bool:
        """Somebody says that entry `seq` has this digest; whether somebody else has said so already."""
        known = self._known.setdefault(seq, (digest, by))
        if known[0] != digest:
            self.wrong[question].append(
                f"{self.site}, entry {seq}: {by} says {digest[:12]}, but {known[1]} says {known[0][:12]}"
            )
        return known != (digest, by)


def read_entries(signed: SignedTexts, exported: Mapping[str, Sequence[bytes]]) -> dict[str, Shown]:
    """By hospital; of every one that has answered. `exported` are lines of sound ledgers."""
    exchanges = signed.kept()
    found = {}
    for site in sorted({one.site for one in exchanges}):
        found[site] = _shown(signed, site, [one for one in exchanges if one.site == site], exported.get(site, ()))
    return found


def check_entries(shown: Iterable[Shown]) -> list[Check]:
    """Four questions to all hospitals' entries."""
    every = list(shown)
    checks = []
    for question, name in _NAMES.items():
        findings = Findings(name)
        for one in every:
            findings.violated += one.wrong[question]
            findings.absent += one.absent[question]
            if question == "chained" and one.elsewhere:
                findings.notes.append(f"{one.site}: {spans(one.elsewhere)} are of other runs, as the hospital says")
        if not every:
            findings.absent.append("nobody has answered")
        count = sum(len(one.entries) for one in every)
        checks.append(findings.check(f"{count} entries of {', '.join(one.site for one in every)}"))
    return checks


def agrees(entries: Iterable[Placed], exported: Sequence[bytes]) -> bool:
    """Whether each entry stands in a sound ledger as it is, at its place."""
    return all(
        one.entry.seq < len(exported) and payload_digest(payload_of(exported[one.entry.seq])) == one.digest
        for one in entries
    )


def _shown(signed: SignedTexts, site: str, exchanges: Sequence[Exchange], exported: Sequence[bytes]) -> Shown:
    shown = Shown(site, signed.files.run.id)
    said: list[tuple[Exchange, Instruction, Answer]] = []
    for exchange in exchanges:
        try:
            said.append((exchange, signed.instruction(exchange)[0], signed.answer(exchange)))
        except Violation as problem:
            shown.wrong["signed"].append(str(problem))
            shown.lost.append(str(exchange))
        except Absent as problem:
            shown.absent["signed"].append(str(problem))
            shown.lost.append(str(exchange))
    said.sort(key=lambda one: one[1].issued)
    by_seq: dict[int, Placed] = {}
    for exchange, _, answer in said:
        _take_lines(shown, by_seq, answer.entries, exchange.place)
    answered = max(by_seq, default=-1)
    if agrees(by_seq.values(), exported):
        _take_lines(shown, by_seq, [line.decode() for line in exported], EXPORTED)
    shown.entries = [by_seq[seq] for seq in sorted(by_seq)]
    if answered < 0:
        for question in _NAMES:
            shown.absent[question].append(f"{site}: its answers show no entry of a ledger")
        return shown
    _look_for_gaps(shown, by_seq, said)
    _verify(shown, signed.files.run.site_keys.get(site))
    _follow_chain(shown)
    _compare_receipts(shown, said)
    _ask_rules(shown)
    return shown


def _take_lines(shown: Shown, by_seq: dict[int, Placed], lines: Sequence[str], where: str) -> None:
    before = -1
    for line in lines:
        try:
            payload = payload_of(line)
            entry = entry_of(payload)
        except (LedgerError, ValidationError):
            shown.wrong["signed"].append(f"{shown.site}, {where}: a line that is no entry of a ledger")
            continue
        placed = Placed(shown.site, entry, payload_digest(payload), line, where)
        if where != EXPORTED and getattr(entry, "run", shown.run_id) != shown.run_id:
            shown.wrong["signed"].append(f"{placed}: of another run")
            continue
        if entry.seq <= before:
            shown.wrong["chained"].append(f"{placed}: stands after entry {before}")
        before = max(before, entry.seq)
        first = by_seq.setdefault(entry.seq, placed)
        if first.digest != placed.digest:
            shown.wrong["chained"].append(f"{placed}: another than in {first.where}")


def _look_for_gaps(
    shown: Shown, by_seq: Mapping[int, Placed], said: Sequence[tuple[Exchange, Instruction, Answer]]
) -> None:
    accounted: list[range] = []
    for _, instruction, answer in said:
        if answer.receipt is not None:
            whole = instruction.kind == "prepare" and 0 in by_seq
            seen = instruction.receipt.seq if instruction.receipt is not None and not whole else -1
            accounted.append(range(seen + 1, answer.receipt.seq + 1))
    before = -1
    for seq in sorted(by_seq):
        elsewhere, unseen = split(range(before + 1, seq), accounted)
        shown.elsewhere += elsewhere
        shown.unseen += unseen
        before = seq
    if shown.unseen:
        shown.absent["chained"].append(
            f"{shown.site}: entries {spans(shown.unseen)} are not in these files; the hospital's exported ledger (--ledger) closes the gap"
        )


def _verify(shown: Shown, site_key: str | None) -> None:
    """Each entry by the key that holds there: that of GENESIS, and after ROTATE the next."""
    key = PublicKey.read(site_key) if site_key is not None else None
    revoked: set[bytes] = set()
    for placed in shown.entries:
        entry = placed.entry
        if isinstance(entry, Genesis):
            key = PublicKey.read(entry.key)
            if entry.site != shown.site:
                shown.wrong["signed"].append(f"{placed}: the ledger is that of {entry.site}")
        if key is None:
            shown.absent["signed"].append(f"{placed}: nobody knows whose signature to expect")
            return
        try:
            if key.raw in revoked:
                raise SignatureError(f"it follows the revocation of the key {key.spoken}")
            unseal(placed.text, ENTRY, key)
        except SignatureError as problem:
            shown.wrong["signed"].append(f"{placed}: {problem}")
        if isinstance(entry, Rotate):
            key = PublicKey.read(entry.key)
        elif isinstance(entry, Revoke):
            revoked.add(PublicKey.read(entry.key).raw)
    if key is not None and str(key) != site_key:
        shown.wrong["signed"].append(
            f"{shown.site}: its ledger goes on under the key {key.spoken}, but its answers are signed with another"
        )


def _follow_chain(shown: Shown) -> None:
    for placed in shown.entries:
        shown.names(placed.entry.seq, placed.digest, f"the entry itself ({placed.where})", "chained")
    for placed in shown.entries:
        entry = placed.entry
        if (entry.prev is None) != (entry.seq == 0):
            shown.wrong["chained"].append(f"{placed}: does not say which entry comes before it")
        elif entry.prev is not None:
            shown.names(entry.seq - 1, entry.prev, f"entry {entry.seq}, which follows it", "chained")


def _compare_receipts(shown: Shown, said: Sequence[tuple[Exchange, Instruction, Answer]]) -> None:
    newest = -1
    for exchange, instruction, answer in said:
        if (told := instruction.receipt) is not None:
            by = f"the coordinator's instruction ({exchange})"
            shown.receipts.append((by, told))
            confirmed = shown.names(told.seq, told.digest, by, "receipts")
            if not confirmed:
                shown.absent["receipts"].append(
                    f"{shown.site}: {by} names entry {told.seq}, which no file here shows; another run can have shown it"
                )
        receipt = answer.receipt
        if receipt is None:
            shown.absent["receipts"].append(f"{exchange}: the answer does not say where the ledger stands")
            continue
        by = f"the hospital's answer ({exchange})"
        shown.receipts.append((by, receipt))
        shown.names(receipt.seq, receipt.digest, by, "receipts")
        if receipt.seq < newest:
            shown.wrong["receipts"].append(
                f"{exchange}: the ledger ends with entry {receipt.seq}, but {newest} was there before"
            )
        newest = max(newest, receipt.seq)
    last = max((one.entry.seq for one in shown.entries if one.where != EXPORTED), default=-1)
    if last > newest:
        shown.wrong["receipts"].append(f"{shown.site}: shows entry {last}, but says that its ledger ends with {newest}")


def _ask_rules(shown: Shown) -> None:
    for placed in shown.entries:
        problem = shown.rules.problem(placed.entry)
        hidden = [one for one in shown.unseen if one.start < placed.entry.seq]
        shown.rules.take(placed.entry)
        if problem is None:
            continue
        if hidden:
            shown.absent["order"].append(f"{placed}: {problem}, unless it is among entries {spans(hidden)}")
        else:
            shown.wrong["order"].append(f"{placed}: {problem}")


def reserve_of(shown: Shown) -> Placed | None:
    """The RESERVE of the run that is audited."""
    return next(
        (one for one in shown.entries if isinstance(one.entry, Reserve) and one.entry.run == shown.run_id), None
    )
