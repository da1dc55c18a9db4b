"""What the gate enters in the ledger for each instruction: before the work, and before the answer leaves.

prepare    COHORT and RESERVE of the whole run, once the data is open and before the answer leaves; RELEASE of the counts and the baseline
train      START before data is opened; SETTLE of the update before it leaves
evaluate   RELEASE of the figures; CLOSE after the study's last round

A site of the external test reserves the whole run like the others: an upper bound, held against its budget while the run lasts. It never
enters START and fits no SVM, so that after CLOSE its patients are charged with the figures of the evaluation alone.

A private run is held against the lifetime budget when it is reserved, and again when a round must be begun anew. It releases nothing of
its preparation, and its figures once.

The same answer may leave again and enters nothing new. Every mistake here ends in a refusal: nothing leaves that is not on record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from client.budget import lifetime_of, require_bounded, require_budget
from client.cohort_list import keep_list, read_list, require_within, root_of
from client.ledger import OpenLedger, open_ledger
from client.site_folder import SiteFolder
from client.withdrawn import Tags
from shared.errors import BudgetError, LedgerError
from shared.exact import exact
from shared.ledger.entries import Claim, Close, Cohort, Release, Reserve, Settle, Start, Unbounded, figures_digest
from shared.ledger.rules import RunOnLedger
from shared.ledger.spending import charged_events
from shared.messages import Answer, Instruction, Receipt
from shared.privacy.mechanisms import Event
from shared.privacy.orders import ORDERS
from shared.signing import PublicKey
from shared.study import Study
from shared.study_cost import (
    evaluation_mechanism,
    other_mechanisms,
    round_mechanism,
    run_epsilon,
    study_events,
    svm_mechanism,
)

#: Tags of patients, each with the keyed digests of the images' pixels, as far as they are known.
Patients = Mapping[str, frozenset[str]]


@dataclass(frozen=True, slots=True)
class Asked:
    """An instruction that passed the gate: what is entered for it, and where. `external`: the site never trains."""

    folder: SiteFolder
    instruction: Instruction
    digest: str
    study: Study
    external: bool = False

    @property
    def private(self) -> bool:
        return self.study.privacy is not None


def before_work(asked: Asked) -> None:
    """Before any data is opened. Raises LedgerError where the run is closed, not reserved (but by `prepare`), or another's, or the
    coordinator has seen more of this ledger than there is; BudgetError, StorageError, InputError.
    """
    instruction = asked.instruction
    with open_ledger(asked.folder, instruction.run) as ledger:
        _require_receipt(ledger, instruction)
        run = ledger.run(instruction.run)
        if run is None and instruction.kind == "prepare":
            require_bounded(asked.study, lifetime_of(ledger, asked.folder.profile()))
            return
        run = _reserved(run, asked)
        if run.closed:
            raise LedgerError(f"run {instruction.run} is closed: what left of it is released, and nothing new leaves")
        if instruction.kind == "train":
            _start(ledger, run, asked)
        elif instruction.kind == "evaluate" and asked.private:
            _require_last(run, instruction)


def before_images(asked: Asked, patients: Patients) -> None:
    """When the tables are read and no image is: whether these patients can bear the run. Raises BudgetError, LedgerError."""
    if not asked.private:
        return
    with open_ledger(asked.folder, asked.instruction.run) as ledger:
        if ledger.run(asked.instruction.run) is None:
            _affordable(ledger, asked, patients)


def after_work(asked: Asked, patients: Patients) -> None:
    """`patients` are those whom the work had before it. Raises LedgerError where somebody is new to the run's cohort, BudgetError where
    images that were not known before show that somebody is a patient who can't bear the run.
    """
    with open_ledger(asked.folder, asked.instruction.run) as ledger:
        if (run := ledger.run(asked.instruction.run)) is None:
            return
        root, key = run.reserve.cohort, Tags.of(asked.folder)
        require_within(asked.folder, root, frozenset(patients), key)
        if read_list(asked.folder, root, key).lacks(patients):
            if asked.private and not run.closed:
                _bearable(ledger, asked, patients, charged_events(run) or [])
            keep_list(asked.folder, root, patients)


def before_leaving(asked: Asked, answer: Answer, patients: Patients | None, svm: str | None = None) -> Answer:
    """`answer` as it may leave: with the entries of this run that the coordinator has not seen, and where the ledger stands.

    `patients` as for `after_work`, None where an answer is sent again; `svm` is the digest of a private SVM that was fitted.

    Raises BudgetError, LedgerError, StorageError, InputError.
    """
    instruction = asked.instruction
    with open_ledger(asked.folder, instruction.run) as ledger:
        _require_receipt(
            ledger, instruction
        )  # also of an answer that is sent again, for which `before_work` was not asked
        run = ledger.run(instruction.run)
        if run is None and instruction.kind == "prepare" and patients is not None:
            run = _reserve(ledger, asked, patients)
        run = _reserved(run, asked)
        if instruction.kind == "train":
            _settle(ledger, run, instruction, answer)
        elif instruction.kind == "evaluate" or not asked.private:
            _release(ledger, run, asked, answer, svm)
        ledger.write()
        return _with_entries(ledger, instruction, answer)


def is_closed(folder: SiteFolder, instruction: Instruction) -> bool:
    """Whether only what has left of the run already may leave again. Raises LedgerError, StorageError, InputError."""
    with open_ledger(folder, instruction.run) as ledger:
        run = ledger.run(instruction.run)
        return run is not None and run.closed


def _with_entries(ledger: OpenLedger, instruction: Instruction, answer: Answer) -> Answer:
    """A preparation's has all entries of the run: another run may have shown the coordinator whose ledger it is, and a round 0 that is
    prepared again takes the place of the one on record.
    """
    seen = instruction.receipt if instruction.kind != "prepare" else None
    lines = ledger.lines_of(instruction.run, seen.seq if seen is not None else None)
    if ledger.digest is None:
        return answer
    return answer.model_copy(update={"entries": lines, "receipt": Receipt(seq=ledger.seq - 1, digest=ledger.digest)})


def _require_receipt(ledger: OpenLedger, instruction: Instruction) -> None:
    receipt = instruction.receipt
    if receipt is not None and not ledger.holds(receipt.seq, receipt.digest):
        raise LedgerError(
            f"the coordinator has seen entry {receipt.seq} of this ledger, which is not there or another one: the ledger comes from an "
            "older backup. Put the newest ledger.jsonl and ledger.head back; with the older ones, patients would be charged for less than "
            "was released"
        )


def _start(ledger: OpenLedger, run: RunOnLedger, asked: Asked) -> None:
    instruction = asked.instruction
    number = instruction.round
    attempt = run.attempts.get(number, 0) + 1
    charged: str | None = None
    if attempt > 1 and run.bounded:
        charged = _begun_again(ledger, run, asked)
    ledger.add(
        Start(
            **ledger.place(), run=instruction.run, round=number, attempt=attempt, model=instruction.model_digest, charged=charged,
            instruction=asked.digest,
        )
    )  # fmt: skip
    ledger.write()


def _begun_again(ledger: OpenLedger, run: RunOnLedger, asked: Asked) -> str:
    """A round that is begun again draws fresh noise: another release, which is charged."""
    whole = charged_events(run, begun_again=1) or []
    patients = read_list(asked.folder, run.reserve.cohort, Tags.of(asked.folder)).patients
    return _bearable(ledger, asked, patients, whole)


def _bearable(ledger: OpenLedger, asked: Asked, patients: Patients, whole: list[Event]) -> str:
    """Epsilon that the worst-off patient has where this run, which is reserved, costs `whole`."""
    run, lifetime = asked.instruction.run, ledger.rules.lifetime
    if lifetime is None:
        raise BudgetError(f"run {run} is private, but the ledger has no lifetime budget any more")
    return require_budget(ledger.everything(), asked.folder, lifetime, patients, whole, apart_from=run)


def _require_last(run: RunOnLedger, instruction: Instruction) -> None:
    if instruction.round != run.reserve.rounds:
        raise LedgerError(
            f"an evaluation after round {instruction.round} of {run.reserve.rounds}: a private run releases figures once, of its last model"
        )
    if any(one.what == "evaluation" for one in run.releases):
        raise LedgerError(f"the figures of run {instruction.run} have left already, of another model or another time")


def _reserved(run: RunOnLedger | None, asked: Asked) -> RunOnLedger:
    instruction = asked.instruction
    if run is None:
        raise LedgerError(f"run {instruction.run} was never prepared here, so the ledger has nothing reserved for it")
    if (run.reserve.study_digest, run.reserve.coordinator) != (instruction.study_digest, _coordinator(asked.folder)):
        raise LedgerError(
            f"run {instruction.run} stands in the ledger with another study or coordinator; a run with a name of its own is needed"
        )
    return run


def _affordable(ledger: OpenLedger, asked: Asked, patients: Patients) -> str:
    """Epsilon that the worst-off patient has with this run. Raises BudgetError, LedgerError."""
    lifetime = ledger.rules.lifetime
    require_bounded(asked.study, lifetime)
    if lifetime is None or ledger.rules.genesis is None:
        raise BudgetError("the ledger has no lifetime budget")
    orders = ledger.rules.genesis.rdp_orders
    if orders is not None and orders != [exact(order) for order in ORDERS]:
        raise LedgerError(
            "the ledger was begun with other Rényi orders than this release's: what was spent can't be added up"
        )
    return require_budget(ledger.everything(), asked.folder, lifetime, patients, study_events(asked.study))


def _reserve(ledger: OpenLedger, asked: Asked, patients: Patients) -> RunOnLedger | None:
    instruction, study = asked.instruction, asked.study
    require_bounded(study, ledger.rules.lifetime)
    root = root_of(patients, Tags.of(asked.folder))
    charged = _affordable(ledger, asked, patients) if asked.private else None
    if root in ledger.rules.cohorts:
        read_list(
            asked.folder, root, Tags.of(asked.folder)
        )  # it must be there: what is known of images would be lost with it
    keep_list(asked.folder, root, patients)
    if root not in ledger.rules.cohorts:
        ledger.add(Cohort(**ledger.place(), cohort=root, patients=None if asked.private else len(patients)))
    ledger.add(
        Reserve(
            **ledger.place(), run=instruction.run, coordinator=_coordinator(asked.folder), study_name=study.name,
            study_digest=instruction.study_digest, cohort=root, rounds=study.federation.rounds, mechanism=round_mechanism(study),
            releases=other_mechanisms(study), claim=_claim(study), charged=charged, instruction=asked.digest,
        )
    )  # fmt: skip
    return ledger.run(instruction.run)


def _claim(study: Study) -> Claim | None:
    if study.privacy is None:
        return None
    return Claim(epsilon=exact(run_epsilon(study)[0]), delta=study.privacy.delta)


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


def _release(ledger: OpenLedger, run: RunOnLedger, asked: Asked, answer: Answer, svm: str | None) -> None:
    instruction = asked.instruction
    figures = answer.prepared or answer.evaluated
    if figures is None:
        raise LedgerError("an answer without figures")
    digest = figures_digest(figures)
    if digest in {one.figures for one in run.releases} and (run.closed or run.bounded):
        return
    privacy = asked.study.privacy
    fitted = svm_mechanism(privacy) if privacy is not None and not asked.external else None
    if answer.evaluated is not None and fitted is not None:
        if svm is None:
            raise LedgerError("the study has a private SVM, but none was fitted")
        ledger.add(
            Release(
                **ledger.place(), run=instruction.run, round=instruction.round, what="svm", model=instruction.model_digest, figures=svm,
                mechanism=fitted, instruction=asked.digest,
            )
        )  # fmt: skip
    ledger.add(
        Release(
            **ledger.place(), run=instruction.run, round=instruction.round,
            what="preparation" if answer.prepared is not None else "evaluation", model=instruction.model_digest, figures=digest,
            mechanism=evaluation_mechanism(asked.study) if answer.evaluated is not None else Unbounded(), instruction=asked.digest,
        )
    )  # fmt: skip
    if instruction.kind == "evaluate" and instruction.round == run.reserve.rounds:
        ledger.add(Close(**ledger.place(), run=instruction.run, instruction=asked.digest))


def _coordinator(folder: SiteFolder) -> str:
    return PublicKey.read(folder.coordinator().coordinator_key).fingerprint
