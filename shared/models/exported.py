"""A network out of a file that `consilium-server export` wrote: its metadata holds the study of the run, so it describes itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from shared.errors import ConsiliumError, WeightsError
from shared.models.weights import read_described_weights
from shared.provenance import STUDY_KEY
from shared.study import Study, study_from_data
from shared.study_model import WeightsFile

Built = TypeVar("Built", bound=nn.Module)


def exported_network(
    weights: WeightsFile, *, root: Path | None, key: str, build: Callable[[Study], Built]
) -> tuple[Study, Built]:
    """The study of the run that the file comes from, and its network with the file's tensors.

    `key` is what names the file in the study that uses it, `root` the folder that a relative file is relative to. Raises
    WeightsUnavailableError where the file can't be read, and WeightsError where its SHA-256 is another, it does not say which study it is
    of, or its tensors are not exactly that study's network's.
    """
    tensors, told = read_described_weights(weights, root=root, key=key)
    study = _study_of(told, f"{key}: {weights.file}")
    return study, _filled(study, tensors, f"{key}: {weights.file}", build)


def _study_of(told: Mapping[str, str], where: str) -> Study:
    text = told.get(STUDY_KEY)
    if text is None:
        raise WeightsError(
            f"{where}: the file does not say which network it is of (no '{STUDY_KEY}' in its metadata); take one that "
            "`consilium-server export` of this release or a later one has written"
        )
    try:
        return study_from_data(json.loads(text))
    except (ValueError, ConsiliumError) as problem:
        first = str(problem).splitlines()[0]
        raise WeightsError(
            f"{where}: the study in its metadata is none that this release can read ({first}); export it with the same release"
        ) from None


def _filled(study: Study, tensors: Mapping[str, Tensor], where: str, build: Callable[[Study], Built]) -> Built:
    # What that study itself started from is in the tensors.
    fresh = study.model.model_copy(update={"weights": "none", "freeze": []})
    try:
        network = build(study.model_copy(update={"model": fresh}))
    except ConsiliumError as problem:
        raise WeightsError(f"{where}: the network of study {study.name}: {problem}") from None
    try:
        network.load_state_dict(dict(tensors), strict=True)
    except RuntimeError as problem:
        reason = "; ".join(line.strip() for line in str(problem).splitlines()[1:3])
        raise WeightsError(
            f"{where}: its tensors are not those of study {study.name}'s network ({reason}); export it with its head"
        ) from None
    if not all(bool(tensor.isfinite().all()) for tensor in network.state_dict().values()):
        raise WeightsError(f"{where}: holds values that are not finite")
    return network
