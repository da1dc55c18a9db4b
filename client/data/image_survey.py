"""Reads every image of a holding once: which can't be used, which are the same, and how much room they take prepared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from client.data.records import Problem, Record
from shared.errors import UnreadableImageError
from shared.imaging.files import read_image
from shared.imaging.masks import read_mask
from shared.imaging.pixels import pixel_digest

Masks = Literal["ignore", "read", "require"]
"""Whether the masks are read too, and whether a record (of those that the study takes) can't be used without one."""


@dataclass(frozen=True, slots=True)
class SurveyedImage:
    """A readable image: SHA-256 of its decoded pixels, and its channels (1 or 3) and the bytes of each in the cache (1 or 2)."""

    content: str
    channels: int
    depth: int


@dataclass(frozen=True, slots=True)
class Survey:
    """What reading found. `usable` are the records whose image, and masks where asked for, can be read."""

    usable: tuple[Record, ...]
    problems: tuple[Problem, ...]
    images: Mapping[Path, SurveyedImage]

    def prepared_bytes(self, records: Iterable[Record], size: int, *, planes: int | None = None) -> int:
        """Room that `records` take in the cache at `size` x `size` pixels; `planes` where all images have so many, as with masks."""
        found = (self.images[record.image] for record in records)
        return sum((planes or image.channels) * image.depth * size * size for image in found)


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Files with the same decoded pixels: `groups` of two or more; `across` those that belong to different patients."""

    groups: tuple[tuple[Path, ...], ...]
    across: tuple[tuple[Path, ...], ...]


def images_of(records: Sequence[Record]) -> dict[Path, list[Record]]:
    """The records of each image file, in the order of the records."""
    grouped: dict[Path, list[Record]] = {}
    for record in records:
        grouped.setdefault(record.image, []).append(record)
    return grouped


def survey_image(image: Path, records: Sequence[Record], *, masks: Masks) -> tuple[SurveyedImage | None, list[Problem]]:
    """Read one image and the masks of its records: what was found, and what can't be used, by file."""
    try:
        pixels = read_image(image)
    except UnreadableImageError as problem:
        return None, [_problem(image, problem)]
    problems = []
    for path in dict.fromkeys(path for record in records for path in record.masks) if masks != "ignore" else ():
        try:
            marked = read_mask(path, pixels.size)
        except UnreadableImageError as problem:
            problems.append(_problem(path, problem))
            continue
        if not marked.any():
            problems.append(Problem(path, "the mask marks no pixel"))
    channels, depth = 1 if pixels.array.ndim == 2 else 3, 1 if pixels.bits <= 8 else 2
    return SurveyedImage(pixel_digest(pixels.array), channels, depth), problems


def survey(
    records: Sequence[Record],
    *,
    masks: Masks,
    read: Iterable[Path] | None = None,
    taken: Callable[[Record], bool] = lambda record: True,
    needed_by: str = "preprocessing.region is 'finding'",
) -> Survey:
    """Read every image of `records` once. `read` gives the image files in the order to read them, e.g. a progress bar over them.

    `taken` says which records the study takes: where masks are required, only these need one, and `needed_by` is why.
    """
    bare = {record.key for record in records if masks == "require" and not record.masks and taken(record)}
    grouped = images_of(records)
    images: dict[Path, SurveyedImage] = {}
    problems: list[Problem] = []
    for image in grouped if read is None else read:
        found, met = survey_image(image, grouped[image], masks=masks)
        problems.extend(met)
        if found is not None and any(record.key in bare for record in grouped[image]):
            problems.append(Problem(image, f"it has no mask, but the study's {needed_by}"))
        if found is not None:
            images[image] = found
    spoilt = {problem.file for problem in problems}
    usable = tuple(
        record
        for record in records
        if record.image in images and not spoilt.intersection(record.masks) and record.key not in bare
    )
    return Survey(usable, tuple(problems), images)


def find_duplicates(survey: Survey, records: Sequence[Record]) -> Duplicates:
    """Which files of `records` have the same pixels, and which of them are of different patients (which would leak)."""
    files: dict[str, dict[Path, None]] = {}
    patients: dict[str, set[str]] = {}
    for record in records:
        if record.image in survey.images:
            content = survey.images[record.image].content
            files.setdefault(content, {})[record.image] = None
            patients.setdefault(content, set()).add(record.patient)
    return Duplicates(
        groups=tuple(tuple(paths) for paths in files.values() if len(paths) > 1),
        across=tuple(tuple(paths) for content, paths in files.items() if len(patients[content]) > 1),
    )


def _problem(path: Path, problem: UnreadableImageError) -> Problem:
    return Problem(path, str(problem).removeprefix(f"{path}: "))
