"""Checks of a hospital's ledger from the file alone, and against the folder of a run that the hospital took part in.

The ledger names its own key; that proves nothing. Whose key it is, only a fingerprint says that the auditor got by another way.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from shared.audit.cohorts import check_cohorts
from shared.audit.records import RunFiles
from shared.audit.trust import Trust
from shared.audit.verdict import Check
from shared.errors import InputError, LedgerError, SignatureError
from shared.ledger.chain import Chain, Head, Question, read_chain, read_head, whole_lines
from shared.ledger.entries import figures_digest
from shared.ledger.rules import RunOnLedger
from shared.signing import PublicKey

FORM = "every line is an entry of a ledger"
WRITER = "who wrote the ledger"
SIGNATURES = "every entry is signed by the ledger's key"
CHAIN = "no entry was changed, taken out of the middle or moved"
ORDER = "each act was announced before it: RESERVE, START, SETTLE, RELEASE, CLOSE"
END = "nothing was cut off at the end"
UPDATES = "every update that was aggregated is on the hospital's ledger"
FIGURES = "all counts and figures in the run's record are on the hospital's ledger"

_QUESTIONS: dict[Question, str] = {"form": FORM, "signature": SIGNATURES, "chain": CHAIN, "order": ORDER}


def read_file(path: Path) -> bytes:
    """Raises InputError."""
    try:
        return path.read_bytes()
    except OSError as problem:
        raise InputError(f"{path}: can't be read: {problem.strerror or problem}") from None


def check_ledger(data: bytes, trust: Trust | None, head: bytes | None = None) -> tuple[Chain, list[Check]]:
    """The ledger, and the checks in the order in which a reader would ask. `head` is a kept `ledger.head` or an earlier export."""
    chain = read_chain(data)
    checks = [_writer(chain, trust), *(_question(chain, question) for question in _QUESTIONS), _end(chain, data, head)]
    checks.append(check_cohorts(chain))
    return chain, checks


def check_against_run(chain: Chain, files: RunFiles) -> list[Check]:
    """What the run's record says of this hospital, looked for in its ledger."""
    genesis = chain.rules.genesis
    if genesis is None:
        return [Check(name, "not checkable", "the ledger names no hospital") for name in (UPDATES, FIGURES)]
    run = chain.rules.runs.get(files.run.id)
    taken_part = list(_figures(files, genesis.site)) or any(genesis.site in one.update_digests for one in files.rounds)
    if run is None:
        if taken_part:
            why = f"run {files.run.id} has no RESERVE, but {genesis.site} stands in its record"
            return [Check(name, "violated", why) for name in (UPDATES, FIGURES)]
        why = f"{genesis.site} stands nowhere in the record of run {files.run.id}"
        return [Check(name, "not checkable", why) for name in (UPDATES, FIGURES)]
    if run.reserve.study_digest != files.run.study_digest:
        why = f"run {run.reserve.run} was reserved for study {run.reserve.study_digest}, its record is of {files.run.study_digest}"
        return [Check(name, "violated", why) for name in (UPDATES, FIGURES)]
    return [updates_on_ledger(run, files, genesis.site), figures_on_ledger(run, files, genesis.site)]


def _writer(chain: Chain, trust: Trust | None) -> Check:
    genesis = chain.rules.genesis
    if genesis is None:
        return Check(WRITER, "violated", "there is no GENESIS, so the ledger names no hospital and no key")
    key = PublicKey.read(genesis.key)
    if trust is None:
        return Check(
            WRITER,
            "not checkable",
            f"no fingerprint is trusted (--trust); the ledger itself says {genesis.site}, {key.spoken}, as anybody's could",
        )
    if not trust.vouches(key, genesis.site):
        return Check(WRITER, "violated", f"the key of {genesis.site} in it ({key.spoken}) is not among the trusted")
    return Check(WRITER, "proven", f"{genesis.site}, {key.spoken}")


def _question(chain: Chain, question: Question) -> Check:
    found = [fault for fault in chain.faults if fault.question == question]
    if not found:
        return Check(_QUESTIONS[question], "proven", f"{len(chain.links)} entries")
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return Check(_QUESTIONS[question], "violated", f"{found[0]}{more}")


def _end(chain: Chain, data: bytes, kept: bytes | None) -> Check:
    if kept is None:
        torn = (
            "the last line is cut off: a crash while it was written (its act had not begun), or somebody's doing; "
            if chain.torn
            else ""
        )
        return Check(END, "not checkable", f"{torn}only an earlier export or ledger.head shows it (--head)")
    if (head := _kept_head(chain, kept)) is not None:
        seq, digest, what = head.seq, head.digest, "head"
    else:
        earlier = read_chain(kept)
        if not earlier.links:
            return Check(
                END, "not checkable", "--head is neither a ledger.head of this ledger's key nor an earlier export"
            )
        seq, digest, what = earlier.links[-1].entry.seq, earlier.links[-1].digest, "earlier export"
    if seq >= len(chain.links):
        return Check(END, "violated", f"the ledger ends with entry {len(chain.links) - 1}, the {what} with entry {seq}")
    if chain.links[seq].digest != digest:
        return Check(END, "violated", f"entry {seq} is another than in the {what}: the history was written anew")
    return Check(END, "proven", f"the {what} ends with entry {seq}, and {len(chain.links) - 1 - seq} follow")


def _kept_head(chain: Chain, kept: bytes) -> Head | None:
    lines, rest = whole_lines(kept)
    if len(lines) != 1 or rest or chain.key is None:
        return None
    for key in dict.fromkeys([chain.key, *(link.signer for link in chain.links)]):  # it may be from before a rotation
        try:
            return read_head(lines[0].decode(), key)
        except (SignatureError, LedgerError, UnicodeDecodeError):
            continue
    return None


def updates_on_ledger(run: RunOnLedger, files: RunFiles, site: str) -> Check:
    """Each update of `site` that was aggregated."""
    settled = {(one.round, one.update) for one in run.updates}
    figures = {(one.round, one.update, one.figures) for one in run.updates}
    trained = {record.round: record.trained.get(site) for record in files.rounds}
    wanted = {record.round: digest for record in files.rounds if (digest := record.update_digests.get(site))}
    for number, digest in wanted.items():
        if (number, digest) not in settled:
            return Check(
                UPDATES, "violated", f"round {number}: the update {digest} of {site} has no SETTLE of that digest"
            )
        if (said := trained[number]) is not None and (
            number,
            digest,
            figures_digest(said, as_written=True),
        ) not in figures:
            return Check(
                UPDATES, "violated", f"round {number}: {site} entered its update with other figures than the record's"
            )
    unused = len(settled - set(wanted.items()))
    beside = f"; {unused} more left and were not aggregated" if unused else ""
    return Check(UPDATES, "proven", f"{len(wanted)} updates of {site} with START and SETTLE{beside}")


def figures_on_ledger(run: RunOnLedger, files: RunFiles, site: str) -> Check:
    """All that the record holds of `site`, by digest."""
    known = {one.figures for one in run.updates} | {one.figures for one in run.releases}
    count = 0
    for where, digest in _figures(files, site):
        if digest not in known:
            return Check(
                FIGURES, "violated", f"{where}: what the record holds of {site} is not what its ledger says had left"
            )
        count += 1
    return Check(FIGURES, "proven", f"{count} sets of counts and figures of {site}")


def _figures(files: RunFiles, site: str) -> Iterator[tuple[str, str]]:
    """Where, and the digest. A private run's preparation holds no figure, so it is no release."""
    for record in files.rounds:
        if files.study.privacy is None and (prepared := record.prepared.get(site)) is not None:
            yield f"round {record.round}, preparation", figures_digest(prepared, as_written=True)
        if (trained := record.trained.get(site)) is not None:
            yield f"round {record.round}, training", figures_digest(trained, as_written=True)
    if files.final is not None and (evaluated := files.final.sites.get(site)) is not None:
        yield "the evaluation", figures_digest(evaluated, as_written=True)
