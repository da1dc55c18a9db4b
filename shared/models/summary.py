"""What a study's network is, before anybody trains it: sizes, bytes exchanged, and a trial step."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from shared.errors import StudyError
from shared.models.build import build_network
from shared.models.network import FederatedNetwork, Network
from shared.models.state import travelling
from shared.seeds import derived_seed
from shared.stage_updates import stage_bytes
from shared.study import Study
from shared.wire import Manifest, bytes_on_wire


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """Sizes of a study's network. Bytes are those of the arrays, for one site and one round, without transport headers; those up are
    of a round of each stage of training, or of every round.
    """

    parameters: int
    trained_parameters: int
    bytes_down: int
    bytes_up: tuple[int, ...]
    input_shape: tuple[int, int, int]
    #: of all heads together
    output_shape: tuple[int, ...]
    #: None where the network answers with a mask
    feature_dim: int | None
    #: why Opacus can't give per-sample gradients of this network; empty where it can
    dp_obstacles: tuple[str, ...]

    @property
    def dp_compatible(self) -> bool:
        return not self.dp_obstacles


def summarise(
    study: Study, *, weights_root: Path | None = None, network: FederatedNetwork | None = None
) -> ModelSummary:
    """Build the study's network (or take `network`), and run a batch of two forward and backward.

    Raises what `build_network` raises, and StudyError where the trial step fails or a trained parameter gets no finite gradient.
    """
    if network is None:
        network = build_network(study, weights_root=weights_root)
    for stage in study.training.stages:
        copy.deepcopy(network).hold(stage.freeze)  # raises where a name is of no layer
    output_shape = _trial_step(network, study, study.input_shape)
    manifest = Manifest.of(dict(travelling(network)))
    return ModelSummary(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        trained_parameters=sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad),
        bytes_down=bytes_on_wire(manifest.size, study.federation.wire),
        bytes_up=tuple(stage_bytes(study, manifest)),
        input_shape=study.input_shape,
        output_shape=output_shape[1:],
        feature_dim=network.feature_dim if isinstance(network, Network) else None,
        dp_obstacles=dp_obstacles(network),
    )


def _trial_step(original: FederatedNetwork, study: Study, shape: tuple[int, int, int]) -> tuple[int, ...]:
    network = copy.deepcopy(original).train()  # a step in training mode changes the running statistics
    seed = derived_seed("trial step", study.seed)
    images = torch.rand((2, *shape), generator=torch.Generator().manual_seed(seed))
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            logits = network.every_head(images)
        if logits.requires_grad:  # not of an ensemble, which trains nothing
            torch.autograd.backward(nn.functional.softplus(logits).sum())
        starved = [
            name
            for name, parameter in network.named_parameters()
            if parameter.requires_grad and (parameter.grad is None or not bool(torch.isfinite(parameter.grad).all()))
        ]
    except (RuntimeError, ValueError) as problem:
        reason = str(problem).splitlines()[0]
        raise StudyError(f"model: a batch of two images of shape {shape} does not pass through: {reason}") from None
    if starved:
        raise StudyError(f"model: {len(starved)} trained parameters get no finite gradient, e.g. '{starved[0]}'")
    return tuple(logits.shape)


def dp_obstacles(network: FederatedNetwork) -> tuple[str, ...]:
    """Opacus' objections to training this network privately, each once, first sentence only."""
    from opacus.validators import ModuleValidator  # slow to import, and needed here alone

    training = network.training
    try:
        problems = ModuleValidator.validate(network.train(), strict=False)
    finally:
        network.train(training)
    return tuple(dict.fromkeys(str(problem).split(". ")[0].strip() for problem in problems))
