"""A hospital's own words for what studies call otherwise: `data.labels` of its profile. None of it is sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from client.data.records import Holding


def in_studies_words(holding: Holding, labels: Mapping[str, str]) -> Holding:
    """The holding with each own label as studies name it, and a note that says which and how many. Case and blanks around don't matter."""
    if not labels:
        return holding
    meant = {own.strip().lower(): label.strip() for own, label in labels.items()}
    found: Counter[str] = Counter()
    records = []
    for record in holding.records:
        own = record.label.strip().lower()
        if own in meant:
            found[own] += 1
            record = replace(record, label=meant[own])
        records.append(record)
    notes = [
        f"data.labels: {found[own]} record(s) labelled '{own}' are read as '{label}'"
        for own, label in meant.items()
        if found[own]
    ]
    unused = [own for own in meant if not found[own]]
    if unused:
        notes.append(f"data.labels: no record is labelled {', '.join(repr(own) for own in unused)}")
    return replace(holding, records=tuple(records), notes=(*holding.notes, *notes))
