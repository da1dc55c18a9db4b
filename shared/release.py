"""Which code this is: versions of what matters, one digest over the three packages' Python files, one over what is installed beside it."""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from shared.canonical import digest
from shared.schema import Sha256, Strict

PACKAGES = ("client", "server", "shared")

Versions = dict[Literal["consilium", "flwr", "torch", "python"], str]


class Release(Strict):
    """What a hospital or a coordinator has installed."""

    versions: Versions
    code_digest: Sha256
    lock_digest: Sha256

    @classmethod
    def installed(cls) -> Release:
        return cls(versions=versions(), code_digest=code_digest(), lock_digest=digest(dict(dependency_lock())))


@cache
def code_digest() -> str:
    """`fresh_code_digest`, looked at once a process."""
    return fresh_code_digest()


def fresh_code_digest() -> str:
    """SHA-256 (hex) over the names and contents of every .py file of the three packages, as installed next to this file."""
    total = hashlib.sha256()
    for path in source_files():
        total.update(path.relative_to(source_root()).as_posix().encode() + b"\0")
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def source_root() -> Path:
    """The folder that holds the three packages."""
    return Path(__file__).resolve().parent.parent


def source_files() -> list[Path]:
    """Every .py file of the three packages, in order."""
    return [path for package in PACKAGES for path in sorted((source_root() / package).rglob("*.py"))]


@cache
def versions() -> Versions:
    """Versions of the installed distributions; 'not installed' where one is missing."""

    def of(name: str) -> str:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "not installed"

    return {"consilium": of("consilium"), "flwr": of("flwr"), "torch": of("torch"), "python": platform.python_version()}


@cache
def dependency_lock() -> tuple[tuple[str, str], ...]:
    """Name and version of every distribution that Consilium needs, directly or not, as installed here; in name order.

    An approval names their digest: a library that was exchanged since asks the hospital again.
    """
    found: dict[str, str] = {}
    waiting = ["consilium"]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
            continue
        found[name] = distribution.version
        waiting.extend(_needed(distribution))
    return tuple(sorted(found.items()))


def _needed(distribution: metadata.Distribution) -> Iterator[str]:
    for text in distribution.requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield re.sub(r"[-_.]+", "-", requirement.name).lower()
