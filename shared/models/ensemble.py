"""Several runs' models as one: their probabilities are averaged, and nothing of it is trained.

Each member is a file that `consilium-server export` wrote, so it brings its own architecture; what it is asked must be the same. The mean
is of the members' probabilities (softmax over the classes, or sigmoid of one logit), each member counting alike: the "simple average" of
Dietterich, "Ensemble Methods in Machine Learning", 2000. Its logits are those of that mean, so that losses and thresholds mean what they
always do. The features are the members' features one after another; the SVM is fitted on them all.

All members are in memory at once. Each image is decoded and moved to the device once for all of them, the SVM needs every member's
features of an image side by side, and a frozen network without gradients or optimiser state costs its weights alone: five ResNet-34 are
430 MB. A study can't name more than twenty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.errors import WeightsError
from shared.models.exported import exported_network
from shared.models.network import Network
from shared.study import Study

#: Parts of a study that say what a network gets to see; members must share them with the study that uses them.
_SAME_INPUT = ("preprocessing", "metadata")


class Ensemble(Network):
    """Members frozen for good. Images `(N, channels, H, W)` to features `(N, sum of the members')`; those to logits `(N, outputs)`."""

    def __init__(self, members: Sequence[Network], *, outputs: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.widths = [member.feature_dim for member in members]
        self.feature_dim = sum(self.widths)
        self._outputs = outputs
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        self.frozen_children = ("members",)
        self.train(self.training)

    @property
    def outputs(self) -> int:
        return self._outputs

    def features(self, x: Tensor) -> Tensor:
        return torch.cat([member.features(x) for member in self._networks()], dim=1)

    def head(self, features: Tensor) -> Tensor:
        """Logits of the mean probability: log of the mean softmax, or the logit of the mean sigmoid."""
        parts = torch.split(features, self.widths, dim=1)
        logits = torch.stack([member.head(part).float() for member, part in zip(self._networks(), parts, strict=True)])
        if self._outputs == 1:
            return _log_mean(F.logsigmoid(logits)) - _log_mean(F.logsigmoid(-logits))
        return _log_mean(F.log_softmax(logits, dim=2))

    def _networks(self) -> list[Network]:
        return [member for member in self.members if isinstance(member, Network)]


def _log_mean(logarithms: Tensor) -> Tensor:
    return torch.logsumexp(logarithms, dim=0) - math.log(len(logarithms))


def ensemble_of(study: Study, *, root: Path | None, build: Callable[[Study], nn.Module]) -> Ensemble:
    """The study's members from their files, which are relative to `root`.

    Raises what `shared.models.exported` raises, and WeightsError where a member has other classes, another number of outputs, or another
    preparation of its images than the study.
    """
    members = []
    for number, weights in enumerate(study.model.members):
        key = f"model.members.{number}"
        own, network = exported_network(weights, root=root, key=key, build=build)
        if not isinstance(network, Network):
            raise WeightsError(
                f"{key}: {weights.file}: study {own.name} finds masks; an ensemble's members tell classes apart"
            )
        _require_same(own, study, f"{key}: {weights.file}")
        members.append(network)
    return Ensemble(members, outputs=study.outputs)


def _require_same(member: Study, study: Study, where: str) -> None:
    asked = (study.task.class_names, study.outputs, study.task.positive_class if study.outputs == 1 else None)
    got = (member.task.class_names, member.outputs, member.task.positive_class if member.outputs == 1 else None)
    if asked != got:
        raise WeightsError(
            f"{where}: expected a model that tells {_told(study)} apart, but study {member.name} trained one that tells {_told(member)}; "
            "members of an ensemble answer one question"
        )
    mine, its = study.to_data(), member.to_data()
    for section in _SAME_INPUT:
        if mine.get(section) != its.get(section):
            raise WeightsError(
                f"{where}: study {member.name} prepared its images otherwise: its section {section} differs from the study's; "
                "members of an ensemble look at the same pixels"
            )


def _told(study: Study) -> str:
    form = f"one output, for {study.task.positive_class}" if study.outputs == 1 else f"{study.outputs} outputs"
    return f"{', '.join(study.task.class_names)} ({form})"
