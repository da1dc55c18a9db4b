from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class SvmConstants:
    components: int
    gamma: float
    steps: int
    sampling_rate: float
    clipping_norm: float
    noise_multiplier: float
    normaliser: float
    learning_rate: float
    weight_decay: float
    seed: int


class PrivateLinearSvm:
    weights: Any

    def predict(self, features: Any) -> Any: ...


def fit(*a: Any, **k: Any) -> PrivateLinearSvm: ...
