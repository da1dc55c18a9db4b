"""Which keys an auditor trusts: fingerprints that came by another way than the files that are audited.

A fingerprint is given as it is read out (ten groups of four, the first 40 hex digits) or in full (64), on the command line or in a file:

    coordinator  c6ef 7f00 1b2c 3d4e 5f60 7182 93a4 b5c6 d7e8 f901
    anna         0f1e 2d3c 4b5a 6978 8796 a5b4 c3d2 e1f0 0112 2334

With a name a fingerprint is that party's and no other's; without one it is anybody's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.errors import InputError
from shared.signing import PublicKey, is_spoken

#: What the coordinator is called in a trust file.
COORDINATOR = "coordinator"

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")


@dataclass(frozen=True, slots=True)
class Trust:
    """Pairs of a name (None: anybody) and a fingerprint's hex digits."""

    fingerprints: tuple[tuple[str | None, str], ...]

    def vouches(self, key: PublicKey, name: str) -> bool:
        """Whether `key` is among the fingerprints, as that of `name`."""
        return any(whose in (None, name) and is_spoken(digits, key.fingerprint) for whose, digits in self.fingerprints)


def read_trust(values: Sequence[str]) -> Trust | None:
    """From the values of `--trust`, each a fingerprint or the path of a file of them; None where there is no value.

    Raises InputError for what is neither.
    """
    if not values:
        return None
    found: list[tuple[str | None, str]] = []
    for value in values:
        if (read := _fingerprint(value)) is not None:
            found.append(read)
        else:
            found.extend(_file(Path(value)))
    return Trust(tuple(found))


def trust_lines(keys: Iterable[tuple[str, PublicKey]]) -> str:
    """The text of a trust file."""
    return "".join(f"{name}  {key.spoken}\n" for name, key in keys)


def _fingerprint(text: str) -> tuple[str | None, str] | None:
    """None where `text` is no fingerprint of 40 or 64 digits, with or without a name."""
    name, _, rest = text.strip().replace(":", " ").partition(" ")
    if (digits := _digits(text)) is not None:
        return None, digits
    if _NAME.fullmatch(name) and (digits := _digits(rest)) is not None:
        return name, digits
    return None


def _digits(text: str) -> str | None:
    digits = "".join(sign for sign in text.lower() if sign not in " \t:-")
    return digits if len(digits) in (40, 64) and set(digits) <= set("0123456789abcdef") else None


def _file(path: Path) -> list[tuple[str | None, str]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        said = problem.strerror if isinstance(problem, OSError) else "no text file"
        raise InputError(
            f"--trust {path}: neither a fingerprint of 40 or 64 hex digits nor a file that can be read: {said}"
        ) from None
    found: list[tuple[str | None, str]] = []
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        read = _fingerprint(text)
        if read is None:
            raise InputError(
                f"{path}:{number}: expected 'NAME FINGERPRINT' with 40 or 64 hex digits, but got '{text[:80]}'"
            )
        found.append(read)
    if not found:
        raise InputError(f"{path}: holds no fingerprint, so nobody would be trusted")
    return found
