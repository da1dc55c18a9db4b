"""What the gate enters in the ledger for each instruction: before the work, and before the answer leaves.

prepare    COHORT and RESERVE of the whole run, once the data is open and before the answer leaves; RELEASE of the counts and the baseline
train      START before data is opened; SETTLE of the update before it leaves
evaluate   RELEASE of the figures; CLOSE after the study's last round

The same answer may leave again and enters nothing new. Every mistake here ends in a refusal: nothing leaves that is not on record.
"""

from __future__ import annotations

from client.cohort_list import keep_list, require_within, root_of
from client.ledger import OpenLedger, open_ledger
from client.site_folder import SiteFolder
from client.withdrawn import Tags
from shared.errors import LedgerError
from shared.ledger.entries import Close, Cohort, Release, Reserve, Settle, Start, Unbounded, figures_digest
from shared.ledger.rules import RunOnLedger
from shared.messages import Answer, Instruction
from shared.signing import PublicKey
from shared.study import Study


def before_work(folder: SiteFolder, instruction: Instruction) -> None:
    """Raises LedgerError where the run is closed, not reserved (but by `prepare`), or another's; StorageError, InputError."""
    with open_ledger(folder, instruction.run) as ledger:
        run = ledger.run(instruction.run)
        if run is None and instruction.kind == "prepare":
            return
        run = _reserved(run, folder, instruction)
        if run.closed:
            raise LedgerError(f"run {instruction.run} is closed: what left of it is released, and nothing new leaves")
        if instruction.kind == "train":
            number = instruction.round
            attempt = run.attempts.get(number, 0) + 1
            ledger.add(
                Start(
                    **ledger.place(), run=instruction.run, round=number, attempt=attempt, model=instruction.model_digest
                )
            )
            ledger.write()


def after_work(folder: SiteFolder, instruction: Instruction, patients: frozenset[str]) -> None:
    """`patients` are the tags of those whom the work had before it. Raises LedgerError where somebody is new to the run's cohort."""
    with open_ledger(folder, instruction.run) as ledger:
        if (run := ledger.run(instruction.run)) is not None:
            require_within(folder, run.reserve.cohort, patients, Tags.of(folder))


def before_leaving(
    folder: SiteFolder, instruction: Instruction, study: Study, answer: Answer, patients: frozenset[str] | None
) -> None:
    """`patients` as for `after_work`; None where an answer is sent again. Raises LedgerError, StorageError, InputError."""
    with open_ledger(folder, instruction.run) as ledger:
        run = ledger.run(instruction.run)
        if run is None and instruction.kind == "prepare" and patients is not None:
            run = _reserve(ledger, folder, instruction, study, patients)
        run = _reserved(run, folder, instruction)
        if instruction.kind == "train":
            _settle(ledger, run, instruction, answer)
        else:
            _release(ledger, run, instruction, answer)
        ledger.write()


def is_closed(folder: SiteFolder, instruction: Instruction) -> bool:
    """Whether only what has left of the run already may leave again. Raises LedgerError, StorageError, InputError."""
    with open_ledger(folder, instruction.run) as ledger:
        run = ledger.run(instruction.run)
        return run is not None and run.closed


def _reserved(run: RunOnLedger | None, folder: SiteFolder, instruction: Instruction) -> RunOnLedger:
    if run is None:
        raise LedgerError(f"run {instruction.run} was never prepared here, so the ledger has nothing reserved for it")
    if (run.reserve.study_digest, run.reserve.coordinator) != (instruction.study_digest, _coordinator(folder)):
        raise LedgerError(
            f"run {instruction.run} stands in the ledger with another study or coordinator; a run with a name of its own is needed"
        )
    return run


def _reserve(
    ledger: OpenLedger, folder: SiteFolder, instruction: Instruction, study: Study, patients: frozenset[str]
) -> RunOnLedger | None:
    root = root_of(patients, Tags.of(folder))
    keep_list(folder, root, patients)
    if root not in ledger.rules.cohorts:
        ledger.add(Cohort(**ledger.place(), cohort=root, patients=len(patients)))
    ledger.add(
        Reserve(
            **ledger.place(),
            run=instruction.run,
            coordinator=_coordinator(folder),
            study_name=study.name,
            study_digest=instruction.study_digest,
            cohort=root,
            rounds=study.federation.rounds,
            mechanism=Unbounded(),
        )
    )
    return ledger.run(instruction.run)


def _settle(ledger: OpenLedger, run: RunOnLedger, instruction: Instruction, answer: Answer) -> None:
    if answer.trained is None or answer.update_digest is None:
        raise LedgerError("a training answer without an update")
    number, update, figures = instruction.round, answer.update_digest, figures_digest(answer.trained)
    if (number, update, figures) in {(one.round, one.update, one.figures) for one in run.updates}:
        return
    attempt = run.open_attempt(number)
    if attempt is None:
        raise LedgerError(f"an update of round {number} of run {instruction.run} that the ledger has no START for")
    ledger.add(
        Settle(**ledger.place(), run=instruction.run, round=number, attempt=attempt, update=update, figures=figures)
    )


def _release(ledger: OpenLedger, run: RunOnLedger, instruction: Instruction, answer: Answer) -> None:
    figures = answer.prepared or answer.evaluated
    if figures is None:
        raise LedgerError("an answer without figures")
    digest = figures_digest(figures)
    if run.closed and digest in {one.figures for one in run.releases}:
        return
    ledger.add(
        Release(
            **ledger.place(),
            run=instruction.run,
            round=instruction.round,
            what="preparation" if answer.prepared is not None else "evaluation",
            model=instruction.model_digest,
            figures=digest,
            mechanism=Unbounded(),
        )
    )
    if instruction.kind == "evaluate" and instruction.round == run.reserve.rounds:
        ledger.add(Close(**ledger.place(), run=instruction.run))


def _coordinator(folder: SiteFolder) -> str:
    return PublicKey.read(folder.coordinator().coordinator_key).fingerprint
