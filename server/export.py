"""A run's model as an ordinary weights file, and a study that starts from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from server.checkpoint import kept_rounds, model_after, read_starting_model
from server.run_folder import RunFolder, write_atomic
from server.study_writing import write_study
from shared.canonical import file_digest
from shared.errors import InputError, RunFolderError, StorageError, StudyError
from shared.provenance import Provenance, read_provenance, with_provenance
from shared.study import Study
from shared.wire import unflatten
from shared.yaml_source import read_yaml

#: What a following study does with the model.
Use = Literal["model", "mask"]


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written: `weights` as a study's `model.weights` names it, and what the file says of itself."""

    path: Path
    tensors: int
    provenance: Provenance
    weights: dict[str, str]


def export_model(
    run: RunFolder, out: Path, *, weights_root: Path, head: bool = True, after_round: int | None = None
) -> Exported:
    """Write the model after the last round, frozen layers included, under the names of its state_dict (.safetensors).

    In place of the last round's, the model `after_round`, where it is kept.

    The file says which run it comes from, of which study, and which runs taught the models that this study named
    (`shared.provenance`); the same run gives the same bytes. Without `head` the last linear layer is left out, and that of the
    descriptors: a study that starts from the file begins with random ones. `weights_root` is where the weights files that the run's study
    names lie. Raises RunFolderError where no round is finished or that round's model is not kept, InputError for another kind of file,
    WeightsError, StorageError.
    """
    from safetensors.torch import save

    from shared.models import build_network
    from shared.models.state import load_travelling

    if out.suffix != ".safetensors":
        raise InputError(f"{out}: expected a name that ends in .safetensors")
    study = run.study()
    start = read_starting_model(run)
    kept = kept_rounds(run)
    if not kept:
        raise RunFolderError(f"{run.path}: no round is finished, so there is no trained model yet")
    number = after_round if after_round is not None else kept[-1]
    flat = model_after(run, number, start.manifest)
    network = build_network(study, weights_root=weights_root)
    load_travelling(network, unflatten(flat, start.manifest))
    heads = (f"{network.head_name}.", "descriptors.")
    tensors = {
        name: tensor.contiguous() for name, tensor in network.state_dict().items() if head or not name.startswith(heads)
    }
    provenance = Provenance(
        study=run.study_data(), run=run.run_id(), round=number, ancestors=ancestors(study, weights_root)
    )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise StorageError(f"{out.parent}: can't be made: {problem.strerror or problem}") from None
    write_atomic(out, with_provenance(save(tensors), provenance), mode=0o644)
    source = f"run {run.run().id} of study {study.name} ({study.digest()[:16]}), after round {number}"
    weights = {"file": out.name, "sha256": file_digest(out), "source": source, "origin": "federation"}
    return Exported(out, len(tensors), provenance, weights)


def ancestors(study: Study, weights_root: Path) -> tuple[str | None, ...]:
    """Runs that taught the models which the study names, oldest first, each once; None where a federation's model names no run.

    Raises WeightsError.
    """
    found: dict[str | None, None] = {}
    for weights in study.weight_files.values():
        earlier = read_provenance(weights_root / Path(weights.file).expanduser())
        if earlier is not None:
            found.update(dict.fromkeys(earlier.runs))
        elif weights.origin == "federation":
            found[None] = None
    return tuple(found)


def study_from(study: Path, target: Path, exported: Exported, *, use: Use, public: bool) -> Study:
    """Write `study` to `target` with the exported weights in their place, and read it. Comments of the file are not kept.

    `use` says what for: as the model that training starts from, or to predict masks (a threshold that is there already stays). `public`
    says that nobody's patients were trained on: only then may a private study use it. A study that is refused is not written.

    Raises StudyError, StorageError, InputError where the weights don't lie beside the new study, WeightsError where masks are asked of a
    model that gives none.
    """
    if target.resolve().parent != exported.path.resolve().parent:
        raise InputError(
            f"{target}: expected it beside {exported.path}, since a study names its weights relative to itself"
        )
    data: dict[str, Any] = dict(read_yaml(study, StudyError).data)
    weights = {**exported.weights, "origin": "public" if public else "federation"}
    if use == "mask":
        pixels = data.get("preprocessing", {})
        before = pixels.get("mask")
        threshold = before.get("threshold", 0.5) if isinstance(before, dict) else 0.5
        mask = {"from": "model", "weights": weights, "threshold": threshold}
        data["preprocessing"] = {**pixels, "mask": mask}
    else:
        data["model"] = {**data.get("model", {}), "weights": weights}
    return write_study(target, data, check=partial(_can_predict, root=target.parent) if use == "mask" else None)


def _can_predict(study: Study, root: Path) -> None:
    from shared.models.segmenter import segmenter_of

    segmenter_of(study.preprocessing, root=root)


def divided_otherwise(first: Study, second: Study) -> list[str]:
    """Keys in which two studies differ so that one may test on patients whom the other trains on; none where they divide alike."""
    keys: dict[str, Callable[[Study], object]] = {
        "data.split.id" if first.data.split.id or second.data.split.id else "seed": lambda one: one.split_seed,
        "data.split": lambda one: one.data.split.model_copy(update={"id": None}),
        "data.select": lambda one: one.data.select,
        "data.balanced": lambda one: one.data.balanced,
        "data.scarce_classes": lambda one: one.data.scarce_classes,
        "task.classes": lambda one: one.task.classes,
        "task.hierarchy": lambda one: one.task.hierarchy,
        "task.positive_class": lambda one: one.task.positive_class,
        "task.unit": lambda one: one.task.unit,
        "privacy": lambda one: one.privacy is None,
    }
    return [key for key, said in keys.items() if said(first) != said(second)]
