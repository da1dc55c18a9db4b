"""The network that a study describes, with its starting weights and frozen layers."""

from __future__ import annotations

from pathlib import Path

import torch

from shared.errors import StudyError
from shared.models.attention import Attention
from shared.models.network import Network
from shared.models.registry import builder_of, require_options
from shared.models.weights import fit_weights, read_weights, torchvision_weights
from shared.seeds import derived_seed
from shared.study import Study
from shared.study_model import WeightsFile


def build_network(study: Study, *, weights_root: Path | None = None) -> Network:
    """The study's network in float32 on the CPU, in training mode: the same study gives the same bytes everywhere.

    Initial weights come from the study's seed; torch's global generator is left as it was. Weights of a file or of torchvision replace
    them, except a head or stem of another shape and attention that the weights don't hold; in a frozen layer such attention is held open
    (a constant 1), so that the layer does what its weights were trained for. `weights_root` is the folder that a relative weight file is
    relative to. Raises StudyError for an unknown model or layer or an option that the model lacks, WeightsError for weights that are
    missing or don't fit.
    """
    build = builder_of(study.model.name)
    require_options(study)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derived_seed("network", study.seed))
        network = build(study)
        if study.task.descriptors:  # last, so that all other layers are drawn as without
            network.add_descriptors(sum(study.task.descriptor_sizes))
    filled: frozenset[str] = frozenset()
    if isinstance(study.model.weights, WeightsFile):
        filled = fit_weights(network, read_weights(study.model.weights, root=weights_root))
    elif study.model.weights == "torchvision":
        filled = fit_weights(network, torchvision_weights(study.model.name))
    network.train()
    network.freeze(study.model.freeze)
    for layer in (network.head_name, *network.fresh_layers):
        held = any(name.startswith(f"{layer}.") for name in filled)
        if network.is_frozen(layer) and filled and not held:
            wanted = f"for {study.outputs} outputs" if layer == network.head_name else "of this shape"
            raise StudyError(f"model.freeze: '{layer}' is frozen, but the weights hold no '{layer}' {wanted}")
    for name, module in network.named_modules():
        fresh = isinstance(module, Attention) and not any(key.startswith(f"{name}.") for key in filled)
        if fresh and network.is_frozen(name):
            assert isinstance(module, Attention)
            module.hold_open()
    return network
