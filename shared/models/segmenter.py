"""A segmentation network out of its weights file, for masks that are predicted when images are prepared.

The file says by itself what it is of: `consilium-server export` writes the run's study into the metadata of the .safetensors file. The
network and what becomes of the pixels before it are that study's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shared.errors import WeightsError
from shared.models.build import build_network
from shared.models.exported import exported_network
from shared.models.inputs import Normaliser
from shared.study import Study
from shared.study_mask import PredictedMask
from shared.study_model import WeightsFile
from shared.study_pixels import Preprocessing

#: Where a study names the file.
_KEY = "preprocessing.mask.weights"

Build = Callable[[Study], nn.Module]


@dataclass(frozen=True, slots=True)
class NetworkSegmenter:
    """A network `(1, channels, S, S)` to logits `(1, 1, S, S)`, in eval mode on `device`, and the preprocessing that it was trained with.

    It may be called by several threads.
    """

    network: nn.Module
    recipe: Preprocessing
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def probabilities(self, levels: NDArray[np.float32]) -> NDArray[np.float32]:
        """(S, S) or (S, S, 3) in [0, 1], not normalised yet, to the probability of each pixel to be marked, (S, S)."""
        image = torch.from_numpy(np.ascontiguousarray(levels if levels.ndim == 3 else levels[..., None]))
        planes = image.permute(2, 0, 1).expand(self.recipe.channels, -1, -1)[None].to(torch.float32)
        with torch.inference_mode():
            logits: Tensor = self.network(Normaliser(self.recipe)(planes).to(self.device))
            found: NDArray[np.float32] = logits[0, 0].float().sigmoid().cpu().numpy()
        return found


def segmenter_of(
    recipe: Preprocessing,
    *,
    root: Path | None = None,
    device: torch.device | None = None,
    build: Build = build_network,
) -> NetworkSegmenter | None:
    """The network that predicts the recipe's masks, None where none does; a relative weights file is relative to `root`, or else to the
    working folder. `device` is the CPU where it is not given.

    Raises WeightsUnavailableError where the file can't be read, and WeightsError where its SHA-256 is another, it does not say which study
    it is of, its tensors are not exactly that study's network's, the network gives no mask, or it was trained on squares around findings
    and the recipe cuts none out.
    """
    if not isinstance(recipe.mask, PredictedMask):
        return None
    weights = recipe.mask.weights
    study, network = exported_network(weights, root=root, key=_KEY, build=build)
    if study.preprocessing.region == "finding" and recipe.region != "finding":
        raise WeightsError(
            f"{_KEY}: {weights.file}: study {study.name} was trained on squares around findings, but the study that names it prepares "
            "whole images; use region: finding, or weights that were trained on whole images"
        )
    own, its = recipe.cuts, study.preprocessing.cuts
    if own != its:
        raise WeightsError(
            f"{_KEY}: {weights.file}: study {study.name} was trained on images from which {', '.join(its) or 'nothing'} was cut off, "
            f"but the study that names it cuts off {', '.join(own) or 'nothing'}; "
            "preprocessing.remove must name the same of borders and vignette"
        )
    where = device or torch.device("cpu")
    found = NetworkSegmenter(network.eval().to(where), study.preprocessing.model_copy(update={"mask": None}), where)
    _require_mask(found, study, weights)
    return found


def _require_mask(segmenter: NetworkSegmenter, study: Study, weights: WeightsFile) -> None:
    side = segmenter.recipe.size
    with torch.inference_mode():
        logits: Any = segmenter.network(torch.zeros(1, segmenter.recipe.channels, side, side, device=segmenter.device))
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != (1, 1, side, side):
        raise WeightsError(
            f"{_KEY}: {weights.file}: study {study.name} trains no segmentation network: expected a mask of shape {(1, 1, side, side)}, "
            f"but its network gives {shape}"
        )
