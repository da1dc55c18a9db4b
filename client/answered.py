"""A site's last training answer, kept until the next: asked for the same round of the same model again, it sends the same bytes.

A coordinator that was killed asks again after `resume`; a site whose connection was cut, or whose node was started anew, is asked again
in the same round. None of them makes the hospital train a second time.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from shared.errors import StorageError
from shared.messages import Instruction
from shared.private_file import write_private
from shared.results import Trained
from shared.study import Sha256, Strict
from shared.wire import flat_digest

log = logging.getLogger("consilium.site")

_RECORD, _UPDATE = "answered.json", "answered.npy"


class _Record(Strict):
    """What the kept update answers."""

    round: int
    study_digest: Sha256
    model_digest: Sha256
    code_digest: Sha256
    update_digest: Sha256
    trained: Trained


@dataclass(frozen=True, slots=True)
class Answered:
    """A training answer as it left: the update in the wire's format."""

    trained: Trained
    update: npt.NDArray[np.generic]


def keep(run_folder: Path, instruction: Instruction, answered: Answered) -> None:
    """Keep it in the place of the one before. A full disk costs only that the round would have to be trained again."""
    record = _Record(
        round=instruction.round,
        study_digest=instruction.study_digest,
        model_digest=instruction.model_digest,
        code_digest=instruction.release.code_digest,
        update_digest=flat_digest(answered.update),
        trained=answered.trained,
    )
    try:
        forget(run_folder)
        _write_update(run_folder / _UPDATE, answered.update)
        write_private(run_folder / _RECORD, record.model_dump_json().encode())
    except (OSError, StorageError) as problem:
        log.warning("the answer of round %s is not kept, so it can't be sent again: %s", instruction.round, problem)


def find(run_folder: Path, instruction: Instruction) -> Answered | None:
    """The kept answer to the same question: same run, round, study, model and code. None where there is none, or it was damaged."""
    try:
        record = _Record.model_validate_json((run_folder / _RECORD).read_bytes())
        asked = (instruction.round, instruction.study_digest, instruction.model_digest, instruction.release.code_digest)
        if asked != (record.round, record.study_digest, record.model_digest, record.code_digest):
            return None
        update: npt.NDArray[np.generic] = np.load(run_folder / _UPDATE, allow_pickle=False)
    except (OSError, ValueError, ValidationError, EOFError):
        return None
    return Answered(record.trained, update) if flat_digest(update) == record.update_digest else None


def forget(run_folder: Path) -> None:
    """Remove the kept answer, if there is one: after a withdrawal it would send what a patient no longer gives."""
    for name in (_RECORD, _UPDATE):
        (run_folder / name).unlink(missing_ok=True)


def _write_update(path: Path, update: npt.NDArray[np.generic]) -> None:
    """Not fsynced: the record names the digest, and a power cut costs one round's training."""
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    with path.open("wb") as stream:
        np.save(stream, update)
