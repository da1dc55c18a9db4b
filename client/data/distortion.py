"""Distortions of a training batch by one bilinear resampling each: elastic, by a grid, optical. What comes in from outside is black.

Elastic: random displacements of a coarse grid of points, interpolated bicubically (Ronneberger, Fischer, Brox, "U-Net", MICCAI 2015,
section 3.1). Grid and optical: as augmentation libraries have them; SkinNet's paper names the three without amounts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from shared.study_augmentation import Distortion


def distorted(images: Tensor, spec: Distortion, generator: torch.Generator) -> Tensor:
    """(N, C, S, S) to the same; the very tensor, and no draw, at probability 0.

    Each image is distorted or not by itself, by one kind. The draws come from `generator`, a CPU generator.
    """
    if spec.probability == 0:
        return images
    count, side = len(images), images.shape[-1]
    chosen = torch.rand(count, generator=generator) < spec.probability
    kinds = torch.randint(len(spec.kinds), (count,), generator=generator)
    result = images.clone()
    for index, kind in enumerate(spec.kinds):
        rows = torch.nonzero(chosen & (kinds == index)).flatten()
        if len(rows):
            grid = _GRIDS[kind](len(rows), side, spec, generator).to(images.device, images.dtype)
            rows = rows.to(images.device)
            result[rows] = F.grid_sample(images[rows], grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return result


def identity_grid(count: int, side: int) -> Tensor:
    """(N, S, S, 2): where each pixel's centre lies, x and y in [-1, 1], as grid_sample takes them."""
    centres = (2 * torch.arange(side) + 1) / side - 1
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([x, y], dim=2).expand(count, side, side, 2)


def elastic_grid(count: int, side: int, spec: Distortion, generator: torch.Generator) -> Tensor:
    """Each of p x p points is drawn from by up to `elastic` of the side along each axis."""
    points = spec.elastic_points
    moves = (torch.rand((count, 2, points, points), generator=generator) * 2 - 1) * 2 * spec.elastic
    field = F.interpolate(moves, size=(side, side), mode="bicubic", align_corners=True)
    return identity_grid(count, side) + field.permute(0, 2, 3, 1)


def grid_grid(count: int, side: int, spec: Distortion, generator: torch.Generator) -> Tensor:
    """Along each axis the cells' sides are multiplied by factors of their own, then scaled so that they fill the image."""
    grid = identity_grid(count, side).clone()
    for axis in range(2):
        factors = 1 + (torch.rand((count, spec.grid_cells), generator=generator) * 2 - 1) * spec.grid
        ends = torch.cat([torch.zeros(count, 1), (factors / factors.sum(1, keepdim=True)).cumsum(1)], dim=1)
        # Piecewise linear: place t of the axis, in [0, 1], lies in cell floor(t cells).
        place = (torch.arange(side) + 0.5) / side * spec.grid_cells
        cell = place.floor().long().clamp(max=spec.grid_cells - 1)
        found = ends[:, cell] + (place - cell) * (ends[:, cell + 1] - ends[:, cell])
        values = 2 * found - 1
        grid[..., axis] = values[:, None, :] if axis == 0 else values[:, :, None]
    return grid


def optical_grid(count: int, side: int, spec: Distortion, generator: torch.Generator) -> Tensor:
    """The pixel at distance r from the centre (1 at the middle of an edge) is taken from r (1 + k r^2), k from -optical to +optical."""
    factor = (torch.rand((count, 1, 1, 1), generator=generator) * 2 - 1) * spec.optical
    grid = identity_grid(count, side)
    return grid * (1 + factor * grid.square().sum(dim=3, keepdim=True))


_GRIDS: dict[str, Callable[[int, int, Distortion, torch.Generator], Tensor]] = {
    "elastic": elastic_grid,
    "grid": grid_grid,
    "optical": optical_grid,
}
