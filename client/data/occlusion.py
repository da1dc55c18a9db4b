"""What hides detail of a training batch: black squares, and blur by motion or by a Gaussian."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from shared.study_augmentation import Blur, Cutout

#: Points along a path of motion, a pixel.
_FINENESS = 4


def cut_out(images: Tensor, spec: Cutout, generator: torch.Generator) -> Tensor:
    """(N, C, S, S) to the same, with `fewest` to `most` black squares in each image that is drawn; the very tensor at probability 0.

    The draws come from `generator`, a CPU generator. Raises ValueError where a square is larger than the image.
    """
    if spec.probability == 0:
        return images
    count, size = len(images), images.shape[-1]
    if spec.side > size:
        raise ValueError(f"expected images of at least {spec.side} pixels a side, but got {size}")
    chosen = torch.rand(count, generator=generator) < spec.probability
    squares = torch.randint(spec.fewest, spec.most + 1, (count,), generator=generator)
    corners = torch.randint(size - spec.side + 1, (count, spec.most, 2), generator=generator)
    mask = torch.zeros((count, size, size), dtype=torch.bool)
    for square in range(spec.most):
        from_corner = torch.arange(size) - corners[:, square, :, None]
        hidden = (from_corner >= 0) & (from_corner < spec.side)
        drawn = chosen & (square < squares)
        mask |= hidden[:, 0, :, None] & hidden[:, 1, None, :] & drawn[:, None, None]
    return images.masked_fill(mask[:, None].to(images.device), 0.0)


def blurred(images: Tensor, spec: Blur, generator: torch.Generator) -> Tensor:
    """(N, C, S, S) to the same, blurred by a kernel that adds up to 1; the very tensor at probability 0.

    Each image is blurred or not by itself, by one kind. The draws come from `generator`, a CPU generator. Raises ValueError where the
    kernel reaches beyond the reflected image.
    """
    if spec.probability == 0:
        return images
    count = len(images)
    chosen = torch.rand(count, generator=generator) < spec.probability
    kinds = torch.randint(len(spec.kinds), (count,), generator=generator)
    result = images.clone()
    for index, kind in enumerate(spec.kinds):
        rows = torch.nonzero(chosen & (kinds == index)).flatten()
        if len(rows):
            kernels = _KERNELS[kind](len(rows), spec, generator).to(images.device, images.dtype)
            rows = rows.to(images.device)
            result[rows] = _filtered(images[rows], kernels)
    return result


def motion_kernels(count: int, spec: Blur, generator: torch.Generator) -> Tensor:
    """(N, K, K): straight paths of 2 to `motion` pixels through the centre, in any direction, each point shared by its four pixels."""
    length = 2 + torch.rand(count, generator=generator) * (spec.motion - 2)
    angle = torch.rand(count, generator=generator) * torch.pi
    reach = spec.reach
    steps = torch.linspace(-0.5, 0.5, _FINENESS * spec.motion + 1)
    along = (length - 1)[:, None] * steps
    x, y = along * torch.cos(angle)[:, None], along * torch.sin(angle)[:, None]
    pixels = torch.arange(-reach, reach + 1)
    near = (1 - (x[:, :, None] - pixels).abs()).clamp(min=0), (1 - (y[:, :, None] - pixels).abs()).clamp(min=0)
    kernels = torch.einsum("npx,npy->nyx", *near)
    return kernels / kernels.sum(dim=(1, 2), keepdim=True)


def gaussian_kernels(count: int, spec: Blur, generator: torch.Generator) -> Tensor:
    """(N, K, K): deviations from a third of `gaussian` to all of it."""
    deviation = spec.gaussian * (1 + 2 * torch.rand(count, generator=generator)) / 3
    reach = spec.reach
    pixels = torch.arange(-reach, reach + 1)
    line = torch.exp(-0.5 * (pixels / deviation[:, None]) ** 2)
    kernels = line[:, :, None] * line[:, None, :]
    return kernels / kernels.sum(dim=(1, 2), keepdim=True)


def _filtered(images: Tensor, kernels: Tensor) -> Tensor:
    count, channels, height, width = images.shape
    reach = kernels.shape[-1] // 2
    if reach >= height:
        raise ValueError(f"expected images of more than {reach} pixels a side to blur, but got {height}")
    padded = F.pad(images, (reach, reach, reach, reach), mode="reflect").reshape(
        1, count * channels, height + 2 * reach, -1
    )
    weights = kernels.repeat_interleave(channels, dim=0)[:, None]
    return F.conv2d(padded, weights, groups=count * channels).reshape(count, channels, height, width)


_KERNELS: dict[str, Callable[[int, Blur, torch.Generator], Tensor]] = {
    "motion": motion_kernels,
    "gaussian": gaussian_kernels,
}
