"""Which images of a cohort are copies of another, by their perceptual hashes; which copy stays, and which can't.

Parts are decided before (`client.data.selection`), by tables alone, and nobody's changes: of a group of copies one image remains at
most, so none stands on two sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.data.perceptual_hash import fine_bits

#: Hashes that are compared with all others at a time; their differences take 8 bytes a pair.
_ROWS = 256


@dataclass(frozen=True, slots=True)
class Group:
    """Copies of one image: ascending rows of the cohort. Where `kept` is empty, their classes differ and none can be believed."""

    kept: tuple[int, ...]
    left_out: tuple[int, ...]


def find_copies(
    images: Sequence[Path], labels: NDArray[np.int64], hashes: Sequence[str], distance: int
) -> tuple[Group, ...]:
    """The groups of copies among N records ordered by key, ordered by their first row.

    Two images are copies where their hashes are at most `distance` bits apart, and so are the copies of a copy. The one with the first
    record stays, with all its records (findings of one image share its file). Where the copies' classes differ, none stays. Images
    without a hash are nobody's copy. Takes N^2 comparisons of different hashes: 1 s for 10,000.
    """
    rows_of: dict[Path, list[int]] = {}
    for row, image in enumerate(images):
        if hashes[row]:
            rows_of.setdefault(image, []).append(row)
    by_hash: dict[str, list[Path]] = {}
    for image, rows in rows_of.items():
        by_hash.setdefault(hashes[rows[0]], []).append(image)
    members: dict[int, list[Path]] = {}
    for number, alike in zip(_components(list(by_hash), distance), by_hash.values(), strict=True):
        members.setdefault(number, []).extend(alike)
    groups = [_group([rows_of[image] for image in alike], labels) for alike in members.values() if len(alike) > 1]
    return tuple(sorted(groups, key=lambda group: min(group.kept + group.left_out)))


def _group(copies: list[list[int]], labels: NDArray[np.int64]) -> Group:
    copies = sorted(copies)
    classes = {tuple(sorted(set(labels[rows].tolist()))) for rows in copies}
    kept = copies[0] if len(classes) == 1 else []
    return Group(tuple(kept), tuple(sorted(row for rows in copies for row in rows if row not in kept)))


def _components(hashes: list[str], distance: int) -> list[int]:
    """A number for each hash, the same for all that are connected by steps of at most `distance` bits."""
    if not hashes:
        return []
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    bits = fine_bits(hashes)
    firsts: list[NDArray[np.intp]] = []
    seconds: list[NDArray[np.intp]] = []
    for start in range(0, len(bits), _ROWS):
        apart = sum(
            np.bitwise_count(bits[start : start + _ROWS, None, word] ^ bits[None, start:, word]).astype(np.uint16)
            for word in range(bits.shape[1])
        )
        first, second = np.nonzero(np.asarray(apart) <= distance)
        firsts.append(first + start)
        seconds.append(second + start)
    rows, columns = np.concatenate(firsts), np.concatenate(seconds)
    near = coo_array((np.ones(len(rows), dtype=np.bool_), (rows, columns)), shape=(len(bits), len(bits)))
    return [int(number) for number in connected_components(near, directed=False)[1]]
