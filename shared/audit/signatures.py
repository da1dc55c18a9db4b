"""Who wrote a run's records: the signed instructions and answers that are kept with each round, against keys that the auditor trusts.

A record counts for what somebody signed: an update's digest, the counts and figures of a hospital, the model that it was sent, and the
record of the round before, which every instruction names. A run that was written anew as a whole, with keys of its own, is consistent in
itself; only the fingerprints that came by another way tell it from a true one.
"""

from __future__ import annotations

from shared.audit.exchanges import Absent, Exchange, SignedTexts, Violation, checked
from shared.audit.records import RunFiles, stored_model
from shared.audit.trust import COORDINATOR, Trust
from shared.audit.verdict import Check
from shared.canonical import file_digest
from shared.messages import Kind
from shared.signing import PublicKey
from shared.wire import encode, flat_digest

WRITERS = "who wrote the records"
INSTRUCTIONS = "every instruction is the coordinator's, of this run and of the round it stands in"
ANSWERS = "every answer is its hospital's own, and the record holds what it says"
PREVIOUS = "each round was begun on the record of the round before"


def check_signatures(files: RunFiles, trust: Trust | None, signed: SignedTexts) -> list[Check]:
    """Four checks; the last three hold against the keys that run.json names, the first says whose these are."""
    if files.run.coordinator_key is None:
        why = "run.json names no keys: the run was made by an older release, or never heard of a hospital"
        return [Check(name, "not checkable", why) for name in (WRITERS, INSTRUCTIONS, ANSWERS, PREVIOUS)]
    return [
        _writers(files, trust, signed),
        checked(INSTRUCTIONS, lambda: _instructions(files, signed)),
        checked(ANSWERS, lambda: _answers(files, signed)),
        checked(PREVIOUS, lambda: _previous(files, signed)),
    ]


def _writers(files: RunFiles, trust: Trust | None, signed: SignedTexts) -> Check:
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
    unknown = sorted({one.site for one in signed.on_record()} - {name for name, _ in keys})
    if unknown:
        return Check(WRITERS, "violated", f"run.json names no key of {', '.join(unknown)}, whose answers are on record")
    return Check(WRITERS, "proven", f"the keys of {', '.join(name for name, _ in keys)} are those that are trusted")


def _instructions(files: RunFiles, signed: SignedTexts) -> str:
    sent: dict[tuple[Kind, int], str] = {}
    count = 0
    for exchange in signed.on_record():
        told, _ = signed.instruction(exchange)
        if told.run != files.run.id:
            raise Violation(f"{exchange}: the instruction is of run {told.run}, the record's is {files.run.id}")
        if (told.kind, told.round, told.site) != (exchange.kind, exchange.round, exchange.site):
            raise Violation(f"{exchange}: the instruction is one of {told.kind}, round {told.round}, for {told.site}")
        if told.study_digest != files.run.study_digest:
            raise Violation(f"{exchange}: the instruction is of study {told.study_digest}")
        if told.manifest_digest != files.manifest.digest():
            raise Violation(f"{exchange}: the instruction is of other tensors")
        if told.release.code_digest != files.run.code_digest:
            raise Violation(f"{exchange}: the instruction is of code {told.release.code_digest}")
        same = sent.setdefault((told.kind, told.round), told.model_digest)
        if same != told.model_digest:
            raise Violation(f"{exchange}: this hospital was sent another model than the others")
        expected = _model_sent(files, exchange)
        if expected is not None and expected != told.model_digest:
            raise Violation(f"{exchange}: the instruction is of model {told.model_digest}, the record's is {expected}")
        count += 1
    if not count:
        raise Absent("nobody has answered")
    return f"{count} instructions of run {files.run.id}"


def _model_sent(files: RunFiles, exchange: Exchange) -> str | None:
    """Digest of the model of that message as it travels; None where its numbers are needed and no longer kept."""
    wire, before = files.study.federation.wire, exchange.round - (exchange.kind == "train")
    if before == 0:
        return flat_digest(encode(files.start, wire))
    if wire == "fp32":
        return next((record.model_out for record in files.rounds if record.round == before), None)
    model = stored_model(files, before)
    return None if model is None else flat_digest(encode(model, wire))


def _answers(files: RunFiles, signed: SignedTexts) -> str:
    records = {record.round: record for record in files.rounds}
    prepared = {site: one for record in files.rounds for site, one in record.prepared.items()}
    count = 0
    for exchange in signed.on_record():
        answer, site = signed.answer(exchange), exchange.site
        if exchange.kind == "prepare":
            same = answer.prepared == prepared[site]
        elif exchange.kind == "evaluate":
            same = files.final is not None and answer.evaluated == files.final.sites[site]
        else:
            record = records[exchange.round]
            same = answer.trained == record.trained[site] and answer.update_digest == record.update_digests.get(site)
        if not same:
            raise Violation(f"{exchange}: the record holds something else than the hospital signed")
        count += 1
    if not count:
        raise Absent("nobody has answered")
    return f"{count} answers"


def _previous(files: RunFiles, signed: SignedTexts) -> str:
    count = 0
    for exchange in signed.on_record():
        if exchange.kind == "prepare":
            continue
        told, _ = signed.instruction(exchange)
        before = files.place(exchange.round - (exchange.kind == "train")) / "round.json"
        if told.previous != (file_digest(before) if before.exists() else None):
            raise Violation(f"{exchange}: the instruction names another record than {before.parent.name}/round.json")
        count += 1
    if not count:
        raise Absent("no round was trained")
    return f"{count} instructions name it by its digest"
