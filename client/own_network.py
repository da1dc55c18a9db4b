"""The network that a study describes, built here: its sizes, and whether it is what the coordinator says that it starts from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shared.documents import StartingPoint
from shared.errors import WeightsUnavailableError
from shared.models import build_network
from shared.models.state import frozen_digest, travelling_arrays
from shared.stage_updates import stage_updates
from shared.study import Study
from shared.wire import Manifest, bytes_on_wire, encode, flat_digest, flatten


@dataclass(frozen=True, slots=True)
class OwnNetwork:
    """`obstacles` are sentences that say why this hospital could not take part; `starts_as_published` is None where that can't be told.

    `updates` are those of `shared.stage_updates`.
    """

    parameters: int
    trained: int
    bytes_in: int
    updates: tuple[Manifest, ...]
    starts_as_published: bool | None
    obstacles: tuple[str, ...]


def build_own(study: Study, published: StartingPoint, weights_root: Path) -> OwnNetwork:
    """Build it from the study alone; nothing that the coordinator says about it is taken over. Raises StudyError, WeightsError."""
    obstacles: list[str] = []
    try:
        network = build_network(study, weights_root=weights_root)
        loaded = True
    except WeightsUnavailableError as problem:
        if study.model.members:  # which networks they are is in the files alone
            raise
        obstacles.append(str(problem))
        bare = study.model.model_copy(update={"weights": "none"})
        network, loaded = build_network(study.model_copy(update={"model": bare})), False
    arrays = travelling_arrays(network)
    manifest = Manifest.of(arrays)
    if manifest.digest() != published.manifest_digest:
        obstacles.append(
            "the coordinator's tensors have other names or shapes than the network that this release builds"
        )
    elif loaded and frozen_digest(network) != published.frozen_digest:
        obstacles.append("the coordinator's frozen layers are others than those that this release builds")
    starts: bool | None = None
    if loaded and not obstacles:
        starts = flat_digest(encode(flatten(arrays, manifest), study.federation.wire)) == published.model_digest
    return OwnNetwork(
        parameters=sum(one.numel() for one in network.parameters()),
        trained=sum(one.numel() for one in network.parameters() if one.requires_grad),
        bytes_in=bytes_on_wire(manifest.size, study.federation.wire),
        updates=stage_updates(study, manifest),
        starts_as_published=starts,
        obstacles=tuple(obstacles),
    )
