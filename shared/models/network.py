"""What every network of the model family offers, whatever its backbone."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import ClassVar

from torch import Tensor, nn

from shared.errors import StudyError


class Network(nn.Module):
    """A backbone that gives features, and a linear head `fc` on them.

    Subclasses set `feature_dim`, `fc` and `dropout` and override `features`. Children that are frozen keep their parameters and their
    norm statistics whatever happens to the rest: their parameters need no gradient and they stay in eval mode.
    """

    #: what the state_dict calls `fc`
    head_name: ClassVar[str] = "fc"
    #: children that ordinary weight files don't hold, or hold in another shape; they stay as initialised then
    fresh_layers: tuple[str, ...] = ()

    feature_dim: int
    fc: nn.Linear
    dropout: nn.Dropout
    frozen_children: tuple[str, ...] = ()

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

    def adapted(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Published weights of this architecture as this network takes them: by default, as they are."""
        return dict(weights)

    def freeze(self, children: Iterable[str]) -> None:
        """Freeze children by name for good. Raises StudyError for a name that no child with parameters has."""
        known = [name for name, child in self.named_children() if any(True for _ in child.parameters())]
        for name in children:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean '{close[0]}'?" if close else f"layers are {', '.join(known)}"
                raise StudyError(f"model.freeze: the network has no layer '{name}'; {hint}")
            for parameter in self.get_submodule(name).parameters():
                parameter.requires_grad_(False)
            if name not in self.frozen_children:
                self.frozen_children = (*self.frozen_children, name)
        if not any(parameter.requires_grad for parameter in self.parameters()):
            raise StudyError("model.freeze: every layer is frozen, so nothing is left to train")
        self.train(self.training)

    def is_frozen(self, name: str) -> bool:
        """Whether the parameter or buffer `name` belongs to a frozen child."""
        return name.split(".", 1)[0] in self.frozen_children

    def train(self, mode: bool = True) -> Network:
        """As nn.Module.train, except that frozen children stay in eval mode."""
        super().train(mode)
        for name in self.frozen_children:
            self.get_submodule(name).eval()
        return self
