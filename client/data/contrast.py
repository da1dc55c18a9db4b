"""What a study's denoising and CLAHE do to a hospital's images: local contrast, visibility of the finding and noise, before and after.

Nothing of it is sent: it is for the hospital's own eyes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from client.data.records import Record
from shared.errors import UnreadableImageError
from shared.imaging.contrast import Contrast, contrast_of
from shared.imaging.decoder import close_decoders
from shared.imaging.enhancement import enhanced
from shared.imaging.preprocess import unenhanced
from shared.study_pixels import Preprocessing

#: Figures in the order they are shown, with their names and units.
FIGURES = {
    "local_contrast": "mean local contrast",
    "visibility": "visibility of what is marked",
    "snr": "signal-to-noise ratio (dB)",
}
#: What the names mean, a sentence for people.
MEANING = (
    "Local contrast: mean of (max - min) / (max + min) over 16 x 16 windows. Visibility: (c - s) / (c + s) of the brightest 5 % of the "
    "pixels that the hospital's own masks mark and the median of the rest. Signal-to-noise ratio: 20 log10 of mean over noise, the noise "
    "estimated by Immerkær's method, which takes fine texture for noise."
)


@dataclass(frozen=True, slots=True)
class Change:
    """Mean of one figure over the `images` on which it is defined before and after."""

    name: str
    before: float
    after: float
    images: int


@dataclass(frozen=True, slots=True)
class Effect:
    """`images` were looked at, of `all_images`; `unreadable` could not be. Figures that are defined on no image are left out."""

    images: int
    all_images: int
    unreadable: int
    changes: tuple[Change, ...]


def effect_of(
    records: Sequence[Record],
    recipe: Preprocessing,
    *,
    most: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> Effect:
    """Look at `most` records at most, drawn by `seed`. The same input and seed give the same figures.

    A file that can't be read is counted. `progress(done, all)` counts records.
    """
    drawn = np.sort(np.random.default_rng(seed).permutation(len(records))[:most])
    pairs: list[tuple[Contrast, Contrast]] = []
    try:
        for done, index in enumerate(drawn, start=1):
            record = records[index]
            try:
                plain = unenhanced(record.image, record.masks, recipe, with_mask=True)
            except UnreadableImageError:
                continue
            finally:
                if progress is not None:
                    progress(done, len(drawn))
            pairs.append(
                (contrast_of(plain.levels, plain.mask), contrast_of(enhanced(plain.levels, recipe), plain.mask))
            )
    finally:
        close_decoders()
    changes = tuple(change for name in FIGURES if (change := _change(name, pairs)) is not None)
    return Effect(len(pairs), len(records), len(drawn) - len(pairs), changes)


def _change(name: str, pairs: Sequence[tuple[Contrast, Contrast]]) -> Change | None:
    values = [(getattr(before, name), getattr(after, name)) for before, after in pairs]
    defined = np.array([pair for pair in values if None not in pair], dtype=np.float64)
    if len(defined) == 0:
        return None
    before, after = defined.mean(axis=0)
    return Change(name, float(before), float(after), len(defined))
