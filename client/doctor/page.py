"""doctor.html: the examination as a page of its own, without scripts or anything from elsewhere, for the people who keep the network."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from client.doctor.examination import Examination
from client.doctor.page_template import PAGE
from client.rendering import rendered
from shared.atomic_file import write_atomic

_WORDS = {"fault": "Fault", "warning": "Warning", "ok": "OK", "skipped": "Not checked"}


def page_of(examination: Examination) -> str:
    """The page's HTML."""
    return rendered(
        PAGE,
        examination=examination,
        words=_WORDS,
        verdict=verdict(examination),
        made=datetime.fromisoformat(examination.made).strftime("%-d %B %Y, %H:%M UTC"),
        to_do=[one for one in examination.findings if one.outcome == "fault"]
        + [one for one in examination.findings if one.outcome == "warning"],
    )


def verdict(examination: Examination) -> str:
    """One sentence."""
    faults, warnings = examination.count("fault"), examination.count("warning")
    if not faults and not warnings:
        return "Everything that was checked is as it should be."
    parts = [
        f"{number} {word}{'s' if number != 1 else ''}"
        for number, word in ((faults, "fault"), (warnings, "warning"))
        if number
    ]
    told = " and ".join(parts)
    return f"{told}. " + ("The node can't work like this." if faults else "The node can work.")


def write_page(examination: Examination, path: Path) -> None:
    """Raises StorageError."""
    write_atomic(path, page_of(examination).encode(), mode=0o644)
