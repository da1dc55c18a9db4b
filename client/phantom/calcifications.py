"""Microcalcifications: particle shapes, their arrangement, and the label-free amount of both.

Lengths are in units of the region's mean radius, so that morphology survives when a region of any size is resized to 64
pixels. Particles are therefore larger, relative to the breast, than in a real mammogram (BI-RADS: suspicious ones are
mostly below 0.5 mm).

A malignant finding must not be recognisable by brightness. The drawn particles only decide *which* pixels are
brightest: `specify_histogram` then gives the ranked pixels the values of a profile that depends on load and contrast
alone. Two findings of one load, contrast and region have the same overlay histogram, whatever their descriptors.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from client.phantom.lexicon import Distribution, Morphology

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]

_MAX_PARTICLES = 400
_CORE_SHARE = 0.62
"""Share of the specified pixels that drawn particles cover; the rest is the blur around them."""


def arrange(
    distribution: Distribution, axis: float, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Places `(N, 2)` in the unit disc and duct directions `(N,)` in radians, in random order.

    `axis` is the direction towards the nipple. Diffuse: the whole region. Regional: a large part of it, without regard
    to ducts. Grouped: a compact part. Linear: along one duct. Segmental: a wedge that opens away from the nipple.
    """
    n = _MAX_PARTICLES
    unit = np.sqrt(rng.uniform(0, 1, n))
    turn = rng.uniform(0, 2 * np.pi, n)
    disc = np.stack((unit * np.cos(turn), unit * np.sin(turn)), axis=1)
    direction = axis + rng.normal(0, 0.35, n)
    match distribution:
        case Distribution.SCATTERED:
            return disc * 0.9, rng.uniform(0, np.pi, n)
        case Distribution.REGIONAL:
            offset, stretch = rng.uniform(-0.12, 0.12, 2), rng.uniform(0.7, 0.84, 2)
            return disc * stretch + offset, rng.uniform(0, np.pi, n)
        case Distribution.CLUSTERED:
            offset, radius = rng.uniform(-0.25, 0.25, 2), rng.uniform(0.34, 0.44)
            return disc * radius + offset, direction
        case Distribution.LINEAR:
            along = rng.uniform(-0.85, 0.85, n)
            bend, shift = rng.uniform(-0.25, 0.25), rng.uniform(-0.15, 0.15)
            across = bend * (along**2 - 0.3) + shift + rng.normal(0, 0.05, n)
            direction = axis + np.arctan(2 * bend * along) + rng.normal(0, 0.2, n)
        case Distribution.SEGMENTAL:
            reach = np.sqrt(rng.uniform(0.02, 1, n)) * 1.65
            spread = rng.uniform(-1, 1, n) * rng.uniform(0.28, 0.4)
            along, across = 0.85 - reach * np.cos(spread), reach * np.sin(spread)
            direction = axis + np.pi - spread + rng.normal(0, 0.2, n)
    cos, sin = np.cos(axis), np.sin(axis)
    return np.stack((along * cos - across * sin, along * sin + across * cos), axis=1), direction


def draw_particles(
    morphology: Morphology,
    distribution: Distribution,
    *,
    region: Mask,
    radius: float,
    load: float,
    axis: float,
    rng: np.random.Generator,
) -> Image:
    """Particle density `(H, W)` in [0, 1] inside `region`, whose mean radius is `radius` pixels.

    Particles are added until they cover `load` of the region, so that few large and many small ones weigh the same.
    """
    height, width = region.shape
    canvas = np.zeros(region.shape, dtype=np.float32)
    places, directions = arrange(distribution, axis, rng)
    wanted = load * float(region.sum()) * _CORE_SHARE
    for (x, y), direction in zip(places, directions, strict=True):
        cx, cy = width / 2 + x * radius, height / 2 + y * radius
        reach = int(np.ceil(_REACH[morphology] * radius)) + 2
        top, left = max(0, int(cy) - reach), max(0, int(cx) - reach)
        bottom, right = min(height, int(cy) + reach + 1), min(width, int(cx) + reach + 1)
        if bottom <= top or right <= left:
            continue
        yy, xx = np.mgrid[top:bottom, left:right]
        shape = _shape(morphology, (xx - cx) / radius, (yy - cy) / radius, direction, 1 / radius, rng)
        window = canvas[top:bottom, left:right]
        np.maximum(window, shape.astype(np.float32), out=window)
        if np.count_nonzero((canvas > 0.3) & region) >= wanted:
            break
    return np.where(region, canvas, np.float32(0))


def specify_histogram(density: Image, *, region: Mask, load: float, contrast: float) -> Image:
    """Overlay `(H, W)` on the signal scale whose value histogram depends on region size, load and contrast only.

    The `load` share of brightest pixels of `density` inside `region` receive, by rank, a fixed falling profile from
    `contrast` to 0; all others are 0.
    """
    inside = np.flatnonzero(region)
    count = min(len(inside), round(load * len(inside)))
    order = np.argsort(-density.ravel()[inside], kind="stable")[:count]
    overlay = np.zeros(density.size, dtype=np.float32)
    overlay[inside[order]] = contrast * (1 - np.arange(count) / max(count, 1)) ** 0.8
    return overlay.reshape(density.shape)


def calcify(
    morphology: Morphology,
    distribution: Distribution,
    *,
    region: Mask,
    radius: float,
    load: float,
    contrast: float,
    axis: float,
    blur: float,
    rng: np.random.Generator,
) -> Image:
    """Calcification overlay `(H, W)` of one finding as the scanner sees it.

    Blur (pixels) comes before the histogram is fixed: thin particles would otherwise lose more contrast to it than
    thick ones, and brightness would tell the label.
    """
    density = draw_particles(morphology, distribution, region=region, radius=radius, load=load, axis=axis, rng=rng)
    seen = ndimage.gaussian_filter(density, blur)
    return specify_histogram(seen, region=region, load=load, contrast=contrast)


_REACH = {
    Morphology.ROUND: 0.13,
    Morphology.PUNCTATE: 0.07,
    Morphology.COARSE: 0.32,
    Morphology.LUCENT_CENTER: 0.2,
    Morphology.AMORPHOUS: 0.2,
    Morphology.PLEOMORPHIC: 0.2,
    Morphology.FINE_LINEAR_BRANCHING: 0.56,
}


def _shape(
    morphology: Morphology,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    direction: float,
    pixel: float,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """One particle on a window, from offsets `x`, `y` to its centre; edges are one `pixel` wide."""
    strength = rng.uniform(0.7, 1.0)
    distance = np.hypot(x, y)
    match morphology:
        case Morphology.ROUND:
            return strength * _inside(rng.uniform(0.075, 0.105) - distance, pixel)
        case Morphology.PUNCTATE:
            return strength * _inside(rng.uniform(0.035, 0.05) - distance, pixel)
        case Morphology.COARSE:
            lobes = 1 + 0.12 * np.cos(rng.integers(2, 5) * np.arctan2(y, x) + rng.uniform(0, 2 * np.pi))
            return strength * _inside(rng.uniform(0.12, 0.2) * lobes - distance, pixel)
        case Morphology.LUCENT_CENTER:
            rim = rng.uniform(0.022, 0.03)
            return strength * _inside(rim - np.abs(distance - rng.uniform(0.1, 0.15)), pixel)
        case Morphology.AMORPHOUS:
            return _smudge(x, y, rng)
        case Morphology.PLEOMORPHIC:
            return rng.uniform(0.45, 1.0) * _shard(x, y, pixel, rng)
        case Morphology.FINE_LINEAR_BRANCHING:
            return strength * _branches(x, y, direction, pixel, rng)


def _inside(depth: NDArray[np.float64], pixel: float) -> NDArray[np.float64]:
    return np.clip(0.5 + depth / pixel, 0, 1)


def _smudge(x: NDArray[np.float64], y: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """A hazy speck without a definite shape: a loose heap of faint soft points."""
    heap = np.zeros(x.shape)
    for dx, dy in rng.normal(0, 0.055, (7, 2)):
        width = rng.uniform(0.022, 0.04)
        heap += rng.uniform(0.2, 0.6) * np.exp(-0.5 * ((x - dx) ** 2 + (y - dy) ** 2) / width**2)
    return np.minimum(heap, 1.2)


def _shard(
    x: NDArray[np.float64], y: NDArray[np.float64], pixel: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """An angular polygon: the intersection of three to five half-planes at uneven distances, stretched at random."""
    sides = int(rng.integers(3, 6))
    size = rng.uniform(0.03, 0.085)
    turns = rng.uniform(0, 2 * np.pi) + (np.arange(sides) + rng.uniform(-0.3, 0.3, sides)) * 2 * np.pi / sides
    tilt, stretch = rng.uniform(0, np.pi), rng.uniform(1.0, 2.2)
    along, across = x * np.cos(tilt) + y * np.sin(tilt), -x * np.sin(tilt) + y * np.cos(tilt)
    depth = np.full(x.shape, np.inf)
    for turn, offset in zip(turns, size * rng.uniform(0.5, 1.2, sides), strict=True):
        depth = np.minimum(depth, offset - (along / stretch * np.cos(turn) + across * stretch**0.5 * np.sin(turn)))
    return _inside(depth, pixel) * (np.hypot(x, y) < 0.19)


def _branches(
    x: NDArray[np.float64], y: NDArray[np.float64], direction: float, pixel: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """A thin curved rod along the duct with one or two side branches (casting type)."""
    length, half_width = rng.uniform(0.16, 0.3), rng.uniform(0.018, 0.026)
    rods = [(0.0, 0.0, direction, length)]
    for _ in range(int(rng.integers(1, 3))):
        start = rng.uniform(-0.6, 0.6) * length
        angle = direction + rng.choice((-1, 1)) * rng.uniform(0.5, 1.0)
        half = rng.uniform(0.35, 0.6) * length
        rods.append(
            (
                start * np.cos(direction) + half * np.cos(angle),
                start * np.sin(direction) + half * np.sin(angle),
                angle,
                half,
            )
        )
    depth = np.full(x.shape, -np.inf)
    for cx, cy, angle, half in rods:
        along = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
        across = -(x - cx) * np.sin(angle) + (y - cy) * np.cos(angle)
        bend = rng.uniform(-0.5, 0.5) * (along**2 / max(half, 1e-6))
        depth = np.maximum(depth, half_width - np.hypot(np.maximum(np.abs(along) - half, 0), across - bend))
    return _inside(depth, pixel)
