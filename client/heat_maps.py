"""Where in an image a network finds what it says: Grad-CAM heat maps. They stay in the hospital.

R. R. Selvaraju, M. Cogswell, A. Das, R. Vedantam, D. Parikh, D. Batra: Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization, ICCV 2017. A map is coarse (one value for each position of the last feature map) and says which positions raise a class's
score in this network, not why, nor whether rightly.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from shared.models.network import Network

#: How strongly the hottest place covers the image, from 0 to 1.
_COVER = 0.65
#: Colours of heat 0, 1/3, 2/3 and 1: from black over red and yellow to white, also told apart by brightness alone.
_COLOURS = np.array([[0, 0, 0], [0.85, 0.05, 0.05], [1, 0.75, 0], [1, 1, 0.9]])


def last_map(network: Network, images: Tensor) -> tuple[str, tuple[int, int]] | None:
    """Name and size (height, width) of the child whose output is the last feature map; None where the network has none to look at.

    That is the last child with parameters whose output is `(N, C, h, w)` of more than one position. What turns a map into a sequence of
    tokens (`(N, L, E)`, a transformer) mixes all positions, so that a map before it says nothing of where the network looks. `images`
    `(N, channels, H, W)` need hold one image only.
    """
    found: tuple[str, tuple[int, int]] | None = None

    def watched(name: str, child: nn.Module) -> RemovableHandle:
        has_parameters = next(child.parameters(), None) is not None

        def look(_module: nn.Module, _inputs: Any, output: Any) -> None:
            nonlocal found
            if not isinstance(output, Tensor):
                return
            if output.ndim == 3:
                found = None
            elif has_parameters and output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
                found = name, (output.shape[2], output.shape[3])

        return child.register_forward_hook(look)

    handles = [watched(name, child) for name, child in network.named_children()]
    try:
        with _evaluating(network), torch.no_grad():
            network.features(images[:1])
    finally:
        for handle in handles:
            handle.remove()
    return found


def grad_cam(network: Network, layer: str, images: Tensor, *, class_index: int, positive_index: int) -> Tensor:
    """Heat of a class at each position of the child `layer`'s output, `(N, h, w)` float32, none below 0.

    Equations 1 and 2 of the paper: ReLU of the channels' sum, each weighted by the mean of the score's gradient over the positions. The
    score is the class's logit; of a network with one logit, which speaks for the class `positive_index`, that logit, or its negative for
    the other class. `images` `(N, channels, H, W)` are on the network's device. It is computed in float32 and in eval mode; frozen layers
    are no hindrance, and no parameter's gradient is touched.
    """
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_(True))
        return kept[-1]

    handle = network.get_submodule(layer).register_forward_hook(keep)
    try:
        with _evaluating(network), torch.enable_grad():
            logits = network(images)
            score = logits[:, 0] if logits.shape[1] == 1 else logits[:, class_index]
            if logits.shape[1] == 1 and class_index != positive_index:
                score = -score
            (gradient,) = torch.autograd.grad(score.sum(), kept[-1])
    finally:
        handle.remove()
    weights = gradient.mean((2, 3), keepdim=True)
    return torch.relu((weights * kept[-1]).sum(1)).detach().float()


def enlarged(heat: Tensor, size: int) -> Tensor:
    """`(N, h, w)` to `(N, size, size)`, bilinear between the positions' centres."""
    return nn.functional.interpolate(heat[:, None], size=(size, size), mode="bilinear", align_corners=False)[:, 0]


def overlaid(pixels: NDArray[Any], heat: NDArray[np.float32]) -> NDArray[np.float64]:
    """The image with its heat upon it, (3, S, S) in [0, 1]; each map is scaled to its own hottest place.

    `pixels` (S, S) or (C, S, S) in [0, 1], C of 1 or 3; `heat` (S, S), none below 0. Without any heat the image is as it was.
    """
    grey = np.asarray(pixels, dtype=np.float64)
    image = np.broadcast_to(grey if grey.ndim == 3 else grey[None], (3, *heat.shape))
    hottest = float(heat.max())
    share = heat.astype(np.float64) / hottest if hottest > 0 else np.zeros(heat.shape)
    places = np.linspace(0, 1, len(_COLOURS))
    colour = np.stack([np.interp(share, places, _COLOURS[:, index]) for index in range(3)])
    cover = _COVER * np.minimum(1.0, 2 * share)
    return np.asarray(image * (1 - cover) + colour * cover)


def heat_inside(heat: NDArray[np.float32], mask: NDArray[np.float32]) -> float | None:
    """Share of the heat that lies on the marked part, from 0 to 1; None where there is no heat at all.

    The energy-based pointing game of H. Wang et al., Score-CAM, CVPR Workshops 2020, section 4.3, with the lesion in the place of the
    object's box. `heat` and `mask` (S, S); the mask is the share of each pixel that is marked.
    """
    total = float(heat.sum(dtype=np.float64))
    return float((heat.astype(np.float64) * mask).sum()) / total if total > 0 else None


@contextmanager
def _evaluating(network: Network) -> Iterator[None]:
    mode = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(mode)
