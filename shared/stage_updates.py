"""How much an update holds in each stage of training."""

from __future__ import annotations

from shared.study import Study
from shared.wire import Manifest, bytes_on_wire


def stage_updates(study: Study, manifest: Manifest) -> tuple[Manifest, ...]:
    """Of what travels, the tensors of an update of each stage in turn; one, of every round, where the study has no stages."""
    stages = study.training.stages
    return tuple(manifest.without(stage.freeze) for stage in stages) if stages else (manifest,)


def stage_bytes(study: Study, manifest: Manifest) -> list[int]:
    """Array bytes of the updates of `stage_updates`."""
    return [bytes_on_wire(update.size, study.federation.wire) for update in stage_updates(study, manifest)]
