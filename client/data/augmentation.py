"""Random changes of a training batch, on the device the batch lies on; each image gets its own."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from client.data.distortion import distorted
from client.data.occlusion import blurred, cut_out
from shared.study_augmentation import Augmentation


def displaced(images: Tensor, spec: Augmentation, generator: torch.Generator) -> Tensor:
    """(N, C, S, S) to the same: what moves pixels, of all planes of an image alike.

    The draws come from `generator`, a CPU generator, so that they are the same whatever the device. Flips and quarter
    turns move pixels without changing them. Rotation, translation and scale are one bilinear resampling, together with
    the flips and turns, and a distortion is another; what comes in from outside is black. The very same values where all of it is off.

    Raises ValueError where images are not square or not floating-point.
    """
    if images.ndim != 4 or images.shape[-1] != images.shape[-2]:
        raise ValueError(f"expected square images (N, C, S, S), but got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(f"expected floating-point images in [0, 1], but got {images.dtype}")
    count = len(images)
    across = _chosen(count, spec.horizontal_flip, generator)
    down = _chosen(count, spec.vertical_flip, generator)
    turns = (
        torch.randint(4, (count,), generator=generator) if spec.quarter_turns else torch.zeros(count, dtype=torch.long)
    )
    if spec.rotation_degrees or spec.translate or spec.scale:
        angle = _between(count, spec.rotation_degrees, generator) * (math.pi / 180)
        shift = torch.stack([_between(count, spec.translate, generator) for _ in range(2)], dim=1)
        factor = 1 + _between(count, spec.scale, generator)
        if spec.movement_probability < 1:
            moved = _chosen(count, spec.movement_probability, generator)
            angle, shift, factor = angle * moved, shift * moved[:, None], torch.where(moved, factor, 1.0)
        images = _moved(images, _inverse_affine(across, down, turns, angle, shift, factor))
    else:
        images = _flipped(images, across, down, turns)
    return images if spec.distortion is None else distorted(images, spec.distortion, generator)


def retouched(images: Tensor, spec: Augmentation, generator: torch.Generator) -> Tensor:
    """(N, C, S, S) float in [0, 1] to the same: what changes pixels where they are.

    Blur comes first, then brightness and contrast, black squares at the very end. Contrast is about each image's own mean;
    brightness and contrast are clamped to [0, 1]. The same images where all of it is off.

    Raises ValueError where images are smaller than a square or a blur that is asked for.
    """
    count = len(images)
    if spec.blur is not None:
        images = blurred(images, spec.blur, generator)
    if spec.brightness or spec.contrast:
        factor, added = 1 + _between(count, spec.contrast, generator), _between(count, spec.brightness, generator)
        if spec.tone_probability < 1:
            toned = _chosen(count, spec.tone_probability, generator)
            factor, added = torch.where(toned, factor, 1.0), added * toned
        contrast, brightness = _column(factor, images), _column(added, images)
        mean = images.mean(dim=(1, 2, 3), keepdim=True)
        images = (images - mean) * contrast + mean + brightness
    images = images.clamp(0.0, 1.0)
    return images if spec.cutout is None else cut_out(images, spec.cutout, generator)


def is_identity(spec: Augmentation) -> bool:
    """Whether every change is off."""
    return spec == Augmentation()


def _flipped(images: Tensor, across: Tensor, down: Tensor, turns: Tensor) -> Tensor:
    """Flip left-right, then top-bottom, then turn anticlockwise, exactly."""
    if across.any():
        images = torch.where(_column(across, images), images.flip(-1), images)
    if down.any():
        images = torch.where(_column(down, images), images.flip(-2), images)
    for turn in range(1, 4):
        chosen = turns == turn
        if chosen.any():
            images = torch.where(_column(chosen, images), torch.rot90(images, turn, (-2, -1)), images)
    return images


def _inverse_affine(
    across: Tensor, down: Tensor, turns: Tensor, angle: Tensor, shift: Tensor, factor: Tensor
) -> Tensor:
    """(N, 2, 3) from output to input coordinates in [-1, 1] (x right, y down), as affine_grid takes them.

    Forward, a point is flipped, turned and rotated anticlockwise, scaled, then shifted by a share of the side:
    q = factor R(turn + angle) D p + 2 shift, so that p = D R^T (q - 2 shift) / factor.
    """
    total = angle.double() + turns.double() * (math.pi / 2)
    cos, sin = torch.cos(total), torch.sin(total)
    # Anticlockwise on the screen, where y points down, is [[cos, sin], [-sin, cos]]; this is its transpose.
    back = torch.stack([torch.stack([cos, -sin], dim=1), torch.stack([sin, cos], dim=1)], dim=1)
    mirror = torch.stack([1 - 2 * across.double(), 1 - 2 * down.double()], dim=1)
    linear = mirror[:, :, None] * back / factor.double()[:, None, None]
    offset = -(linear @ (2 * shift.double())[:, :, None])
    return torch.cat([linear, offset], dim=2).float()


def _moved(images: Tensor, theta: Tensor) -> Tensor:
    grid = F.affine_grid(theta.to(images.device, images.dtype), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _chosen(count: int, probability: float, generator: torch.Generator) -> Tensor:
    if probability == 0:
        return torch.zeros(count, dtype=torch.bool)
    return torch.rand(count, generator=generator) < probability


def _between(count: int, limit: float, generator: torch.Generator) -> Tensor:
    """Uniform on [-limit, limit]; draws nothing where the limit is 0."""
    if limit == 0:
        return torch.zeros(count)
    return (torch.rand(count, generator=generator) * 2 - 1) * limit


def _column(values: Tensor, images: Tensor) -> Tensor:
    """(N,) to (N, 1, 1, 1) on the images' device."""
    shaped = values.to(images.device, non_blocking=True)[:, None, None, None]
    return shaped if shaped.dtype == torch.bool else shaped.to(images.dtype)
