"""What a network says of a lesion beside its class: logits of the descriptors, their probabilities, and the figures that leave."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from shared.metrics.descriptors import descriptor_result
from shared.models.network import Network
from shared.results import DescriptorResult
from shared.study import Study
from shared.study_descriptors import ABSENT


@dataclass(frozen=True, slots=True)
class Described:
    """The D descriptors of N images: `values` (N, D) what the data says (ABSENT where nothing), `logits` (N, values of all descriptors)."""

    values: NDArray[np.int64]
    logits: NDArray[np.float32]

    def blocks(self, sizes: Sequence[int]) -> list[NDArray[np.float64]]:
        """The logits `(N, values)` of each descriptor; `sizes` are the numbers of values."""
        return np.split(self.logits.astype(np.float64), np.cumsum(sizes)[:-1], axis=1)

    def probabilities(self, sizes: Sequence[int]) -> list[NDArray[np.float64]]:
        """A softmax `(N, values)` for each descriptor."""
        found = []
        for block in self.blocks(sizes):
            raised = np.exp(block - block.max(axis=1, keepdims=True))
            found.append(raised / raised.sum(axis=1, keepdims=True))
        return found


def described(
    network: Network, features: NDArray[np.float32], values: NDArray[np.int64], *, device: torch.device
) -> Described | None:
    """What `network` says of images with these features `(N, feature_dim)`, in eval mode. None without descriptors: `values` `(N, 0)`."""
    if values.shape[1] == 0:
        return None
    mode = network.training
    network.to(device).eval()
    try:
        with torch.inference_mode():
            logits = network.describe(torch.from_numpy(features).to(device)).float().cpu().numpy()
    finally:
        network.train(mode)
    return Described(values, logits)


def descriptor_results(
    found: Described, patients: NDArray[np.generic], study: Study, *, minimum_cell: int, seed: int
) -> dict[str, DescriptorResult]:
    """Figures of each descriptor that at least `minimum_cell` test images have, by its name."""
    settings, results = study.evaluation, {}
    for name, truth, said, size in _each(found, study):
        has = truth != ABSENT
        result = descriptor_result(
            truth[has],
            said[has],
            patients[has],
            values=size,
            resamples=settings.resamples,
            confidence=settings.confidence,
            minimum_cell=max(minimum_cell, settings.minimum_cell),
            seed=seed,
        )
        if result is not None:
            results[name] = result
    return results


def _each(found: Described, study: Study) -> Iterator[tuple[str, NDArray[np.int64], NDArray[np.int64], int]]:
    """Name, truth (N,), likeliest value (N,) and number of values of each descriptor."""
    sizes = study.task.descriptor_sizes
    for name, truth, block, size in zip(
        study.task.descriptors, found.values.T, found.blocks(sizes), sizes, strict=True
    ):
        yield name, truth, block.argmax(1).astype(np.int64), size


@dataclass(frozen=True, slots=True)
class Said:
    """Of one descriptor of one image: the likeliest value, its probability, and what the data says (None: nothing)."""

    value: str
    probability: float
    truth: str | None


def said_of(found: Described, study: Study) -> list[list[Said]]:
    """Of each image, each descriptor in the study's order."""
    columns = []
    for descriptor, truth, chance in zip(
        study.task.descriptors.values(),
        found.values.T,
        found.probabilities(study.task.descriptor_sizes),
        strict=True,
    ):
        names = [*descriptor.value_names, None]  # ABSENT is the last
        columns.append(
            [
                Said(descriptor.value_names[row.argmax()], float(row.max()), names[is_])
                for row, is_ in zip(chance, truth.tolist(), strict=True)
            ]
        )
    return [list(row) for row in zip(*columns, strict=True)]


def confusions(found: Described, study: Study) -> dict[str, list[list[int]]]:
    """Counts [true value][said value] of each descriptor, of the images that have it."""
    counts = {}
    for name, truth, said, size in _each(found, study):
        table = np.zeros((size, size), dtype=np.int64)
        has = truth != ABSENT
        np.add.at(table, (truth[has], said[has]), 1)
        counts[name] = table.tolist()
    return counts
