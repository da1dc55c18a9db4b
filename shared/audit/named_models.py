"""The models that a run's study names, where a federation trained them: which runs they come from, as far as files say it.

A study names a model file by its SHA-256; the file says which run it is of (`shared.provenance`). That is the exporter's word, until the
folder of that run is at hand too: then the file's tensors are compared with the model that the run ended in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from shared.audit.records import RunFiles, stored_model
from shared.audit.verdict import Check
from shared.canonical import digest, file_digest
from shared.errors import InputError
from shared.provenance import Provenance, read_provenance
from shared.wire import unflatten

#: Linear layers that `consilium-server export --without-head` leaves out at most: the head, and the descriptors'.
_LAYERS_LEFT_OUT = 2


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file that an auditor gives: its SHA-256, and what it says of itself."""

    path: Path
    sha256: str
    provenance: Provenance | None


def read_model_file(path: Path) -> ModelFile:
    """Raises InputError where it can't be read, WeightsError where it says half of where it comes from."""
    try:
        return ModelFile(path, file_digest(path), read_provenance(path))
    except OSError as problem:
        raise InputError(f"{path}: can't be read: {problem.strerror or problem}") from None


def check_named_models(files: RunFiles, given: Sequence[ModelFile], earlier: Sequence[RunFiles]) -> list[Check]:
    """One check for each model file that a federation trained or whose file is among the `given`; none for other studies."""
    return [*_named(files, {one.sha256: one for one in given}, {one.run.id: one for one in earlier})]


def _named(files: RunFiles, given: Mapping[str, ModelFile], earlier: Mapping[str, RunFiles]) -> Iterator[Check]:
    for key, weights in files.study.weight_files.items():
        name, file = f"{key} is the model of the run that it names", given.get(weights.sha256)
        if file is None:
            if weights.origin == "federation":
                yield Check(
                    name, "not checkable", f"no --model was given with SHA-256 {weights.sha256} ({weights.source})"
                )
            continue
        if file.provenance is None:
            if weights.origin == "federation":
                yield Check(name, "not checkable", f"{file.path} is the study's file, but names no run")
            continue
        yield _compared(name, file, file.provenance, earlier.get(file.provenance.run))


def _compared(name: str, file: ModelFile, said: Provenance, run: RunFiles | None) -> Check:
    before = [one or "one that nobody named" for one in said.ancestors]
    what = f"run {said.run} after round {said.round}" + (f", which built on {', '.join(before)}" if before else "")
    if run is None:
        return Check(
            name, "not checkable", f"the file says {what}; give that run's folder with --earlier to compare the tensors"
        )
    model = stored_model(run, said.round)
    if model is None:
        return Check(name, "not checkable", f"the file says {what}, whose model is not kept in {run.path}")
    if digest(said.study) != run.study_digest:
        return Check(name, "violated", f"the file says {what}, but of another study than {run.path} holds")
    expected = unflatten(model, run.manifest)
    try:
        tensors = load_file(file.path)
    except (OSError, ValueError, SafetensorError) as problem:
        return Check(name, "violated", f"{file.path}: can't be read as a model: {problem}")
    common = sorted(expected.keys() & tensors.keys())
    other = [one for one in common if not np.array_equal(expected[one], tensors[one])]
    if other or not common:
        told = f"{len(other)} of its tensors are others there ({other[0]})" if other else "none of its tensors is there"
        return Check(name, "violated", f"the file says {what}, but {told}")
    # An export may leave out the head, and that of the descriptors; nothing else.
    lacking = sorted({one.rsplit(".", 1)[0] for one in expected.keys() - tensors.keys()})
    if len(lacking) > _LAYERS_LEFT_OUT:
        return Check(
            name, "violated", f"the file says {what}, but lacks {len(lacking)} of its trained layers ({lacking[0]})"
        )
    without = f" ({' and '.join(lacking)} left out)" if lacking else ""
    return Check(
        name,
        "proven",
        f"{what}: {len(common)} of the {len(expected)} trained tensors, bit for bit{without}; frozen ones are not compared",
    )
