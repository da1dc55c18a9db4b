"""Aggregation and server optimisers, in NumPy only: the coordinator runs them, and the auditor runs them again.

Same updates, same weights: same bytes, whatever the order of arrival, because sites are always added in the order of their names and
every sum is taken in float64, chunk by chunk. Memory is one chunk of float64 beside the model, however many sites there are:
updates lie in files and are read through memory maps.

Sources: FedAvg, McMahan et al. 2017 (arXiv 1602.05629); server optimisers, Reddi et al. 2021 (arXiv 2003.00295), algorithm 2;
FedAvgM, Hsu et al. 2019 (arXiv 1909.06335).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shared.errors import WireError
from shared.study_federation import ServerOptimiser
from shared.wire import Flat, Manifest, cut, put

_CHUNK = 1 << 18  # values of float64 held at a time: 2 MiB


def normalised_weights(raw: Mapping[str, float]) -> dict[str, float]:
    """Weights by site in name order, adding up to 1. Raises ValueError where there is none or one is not positive."""
    if not raw or any(value <= 0 for value in raw.values()):
        raise ValueError(f"expected positive weights of at least one site, but got {dict(raw)}")
    total = float(sum(raw[site] for site in sorted(raw)))
    return {site: float(raw[site]) / total for site in sorted(raw)}


def weighted_mean(updates: Mapping[str, Path | Flat], weights: Mapping[str, float]) -> Flat:
    """Mean update (n,) float32 of flat float32 updates by site: .npy files, or arrays. Raises WireError where lengths differ."""
    if set(updates) != set(weights):
        raise ValueError(f"expected weights of the sites {sorted(updates)}, but got {sorted(weights)}")
    sites = sorted(updates)
    opened = [_open(updates[site]) for site in sites]
    size = opened[0].shape[0]
    for site, array in zip(sites, opened, strict=True):
        if array.shape != (size,) or array.dtype != np.float32:
            raise WireError(
                f"update of {site}: expected float32 of shape ({size},), but got {array.dtype} of {array.shape}"
            )
    mean = np.empty(size, dtype=np.float32)
    for start in range(0, size, _CHUNK):
        stop = min(start + _CHUNK, size)
        total = np.zeros(stop - start, dtype=np.float64)
        for site, array in zip(sites, opened, strict=True):
            total += array[start:stop].astype(np.float64) * weights[site]
        mean[start:stop] = total
    return mean


def _open(update: Path | Flat) -> Flat:
    if isinstance(update, Path):
        loaded: Flat = np.load(update, mmap_mode="r", allow_pickle=False)
        return loaded
    return update


@dataclass(frozen=True, slots=True)
class OptimiserState:
    """First and second moment of a server optimiser, or empty arrays where it keeps none."""

    first: Flat
    second: Flat

    @classmethod
    def start(cls, optimiser: ServerOptimiser, size: int) -> OptimiserState:
        """State before round 1: zero momentum, second moment tau squared (Reddi et al., algorithm 2)."""
        none = np.empty(0, dtype=np.float32)
        first = none if optimiser.name == "fedavg" else np.zeros(size, dtype=np.float32)
        adaptive = optimiser.name in ("fedadam", "fedyogi")
        return cls(first, np.full(size, optimiser.tau**2, dtype=np.float32) if adaptive else none)


def apply_update(
    model: Flat, mean: Flat, optimiser: ServerOptimiser, state: OptimiserState
) -> tuple[Flat, OptimiserState]:
    """Next global model (n,) and optimiser state from the mean update (n,), which points from the old model to the sites' new ones."""
    rate = optimiser.learning_rate
    if optimiser.name == "fedavg":
        return _step(model, mean, rate), state
    b1, b2 = np.float32(optimiser.beta1), np.float32(optimiser.beta2)
    if optimiser.name == "fedavgm":
        first = b1 * state.first + mean
        return _step(model, first, rate), OptimiserState(first, state.second)
    first = b1 * state.first + (np.float32(1) - b1) * mean
    square = mean * mean
    if optimiser.name == "fedadam":
        second = b2 * state.second + (np.float32(1) - b2) * square
    else:
        second = state.second - (np.float32(1) - b2) * square * np.sign(state.second - square)
    step = np.asarray(first / (np.sqrt(second) + np.float32(optimiser.tau)), dtype=np.float32)
    return _step(model, step, rate), OptimiserState(first, np.asarray(second, dtype=np.float32))


def apply_to_free(
    model: Flat, mean: Flat, optimiser: ServerOptimiser, state: OptimiserState, *, manifest: Manifest, free: Manifest
) -> tuple[Flat, OptimiserState]:
    """As `apply_update`, from a mean update (free.size,) of the tensors that a stage of training leaves free.

    Of the others model and optimiser state (manifest.size,) stay, bit for bit: momentum of an earlier stage does not move what is held.
    """
    if free == manifest:
        return apply_update(model, mean, optimiser, state)

    def of_free(moment: Flat) -> Flat:
        return cut(moment, manifest, free) if moment.size else moment

    def whole(moment: Flat, before: Flat) -> Flat:
        return put(moment, before, manifest, free) if before.size else before

    before = OptimiserState(of_free(state.first), of_free(state.second))
    after, moved = apply_update(cut(model, manifest, free), mean, optimiser, before)
    following = OptimiserState(whole(moved.first, state.first), whole(moved.second, state.second))
    return put(after, model, manifest, free), following


def _step(model: Flat, direction: npt.NDArray[np.float32], rate: float) -> Flat:
    if rate == 1.0:
        return model + direction
    return model + np.float32(rate) * direction
