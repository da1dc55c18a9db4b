"""Whether everything that a run's record rests on stands in the hospitals' ledgers: as the study asks, and for an instruction on record."""

from __future__ import annotations

from collections.abc import Mapping

from shared.audit.entries import Shown, reserve_of
from shared.audit.exchanges import Absent, Exchange, SignedTexts, Violation
from shared.audit.ledger import FIGURES, UPDATES, figures_on_ledger, updates_on_ledger
from shared.audit.records import RunFiles
from shared.audit.verdict import Check, Findings
from shared.ledger.entries import Close, Geometric, Release, Reserve, Start, SubsampledGaussian, Unbounded
from shared.ledger.summary import mechanism_in_words
from shared.messages import Instruction, Kind
from shared.signing import PublicKey
from shared.study_cost import evaluation_mechanism, other_mechanisms, round_mechanism, svm_mechanism

INSTRUCTED = "each entry was made for an instruction that is on record"
RESERVED = "each hospital reserved what the study asks for, and nothing else"
RELEASED = "every evaluation was entered once, under the mechanism that the study names"
CLOSED = "every hospital closed the run in its ledger"


def check_completeness(signed: SignedTexts, shown: Mapping[str, Shown]) -> list[Check]:
    """Six questions."""
    files = signed.files
    return [
        _instructed(signed, shown),
        _reserved(files, shown),
        _on_ledger(UPDATES, files, shown),
        _on_ledger(FIGURES, files, shown),
        _released(files, shown),
        _closed(files, shown),
    ]


def _instructed(signed: SignedTexts, shown: Mapping[str, Shown]) -> Check:
    findings, count = Findings(INSTRUCTED), 0
    told: dict[str, tuple[Exchange, Instruction]] = {}
    models: dict[tuple[Kind, int], str] = {}
    for exchange in signed.kept():
        try:
            instruction, digest = signed.instruction(exchange)
        except (Violation, Absent) as problem:
            findings.absent.append(str(problem))
            continue
        told[digest] = exchange, instruction
        models.setdefault((instruction.kind, instruction.round), instruction.model_digest)
    for one in shown.values():
        for placed in one.entries:
            entry = placed.entry
            if not isinstance(entry, Reserve | Start | Release | Close) or entry.run != one.run_id:
                continue
            count += 1
            asked = _asked_for(entry, signed.files.study.federation.rounds)
            if entry.instruction is not None and entry.instruction in told:
                exchange, instruction = told[entry.instruction]
                if (instruction.site, instruction.kind, instruction.round) != (placed.site, *asked):
                    findings.violated.append(f"{placed}: names the instruction of {exchange}")
            elif entry.instruction is not None:
                findings.absent.append(
                    f"{placed}: its instruction {entry.instruction[:12]} is not in these files (of a hospital that "
                    "was asked again they hold the last)"
                )
            elif not isinstance(entry, Close):  # people close a run without one
                findings.absent.append(f"{placed}: names no instruction")
            if isinstance(entry, Start | Release) and entry.model != models.get(asked, entry.model):
                findings.violated.append(f"{placed}: of another model than was sent in that round")
        if not one.entries:
            findings.absent.append(f"{one.site}: its answers show no entry of a ledger")
    return findings.check(f"{count} entries")


def _asked_for(entry: Reserve | Start | Release | Close, rounds: int) -> tuple[Kind, int]:
    """Kind and round of the instruction that must stand behind an entry."""
    if isinstance(entry, Start):
        return "train", entry.round
    if isinstance(entry, Reserve) or (isinstance(entry, Release) and entry.what == "preparation"):
        return "prepare", 0
    return "evaluate", rounds if isinstance(entry, Close) else entry.round


def _reserved(files: RunFiles, shown: Mapping[str, Shown]) -> Check:
    findings, study = Findings(RESERVED), files.study
    wanted = {
        "study_name": study.name,
        "study_digest": files.run.study_digest,
        "rounds": study.federation.rounds,
        "mechanism": round_mechanism(study),
        "releases": other_mechanisms(study),
    }
    if files.run.coordinator_key is not None:
        wanted["coordinator"] = PublicKey.read(files.run.coordinator_key).fingerprint
    for one in shown.values():
        placed = reserve_of(one)
        if placed is None or not isinstance(placed.entry, Reserve):
            _no_reserve(findings, one)
            continue
        reserve = placed.entry
        for name, value in wanted.items():
            if getattr(reserve, name) != value:
                findings.violated.append(
                    f"{placed}: {name} is {_said(getattr(reserve, name))}, the study asks for {_said(value)}"
                )
        if study.privacy is not None and (reserve.claim is None or reserve.charged is None):
            findings.violated.append(f"{placed}: a private run without a claim and a charge")
        elif study.privacy is not None and reserve.claim is not None and reserve.claim.delta != study.privacy.delta:
            findings.violated.append(f"{placed}: claims at delta {reserve.claim.delta}, not {study.privacy.delta}")
    return findings.check(f"{study.federation.rounds} rounds, {_said(round_mechanism(study))}, at {_names(shown)}")


def _on_ledger(name: str, files: RunFiles, shown: Mapping[str, Shown]) -> Check:
    """Each site of the record against its own entries."""
    findings, proofs = Findings(name), []
    look = updates_on_ledger if name == UPDATES else figures_on_ledger
    for site in sorted(_sites(files)):
        one = shown.get(site)
        if one is None:
            findings.absent.append(f"{site}: no answer of it is in these files")
        elif one.run is None:
            _no_reserve(findings, one)
        else:
            check = look(one.run, files, site)
            if check.outcome == "violated":
                one.missing(findings, f"{site}, {check.why}")
            proofs.append(check.why)
    return findings.check("; ".join(proofs) or "nobody has answered")


def _released(files: RunFiles, shown: Mapping[str, Shown]) -> Check:
    findings, study = Findings(RELEASED), files.study
    if files.final is None:
        findings.absent.append("there is no final evaluation")
        return findings.check("")
    wanted = {"evaluation": evaluation_mechanism(study)}
    fitted = svm_mechanism(study.privacy) if study.privacy is not None else None
    if fitted is not None:
        wanted["svm"] = fitted
    for site in sorted(files.final.sites):
        one = shown.get(site)
        run = one.run if one is not None else None
        if one is None or run is None:
            findings.absent.append(f"{site}: no RESERVE of it is in these files")
            continue
        for what, mechanism in wanted.items():
            found = [entry for entry in run.releases if entry.what == what]
            if not found:
                one.missing(findings, f"{site}: no RELEASE of its {what}")
            for entry in found:
                if entry.mechanism != mechanism:
                    findings.violated.append(
                        f"{site}, entry {entry.seq} (RELEASE of {what}): {_said(entry.mechanism)}, the study asks for {_said(mechanism)}"
                    )
    return findings.check(f"{' and '.join(wanted)} of {', '.join(sorted(files.final.sites))}")


def _closed(files: RunFiles, shown: Mapping[str, Shown]) -> Check:
    findings = Findings(CLOSED)
    if files.final is None:
        findings.absent.append("there is no final evaluation, so nobody was asked to close the run")
    for site in sorted(_sites(files)) if files.final is not None else ():
        one = shown.get(site)
        if one is not None and one.run is not None and one.run.closed:
            continue
        if one is not None and files.final is not None and site in files.final.sites:
            one.missing(findings, f"{site}: its evaluation is on record, but no CLOSE")
        else:
            findings.absent.append(
                f"{site}: has not signed the end of the run (no evaluation of it is on record), so all that it reserved counts as spent"
            )
    signers = [one.site for one in shown.values() if one.run is not None and one.run.closed]
    return findings.check(f"CLOSE by {', '.join(signers) or 'nobody'}")


def _no_reserve(findings: Findings, one: Shown) -> None:
    if one.entries:
        one.missing(findings, f"{one.site}: no RESERVE of run {one.run_id}")
    else:
        findings.absent.append(f"{one.site}: its answers show no entry of a ledger")


def _sites(files: RunFiles) -> set[str]:
    found = {site for record in files.rounds for site in (*record.prepared, *record.trained)}
    return found | (set(files.final.sites) if files.final is not None else set())


def _names(shown: Mapping[str, Shown]) -> str:
    return ", ".join(shown) or "nobody"


def _said(value: object) -> str:
    if isinstance(value, Unbounded | Geometric | SubsampledGaussian):
        return mechanism_in_words(value)
    if isinstance(value, list):
        return " + ".join(map(_said, value)) or "none"
    return str(value)
