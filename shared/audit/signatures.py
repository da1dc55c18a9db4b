"""Who wrote a run's records: the signed instructions and answers that are kept with each round, against keys that the auditor trusts.

A record counts for what somebody signed: an update's digest, the counts and figures of a hospital, the model that it was sent, and the
record of the round before, which every instruction names. A run that was written anew as a whole, with keys of its own, is consistent in
itself; only the fingerprints that came by another way tell it from a true one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from shared.audit.records import RunFiles, stored_model
from shared.audit.trust import COORDINATOR, Trust
from shared.audit.verdict import Check
from shared.canonical import file_digest
from shared.errors import InstructionError, SignatureError
from shared.messages import Answer, Instruction, Kind, read_answer, read_instruction
from shared.signing import PublicKey
from shared.wire import encode, flat_digest

WRITERS = "who wrote the records"
INSTRUCTIONS = "every instruction is the coordinator's, of this run and of the round it stands in"
ANSWERS = "every answer is its hospital's own, and the record holds what it says"
PREVIOUS = "each round was begun on the record of the round before"


class _Violation(Exception):
    """What contradicts what."""


class _Absent(Exception):
    """What is not there to be looked at."""


@dataclass(frozen=True, slots=True)
class _Exchange:
    """One instruction and its answer, as the record places them."""

    kind: Kind
    round: int
    site: str
    folder: Path

    def __str__(self) -> str:
        return f"{self.site}, {self.kind}, round {self.round}"

    def text(self, what: str) -> str:
        path = self.folder / f"{self.site}.{self.kind}.{what}.json"
        try:
            return path.read_text(encoding="utf-8").removesuffix("\n")
        except (OSError, UnicodeDecodeError):
            raise _Absent(f"{path.parent.name}/{path.name} of round {self.round} is not there") from None


def check_signatures(files: RunFiles, trust: Trust | None) -> list[Check]:
    """Four checks; the last three hold against the keys that run.json names, the first says whose these are."""
    if files.run.coordinator_key is None:
        why = "run.json names no keys: the run was made by an older release, or never heard of a hospital"
        return [Check(name, "not checkable", why) for name in (WRITERS, INSTRUCTIONS, ANSWERS, PREVIOUS)]
    return [
        _writers(files, trust),
        _checked(INSTRUCTIONS, lambda: _instructions(files)),
        _checked(ANSWERS, lambda: _answers(files)),
        _checked(PREVIOUS, lambda: _previous(files)),
    ]


def _checked(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, "proven", look())
    except _Violation as problem:
        return Check(name, "violated", str(problem))
    except _Absent as problem:
        return Check(name, "not checkable", str(problem))


def _writers(files: RunFiles, trust: Trust | None) -> Check:
    keys = [(COORDINATOR, str(files.run.coordinator_key)), *sorted(files.run.site_keys.items())]
    if trust is None:
        return Check(
            WRITERS,
            "not checkable",
            "no fingerprint is trusted (--trust), so keys that somebody made up would look the same",
        )
    strangers = []
    for name, text in keys:
        key = PublicKey.read(text)
        if not trust.vouches(key, name):
            strangers.append(f"{name} ({key.spoken})")
    if strangers:
        return Check(WRITERS, "violated", f"the key is not among the trusted: {'; '.join(strangers)}")
    unknown = sorted(_signers(files) - {name for name, _ in keys})
    if unknown:
        return Check(WRITERS, "violated", f"run.json names no key of {', '.join(unknown)}, whose answers are on record")
    return Check(WRITERS, "proven", f"the keys of {', '.join(name for name, _ in keys)} are those that are trusted")


def _signers(files: RunFiles) -> set[str]:
    return {exchange.site for exchange in _exchanges(files)}


def _exchanges(files: RunFiles) -> Iterator[_Exchange]:
    """Everything that a record rests on."""
    for record in files.rounds:
        folder = files.place(record.round) / "signed"
        for site in sorted(record.prepared):
            yield _Exchange("prepare", 0, site, folder)
        for site in sorted(record.trained):
            yield _Exchange("train", record.round, site, folder)
    if files.final is not None and files.rounds:
        for site in sorted(files.final.sites):
            yield _Exchange("evaluate", files.rounds[-1].round, site, files.path / "evaluation-signed")


def _instruction(files: RunFiles, exchange: _Exchange) -> tuple[Instruction, str]:
    try:
        return read_instruction(exchange.text("instruction"), PublicKey.read(str(files.run.coordinator_key)))
    except (SignatureError, InstructionError) as problem:
        raise _Violation(f"{exchange}: the instruction: {problem}") from None


def _instructions(files: RunFiles) -> str:
    runs: set[str] = set()
    sent: dict[tuple[Kind, int], str] = {}
    count = 0
    for exchange in _exchanges(files):
        told, _ = _instruction(files, exchange)
        runs.add(told.run)
        if (told.kind, told.round, told.site) != (exchange.kind, exchange.round, exchange.site):
            raise _Violation(f"{exchange}: the instruction is one of {told.kind}, round {told.round}, for {told.site}")
        if told.study_digest != files.run.study_digest:
            raise _Violation(f"{exchange}: the instruction is of study {told.study_digest}")
        if told.manifest_digest != files.manifest.digest():
            raise _Violation(f"{exchange}: the instruction is of other tensors")
        if told.release.code_digest != files.run.code_digest:
            raise _Violation(f"{exchange}: the instruction is of code {told.release.code_digest}")
        same = sent.setdefault((told.kind, told.round), told.model_digest)
        if same != told.model_digest:
            raise _Violation(f"{exchange}: this hospital was sent another model than the others")
        expected = _model_sent(files, exchange)
        if expected is not None and expected != told.model_digest:
            raise _Violation(f"{exchange}: the instruction is of model {told.model_digest}, the record's is {expected}")
        count += 1
    if len(runs) > 1:
        raise _Violation(f"the instructions are of {len(runs)} runs: {', '.join(sorted(runs))}")
    if not count:
        raise _Absent("nobody has answered")
    return f"{count} instructions of run {runs.pop()}"


def _model_sent(files: RunFiles, exchange: _Exchange) -> str | None:
    """Digest of the model of that message as it travels; None where its numbers are needed and no longer kept."""
    wire, before = files.study.federation.wire, exchange.round - (exchange.kind == "train")
    if before == 0:
        return flat_digest(encode(files.start, wire))
    if wire == "fp32":
        return next((record.model_out for record in files.rounds if record.round == before), None)
    model = stored_model(files, before)
    return None if model is None else flat_digest(encode(model, wire))


def _answer(files: RunFiles, exchange: _Exchange) -> Answer:
    key = files.run.site_keys.get(exchange.site)
    if key is None:
        raise _Absent(f"run.json names no key of {exchange.site}")
    try:
        answer = read_answer(exchange.text("answer"), PublicKey.read(key))
    except (SignatureError, InstructionError) as problem:
        raise _Violation(f"{exchange}: the answer: {problem}") from None
    if answer.hello.site != exchange.site or answer.round != exchange.round:
        raise _Violation(f"{exchange}: the answer is of {answer.hello.site}, round {answer.round}")
    if answer.instruction != _instruction(files, exchange)[1]:
        raise _Violation(f"{exchange}: the answer is to another instruction")
    return answer


def _answers(files: RunFiles) -> str:
    records = {record.round: record for record in files.rounds}
    prepared = {site: one for record in files.rounds for site, one in record.prepared.items()}
    count = 0
    for exchange in _exchanges(files):
        answer, site = _answer(files, exchange), exchange.site
        if exchange.kind == "prepare":
            same = answer.prepared == prepared[site]
        elif exchange.kind == "evaluate":
            same = files.final is not None and answer.evaluated == files.final.sites[site]
        else:
            record = records[exchange.round]
            same = answer.trained == record.trained[site] and answer.update_digest == record.update_digests.get(site)
        if not same:
            raise _Violation(f"{exchange}: the record holds something else than the hospital signed")
        count += 1
    if not count:
        raise _Absent("nobody has answered")
    return f"{count} answers"


def _previous(files: RunFiles) -> str:
    count = 0
    for exchange in _exchanges(files):
        if exchange.kind == "prepare":
            continue
        told, _ = _instruction(files, exchange)
        before = files.place(exchange.round - (exchange.kind == "train")) / "round.json"
        if told.previous != (file_digest(before) if before.exists() else None):
            raise _Violation(f"{exchange}: the instruction names another record than {before.parent.name}/round.json")
        count += 1
    if not count:
        raise _Absent("no round was trained")
    return f"{count} instructions name it by its digest"
