"""Which code this is: versions of what matters, and one digest over the three packages' Python files."""

from __future__ import annotations

import hashlib
import platform
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Literal

PACKAGES = ("client", "server", "shared")


@cache
def code_digest() -> str:
    """SHA-256 (hex) over the names and contents of every .py file of the three packages, as installed next to this file."""
    root = Path(__file__).resolve().parent.parent
    total = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            total.update(path.relative_to(root).as_posix().encode() + b"\0")
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def versions() -> dict[Literal["consilium", "flwr", "torch", "python"], str]:
    """Versions of the installed distributions; 'not installed' where one is missing."""

    def of(name: str) -> str:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "not installed"

    return {"consilium": of("consilium"), "flwr": of("flwr"), "torch": of("torch"), "python": platform.python_version()}
