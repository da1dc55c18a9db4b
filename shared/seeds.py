"""Seeds derived from names, so that every random draw of a run is fixed by study, site and round, and no two draws share a stream."""

from __future__ import annotations

import hashlib


def derived_seed(*parts: str | int) -> int:
    """A seed in [0, 2**63) that depends on every part and on their order."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
