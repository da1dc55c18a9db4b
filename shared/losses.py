"""Losses of the papers beyond cross-entropy, one value an image, so that private training can clip each patient's gradient.

Focal loss: Lin, Goyal, Girshick, He, Dollár, "Focal Loss for Dense Object Detection", ICCV 2017 (arXiv:1708.02002), equations 4 and 5.
Dice loss: Milletari, Navab, Ahmadi, "V-Net", 3DV 2016 (arXiv:1606.04797), section 3, without the squares in the denominator, and smoothed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def focal_losses(
    logits: Tensor,
    labels: Tensor,
    *,
    positive_index: int = 1,
    gamma: float = 2.0,
    alpha: Sequence[float] | None = None,
) -> Tensor:
    """-alpha_y (1 - p_y)^gamma log p_y of each image, `(N,)`, with p of the true class y.

    `logits` `(N, K)` with a softmax over K classes, or `(N, 1)` with a sigmoid for the class `positive_index` of two. `labels` `(N,)` class
    indices. `alpha` has one weight a class, or is None for 1; under DP it must be public constants and not the site's class shares.
    gamma = 0 without alpha is cross-entropy. Raises ValueError for a negative gamma or another number of weights.
    """
    if gamma < 0:
        raise ValueError(f"expected gamma of at least 0, but got {gamma}")
    classes = 2 if logits.shape[1] == 1 else logits.shape[1]
    if alpha is not None and len(alpha) != classes:
        raise ValueError(f"expected alpha to have {classes} values, one a class, but got {len(alpha)}")
    if logits.shape[1] == 1:
        signed = torch.where(labels == positive_index, logits[:, 0], -logits[:, 0])
        log_p, log_rest = nn.functional.logsigmoid(signed), nn.functional.logsigmoid(-signed)
        factor = torch.exp(gamma * log_rest)
    else:
        log_p = logits.log_softmax(1).gather(1, labels[:, None])[:, 0]
        # 1 - p as a sum over the other classes: exact where p is near 1, and with a finite gradient there.
        others = logits.log_softmax(1).scatter(1, labels[:, None], -torch.inf)
        factor = torch.exp(gamma * others.logsumexp(1))
    losses = -factor * log_p
    if alpha is not None:
        losses = losses * torch.tensor(alpha, dtype=losses.dtype, device=losses.device)[labels]
    return losses


def dice_losses(logits: Tensor, masks: Tensor, *, smooth: float = 1.0) -> Tensor:
    """1 - (2 sum(p m) + smooth) / (sum(p) + sum(m) + smooth) of each image, `(N,)`, with p = sigmoid(logits).

    `logits` and `masks` `(N, 1, H, W)`, masks in [0, 1]. `smooth`, in pixels, makes an empty mask that is found empty cost nothing.
    Raises ValueError where the shapes differ.
    """
    _require_same_shape(logits, masks)
    found, wanted = logits.sigmoid().flatten(1), masks.to(logits.dtype).flatten(1)
    overlap = (found * wanted).sum(1)
    return 1 - (2 * overlap + smooth) / (found.sum(1) + wanted.sum(1) + smooth)


def dice_and_cross_entropy_losses(logits: Tensor, masks: Tensor, *, smooth: float = 1.0) -> Tensor:
    """Dice loss plus the mean binary cross-entropy over the pixels, of each image, `(N,)`, weighed equally.

    Shapes and errors as `dice_losses`.
    """
    _require_same_shape(logits, masks)
    pixels = nn.functional.binary_cross_entropy_with_logits(logits, masks.to(logits.dtype), reduction="none")
    return dice_losses(logits, masks, smooth=smooth) + pixels.flatten(1).mean(1)


def _require_same_shape(logits: Tensor, masks: Tensor) -> None:
    if logits.shape != masks.shape:
        raise ValueError(f"expected masks of shape {tuple(logits.shape)}, but got {tuple(masks.shape)}")
