"""What a hospital keeps of each run in runs/RUN, for its own people: which study, what was begun and ended, and its own figures.

run.json             RunNote, written at the run's first instruction
instructions.jsonl   one line when an instruction is begun, on disk before data is opened, and one when it has ended
figures.json         the figures of the last model that was evaluated, as computed here; what left of them is for the policy to say
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from client.site_folder import SiteFolder
from shared.errors import UNEXPECTED_CODE, ConsiliumError, StorageError
from shared.messages import Instruction, Kind
from shared.private_file import write_private
from shared.results import Evaluated
from shared.schema import Sha256, Strict
from shared.study import Study

_NOTE, _STEPS, _FIGURES = "run.json", "instructions.jsonl", "figures.json"

#: The hospital's own page of a run, in the run's folder.
PAGE_NAME = "evaluation.html"


class RunNote(Strict):
    """Which run this is."""

    format: Literal["consilium/own-run/1"] = "consilium/own-run/1"
    run: str
    study_name: str
    study_title: str
    study_digest: Sha256
    rounds: int
    begun: str


class Step(Strict):
    """An instruction was begun, or has ended; `code` says with which mistake, None where with none."""

    event: Literal["begun", "ended"]
    kind: Kind
    round: int
    at: str
    pid: int = Field(description="of the process that worked on it")
    code: str | None = None


class OwnFigures(Strict):
    """The hospital's evaluation of one model."""

    round: int
    at: str
    evaluated: Evaluated


@dataclass(frozen=True, slots=True)
class OwnRun:
    """One run as it is on record."""

    folder: Path
    note: RunNote
    steps: tuple[Step, ...]

    @property
    def begun_rounds(self) -> tuple[int, ...]:
        """Rounds of training that were begun, ascending."""
        return tuple(sorted({step.round for step in self.steps if (step.event, step.kind) == ("begun", "train")}))

    @property
    def evaluations(self) -> int:
        """Models of which an evaluation was begun: the starting model's, at most, and those of `evaluate`."""
        return len({(step.kind, step.round) for step in self.steps if step.event == "begun" and step.kind != "train"})

    @property
    def last(self) -> Step | None:
        return self.steps[-1] if self.steps else None

    @property
    def now(self) -> Step | None:
        """The instruction that a living process works on."""
        last = self.last
        return last if last is not None and last.event == "begun" and _lives(last.pid) else None

    def figures(self) -> OwnFigures | None:
        try:
            return OwnFigures.model_validate_json((self.folder / _FIGURES).read_bytes())
        except (OSError, ValidationError):
            return None


def own_runs(folder: SiteFolder) -> list[OwnRun]:
    """All runs that have a record, the latest first."""
    found = [run for path in (folder.path / "runs").glob("*") if (run := read_run(path)) is not None]
    return sorted(found, key=lambda run: (run.note.begun, run.note.run), reverse=True)


def read_run(run_folder: Path) -> OwnRun | None:
    """None where it holds no record that can be read."""
    try:
        note = RunNote.model_validate_json((run_folder / _NOTE).read_bytes())
    except (OSError, ValidationError):
        return None
    try:
        lines = (run_folder / _STEPS).read_bytes().splitlines()
    except OSError:
        lines = []
    return OwnRun(run_folder, note, tuple(_steps(lines)))


@contextmanager
def on_record(run_folder: Path, instruction: Instruction, study: Study) -> Iterator[None]:
    """Notes the beginning before the block and the end after it. Raises StorageError, before the block."""
    if not (run_folder / _NOTE).exists():
        note = RunNote(
            run=instruction.run,
            study_name=study.name,
            study_title=study.title,
            study_digest=instruction.study_digest,
            rounds=study.federation.rounds,
            begun=_now(),
        )
        write_private(run_folder / _NOTE, note.model_dump_json(indent=2).encode() + b"\n")
    _append(run_folder, "begun", instruction)
    try:
        yield
    except ConsiliumError as problem:
        _append(run_folder, "ended", instruction, problem.code)
        raise
    except Exception:
        _append(run_folder, "ended", instruction, UNEXPECTED_CODE)
        raise
    _append(run_folder, "ended", instruction)


def keep_figures(run_folder: Path, number: int, evaluated: Evaluated) -> None:
    """Raises StorageError."""
    figures = OwnFigures(round=number, at=_now(), evaluated=evaluated)
    write_private(run_folder / _FIGURES, figures.model_dump_json(indent=2).encode() + b"\n")


def _append(
    run_folder: Path, event: Literal["begun", "ended"], instruction: Instruction, code: str | None = None
) -> None:
    step = Step(event=event, kind=instruction.kind, round=instruction.round, at=_now(), pid=os.getpid(), code=code)
    path = run_folder / _STEPS
    try:
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "r+b") as stream:
            size = stream.seek(0, os.SEEK_END)
            cut_off = size > 0 and os.pread(stream.fileno(), 1, size - 1) != b"\n"  # by a kill
            stream.write((b"\n" if cut_off else b"") + step.model_dump_json().encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as problem:
        raise StorageError(f"{path}: can't be written: {problem.strerror or problem}") from None


def _steps(lines: list[bytes]) -> Iterator[Step]:
    for line in lines:
        try:
            yield Step.model_validate_json(line)
        except ValidationError:  # cut off by a kill
            continue


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
