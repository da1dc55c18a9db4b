"""Several runs' models as one study: each exported beside it, and the study that averages their answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from server.export import Exported, divided_otherwise, export_model
from server.run_folder import RunFolder
from server.study_writing import write_study
from shared.errors import InputError
from shared.study import Study

#: What an ensemble's `training` keeps of its members'.
_KEPT = ("precision", "memory_format")
#: And its `federation` of the first one's.
_KEPT_OF_FEDERATION = ("quorum", "join_deadline_s", "prepare_deadline_s", "evaluation_deadline_s")


@dataclass(frozen=True, slots=True)
class EnsembleStudy:
    """What was written. `otherwise` names, by run, keys by which its study divides patients otherwise than the ensemble's."""

    study: Study
    members: tuple[Exported, ...]
    otherwise: dict[str, list[str]]


def write_ensemble(runs: Sequence[RunFolder], target: Path, *, weights_root: Path) -> EnsembleStudy:
    """Export the runs' last models beside `target` and write the study of their ensemble there, after the first run's study.

    Raises InputError for fewer than two runs, two of one name, a first run that finds masks, or a file that is there; RunFolderError
    where a run has no finished round; WeightsError where the runs' models don't answer one question about the same pixels; StudyError,
    StorageError.
    """
    from shared.models import build_network

    names = [run.name for run in runs]
    if len(runs) < 2 or len(set(names)) < len(names):
        raise InputError(f"expected two or more runs of different names, but got {', '.join(names) or 'none'}")
    first = runs[0].study()
    if first.task.kind != "classification":
        raise InputError(f"{runs[0].path}: its model finds masks; an ensemble's members tell classes apart")
    files = [target.with_name(f"{target.stem}-{name}.safetensors") for name in names]
    if there := [str(path) for path in (target, *files) if path.exists()]:
        raise InputError(f"{', '.join(there)}: already there; remove it, or choose another name")
    written: list[Exported] = []
    try:
        for run, path in zip(runs, files, strict=True):
            written.append(export_model(run, path, weights_root=weights_root))
        data = _study(first, written)
        study = write_study(target, data, check=partial(build_network, weights_root=target.parent))
    except Exception:
        for path in files:
            path.unlink(missing_ok=True)
        raise
    otherwise = {run.name: keys for run in runs if (keys := divided_otherwise(run.study(), study))}
    return EnsembleStudy(study, tuple(written), otherwise)


def _study(first: Study, members: Sequence[Exported]) -> dict[str, Any]:
    """The first run's study without all that trains, and without descriptors, which an ensemble does not give."""
    data = {key: value for key, value in first.to_data().items() if key not in ("augmentation", "privacy")}
    loss = "binary_cross_entropy" if first.outputs == 1 else "cross_entropy"
    federation = {key: data["federation"][key] for key in _KEPT_OF_FEDERATION}
    return {
        **data,
        "name": f"{first.name}-ensemble"[:63],
        "description": "Nothing is trained: the probabilities of earlier runs' models are averaged, each counting alike.",
        "title": f"Ensemble of {len(members)} runs: {first.title}",
        "task": {**data["task"], "descriptors": {}},
        "model": {"name": "ensemble", "members": [member.weights for member in members]},
        "training": {"loss": loss, **{key: data["training"][key] for key in _KEPT}},
        "federation": {"rounds": 0, "weighting": "uniform", **federation},
        "evaluation": {**data["evaluation"], "baseline": False},
    }
