"""Which dataset layouts there are, and how a profile's holding is opened. A new layout is a new file and one line here."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path

from client.data.cbis_ddsm import CbisDdsm
from client.data.ham10000 import Ham10000
from client.data.records import Adapter, Holding, Unit
from shared.errors import DataError, ProfileError
from shared.profile import Profile

ADAPTERS: Mapping[str, Adapter] = {
    "cbis_ddsm": CbisDdsm(),
    "ham10000": Ham10000(),
}
"""Adapter of each layout, by the name that `data.layout` of a profile gives."""


def adapter_named(layout: str) -> Adapter:
    """The adapter of a layout. Raises ProfileError with the nearest known name."""
    if layout in ADAPTERS:
        return ADAPTERS[layout]
    close = difflib.get_close_matches(layout, ADAPTERS, n=1, cutoff=0.4)
    hint = f"; did you mean '{close[0]}'?" if close else f"; known layouts are {', '.join(sorted(ADAPTERS))}"
    raise ProfileError(f"data.layout: unknown layout '{layout}'{hint}")


def open_holding(profile: Profile, *, unit: Unit) -> Holding:
    """Read the profile's data in its layout; with `data.unreadable: stop`, files and rows that can't be used are an error.

    Raises ProfileError for an unknown layout, DataError where the data is not of that layout or has problems that must stop it.
    """
    holding = adapter_named(profile.data.layout)(Path(profile.data.root), unit=unit)
    if holding.problems and profile.data.unreadable == "stop":
        shown = "; ".join(str(problem) for problem in holding.problems[:3])
        more = f"; and {len(holding.problems) - 3} more" if len(holding.problems) > 3 else ""
        raise DataError(
            f"{_count(len(holding.problems))} can't be used: {shown}{more}. "
            "Repair or remove what is at fault, or let the profile say data.unreadable: skip"
        )
    return holding


def _count(problems: int) -> str:
    return "1 file or row" if problems == 1 else f"{problems} files or rows"
