"""A run's final model as an ordinary weights file, and a study that starts from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from server.checkpoint import latest_checkpoint, read_starting_model
from server.run_folder import RunFolder, write_atomic
from shared.canonical import file_digest
from shared.errors import InputError, RunFolderError, StorageError, StudyError
from shared.study import load_study
from shared.wire import unflatten
from shared.yaml_source import read_yaml


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written: `weights` as a study's `model.weights` names it."""

    path: Path
    tensors: int
    round: int
    weights: dict[str, str]


def export_model(run: RunFolder, out: Path, *, weights_root: Path, head: bool = True) -> Exported:
    """Write the model after the last round, frozen layers included, under the names of its state_dict (.safetensors).

    Without `head` the last linear layer is left out: a study that starts from the file begins with a random one. `weights_root` is
    where a starting weights file of the run's study lies. Raises RunFolderError where no round is finished, InputError for another kind
    of file, WeightsError, StorageError.
    """
    from safetensors.torch import save_file

    from shared.models import build_network
    from shared.models.state import load_travelling

    if out.suffix != ".safetensors":
        raise InputError(f"{out}: expected a name that ends in .safetensors")
    study = run.study()
    start = read_starting_model(run)
    last = latest_checkpoint(run, start.manifest, study.federation.optimiser)
    if last.round == 0:
        raise RunFolderError(f"{run.path}: no round is finished, so there is no trained model yet")
    network = build_network(study, weights_root=weights_root)
    load_travelling(network, unflatten(last.flat, start.manifest))
    tensors = {
        name: tensor.contiguous()
        for name, tensor in network.state_dict().items()
        if head or not name.startswith(f"{network.head_name}.")
    }
    hidden = out.with_name(f".{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, hidden)
        hidden.replace(out)
    except OSError as problem:
        hidden.unlink(missing_ok=True)
        raise StorageError(f"{out}: can't be written: {problem.strerror or problem}") from None
    source = f"run {run.run().id} of study {study.name} ({study.digest()[:16]}), after round {last.round}"
    weights = {"file": out.name, "sha256": file_digest(out), "source": source, "origin": "federation"}
    return Exported(out, len(tensors), last.round, weights)


def study_from(study: Path, target: Path, exported: Exported, *, public: bool) -> str:
    """Write `study` to `target`, starting from the exported weights; its digest. Comments of the file are not kept.

    `public` says that nobody's patients were trained on: only then may a private study start from it. Raises StudyError, StorageError,
    InputError where the weights don't lie beside the new study.
    """
    if target.resolve().parent != exported.path.resolve().parent:
        raise InputError(
            f"{target}: expected it beside {exported.path}, since a study names its weights relative to itself"
        )
    data: dict[str, Any] = dict(read_yaml(study, StudyError).data)
    weights = {**exported.weights, "origin": "public" if public else "federation"}
    data["model"] = {**data.get("model", {}), "weights": weights}
    write_atomic(target, yaml.safe_dump(data, sort_keys=False, allow_unicode=True).encode(), mode=0o644)
    return load_study(target).digest()
