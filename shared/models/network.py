"""What every network of the model family offers, whatever it answers with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from shared.errors import StudyError


class FederatedNetwork(nn.Module):
    """A network that hospitals train together: some of its children may be frozen, and what is not frozen travels.

    Children that are frozen keep their parameters and their norm statistics whatever happens to the rest: their parameters need no
    gradient and they stay in eval mode.
    """

    #: the child that gives the logits, as the state_dict calls it
    head_name: ClassVar[str]
    #: children that ordinary weight files don't hold, or hold in another shape; they stay as initialised then
    fresh_layers: tuple[str, ...] = ()

    frozen_children: tuple[str, ...] = ()
    #: children that stay as they are in this stage of training
    held_children: tuple[str, ...] = ()

    def every_head(self, x: Tensor) -> Tensor:
        """Images to all that the network answers: what `forward` gives, and what else it has to say of an image behind it."""
        answer: Tensor = self(x)
        return answer

    def adapted(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Published weights of this architecture as this network takes them: by default, as they are."""
        return dict(weights)

    def freeze(self, children: Iterable[str]) -> None:
        """Freeze children by name for good. Raises StudyError for a name that no child with parameters has."""
        wanted = tuple(children)
        self._still(wanted, "model.freeze")
        self.frozen_children = tuple(dict.fromkeys((*self.frozen_children, *wanted)))
        self.train(self.training)

    def hold(self, children: Iterable[str]) -> None:
        """Keep children by name as they are, for one stage of training; they come with the model, and leave with no update.

        Raises as `freeze`.
        """
        wanted = tuple(children)
        self._still(wanted, "training.stages.freeze")
        self.held_children = tuple(dict.fromkeys((*self.held_children, *wanted)))
        self.train(self.training)

    def _still(self, children: Iterable[str], key: str) -> None:
        known = [name for name, child in self.named_children() if any(True for _ in child.parameters())]
        for name in children:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean '{close[0]}'?" if close else f"layers are {', '.join(known)}"
                raise StudyError(f"{key}: the network has no layer '{name}'; {hint}")
            for parameter in self.get_submodule(name).parameters():
                parameter.requires_grad_(False)
        if not any(parameter.requires_grad for parameter in self.parameters()):
            raise StudyError(f"{key}: every layer is frozen, so nothing is left to train")

    def is_frozen(self, name: str) -> bool:
        """Whether the parameter or buffer `name` belongs to a frozen child."""
        return name.split(".", 1)[0] in self.frozen_children

    def train(self, mode: bool = True) -> Self:
        """As nn.Module.train, except that frozen and held children stay in eval mode."""
        super().train(mode)
        for name in (*self.frozen_children, *self.held_children):
            self.get_submodule(name).eval()
        return self


class Network(FederatedNetwork):
    """A backbone that gives features, and a linear head `fc` on them; with `add_descriptors` a second one beside it.

    Subclasses set `feature_dim`, `fc` and `dropout` and override `features`.
    """

    head_name: ClassVar[str] = "fc"

    feature_dim: int
    fc: nn.Linear
    dropout: nn.Dropout

    @property
    def outputs(self) -> int:
        """Logits of an image."""
        return self.fc.out_features

    def features(self, x: Tensor) -> Tensor:
        """Images `(N, channels, H, W)` to features `(N, feature_dim)`, before dropout."""
        raise NotImplementedError

    def head(self, features: Tensor) -> Tensor:
        """Features `(N, feature_dim)` to logits `(N, outputs)`."""
        logits: Tensor = self.fc(self.dropout(features))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Images `(N, channels, H, W)` to logits `(N, outputs)`."""
        return self.head(self.features(x))

    def add_descriptors(self, outputs: int) -> None:
        """A further linear layer `descriptors` on the features, for all descriptors together, drawn from torch's global generator.

        The state_dict's other names stay as they were; weight files need not hold it.
        """
        self.add_module("descriptors", nn.Linear(self.feature_dim, outputs))
        self.fresh_layers = (*self.fresh_layers, "descriptors")

    def describe(self, features: Tensor) -> Tensor:
        """Features `(N, feature_dim)` to the descriptors' logits `(N, values of all of them)`. Only where there are descriptors."""
        described: Tensor = self.get_submodule("descriptors")(self.dropout(features))
        return described

    def every_head(self, x: Tensor) -> Tensor:
        """Images to `(N, outputs + values of all descriptors)`: what `forward` gives, then what `describe` does."""
        features = self.features(x)
        logits = self.head(features)
        return torch.cat((logits, self.describe(features)), dim=1) if "descriptors" in self._modules else logits


class EveryHead(nn.Module):
    """A network as a module whose output is that of `every_head`, for what calls modules. The parameters are the network's own."""

    def __init__(self, network: FederatedNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Images `(N, channels, H, W)` to all answers."""
        return self.network.every_head(x)
