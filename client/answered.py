"""A site's last answer of each kind, kept until the next: asked for the same round of the same model again, it sends the same bytes.

A coordinator that was killed asks again after `resume`; a site whose connection was cut, or whose node was started anew, is asked again
in the same round. None of them makes the hospital train a second time. Counts and figures are made anew as long as a run is open; after
its CLOSE in the ledger only what has left can leave again.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from shared.errors import StorageError
from shared.messages import Instruction, Kind
from shared.private_file import write_private
from shared.results import Evaluated, Prepared, Trained
from shared.schema import Sha256, Strict
from shared.wire import flat_digest

log = logging.getLogger("consilium.site")

_UPDATE = "answered.npy"
_RECORDS: dict[Kind, str] = {
    "prepare": "answered-preparation.json",
    "train": "answered.json",
    "evaluate": "answered-evaluation.json",
}


class _Record(Strict):
    """What the kept answer answers, and the answer but for its update."""

    round: int
    study_digest: Sha256
    model_digest: Sha256
    code_digest: Sha256
    update_digest: Sha256 | None = None
    prepared: Prepared | None = None
    trained: Trained | None = None
    evaluated: Evaluated | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer as it left: one of the three, and with `trained` the update in the wire's format."""

    trained: Trained | None = None
    update: npt.NDArray[np.generic] | None = None
    prepared: Prepared | None = None
    evaluated: Evaluated | None = None


def keep(run_folder: Path, instruction: Instruction, answered: Answered) -> None:
    """Keep it in the place of the one of its kind before. A full disk costs only that the work would have to be done again."""
    record = _Record(
        round=instruction.round,
        study_digest=instruction.study_digest,
        model_digest=instruction.model_digest,
        code_digest=instruction.release.code_digest,
        update_digest=flat_digest(answered.update) if answered.update is not None else None,
        prepared=answered.prepared,
        trained=answered.trained,
        evaluated=answered.evaluated,
    )
    path = run_folder / _RECORDS[instruction.kind]
    try:
        path.unlink(missing_ok=True)
        if answered.update is not None:
            _write_update(run_folder / _UPDATE, answered.update)
        write_private(path, record.model_dump_json().encode())
    except (OSError, StorageError) as problem:
        log.warning("the answer of round %s is not kept, so it can't be sent again: %s", instruction.round, problem)


def find(run_folder: Path, instruction: Instruction) -> Answered | None:
    """The kept answer to the same question: same run, round, study, model and code. None where there is none, or it was damaged."""
    try:
        record = _Record.model_validate_json((run_folder / _RECORDS[instruction.kind]).read_bytes())
        asked = (instruction.round, instruction.study_digest, instruction.model_digest, instruction.release.code_digest)
        if asked != (record.round, record.study_digest, record.model_digest, record.code_digest):
            return None
        if record.update_digest is None:
            return Answered(prepared=record.prepared, evaluated=record.evaluated)
        update: npt.NDArray[np.generic] = np.load(run_folder / _UPDATE, allow_pickle=False)
    except (OSError, ValueError, ValidationError, EOFError):
        return None
    return Answered(record.trained, update) if flat_digest(update) == record.update_digest else None


def forget(run_folder: Path) -> None:
    """Remove the kept answers: after a withdrawal they would send what a patient no longer gives."""
    for name in (*_RECORDS.values(), _UPDATE):
        (run_folder / name).unlink(missing_ok=True)


def _write_update(path: Path, update: npt.NDArray[np.generic]) -> None:
    """Not fsynced: the record names the digest, and a power cut costs one round's training."""
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    with path.open("wb") as stream:
        np.save(stream, update)
