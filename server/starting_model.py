"""Makes a run folder: the study, the starting model, and the record of the run. The only part of the coordinator that needs PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from server.checkpoint import StartingModel, write_starting_model
from server.run_folder import RunFolder, write_atomic
from shared.canonical import canonical_json
from shared.documents import StartingPoint
from shared.errors import RunFolderError, StorageError, StudyError
from shared.release import code_digest, versions
from shared.run_records import RunRecord
from shared.stage_updates import stage_bytes
from shared.study import Study
from shared.wire import Manifest, Wire, bytes_on_wire, encode, flat_digest, flatten

#: Held while a process leads the run in this folder.
LOCK = ".lock"


def claim_folder(path: Path) -> RunFolder:
    """Make `path` an empty run folder. Raises RunFolderError where it holds something already, StorageError."""
    require_empty(path)
    try:
        for name in ("rounds", "logs", "model"):
            (path / name).mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise StorageError(f"{path}: can't be made: {problem.strerror or problem}") from None
    return RunFolder(path)


def require_empty(path: Path) -> None:
    """Raises RunFolderError where the folder is there and holds something."""
    if path.exists() and any(child.name != LOCK for child in path.iterdir()):
        raise RunFolderError(f"{path}: already holds something; choose another folder, or remove this one first")


@dataclass(frozen=True, slots=True)
class Built:
    """What a study's network comes to: the model that every site must hold before round 1, and how many parameters it has."""

    model: StartingModel
    parameters: int
    trained_parameters: int


def build_starting_model(study: Study, *, weights_root: Path) -> Built:
    """Build the network from the study's seed or weights; relative weight files lie under `weights_root`.

    Raises WeightsError, also where hospitals are to predict masks and the file for it can't be used, and StudyError.
    """
    from shared.models import build_network
    from shared.models.segmenter import segmenter_of
    from shared.models.state import frozen_digest, travelling_arrays

    segmenter_of(study.preprocessing, root=weights_root)
    network = build_network(study, weights_root=weights_root)
    arrays = travelling_arrays(network)
    manifest = Manifest.of(arrays)
    return Built(
        StartingModel(manifest, flatten(arrays, manifest), frozen_digest(network)),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        trained_parameters=sum(one.numel() for one in network.parameters() if one.requires_grad),
    )


def starting_point(model: StartingModel, wire: Wire) -> StartingPoint:
    """The digests by which a hospital approves the model and knows it again when it travels."""
    return StartingPoint(
        manifest_digest=model.manifest.digest(),
        model_digest=flat_digest(encode(model.flat, wire)),
        frozen_digest=model.frozen_digest,
    )


def fill_folder(folder: RunFolder, study: Study, sites: list[str], *, weights_root: Path) -> None:
    """Write the study, the starting model and the record of the run; relative weight files lie under `weights_root`.

    Raises WeightsError, StudyError, StorageError.
    """
    write_run(folder, study, sites, build_starting_model(study, weights_root=weights_root))


def write_run(folder: RunFolder, study: Study, sites: list[str], built: Built) -> None:
    """`fill_folder` with a starting model that is built already. Raises StorageError."""
    write_starting_model(folder, built.model)
    write_atomic(folder.path / "study.json", canonical_json(study.to_data()))
    manifest = built.model.manifest
    sent = stage_bytes(study, manifest)
    folder.write(
        "run.json",
        RunRecord(
            name=folder.name,
            study_digest=study.digest(),
            started=datetime.now(UTC).isoformat(timespec="milliseconds"),
            state="starting",
            versions={str(name): version for name, version in versions().items()},
            code_digest=code_digest(),
            parameters=built.parameters,
            trained_parameters=built.trained_parameters,
            expected=sorted(sites),
            bytes_down=bytes_on_wire(manifest.size, study.federation.wire),
            bytes_up=max(sent),
            bytes_up_by_stage=sent if study.training.stages else [],
        ),
    )


def check_sites(study: Study, sites: list[str]) -> None:
    """Raises StudyError where the study's quorum or weighting does not fit these sites."""
    weighting = study.federation.weighting
    if isinstance(weighting, dict) and set(weighting) != set(sites):
        raise StudyError(f"the study's weighting names {sorted(weighting)}, but the run's sites are {sorted(sites)}")
    if study.federation.quorum > len(sites):
        count = f"{len(sites)} site{'s' if len(sites) != 1 else ''} ({', '.join(sorted(sites))})"
        raise StudyError(
            f"the study's quorum is {study.federation.quorum}, but the run has {count}; add sites, or lower federation.quorum"
        )
