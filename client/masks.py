"""What a network for masks says of a hospital's images, counted in pixels. It stays in the hospital."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.losses import ImageLosses
from client.training import Precision
from shared.errors import NonFiniteUpdateError
from shared.metrics.segmentation import MaskCounts, counted
from shared.models.network import FederatedNetwork


@dataclass(frozen=True, slots=True)
class PartMasks:
    """The masks of N images of one part, in a fixed order: `keys` of the records, counts of pixels, `labels` and `losses` (N,)."""

    keys: tuple[str, ...]
    counts: MaskCounts
    labels: NDArray[np.int64]
    losses: NDArray[np.float64]

    @property
    def images(self) -> int:
        return len(self.keys)

    @property
    def patient_count(self) -> int:
        return int(np.unique(self.counts.patients).size)


def found_masks(
    network: FederatedNetwork,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    keys: tuple[str, ...],
    labels: NDArray[np.int64],
    patients: NDArray[Any],
    losses: ImageLosses,
    device: torch.device,
    precision: Precision = "fp32",
    finite: bool = True,
) -> PartMasks:
    """The network's masks against those of `batches`, images (B, C, H, W) and masks (B, 1, H, W), in eval mode; its mode is put back.

    A pixel is found where the chance of a lesion is at least one half. Raises NonFiniteUpdateError where a logit is NaN or infinite,
    unless not `finite`: then no pixel is found where it is NaN.
    """
    pixels, lost = [np.empty((0, 4), np.int64)], [np.empty(0, np.float64)]
    mode = network.training
    network.to(device).eval()
    try:
        with torch.inference_mode():
            for images, masks in batches:
                logits = _logits(network, images.to(device, non_blocking=True), precision)
                masks = masks.to(device)
                if finite and not bool(torch.isfinite(logits).all()):
                    raise NonFiniteUpdateError("the global model gives logits that are not finite")
                lost.append(losses(logits, masks).double().cpu().numpy())
                pixels.append(counted((masks > 0.5).cpu().numpy(), (logits >= 0).cpu().numpy()))
    finally:
        network.train(mode)
    found = np.concatenate(pixels)
    # Text, as the file of kept masks holds them: both models' resamples must draw the patients in one order.
    counts = MaskCounts(found[:, 0], found[:, 1], found[:, 2], found[:, 3], patients.astype(np.str_))
    return PartMasks(keys, counts, labels, np.concatenate(lost))


def mask_of(network: FederatedNetwork, image: Tensor, *, precision: Precision) -> NDArray[np.bool_]:
    """The mask `(H, W)` that the network finds in one image `(1, C, H, W)` on its device, in eval mode; its mode is put back.

    With the precision of `found_masks` it is the mask that was counted.
    """
    mode = network.training
    network.eval()
    try:
        with torch.inference_mode():
            found: NDArray[np.bool_] = (_logits(network, image, precision)[0, 0] >= 0).cpu().numpy()
            return found
    finally:
        network.train(mode)


def _logits(network: FederatedNetwork, images: Tensor, precision: Precision) -> Tensor:
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits: Tensor = network(images)
    return logits.float()
