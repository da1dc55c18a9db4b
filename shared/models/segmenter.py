"""A segmentation network out of its weights file, for masks that are predicted when images are prepared.

The file says by itself what it is of: `consilium-server export` writes the run's study into the metadata of the .safetensors file. The
network and what becomes of the pixels before it are that study's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from shared.errors import ConsiliumError, WeightsError
from shared.models.build import build_network
from shared.models.weights import read_described_weights
from shared.study import Study, study_from_data
from shared.study_mask import PredictedMask
from shared.study_model import WeightsFile
from shared.study_pixels import Preprocessing

#: Keys of a .safetensors file's metadata: the study (RFC 8785 form), and the id of the run.
STUDY_KEY, RUN_KEY = "consilium.study", "consilium.run"
#: Where a study names the file.
_KEY = "preprocessing.mask.weights"

Build = Callable[[Study], nn.Module]


@dataclass(frozen=True, slots=True)
class NetworkSegmenter:
    """A network `(1, channels, S, S)` to logits `(1, 1, S, S)`, in eval mode on the CPU, and the preprocessing that it was trained with.

    It may be called by several threads.
    """

    network: nn.Module
    recipe: Preprocessing

    def probabilities(self, levels: NDArray[np.float32]) -> NDArray[np.float32]:
        """(S, S) or (S, S, 3) in [0, 1], not normalised yet, to the probability of each pixel to be marked, (S, S)."""
        image = torch.from_numpy(np.ascontiguousarray(levels if levels.ndim == 3 else levels[..., None]))
        planes = image.permute(2, 0, 1).expand(self.recipe.channels, -1, -1)[None].to(torch.float32)
        with torch.inference_mode():
            logits: Tensor = self.network(self._normalised(planes))
            found: NDArray[np.float32] = logits[0, 0].float().sigmoid().numpy()
        return found

    def _normalised(self, planes: Tensor) -> Tensor:
        if (constants := self.recipe.normalise) is not None:
            mean, std = (torch.tensor(values)[:, None, None] for values in (constants.mean, constants.std))
            planes = (planes - mean) / std
        if (layer := self.recipe.layer_normalise) is not None:
            planes = F.layer_norm(planes, planes.shape[1:]) * layer.gamma + layer.beta
        return planes


def segmenter_of(
    recipe: Preprocessing, *, root: Path | None = None, build: Build = build_network
) -> NetworkSegmenter | None:
    """The network that predicts the recipe's masks, None where none does; a relative weights file is relative to `root`.

    Raises WeightsUnavailableError where the file can't be read, and WeightsError where its SHA-256 is another, it does not say which study
    it is of, its tensors are not exactly that study's network's, the network gives no mask, or it was trained on squares around findings
    and the recipe cuts none out.
    """
    if not isinstance(recipe.mask, PredictedMask):
        return None
    weights = recipe.mask.weights
    tensors, told = read_described_weights(weights, root=root, key=_KEY)
    study = _study_of(told, weights)
    if study.preprocessing.region == "finding" and recipe.region != "finding":
        raise WeightsError(
            f"{_KEY}: {weights.file}: study {study.name} was trained on squares around findings, but the study that names it prepares "
            "whole images; use region: finding, or weights that were trained on whole images"
        )
    network = _filled(study, tensors, weights, build)
    found = NetworkSegmenter(network.eval(), study.preprocessing.model_copy(update={"mask": None}))
    _require_mask(found, study, weights)
    return found


def _study_of(told: Mapping[str, str], weights: WeightsFile) -> Study:
    text = told.get(STUDY_KEY)
    if text is None:
        raise WeightsError(
            f"{_KEY}: {weights.file}: the file does not say which network it is of (no '{STUDY_KEY}' in its metadata); take one that "
            "`consilium-server export` of this release or a later one has written"
        )
    try:
        return study_from_data(json.loads(text))
    except (ValueError, ConsiliumError) as problem:
        first = str(problem).splitlines()[0]
        raise WeightsError(
            f"{_KEY}: {weights.file}: the study in its metadata is none that this release can read ({first}); export it with the "
            "same release"
        ) from None


def _filled(study: Study, tensors: Mapping[str, Tensor], weights: WeightsFile, build: Build) -> nn.Module:
    # What that study itself started from is in the tensors.
    fresh = study.model.model_copy(update={"weights": "none", "freeze": []})
    try:
        network = build(study.model_copy(update={"model": fresh}))
    except ConsiliumError as problem:
        raise WeightsError(f"{_KEY}: {weights.file}: the network of study {study.name}: {problem}") from None
    try:
        network.load_state_dict(dict(tensors), strict=True)
    except RuntimeError as problem:
        reason = "; ".join(line.strip() for line in str(problem).splitlines()[1:3])
        raise WeightsError(
            f"{_KEY}: {weights.file}: its tensors are not those of study {study.name}'s network ({reason}); export it with its head"
        ) from None
    if not all(bool(torch.isfinite(tensor).all()) for tensor in network.state_dict().values()):
        raise WeightsError(f"{_KEY}: {weights.file}: holds values that are not finite")
    return network


def _require_mask(segmenter: NetworkSegmenter, study: Study, weights: WeightsFile) -> None:
    side = segmenter.recipe.size
    with torch.inference_mode():
        logits: Any = segmenter.network(torch.zeros(1, segmenter.recipe.channels, side, side))
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != (1, 1, side, side):
        raise WeightsError(
            f"{_KEY}: {weights.file}: study {study.name} trains no segmentation network: expected a mask of shape {(1, 1, side, side)}, "
            f"but its network gives {shape}"
        )
