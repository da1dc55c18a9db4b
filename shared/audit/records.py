"""The records of a run as files: read, and of the right form."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.numpy import load_file

from shared.canonical import digest
from shared.errors import ConsiliumError, InputError
from shared.run_records import FinalRecord, RoundRecord, RunRecord
from shared.study import Study, study_from_data
from shared.wire import Flat, Manifest, flatten, manifest_from_pairs

Record = TypeVar("Record", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class RunFiles:
    """The records of a run, read and of the right form."""

    path: Path
    study: Study
    #: Of the study as it stands in the file. A later release reads more keys into it, whose defaults are not part of what was approved.
    study_digest: str
    run: RunRecord
    rounds: tuple[RoundRecord, ...]
    final: FinalRecord | None
    manifest: Manifest
    start: Flat

    def place(self, number: int) -> Path:
        return self.path / "rounds" / f"{number:04d}"


def read_run(path: Path) -> RunFiles:
    """Raises InputError, naming the file, where a record is missing or not of its form."""
    names = sorted(path.glob("rounds/[0-9]*/round.json"))
    evaluation = path / "evaluation.json"
    pairs = _json(path / "model" / "manifest.json").get("tensors", [])
    manifest = manifest_from_pairs(pairs)
    study = _json(path / "study.json")
    return RunFiles(
        path=path,
        study=study_from_data(study),
        study_digest=digest(study),
        run=_record(path / "run.json", RunRecord),
        rounds=tuple(_record(name, RoundRecord) for name in names),
        final=_record(evaluation, FinalRecord) if evaluation.exists() else None,
        manifest=manifest,
        start=_model(path / "model" / "initial.safetensors", manifest),
    )


def stored_model(files: RunFiles, number: int) -> Flat | None:
    """The global model after a round, where it is kept. Raises InputError where it can't be read."""
    path = files.place(number) / "model.safetensors"
    return _model(path, files.manifest) if path.exists() else None


def _record(path: Path, schema: type[Record]) -> Record:
    try:
        return schema.model_validate(_json(path))
    except ValueError as problem:
        raise InputError(f"{path}: not as expected: {problem}") from None


def _json(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; is this the folder of a run?") from None
    except (OSError, ValueError) as problem:
        raise InputError(f"{path}: can't be read: {problem}") from None
    if not isinstance(body, dict):
        raise InputError(f"{path}: expected a JSON object")
    return body


def _model(path: Path, manifest: Manifest) -> Flat:
    try:
        arrays = load_file(path)
        return flatten({tensor.name: arrays[tensor.name] for tensor in manifest.tensors}, manifest)
    except (OSError, KeyError, SafetensorError, ConsiliumError) as problem:
        raise InputError(f"{path}: can't be read as the model of this run: {problem}") from None
