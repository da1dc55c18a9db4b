"""How many images two hospitals both hold, from the tags that each made for the other (`client.duplicate_tags`)."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from itertools import combinations

from server.report.schema import SharedImages
from shared.results import TAG_BYTES, Prepared


def shared_images(prepared: Mapping[str, Prepared], *, minimum_cell: int) -> list[SharedImages]:
    """One entry for each two sites that both sent tags for each other, in the order of their names.

    A count above 0 and below `minimum_cell` is not told.
    """
    pairs: list[SharedImages] = []
    for first, second in combinations(sorted(prepared), 2):
        one, other = prepared[first].tags.get(second), prepared[second].tags.get(first)
        if one is None or other is None:
            continue
        count = len(_tags(one) & _tags(other))
        small = 0 < count < minimum_cell
        pairs.append(
            SharedImages(
                sites=(first, second), images=None if small else count, fewer_than=minimum_cell if small else None
            )
        )
    return pairs


def _tags(text: str) -> set[bytes]:
    joined = base64.b64decode(text)
    return {joined[start : start + TAG_BYTES] for start in range(0, len(joined), TAG_BYTES)}
