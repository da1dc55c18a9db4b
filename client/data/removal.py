"""What `preprocessing.remove` of a study does to a hospital's images: how much is cut off, how much is filled, and a few to look at.

Nothing of it is sent: it is for the hospital's own eyes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.data.records import Record
from shared.errors import UnreadableImageError
from shared.imaging.decoder import close_decoders
from shared.imaging.preprocess import unenhanced
from shared.study_pixels import Preprocessing

#: A pixel was filled where a channel changed by more than this share of the whole range.
_CHANGED = 2 / 255


@dataclass(frozen=True, slots=True)
class Pair:
    """One image (H, W) or (H, W, 3) in [0, 1], in the network's size, before and after."""

    key: str
    before: NDArray[np.float32]
    after: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Removal:
    """`images` were looked at, of `all_images`; of them `cut` were cut, and of `filled` more than a hundredth of the pixels was filled.

    `kept` is the mean share of the area that cutting left of those that were cut (None where none was), `filled_share` the mean share of
    pixels that were filled, over all. `pairs` are the images that changed most.
    """

    images: int
    all_images: int
    unreadable: int
    cut: int
    kept: float | None
    filled: int
    filled_share: float
    pairs: tuple[Pair, ...]


def removal_of(records: Sequence[Record], recipe: Preprocessing, *, most: int, seed: int, shown: int = 3) -> Removal:
    """Look at `most` records at most, drawn by `seed`. The same input and seed give the same figures; what can't be read is counted."""
    drawn = np.sort(np.random.default_rng(seed).permutation(len(records))[:most])
    as_it_came = recipe.model_copy(update={"remove": ()})
    only_cut = recipe.model_copy(update={"remove": recipe.cuts})
    looks = {one.remove: one for one in (as_it_came, only_cut, recipe)}.values()  # none twice: each decodes the image
    shares: list[float] = []
    kept: list[float] = []
    pairs: list[tuple[float, Pair]] = []
    try:
        for index in drawn:
            record = records[index]
            try:
                plain = {one.remove: unenhanced(record.image, record.masks, one) for one in looks}
            except UnreadableImageError:
                continue
            before, cropped, after = plain[()], plain[only_cut.remove], plain[recipe.remove]
            changed = np.abs(after.levels - cropped.levels) > _CHANGED
            shares.append(float((changed.any(axis=2) if changed.ndim == 3 else changed).mean()))
            kept.append(cropped.kept)
            pairs.append((shares[-1] + 1 - kept[-1], Pair(record.key, before.levels, after.levels)))
            pairs = sorted(pairs, key=lambda one: -one[0])[:shown]
    finally:
        close_decoders()
    cut = [share for share in kept if share < 1]
    return Removal(
        images=len(shares),
        all_images=len(records),
        unreadable=len(drawn) - len(shares),
        cut=len(cut),
        kept=float(np.mean(cut)) if cut else None,
        filled=sum(share > 0.01 for share in shares),
        filled_share=float(np.mean(shares)) if shares else 0.0,
        pairs=tuple(pair for _, pair in pairs),
    )
