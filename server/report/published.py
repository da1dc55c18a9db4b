"""Published figures of the papers whose systems run here as studies, and what in them contradicts itself. Data: published.yaml."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field

from shared.schema import Strict

FILE = Path(__file__).with_name("published.yaml")
#: A figure as it is written: `96.47` is a percentage, `.9351` a share, `655` a count.
Written = Annotated[str, Field(pattern=r"^(\d*\.\d+|\d+)$")]
FigureName = Literal[
    "accuracy", "sensitivity", "specificity", "precision", "f1", "auc",
    "errors", "weighted_specificity", "weighted_f1", "rare_errors", "mean_iou",
]  # fmt: skip
TITLES: Mapping[FigureName, str] = {
    "accuracy": "accuracy", "sensitivity": "sensitivity", "specificity": "specificity", "precision": "precision", "f1": "F1", "auc": "AUC",
    "errors": "FP + FN", "weighted_specificity": "weighted specificity", "weighted_f1": "weighted F1", "rare_errors": "FP + FN, rare",
    "mean_iou": "mean IoU",
}  # fmt: skip


class PublishedRow(Strict):
    """One model of a paper. `elsewhere` is what the same paper says of it in another place, by the place's name."""

    model: str
    study: str | None = Field(default=None, description="our study of it in configs/; null where there is none")
    small: str | None = None
    head: Literal["network", "svm", "masks"]
    published: dict[FigureName, Written]
    elsewhere: dict[str, dict[FigureName, Written]] = Field(default_factory=dict)


class Paper(Strict):
    """One paper's table."""

    title: str
    data: str
    source: str
    positive: str
    tested: Literal["pooled", "external"] = Field(
        default="pooled",
        description="external: the paper's figures are of a hospital that never trained, and so are ours",
    )
    rows: list[PublishedRow] = Field(min_length=1)
    contrast: dict[Literal["before", "after"], dict[str, Written]] | None = None


def papers(path: Path = FILE) -> dict[str, Paper]:
    """All of them, by key. Raises OSError, ValueError where the file is not as it should be."""
    return {key: Paper.model_validate(value) for key, value in yaml.safe_load(path.read_text(encoding="utf-8")).items()}


def share(written: str) -> float:
    """In [0, 1]: a figure above 1 is a percentage. One below 1 % would be taken for a share; no paper here has one."""
    value = float(written)
    return value / 100 if value > 1 else value


def contradictions(row: PublishedRow) -> Iterator[str]:
    """What can't be so, a sentence each, beyond what rounding explains; for two classes.

    Accuracy is the mean of sensitivity and specificity weighted by the classes, so it lies between them; F1 is the harmonic mean of
    precision and sensitivity, so it lies between those.
    """
    told = row.published
    yield from _outside(told, "accuracy", ("sensitivity", "specificity"))
    yield from _outside(told, "f1", ("precision", "sensitivity"))
    if int(told.get("errors", "0")) % 2:
        yield (
            f"{TITLES['errors']} {told['errors']} is odd, but added over all classes every wrong image "
            "counts twice, where one class is said of each"
        )
    for place, others in row.elsewhere.items():
        for name, written in others.items():
            if name in told and share(written) != share(told[name]):
                yield f"{TITLES[name]} is {told[name]} in the table and {written} in the {place}"


def _outside(told: Mapping[FigureName, str], name: FigureName, ends: tuple[FigureName, FigureName]) -> Iterator[str]:
    if any(key not in told for key in (name, *ends)):
        return
    value, low, high = share(told[name]), *sorted(share(told[end]) for end in ends)
    slack = _half_unit(told[name]) + max(_half_unit(told[end]) for end in ends)
    where = "above" if value > high + slack else "below" if value < low - slack else None
    if where is not None:
        yield f"{TITLES[name]} {told[name]} is {where} both {TITLES[ends[0]]} {told[ends[0]]} and {TITLES[ends[1]]} {told[ends[1]]}"


def _half_unit(written: str) -> float:
    """Half of the last digit's place, as a share."""
    places = len(written.partition(".")[2])
    half = 0.5 * 10.0**-places
    return float(half / 100 if float(written) > 1 else half)
