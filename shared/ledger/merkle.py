"""The root over a set of patients' tags: equal sets have equal roots, and a root names nobody.

The tree is that of RFC 9162, section 2.1.1 (leaves and nodes are told apart by a first byte of 0 and 1), over the tags in ascending
order, each once. Every leaf holds a salt that only the hospital can compute, so that a tag that came out somewhere else can't be looked
for in a root.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence


def cohort_root(tags: Iterable[str], salt: bytes) -> str:
    """64 hex digits, of tags of 64 hex digits each; their order and repetitions don't matter."""
    return _root([_sha256(b"\x00" + salt + bytes.fromhex(tag)) for tag in sorted(set(tags))]).hex()


def _root(leaves: Sequence[bytes]) -> bytes:
    """Level by level; a last node without a neighbour moves up, which is RFC 9162's tree."""
    if not leaves:
        return _sha256(b"")
    level = list(leaves)
    while len(level) > 1:
        paired = [_sha256(b"\x01" + level[i] + level[i + 1]) for i in range(0, len(level) - 1, 2)]
        level = paired + level[len(paired) * 2 :]
    return level[0]


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
