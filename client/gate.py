"""The one door of a hospital: signature and approval on the way in, the egress contract on the way out (laws 1 and 2 of the design).

Every message, whatever its kind, passes `answer`. Nothing of it is looked at before the coordinator's signature, and no data is opened
before everything that can be checked without has been. What leaves is built here and nowhere else: one signed text of a known
schema, and one flat array of known length, dtype and bounded norm. An error leaves as its code; its text goes to the hospital's own
log. The node looks once more at what really goes out (`client.door`).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict

from client import run_on_ledger
from client.answered import Answered, find, keep
from client.approvals import Approval, require_approval
from client.duplicate_tags import require_tags
from client.held_layers import without_held
from client.policy import clamped, clamped_preparation, require_within, smallest_cell
from client.private.contract import require_nothing_exact
from client.run_on_ledger import Asked
from client.site_folder import SiteFolder
from shared.errors import (
    UNEXPECTED_CODE,
    ConsiliumError,
    EgressError,
    InstructionError,
    NonFiniteUpdateError,
    PolicyError,
    ReleaseError,
    ReplayError,
)
from shared.logs import log_context
from shared.messages import (
    ANSWER,
    BODY,
    FLAT,
    INSTRUCTION,
    MODEL,
    UPDATE,
    Answer,
    Instruction,
    read_answer,
    read_instruction,
    sign_answer,
)
from shared.private_file import write_private
from shared.profile import Profile
from shared.release import Release
from shared.results import Evaluated, Prepared, Refused, SiteHello, Trained
from shared.signing import PublicKey, SigningKey
from shared.study import Study, study_from_data
from shared.wire import Flat, Manifest, decode, encode, flat_digest, from_npy

log = logging.getLogger("consilium.site")

_CHUNK = 1 << 18  # values of float64 held at a time, for the norm

#: How far the clocks of coordinator and hospital may differ; Flower's node authentication allows the same.
CLOCK_TOLERANCE_MS = 300_000

Array1D = npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Task:
    """An instruction that passed the gate, with its decoded model."""

    instruction: Instruction
    study: Study
    profile: Profile
    folder: SiteFolder
    model: Flat
    digest: str

    @property
    def on_ledger(self) -> Asked:
        """As what the ledger is asked."""
        external = self.profile.role == "external_test"
        return Asked(self.folder, self.instruction, self.digest, self.study, external=external)


@dataclass(frozen=True, slots=True)
class Result:
    """What the work ended in: exactly one of the three, and the update where it was training.

    The update is of all that travels, also of what the round's stage holds: the gate takes that out, by the update's `tensors`.
    `patients` are the tags (`client.withdrawn`) of all whom the work had before it, each with the keyed digests of the images' pixels as
    far as they are known; `svm` is the digest of a private SVM that was fitted on the way.
    """

    prepared: Prepared | None = None
    trained: Trained | None = None
    evaluated: Evaluated | None = None
    update: Flat | None = None
    tensors: Manifest | None = None
    patients: Mapping[str, frozenset[str]] = field(default_factory=dict)
    svm: str | None = None


@dataclass(frozen=True, slots=True)
class _Site:
    """Who answers, and with which key."""

    profile: Profile
    hello: SiteHello
    key: SigningKey

    @classmethod
    def of(cls, folder: SiteFolder, *, any_release: bool = False) -> _Site:
        profile = folder.profile()
        return cls(profile, hello(profile, any_release=any_release), folder.signing_key())


def answer(
    message: Message, folder: SiteFolder, work: Callable[[Task], Result], *, any_release: bool = False
) -> Message:
    """The signed reply to one message. Never raises: a mistake becomes `Refused` with a code.

    `any_release` is the development override: the coordinator's release need not be this one, and the answer says so.
    """
    try:
        site = _Site.of(folder, any_release=any_release)
    except ConsiliumError as problem:  # without a profile and a key the site has no name to answer with
        log.error("%s: %s", problem.code, problem)
        return Message(Error(0, problem.code), reply_to=message)
    number, digest = 0, None
    with ExitStack() as named:
        try:
            instruction, digest = _instruction(message, folder)
            number = instruction.round
            named.enter_context(log_context(run=instruction.run, round=number))
            task = _admit(instruction, digest, message, site, folder)
            content = _answered_before(task, site) or _released(_worked(task, work), task, site)
        except ConsiliumError as problem:
            log.error("%s: %s", problem.code, problem)
            content = _refusal(site, number, digest, problem.code)
        except Exception:
            log.exception("%s: unexpected", UNEXPECTED_CODE)
            content = _refusal(site, number, digest, UNEXPECTED_CODE)
    return Message(content, reply_to=message)


def refusal_message(message: Message, folder: SiteFolder, code: str) -> Message:
    """A signed refusal of a message that was not opened. Never raises."""
    try:
        return Message(_refusal(_Site.of(folder), 0, None, code), reply_to=message)
    except ConsiliumError:
        return Message(Error(0, code), reply_to=message)


def _instruction(message: Message, folder: SiteFolder) -> tuple[Instruction, str]:
    """The coordinator's signature comes first; what is not signed by it is not looked at."""
    try:
        text = str(message.content.config_records[INSTRUCTION][BODY])
    except KeyError:
        raise InstructionError("the message holds no instruction") from None
    return read_instruction(text, PublicKey.read(folder.coordinator().coordinator_key))


def _admit(instruction: Instruction, digest: str, message: Message, site: _Site, folder: SiteFolder) -> Task:
    """Check everything that can be checked before any data is opened."""
    profile = site.profile
    if instruction.site != profile.site:
        raise InstructionError(f"the instruction is meant for {instruction.site}, not for {profile.site}")
    own = Release.installed()
    if instruction.release.code_digest != own.code_digest and not site.hello.any_release:
        raise ReleaseError(
            f"the coordinator runs {instruction.release.versions.get('consilium')} (code {instruction.release.code_digest[:12]}), "
            f"but installed here is {own.versions.get('consilium')} (code {own.code_digest[:12]})"
        )
    _require_fresh(instruction, folder)
    study = study_from_data(instruction.study)
    if study.digest() != instruction.study_digest:
        raise InstructionError("the study's digest is not the one that the instruction names")
    approval = require_approval(
        folder, study, coordinator_key=folder.coordinator().coordinator_key, run=instruction.run, release=own
    )
    require_within(study, profile.policy)
    if instruction.kind == "train" and profile.role == "external_test":
        raise PolicyError("role of the profile is external_test: this site never trains")
    if instruction.round > study.federation.rounds:
        raise PolicyError(
            f"the instruction is of round {instruction.round}, but the study has {study.federation.rounds}"
        )
    try:
        array = from_npy(message.content.array_records[MODEL][FLAT].data)
    except KeyError:
        raise InstructionError("the message holds no model") from None
    if flat_digest(array) != instruction.model_digest:
        raise InstructionError("the model's digest is not the one that the instruction names")
    _require_start(instruction, approval)
    return Task(instruction, study, profile, folder, decode(array, study.federation.wire), digest)


def _require_fresh(instruction: Instruction, folder: SiteFolder) -> None:
    """Each instruction is carried out once, in the order in which they were issued. Raises ReplayError, StorageError."""
    now = int(time.time() * 1000)
    if now > instruction.expires + CLOCK_TOLERANCE_MS or now < instruction.issued - CLOCK_TOLERANCE_MS:
        raise ReplayError(
            f"the instruction of round {instruction.round} was issued {(now - instruction.issued) / 1000:.0f} s ago and had "
            f"{(instruction.expires - instruction.issued) / 1000:.0f} s to be begun in; compare the clocks of both machines"
        )
    path = folder.run_folder(instruction.run) / "last-instruction"
    try:
        last = int(path.read_text())
    except FileNotFoundError:
        last = -1
    except (OSError, ValueError):
        raise ReplayError(f"{path}: can't be read, so nobody knows which instructions came before") from None
    if instruction.issued <= last:
        raise ReplayError(f"an instruction of run {instruction.run} came again, or after a newer one")
    write_private(path, str(instruction.issued).encode())


def _require_start(instruction: Instruction, approval: Approval) -> None:
    """The run starts from the model that was approved. Raises InstructionError."""
    start = approval.starting_point
    if instruction.manifest_digest != start.manifest_digest:
        raise InstructionError("the model's tensors are not those of the approved starting model")
    if instruction.kind == "prepare" and instruction.model_digest != start.model_digest:
        raise InstructionError("the starting model is not the one that was approved")


def _worked(task: Task, work: Callable[[Task], Result]) -> Result:
    """The work, once the ledger has what must be there before it. Raises LedgerError, StorageError, and what the work raises."""
    run_on_ledger.before_work(task.on_ledger)
    result = work(task)
    run_on_ledger.after_work(task.on_ledger, result.patients)
    return result


def _released(result: Result, task: Task, site: _Site) -> RecordDict:
    """The egress contract. Raises EgressError, NonFiniteUpdateError, PolicyError, LedgerError, StorageError; then only a code leaves."""
    kind = task.instruction.kind
    given = {
        "prepare": result.prepared is not None,
        "train": result.trained is not None,
        "evaluate": result.evaluated is not None,
    }
    if not given[kind] or sum(given.values()) != 1 or (result.update is not None) != (kind == "train"):
        raise EgressError(f"the result of '{kind}' holds something else than {kind}")
    array: Array1D | None = None
    if result.update is not None:
        array = _checked_update(result.update, result.tensors, task)
    policy = task.profile.policy
    prepared = clamped_preparation(result.prepared, policy) if result.prepared is not None else None
    evaluated = clamped(result.evaluated, policy) if result.evaluated is not None else None
    if prepared is not None:
        _check_prepared(prepared, task)
    if evaluated is not None:
        _check_cells(evaluated, task)
    body = Answer(
        hello=site.hello,
        instruction=task.digest,
        round=task.instruction.round,
        prepared=prepared,
        trained=result.trained,
        evaluated=evaluated,
        update_digest=flat_digest(array) if array is not None else None,
    )
    require_nothing_exact(body, task.study)
    _signed(body, site)  # what can't be signed is not kept either
    # Kept first: what is settled and was lost in a crash could not be sent again.
    keep(folder_of(task), task.instruction, Answered(result.trained, array, prepared, evaluated))
    return _content(run_on_ledger.before_leaving(task.on_ledger, body, result.patients, result.svm), array, site)


def _answered_before(task: Task, site: _Site) -> RecordDict | None:
    """The answer that was made already for this round and this model, under the new instruction's name.

    Counts and figures only of a closed run: as long as it is open they are made anew. What a private run has released is never made anew.
    """
    kept = find(folder_of(task), task.instruction)
    if kept is None:
        return None
    if task.instruction.kind != "train" and not run_on_ledger.is_closed(task.folder, task.instruction):
        return None
    log.info(
        "%s of round %s was done already: the same answer is sent again", task.instruction.kind, task.instruction.round
    )
    policy = task.profile.policy
    body = Answer(
        hello=site.hello,
        instruction=task.digest,
        round=task.instruction.round,
        prepared=clamped_preparation(kept.prepared, policy) if kept.prepared is not None else None,
        trained=kept.trained,
        evaluated=clamped(kept.evaluated, policy) if kept.evaluated is not None else None,
        update_digest=flat_digest(kept.update) if kept.update is not None else None,
    )
    return _content(run_on_ledger.before_leaving(task.on_ledger, body, None), kept.update, site)


def folder_of(task: Task) -> Path:
    """The site's own folder of the run."""
    return task.folder.run_folder(task.instruction.run)


def _signed(body: Answer, site: _Site) -> str:
    """Checked once more from the text itself: what was built past its schema does not leave. Raises EgressError."""
    text = sign_answer(body, site.key)
    try:
        read_answer(text, site.key.public)
    except InstructionError as problem:
        raise EgressError(f"the answer of round {body.round} is outside its schema: {problem}") from None
    return text


def _content(body: Answer, array: Array1D | None, site: _Site) -> RecordDict:
    content = RecordDict({ANSWER: ConfigRecord({BODY: _signed(body, site)})})
    if array is not None:
        content[UPDATE] = ArrayRecord({FLAT: Array(array)})
    return content


def _check_prepared(prepared: Prepared, task: Task) -> None:
    """Texts can carry anything, so each must be one that is known without looking at data."""
    from client.device import chosen_device, device_name

    data = task.profile.data
    known = (device_name(chosen_device(task.profile.device)), data.synthetic, data.patient_stand_in)
    if (prepared.device, prepared.synthetic, prepared.patient_stand_in) != known:
        raise EgressError("device, synthetic or patient_stand_in are not those of this site's profile")
    if (prepared.external, prepared.artificial_part) != (task.profile.role == "external_test", data.part):
        raise EgressError("external or artificial_part are not those of this site's profile")
    patients = sum(part.patients for part in prepared.parts.values())
    if task.study.privacy is None and patients < task.profile.policy.minimum_patients:
        raise PolicyError(
            f"the study reaches {patients} patients, but this site asks for {task.profile.policy.minimum_patients}"
        )
    asked = task.study.data.duplicates
    if prepared.copies is not None and (asked is None or asked.distance is None):
        raise EgressError("copies of images are counted, but the study does not ask for it")
    if prepared.tags and not task.study.counts_shared_images:
        raise EgressError("there are tags of images, but the study does not ask for them")
    require_tags(prepared.tags, task.instruction.peers, sum(part.images for part in prepared.parts.values()))
    if prepared.baseline is not None:
        _check_cells(prepared.baseline, task)


def _check_cells(evaluated: Evaluated, task: Task) -> None:
    """Of the kind that the study is of, descriptors the study's by name; histograms, descriptors and classes of masks by the larger minimum
    of the study's and the site's.
    """
    if evaluated.of_masks != (task.study.task.kind == "segmentation"):
        raise EgressError(f"the figures are not of what the study is of, {task.study.task.kind}")
    smallest = smallest_cell(task.study, task.profile.policy)
    if evaluated.masks is not None and evaluated.masks.minimum_cell < smallest:
        raise EgressError(f"figures of masks by class are of {evaluated.masks.minimum_cell} images, not of {smallest}")
    histogram = evaluated.masks.histogram if evaluated.masks is not None else None
    if histogram is not None and histogram.minimum_cell < smallest:
        raise EgressError(f"a histogram's cells count from {histogram.minimum_cell}, not from {smallest}")
    for head in (evaluated.network, evaluated.svm, evaluated.svm_paper):
        if head is not None and head.histogram is not None and head.histogram.minimum_cell < smallest:
            raise EgressError(f"a histogram's cells count from {head.histogram.minimum_cell}, not from {smallest}")
    described = task.study.task.descriptors
    for name, result in (evaluated.descriptors or {}).items():
        if name not in described or len(result.by_value or described[name].values) != len(described[name].values):
            raise EgressError("a descriptor is none of the study's, or has other values")
        if result.minimum_cell < smallest:
            raise EgressError(f"a descriptor's cells count from {result.minimum_cell}, not from {smallest}")


def _checked_update(update: Flat, tensors: Manifest | None, task: Task) -> Array1D:
    if update.dtype != np.float32 or update.shape != task.model.shape:
        raise EgressError(f"expected an update of float32 {task.model.shape}, but got {update.dtype} {update.shape}")
    squares = 0.0
    for start in range(0, update.size, _CHUNK):
        part = update[start : start + _CHUNK].astype(np.float64)
        squares += float(np.dot(part, part))
    norm = math.sqrt(squares)
    if not math.isfinite(norm):
        raise NonFiniteUpdateError("the update holds NaN or infinity")
    if norm > task.profile.policy.maximum_update_norm:
        raise PolicyError(
            f"the update's norm is {norm:g}, above this site's {task.profile.policy.maximum_update_norm:g}"
        )
    free = without_held(update, tensors, task.instruction, task.study)
    return encode(free, task.study.federation.wire)


def _refusal(site: _Site, number: int, digest: str | None, code: str) -> RecordDict:
    body = Answer(hello=site.hello, instruction=digest, round=number, refused=Refused(code=code))
    return RecordDict({ANSWER: ConfigRecord({BODY: sign_answer(body, site.key)})})


def hello(profile: Profile, *, any_release: bool = False) -> SiteHello:
    """Who answers, and with which code."""
    own = Release.installed()
    return SiteHello(site=profile.site, code_digest=own.code_digest, versions=own.versions, any_release=any_release)
