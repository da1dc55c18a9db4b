"""What a model says of one part of a hospital's images. Stays in the hospital."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.descriptors import Described


@dataclass(frozen=True, slots=True)
class PartFeatures:
    """Backbone features and logits of N images, in a fixed order.

    `keys` are the records' keys, `features` (N, D), `logits` (N, outputs) before sigmoid or softmax, `labels` (N,)
    class indices, `patients` (N,) ids; `described` where the study has descriptors. Raises ValueError where the lengths differ.
    """

    keys: tuple[str, ...]
    features: NDArray[np.float32]
    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    patients: NDArray[Any]
    described: Described | None = None

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in ("keys", "features", "logits", "labels", "patients")}
        if self.described is not None:
            lengths |= {"descriptors": len(self.described.values), "descriptors' logits": len(self.described.logits)}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"Expected as many rows in each field, but got {lengths}")
        if self.features.ndim != 2 or self.logits.ndim != 2:
            raise ValueError(
                f"Expected features (N, D) and logits (N, outputs), but got {self.features.shape} and {self.logits.shape}"
            )

    @property
    def images(self) -> int:
        return len(self.keys)

    @property
    def patient_count(self) -> int:
        return int(np.unique(self.patients).size)
