"""The losses that a study can name, each one value an image, so that private training can clip each patient's gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from shared.errors import PrivacyError
from shared.losses import dice_and_cross_entropy_losses, focal_losses
from shared.study_descriptors import ABSENT
from shared.study_training import Training

#: Logits and what the images are to the loss of each image, (B,), in float32 (float64 where the logits are): logits (B, outputs) and
#: class indices (B,), or logits of masks and masks, both (B, 1, H, W). With descriptors their logits stand behind the class's,
#: (B, outputs + values of all), and so do their values' indices, (B, 1 + descriptors).
ImageLosses = Callable[[Tensor, Tensor], Tensor]


def image_losses(
    training: Training,
    *,
    positive_index: int,
    class_counts: Sequence[int] | None,
    descriptor_sizes: Sequence[int] = (),
) -> ImageLosses:
    """The study's loss, with its class weights, and with what the descriptors add.

    `class_counts` are the images of each class in the training part, in the study's order; None in private training, where they must
    play no part. `descriptor_sizes` are the numbers of values of the study's descriptors. Raises PrivacyError where the recipe needs the
    counts then.
    """
    made = _LOSSES[training.loss](training, positive_index, class_counts)
    if training.class_weights != "none":
        weights = torch.tensor(balanced_weights(_known(class_counts)))
        made = _weighed(made, weights)
    if not descriptor_sizes:
        return made
    if training.descriptor_weight is None:
        raise ValueError("expected training.descriptor_weight with descriptors")
    return _with_descriptors(made, descriptor_sizes, training.descriptor_weight)


def descriptor_losses(logits: Tensor, values: Tensor, sizes: Sequence[int]) -> Tensor:
    """Mean over the H descriptors of each image's cross-entropy, `(B,)`, where a descriptor that the image lacks counts as 0.

    `logits` `(B, sum of sizes)`, one block a descriptor; `values` `(B, H)` indices, ABSENT where the image lacks it. The denominator is H
    for every image, so that no image's loss depends on another's.
    """
    logits = _precise(logits)
    blocks = torch.split(logits, list(sizes), dim=1)
    losses = [
        nn.functional.cross_entropy(block, value, reduction="none", ignore_index=ABSENT)
        for block, value in zip(blocks, values.unbind(1), strict=True)
    ]
    return torch.stack(losses).mean(0)


def _weighed(made: ImageLosses, weights: Tensor) -> ImageLosses:
    return lambda logits, labels: made(logits, labels) * weights.to(labels.device)[labels]


def _with_descriptors(made: ImageLosses, sizes: Sequence[int], weight: float) -> ImageLosses:
    described = sum(sizes)

    def losses(logits: Tensor, targets: Tensor) -> Tensor:
        main, rest = logits[:, :-described], logits[:, -described:]
        return made(main, targets[:, 0]) + weight * descriptor_losses(rest, targets[:, 1:], sizes)

    return losses


def losses_of(logits: Tensor, labels: Tensor, *, positive_index: int) -> Tensor:
    """Each image's cross-entropy, `(B,)`, in float32 (float64 where the logits are).

    One output, `(B, 1)`: binary cross-entropy of the positive class. More, `(B, K)`: cross-entropy.
    """
    logits = _precise(logits)
    if logits.shape[1] == 1:
        target = (labels == positive_index).to(logits.dtype)
        return nn.functional.binary_cross_entropy_with_logits(logits.squeeze(1), target, reduction="none")
    return nn.functional.cross_entropy(logits, labels, reduction="none")


def balanced_weights(class_counts: Sequence[int]) -> list[float]:
    """n / (k * n_c) for each of the k classes that have images, 0 for a class without: the mean weight of an image is 1."""
    present = sum(1 for count in class_counts if count > 0)
    total = sum(class_counts)
    return [total / (present * count) if count > 0 else 0.0 for count in class_counts]


def _cross_entropy(training: Training, positive_index: int, class_counts: Sequence[int] | None) -> ImageLosses:
    return lambda logits, labels: losses_of(logits, labels, positive_index=positive_index)


def _focal(training: Training, positive_index: int, class_counts: Sequence[int] | None) -> ImageLosses:
    focal = training.focal
    if focal is None:
        raise ValueError("expected training.focal with loss: focal")
    alpha: list[float] | None = None
    if focal.alpha == "balanced":
        alpha = balanced_weights(_known(class_counts))
    elif not isinstance(focal.alpha, str):
        alpha = list(focal.alpha.values())  # by class name, which is the order of the outputs
    return lambda logits, labels: focal_losses(
        _precise(logits), labels, positive_index=positive_index, gamma=focal.gamma, alpha=alpha
    )


def _cross_entropy_dice(training: Training, positive_index: int, class_counts: Sequence[int] | None) -> ImageLosses:
    return lambda logits, masks: dice_and_cross_entropy_losses(_precise(logits), masks)


def _known(class_counts: Sequence[int] | None) -> Sequence[int]:
    if class_counts is None:
        raise PrivacyError(
            "training.class_weights, training.focal.alpha: balanced weights come from private class counts, which no noise covers"
        )
    return class_counts


def _precise(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


_LOSSES: dict[str, Callable[[Training, int, Sequence[int] | None], ImageLosses]] = {
    "binary_cross_entropy": _cross_entropy,
    "cross_entropy": _cross_entropy,
    "focal": _focal,
    "cross_entropy_dice": _cross_entropy_dice,
}
