"""What a study's network is told of each record besides its image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from client.data.records import Record
from shared.errors import DataError
from shared.study_metadata import Category, Number, width_of


def encoded(
    records: Sequence[Record], metadata: Sequence[Number | Category], *, required: bool = True
) -> NDArray[np.float32]:
    """Each record's inputs in the study's order, `(N, width)` in [0, 1]; all of a metadatum's are 0 where a record lacks it.

    Where they are `required`, raises DataError for a metadatum that no record has, and for a number that is none. In a private study they
    are not, and such a number counts as not known: what one single record says must not decide about the run.
    """
    inputs = np.zeros((len(records), width_of(metadata)), dtype=np.float32)
    start = 0
    for one in metadata:
        if required and not any(one.name in record.metadata for record in records):
            there = ", ".join(sorted({name for record in records for name in record.metadata})) or "none"
            raise DataError(f"metadata: the hospital's data has no '{one.name}'; its metadata are {there}")
        for row, record in enumerate(records):
            value = record.metadata.get(one.name)
            if value is not None and value != "":
                try:
                    inputs[row, start : start + one.width] = _inputs(record, one, value)
                except DataError:
                    if required:
                        raise
        start += one.width
    return inputs


def _inputs(record: Record, one: Number | Category, value: float | str) -> list[float]:
    if isinstance(one, Category):
        said = str(value).strip().lower()
        return [float(said == listed.strip().lower()) for listed in one.values]
    try:
        share = (float(value) - one.low) / (one.high - one.low)
    except ValueError:
        share = float("nan")
    if not np.isfinite(share):
        raise DataError(f"metadata: '{one.name}' of {record.key} must be a number or empty, but is '{value}'")
    return [min(max(share, 0.0), 1.0), 1.0]
