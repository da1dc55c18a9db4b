"""One mammogram with its findings: breast, regions of interest, calcifications, exposure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from client.phantom.acquisition import Pixels, blurred, expose, stamp_label
from client.phantom.breast import Breast, draw_breast
from client.phantom.calcifications import calcify
from client.phantom.cases import Case, Finding, Side, View
from client.phantom.scanners import Scanner

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]
_Value = TypeVar("_Value", bound=np.generic)

_PLACEMENT_TRIES = 400


@dataclass(frozen=True)
class DrawnFinding:
    """A finding as drawn: its region `(H, W)`, and the calcification overlay `(H, W)` on the signal scale."""

    finding: Finding
    region: Mask
    overlay: Image

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Bounding box of the region as (top, left, bottom, right), the last two exclusive."""
        rows, columns = np.flatnonzero(self.region.any(axis=1)), np.flatnonzero(self.region.any(axis=0))
        return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


@dataclass(frozen=True)
class Mammogram:
    """Stored values `(H, W)` in [0, 4095] and what was put in them. `inverted`: MONOCHROME1."""

    view: View
    pixels: Pixels
    inverted: bool
    findings: tuple[DrawnFinding, ...]


def draw_mammograms(case: Case, scanner: Scanner) -> tuple[Mammogram, ...]:
    """All views of a case, in the order of `case.views`, from the case's own random stream."""
    # A SeedSequence counts the children it has handed out; a copy hands out the same ones on every call.
    stream = np.random.SeedSequence(case.stream.entropy, spawn_key=case.stream.spawn_key)
    return tuple(
        _draw(view, case.density, scanner, np.random.default_rng(child))
        for view, child in zip(case.views, stream.spawn(len(case.views)), strict=True)
    )


def _draw(view: View, density: int, scanner: Scanner, rng: np.random.Generator) -> Mammogram:
    breast = draw_breast(scanner.rows, scanner.columns, projection=view.projection, density=density, rng=rng)
    signal = blurred(breast.signal, scanner)
    taken = np.zeros(signal.shape, dtype=bool)
    drawn = []
    for finding in view.findings:
        top, left, region = _place(finding, breast, taken, rng)
        patch = slice(top, top + region.shape[0]), slice(left, left + region.shape[1])
        taken[patch] |= region
        centre = top + region.shape[0] / 2, left + region.shape[1] / 2
        overlay = calcify(
            finding.morphology,
            finding.distribution,
            region=region,
            radius=finding.diameter / 2,
            load=finding.load,
            contrast=finding.contrast,
            axis=float(np.arctan2(breast.nipple[0] - centre[0], breast.nipple[1] - centre[1])),
            blur=scanner.blur,
            rng=rng,
        )
        signal[patch] += overlay
        whole_region, whole_overlay = np.zeros_like(taken), np.zeros_like(signal)
        whole_region[patch], whole_overlay[patch] = region, overlay
        drawn.append(DrawnFinding(finding, _faced(whole_region, view.side), _faced(whole_overlay, view.side)))
    signal = _faced(signal, view.side)
    stamp_label(signal, _faced(breast.depth, view.side) < -4, view.side, view.projection, rng)
    inverted = bool(rng.random() < scanner.monochrome1_share)
    return Mammogram(view, expose(signal, scanner, inverted=inverted, rng=rng), inverted, tuple(drawn))


def _faced(image: NDArray[_Value], side: Side) -> NDArray[_Value]:
    """The chest wall is drawn at the left edge, where a left breast has it; a right breast is mirrored."""
    return image if side is Side.LEFT else np.ascontiguousarray(image[:, ::-1])


def _region(finding: Finding, rng: np.random.Generator) -> Mask:
    """An outlined region as a reader draws it: an ellipse with a wavy contour, on the smallest array that holds it."""
    radius = finding.diameter / 2
    half = int(np.ceil(radius * 1.45))
    yy, xx = np.mgrid[-half : half + 1, -half : half + 1]
    turn = np.arctan2(yy, xx)
    stretch = finding.aspect**0.5
    wave = sum(rng.normal(0, 0.03) * np.cos(k * turn + rng.uniform(0, 2 * np.pi)) for k in range(2, 6))
    return np.asarray(np.hypot(xx / stretch, yy * stretch) <= radius * (1 + np.clip(wave, -0.15, 0.15)), dtype=bool)


def _place(finding: Finding, breast: Breast, taken: Mask, rng: np.random.Generator) -> tuple[int, int, Mask]:
    """Where the region goes: inside the breast, off the muscle, clear of the other regions.

    The best of the tries is kept when none is perfect, so a crowded breast still gets all its findings.
    """
    region = _region(finding, rng)
    height, width = region.shape
    usable = (breast.depth > 10) & (breast.muscle < 0.5) & ~taken
    best: tuple[float, int, int] = (-1.0, 0, 0)
    for _ in range(_PLACEMENT_TRIES):
        top = int(rng.integers(0, usable.shape[0] - height))
        left = int(rng.integers(0, usable.shape[1] - width))
        if not usable[top + height // 2, left + width // 2]:
            continue
        share = float(usable[top : top + height, left : left + width][region].mean())
        best = max(best, (share, top, left))
        if share > 0.985:
            break
    return best[1], best[2], region & ~taken[best[1] : best[1] + height, best[2] : best[2] + width]
