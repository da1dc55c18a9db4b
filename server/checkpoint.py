"""The global model in files: the starting model, and an atomic checkpoint after every round.

A round's folder appears under its final name only when it is complete: it is filled under a hidden name, fsynced, and renamed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from server.run_folder import RunFolder, write_atomic
from shared.aggregation import OptimiserState
from shared.errors import RunFolderError, StorageError
from shared.run_records import RoundRecord
from shared.study_federation import ServerOptimiser
from shared.wire import Flat, Manifest, flat_digest, flatten, manifest_from_pairs, unflatten

#: Last checkpoints whose weights are kept, besides those that the study asks for; every round.json stays.
KEPT_CHECKPOINTS = 2


@dataclass(frozen=True, slots=True)
class StartingModel:
    """What every site must hold before round 1."""

    manifest: Manifest
    flat: Flat
    frozen_digest: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Global model and optimiser state after `round` (0: the starting model)."""

    round: int
    flat: Flat
    state: OptimiserState


def write_starting_model(folder: RunFolder, model: StartingModel) -> None:
    """`model/manifest.json` and `model/initial.safetensors`. Raises StorageError."""
    target = folder.path / "model"
    try:
        target.mkdir(parents=True, exist_ok=True)
        _save(target / "initial.safetensors", model.flat, model.manifest)
    except OSError as problem:
        raise StorageError(f"{target}: can't be written: {problem.strerror or problem}") from None
    pairs = [[tensor.name, list(tensor.shape)] for tensor in model.manifest.tensors]
    body = {"tensors": pairs, "frozen_digest": model.frozen_digest, "initial_digest": flat_digest(model.flat)}
    write_atomic(target / "manifest.json", json.dumps(body, indent=1).encode())


def read_starting_model(folder: RunFolder) -> StartingModel:
    """Raises RunFolderError where it is missing or was changed."""
    target = folder.path / "model"
    try:
        body = json.loads((target / "manifest.json").read_text())
        manifest = manifest_from_pairs(body["tensors"])
    except (OSError, ValueError, KeyError) as problem:
        raise RunFolderError(f"{target / 'manifest.json'}: can't be read: {problem}") from None
    flat = _load(target / "initial.safetensors", manifest)
    if flat_digest(flat) != body["initial_digest"]:
        raise RunFolderError(f"{target / 'initial.safetensors'}: its digest is not the one in manifest.json")
    return StartingModel(manifest, flat, body["frozen_digest"])


def write_checkpoint(
    folder: RunFolder,
    record: RoundRecord,
    checkpoint: Checkpoint | None,
    manifest: Manifest,
    updates: Path | None = None,
    *,
    signed: Mapping[str, str] | None = None,
    keep_every: int | None = None,
) -> None:
    """Write the round's folder atomically; `updates` is a folder of kept updates that moves into it, `signed` are instructions and
    answers by file name. The models after every `keep_every`th round stay, of the others those after the last rounds. Raises StorageError.

    The seconds that the weights took are added to the record's timing. A round 0 that is prepared again replaces the one before.
    """
    begun = time.monotonic()
    target = folder.round_path(record.round)
    hidden = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(hidden, ignore_errors=True)
        hidden.mkdir(parents=True)
        if checkpoint is not None:
            _save(hidden / "model.safetensors", checkpoint.flat, manifest)
            if checkpoint.state.first.size:
                for name, array in (("first", checkpoint.state.first), ("second", checkpoint.state.second)):
                    np.save(hidden / f"optimiser-{name}.npy", array)
        if updates is not None:
            updates.rename(hidden / "updates")
        write_signed(hidden / "signed", signed or {})
        for path in hidden.rglob("*"):
            if path.is_file():
                _sync(path)
        record = _with_seconds(record, time.monotonic() - begun)
        write_atomic(hidden / "round.json", record.model_dump_json(indent=2).encode() + b"\n")
        _sync(hidden)
        replaced = target.with_name(f".{target.name}.replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        if record.round == 0 and target.exists():
            target.rename(replaced)
        hidden.rename(target)
        shutil.rmtree(replaced, ignore_errors=True)
        _sync(target.parent)
    except OSError as problem:
        shutil.rmtree(hidden, ignore_errors=True)
        raise StorageError(
            f"{target}: the checkpoint of round {record.round} can't be written ({problem.strerror or problem}); "
            "free some space and start a new run; the rounds before it are kept in this folder"
        ) from None
    _forget_old(folder, record.round, keep_every)


def write_signed(folder: Path, signed: Mapping[str, str]) -> None:
    """Signed instructions and answers as files in a folder of their own. Raises StorageError."""
    try:
        folder.mkdir(exist_ok=True)
    except OSError as problem:
        raise StorageError(f"{folder}: can't be made: {problem.strerror or problem}") from None
    for name, text in signed.items():
        write_atomic(folder / name, text.encode() + b"\n")


def latest_checkpoint(folder: RunFolder, manifest: Manifest, optimiser: ServerOptimiser) -> Checkpoint:
    """The last complete round's checkpoint, or the starting model as round 0. Raises RunFolderError where a file was changed."""
    rounds = kept_rounds(folder)
    if not rounds:
        flat = read_starting_model(folder).flat
        return Checkpoint(0, flat, OptimiserState.start(optimiser, flat.size))
    place = folder.round_path(rounds[-1])
    flat = model_after(folder, rounds[-1], manifest)
    state = OptimiserState.start(optimiser, flat.size)
    if state.first.size:
        state = OptimiserState(
            _load_moment(place / "optimiser-first.npy", state.first),
            _load_moment(place / "optimiser-second.npy", state.second),
        )
    return Checkpoint(rounds[-1], flat, state)


def kept_rounds(folder: RunFolder) -> list[int]:
    """Rounds whose model is still there, in order."""
    return sorted(int(path.parent.name) for path in folder.path.glob("rounds/[0-9]*/model.safetensors"))


def model_after(folder: RunFolder, number: int, manifest: Manifest) -> Flat:
    """The global model after a round, of a run that has finished one. Raises RunFolderError where it was not kept, or changed."""
    if number not in (kept := kept_rounds(folder)):
        raise RunFolderError(
            f"{folder.path}: the model after round {number} is not kept (those after {', '.join(map(str, kept))} are); "
            "a study's federation.keep_models says which are"
        )
    place = folder.round_path(number)
    flat = _load(place / "model.safetensors", manifest)
    if flat_digest(flat) != folder.read(place / "round.json", RoundRecord).model_out:
        raise RunFolderError(f"{place / 'model.safetensors'}: its digest is not the one in round.json")
    return flat


def _load_moment(path: Path, like: Flat) -> Flat:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as problem:
        raise RunFolderError(f"{path}: can't be read: {problem}") from None
    if array.shape != like.shape or array.dtype != like.dtype:
        raise RunFolderError(
            f"{path}: expected {like.dtype} of shape {like.shape}, but got {array.dtype} of {array.shape}"
        )
    moment: Flat = array
    return moment


def _with_seconds(record: RoundRecord, seconds: float) -> RoundRecord:
    timing = record.timing.model_copy(
        update={"checkpoint": record.timing.checkpoint + seconds, "total": record.timing.total + seconds}
    )
    return record.model_copy(update={"timing": timing})


def _forget_old(folder: RunFolder, newest: int, keep_every: int | None) -> None:
    for path in folder.path.glob("rounds/[0-9]*/*"):
        number = int(path.parent.name)
        asked_for = path.suffix == ".safetensors" and keep_every is not None and number % keep_every == 0
        if number <= newest - KEPT_CHECKPOINTS and path.suffix in (".safetensors", ".npy") and not asked_for:
            path.unlink(missing_ok=True)


def _save(path: Path, flat: Flat, manifest: Manifest) -> None:
    try:
        # One entry: of several, safetensors writes the order at random, and equal models should be equal files.
        save_file(unflatten(flat, manifest), path, metadata={"digest": flat_digest(flat)})
    except SafetensorError as problem:  # safetensors wraps the operating system's error
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        raise OSError(str(problem)) from None


def _load(path: Path, manifest: Manifest) -> Flat:
    try:
        arrays = load_file(path)
        return flatten({tensor.name: arrays[tensor.name] for tensor in manifest.tensors}, manifest)
    except (OSError, SafetensorError, KeyError) as problem:
        raise RunFolderError(f"{path}: can't be read: {problem}") from None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
