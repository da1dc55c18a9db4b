"""Canonical JSON (RFC 8785) and SHA-256 digests: the same meaning always gives the same bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import rfc8785


def canonical_json(value: Any) -> bytes:
    """RFC 8785 bytes of a JSON-like value (dict, list, str, int, float, bool, None)."""
    return bytes(rfc8785.dumps(value))


def digest(value: Any) -> str:
    """Lower-case hex SHA-256 of the RFC 8785 form."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def file_digest(path: Path) -> str:
    """Lower-case hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
