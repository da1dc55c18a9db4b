"""The one door of a hospital: approval on the way in, the egress contract on the way out (laws 1 and 2 of the design).

Every message, whatever its kind, passes `answer`. What leaves is built here and nowhere else: one JSON text of a known schema, and
one flat array of known length, dtype and bounded norm. An error leaves as its code; its text goes to the hospital's own log.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict

from client.site_folder import SiteFolder
from shared.errors import (
    UNEXPECTED_CODE,
    ConsiliumError,
    EgressError,
    InstructionError,
    NonFiniteUpdateError,
    PolicyError,
)
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
)
from shared.profile import Profile
from shared.release import code_digest, versions
from shared.results import Evaluated, Prepared, Refused, SiteHello, Trained
from shared.study import Study, study_from_data
from shared.wire import Flat, decode, encode, flat_digest, from_npy

log = logging.getLogger("consilium.site")

_CHUNK = 1 << 18  # values of float64 held at a time, for the norm

Array1D = npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Task:
    """An instruction that passed the gate, with its decoded model."""

    instruction: Instruction
    study: Study
    profile: Profile
    folder: SiteFolder
    model: Flat


@dataclass(frozen=True, slots=True)
class Result:
    """What the work ended in: exactly one of the three, and the update where it was training."""

    prepared: Prepared | None = None
    trained: Trained | None = None
    evaluated: Evaluated | None = None
    update: Flat | None = None


def answer(message: Message, folder: SiteFolder, work: Callable[[Task], Result]) -> Message:
    """The reply to one message. Never raises: a mistake becomes `Refused` with a code."""
    try:
        profile = folder.profile()
    except ConsiliumError as problem:  # without a profile the site has no name to answer with
        log.error("%s: %s", problem.code, problem)
        return Message(Error(0, problem.code), reply_to=message)
    number = 0
    try:
        instruction = _instruction(message)
        number = instruction.round
        task = _admit(instruction, message, profile, folder)
        content = _released(work(task), task)
    except ConsiliumError as problem:
        log.error("%s: %s", problem.code, problem)
        content = _refusal(profile, number, problem.code)
    except Exception:
        log.exception("%s: unexpected", UNEXPECTED_CODE)
        content = _refusal(profile, number, UNEXPECTED_CODE)
    return Message(content, reply_to=message)


def _instruction(message: Message) -> Instruction:
    try:
        return read_instruction(str(message.content.config_records[INSTRUCTION][BODY]))
    except KeyError:
        raise InstructionError("the message holds no instruction") from None


def _admit(instruction: Instruction, message: Message, profile: Profile, folder: SiteFolder) -> Task:
    """Check everything that can be checked before any data is opened."""
    study = study_from_data(instruction.study)
    if study.digest() != instruction.study_digest:
        raise InstructionError("the study's digest is not the one that the instruction names")
    folder.require_approval(study)
    if study.federation.rounds > profile.policy.maximum_rounds or instruction.round > study.federation.rounds:
        raise PolicyError(
            f"the study asks for round {instruction.round} of {study.federation.rounds}, "
            f"but this site allows {profile.policy.maximum_rounds}"
        )
    try:
        array = from_npy(message.content.array_records[MODEL][FLAT].data)
    except KeyError:
        raise InstructionError("the message holds no model") from None
    if flat_digest(array) != instruction.model_digest:
        raise InstructionError("the model's digest is not the one that the instruction names")
    return Task(instruction, study, profile, folder, decode(array, study.federation.wire))


def _released(result: Result, task: Task) -> RecordDict:
    """The egress contract. Raises EgressError, NonFiniteUpdateError, PolicyError; then nothing but a code leaves."""
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
        array = _checked_update(result.update, task)
    if result.prepared is not None:
        _check_prepared(result.prepared, task)
    if result.evaluated is not None:
        _check_cells(result.evaluated, task)
    body = Answer(
        hello=hello(task.profile),
        round=task.instruction.round,
        prepared=result.prepared,
        trained=result.trained,
        evaluated=result.evaluated,
        update_digest=flat_digest(array) if array is not None else None,
    )
    text = body.model_dump_json(warnings="error")
    try:
        read_answer(text)  # checked once more from the text itself: what was built past its schema does not leave
    except InstructionError as problem:
        raise EgressError(f"the result of '{kind}' is outside its schema: {problem}") from None
    content = RecordDict({ANSWER: ConfigRecord({BODY: text})})
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
    patients = sum(part.patients for part in prepared.parts.values())
    if patients < task.profile.policy.minimum_patients:
        raise PolicyError(
            f"the study reaches {patients} patients, but this site asks for {task.profile.policy.minimum_patients}"
        )
    if prepared.baseline is not None:
        _check_cells(prepared.baseline, task)


def _check_cells(evaluated: Evaluated, task: Task) -> None:
    """Histograms by the larger minimum of the study's and the site's."""
    smallest = max(task.study.evaluation.minimum_cell, task.profile.policy.minimum_cell)
    for head in (evaluated.network, evaluated.svm, evaluated.svm_paper):
        if head is not None and head.histogram is not None and head.histogram.minimum_cell < smallest:
            raise EgressError(f"a histogram's cells count from {head.histogram.minimum_cell}, not from {smallest}")


def _checked_update(update: Flat, task: Task) -> Array1D:
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
    return encode(update, task.study.federation.wire)


def _refusal(profile: Profile, number: int, code: str) -> RecordDict:
    body = Answer(hello=hello(profile), round=number, refused=Refused(code=code))
    return RecordDict({ANSWER: ConfigRecord({BODY: body.model_dump_json()})})


def hello(profile: Profile) -> SiteHello:
    """Who answers, and with which code."""
    return SiteHello(site=profile.site, code_digest=code_digest(), versions=versions())
