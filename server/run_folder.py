"""The run folder: everything the coordinator keeps of one run, as files that people and programs can read.

runs/NAME/
  study.json               the study, canonical
  run.json                 RunRecord: who, what, which code, state
  rounds/0000/round.json   RoundRecord of round 0 (PREPARE: data counts and the baseline evaluation)
  rounds/0001/round.json   RoundRecord; model.safetensors beside it is the global model after the round
  evaluation.json          FinalRecord: each site's evaluation of the final model
  events.jsonl             Event a line, appended as things happen: what the live view reads
  logs/                    output of the processes
  report.json, report.html made from the above by `consilium-server report`
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from shared.atomic_file import write_atomic as write_atomic
from shared.errors import RunFolderError, StorageError
from shared.run_records import Event, FinalRecord, RoundRecord, RunRecord, State
from shared.study import Study, study_from_data

Record = TypeVar("Record", bound=BaseModel)


class RunFolder:
    """Typed access to one run folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        return self.path.name

    def round_path(self, number: int) -> Path:
        return self.path / "rounds" / f"{number:04d}"

    def rounds(self) -> list[RoundRecord]:
        """All finished rounds in order."""
        return [self.read(path, RoundRecord) for path in sorted(self.path.glob("rounds/[0-9]*/round.json"))]

    def study(self) -> Study:
        return study_from_data(self.study_data())

    def study_data(self) -> Any:
        """The study as it stands in the file: what was approved, whatever keys a later release knows besides."""
        return self._json(self.path / "study.json")

    def run(self) -> RunRecord:
        return self.read(self.path / "run.json", RunRecord)

    def expected_sites(self) -> list[str]:
        return sorted(self.run().expected)

    def run_id(self) -> str:
        """What the run is called in messages."""
        return self.run().id

    def update_run(self, **changes: Any) -> None:
        """Rewrite run.json with some values changed."""
        self.write("run.json", self.run().model_copy(update=changes))

    def end(self, state: State, reason: str, code: str | None = None) -> None:
        """Note that the run has stopped or failed, and why."""
        ended = datetime.now(UTC).isoformat(timespec="seconds")
        self.note(Event(at=time.time(), kind="run", phase="done", text=f"{state}: {reason}"))
        self.update_run(state=state, reason=reason, code=code, ended=ended)

    def final(self) -> FinalRecord | None:
        path = self.path / "evaluation.json"
        return self.read(path, FinalRecord) if path.exists() else None

    def events(self) -> Iterator[Event]:
        """Events so far; a line that is still being written is left for the next call."""
        path = self.path / "events.jsonl"
        if not path.exists():
            return
        with path.open(encoding="utf-8") as stream:
            for line in stream:
                if line.endswith("\n"):
                    yield Event.model_validate_json(line)

    def note(self, event: Event) -> None:
        """Append one event."""
        try:
            with (self.path / "events.jsonl").open("a", encoding="utf-8") as stream:
                stream.write(event.model_dump_json(exclude_none=True) + "\n")
        except OSError as problem:
            raise StorageError(f"{self.path}: can't be written: {problem.strerror or problem}") from None

    def write(self, name: str, record: BaseModel) -> None:
        write_atomic(self.path / name, record.model_dump_json(indent=2).encode() + b"\n")

    def read(self, path: Path, schema: type[Record]) -> Record:
        try:
            return schema.model_validate(self._json(path))
        except ValueError as problem:
            raise RunFolderError(f"{path}: not as expected: {problem}") from None

    def _json(self, path: Path) -> Any:
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunFolderError(f"{path}: no such file; is {self.path} the folder of a run?") from None
        except (OSError, ValueError) as problem:
            raise RunFolderError(f"{path}: can't be read: {problem}") from None
