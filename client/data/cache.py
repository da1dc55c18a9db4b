"""The image cache: every image is decoded and prepared once, then read from a memory-mapped file.

Its key is content and recipe: SHA-256 of the image and of its masks, what the recipe says of pixels, the version of the
preprocessing and of the decoding libraries. One folder may serve several recipes, lists of records and processes.
Beside the images lie the digests of source files and of their pixels. Nothing in it is readable for other users (files 0600, folders
0700) and nothing in it is needed: it can be deleted at any time when no site runs.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from client.data.cache_files import locked, make_private_folder, storage_error
from client.data.packs import (
    Pack,
    PackRow,
    Parts,
    blank_rows,
    discard_parts,
    narrowed,
    open_pack,
    remove_pack,
    write_pack,
)
from client.data.perceptual_hash import PERCEPTUAL
from client.data.pixel_digests import PIXELS, PixelDigests, forget_pixels
from client.data.records import Problem, Record
from client.data.source_digests import forget_sources, source_digests
from shared.canonical import digest
from shared.errors import UnreadableImageError
from shared.imaging.decoder import close_decoders
from shared.imaging.enhancement import is_enhanced
from shared.imaging.preprocess import Segmenter, prepare, recipe_digest
from shared.study_mask import PredictedMask
from shared.study_pixels import Preprocessing

#: All that is remembered of what files show: what is forgotten of one kind is forgotten of each.
_KINDS = (PIXELS, PERCEPTUAL)
#: What turns files into pixels: another version may give other ones.
_DECODERS = ("numpy", "pillow", "pydicom", "pylibjpeg-openjpeg", "python-gdcm")
#: Lists of records (studies, selections) kept for one recipe; the one unused for longest goes.
_KEPT_PACKS = 4
_NAMED_PROBLEMS = 10

Progress = Callable[[int, int], None]
MakeSegmenter = Callable[[], Segmenter | None]


@dataclass(frozen=True, slots=True)
class ImageStore:
    """Prepared images, one row for each record in the order given.

    `images` is a read-only memory map (N, C, H, W), uint8 (0..255 for [0, 1]) or float16 in [0, 1]; C is 1 where all images
    are grey, else 3; where the recipe has a mask it is `recipe.planes`, the mask last. `readable` (N,) is False, and the row all 0,
    where the image could not be read. `pixels` are digests of what the image files show (`client.data.pixel_digests`), whatever the
    recipe; empty where nothing is known. `hashes` are their perceptual hashes (`client.data.perceptual_hash`), empty where none were
    asked for.
    """

    images: NDArray[Any]
    readable: NDArray[np.bool_]
    problems: tuple[Problem, ...]
    pixels: tuple[str, ...] = ()
    hashes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)


def prepare_store(
    records: Sequence[Record],
    recipe: Preprocessing,
    folder: Path,
    *,
    unreadable: Literal["stop", "skip"],
    hashes: bool = False,
    workers: int = 1,
    progress: Progress | None = None,
    segmenter: MakeSegmenter | None = None,
) -> ImageStore:
    """The prepared images of `records`, out of the cache in `folder` as far as they are there; with perceptual hashes if asked for.

    `progress(done, all)` counts records. `segmenter` makes the network where the recipe's masks are predicted, and is called only where an
    image must be prepared; what it raises goes through. A process that finds another at work waits and uses what that one made. Raises
    UnreadableImageError at the end of the pass, naming up to 10 files (with `stop`), and StorageError where the cache can't be
    written; no half-written file stays then. After a kill, the next call goes on where that one was.
    """
    make_private_folder(folder)
    place = folder / recipe_key(recipe)[:16]
    make_private_folder(place)
    with locked(folder):
        try:
            contents, files = _contents(folder, records, recipe, workers)
            known = PixelDigests(folder, _KINDS if hashes else (PIXELS,))
            name = digest([[record.key, content] for record, content in zip(records, contents, strict=True)])[:16]
            pack = open_pack(place, name)
            if pack is None:
                try:
                    _fill(
                        place, name, records, contents, files, known, recipe, unreadable, workers, progress, segmenter
                    )  # fmt: skip
                finally:
                    known.write()
                pack = open_pack(place, name)
            if pack is not None:
                rows = zip(files, records, pack.rows, strict=True)
                known.complete(((file, one.image) for file, one, row in rows if file and row.problem is None), workers)
                known.write()
        except OSError as problem:
            raise storage_error(folder, problem, _bytes_needed(records, recipe)) from None
        if pack is None:
            raise storage_error(folder, OSError("what was written can't be read back"))
        (place / f"{name}.json").touch()
    if progress is not None:
        progress(len(records), len(records))
    store = _store(pack, records, unreadable, tuple(known.of(file) or "" for file in files))
    return replace(store, hashes=tuple(known.of(file, PERCEPTUAL) or "" for file in files)) if hashes else store


def forget_records(folder: Path, records: Collection[str], files: Collection[Path] | None) -> None:
    """Take the images of these records (by key) and what is remembered of their files out of the cache; everybody else's stay.

    Where `files` are not known (None) no file is remembered any more, and all are read once more when they are wanted.

    A process that prepares images is waited for; one that reads them keeps those that it has opened until it ends. Repeatable: killed in
    the middle, run again. Raises StorageError.
    """
    if not folder.is_dir():
        return
    with locked(folder):
        try:
            # First: which contents these files have is known until they are forgotten.
            forget_pixels(folder, files, _KINDS)
            forget_sources(folder, files)
            for place in (child for child in folder.iterdir() if child.is_dir()):
                discard_parts(place)
                for path in sorted(place.glob("*.json")):
                    if open_pack(place, path.stem) is None:
                        remove_pack(place, path.stem)
                    blank_rows(place, path.stem, records)
        except OSError as problem:
            raise storage_error(folder, problem) from None


def recipe_key(recipe: Preprocessing) -> str:
    """SHA-256 over everything but the files that decides the cached pixels."""
    libraries = [*_DECODERS]
    if is_enhanced(recipe):
        libraries.append("scikit-image")
    if recipe.remove:
        libraries += ["scikit-image", "scipy"]
    if isinstance(recipe.mask, PredictedMask):
        libraries += ["scikit-image", "scipy", "torch"]  # the segmentation study may do what this one does not
    versions = {name: importlib.metadata.version(name) for name in libraries}
    return digest({"recipe": recipe_digest(recipe), "decoders": versions})


def _contents(
    folder: Path, records: Sequence[Record], recipe: Preprocessing, workers: int
) -> tuple[list[str | None], list[str | None]]:
    """The content key of each record, None where one of its files can't be opened; and the SHA-256 of each image file."""
    sources = [(record.image, *(record.masks if recipe.masks_needed_by else ())) for record in records]
    digests = source_digests(folder, (path for paths in sources for path in paths), workers)
    keys: list[str | None] = []
    for paths in sources:
        values = [digests[path] for path in paths]
        keys.append(None if None in values else digest(values))
    return keys, [digests[record.image] for record in records]


def _fill(
    place: Path,
    name: str,
    records: Sequence[Record],
    contents: Sequence[str | None],
    files: Sequence[str | None],
    known: PixelDigests,
    recipe: Preprocessing,
    unreadable: Literal["stop", "skip"],
    workers: int,
    progress: Progress | None,
    segmenter: MakeSegmenter | None,
) -> None:
    """Write the pack `name`, decoding only what neither an earlier pack nor a stopped run has. Raises OSError."""
    for leftover in place.glob("*.tmp"):  # of a killed process: the lock is ours, so nobody is writing them
        leftover.unlink()
    parts = Parts(place, recipe.size)
    try:
        earlier = _earlier_rows(place)
        problems: dict[int, str] = {}
        waiting: dict[str, list[int]] = {}
        done = 0
        for index, content in enumerate(contents):
            if content is not None and (content in parts or content in earlier):
                done += 1
            else:
                # A file that can't be opened goes through `prepare` too, which says what is wrong with it.
                waiting.setdefault(content or f"unopened {index}", []).append(index)
        jobs = [(content, records[indices[0]], files[indices[0]]) for content, indices in waiting.items()]
        network = segmenter() if segmenter is not None and jobs else None
        for content, outcome in _prepared(jobs, known, recipe, workers, network):
            if isinstance(outcome, UnreadableImageError):
                read = str(records[waiting[content][0]].image)
                for index in waiting[content]:  # copies of one damaged file are each named
                    text = str(outcome)
                    problems[index] = (
                        text.replace(read, str(records[index].image), 1) if text.startswith(read) else text
                    )
            else:
                parts.add(content, outcome)
            done += len(waiting[content])
            if progress is not None and done < len(records):
                progress(done, len(records))
        if problems and unreadable == "stop":
            parts.close()
            raise _stopped(problems, records)
        rows = [_row(record, problems.get(index), content, parts, earlier)
                for index, (record, content) in enumerate(zip(records, contents, strict=True))]  # fmt: skip
        write_pack(place, name, rows, recipe.size, _pixels(rows, parts, earlier))
        parts.discard()
    except OSError:
        parts.discard()
        raise
    finally:
        close_decoders()
    _forget_oldest(place)


Earlier = dict[str, tuple[Pack, int]]


def _earlier_rows(place: Path) -> Earlier:
    """Where each content that earlier packs of this recipe hold lies."""
    found: Earlier = {}
    for path in sorted(place.glob("*.json")):
        pack = open_pack(place, path.stem)
        if pack is None:
            remove_pack(place, path.stem)
            continue
        for index, row in enumerate(pack.rows):
            if row.content is not None and row.problem is None:
                found[row.content] = (pack, index)
    return found


def _row(record: Record, problem: str | None, content: str | None, parts: Parts, earlier: Earlier) -> PackRow:
    if problem is not None or content is None:
        return PackRow(record.key, None, problem=problem or "it can't be opened")
    if content in parts:
        return PackRow(record.key, content, *parts.shape_of(content))
    pack, index = earlier[content]
    return PackRow(record.key, content, pack.rows[index].channels, pack.rows[index].dtype)


def _pixels(rows: Iterable[PackRow], parts: Parts, earlier: Earlier) -> Iterator[NDArray[Any] | None]:
    for row in rows:
        if row.content is None:
            yield None
        elif row.content in parts:
            yield parts.get(row.content)
        else:
            pack, index = earlier[row.content]
            yield narrowed(np.asarray(pack.images[index]), pack.rows[index])


def _prepared(
    jobs: Sequence[tuple[str, Record, str | None]],
    known: PixelDigests,
    recipe: Preprocessing,
    workers: int,
    segmenter: Segmenter | None,
) -> Iterator[tuple[str, NDArray[Any] | UnreadableImageError]]:
    """Each job's pixels or its error, as they get ready; at most twice as many as workers are under way."""

    def work(record: Record, file: str | None) -> NDArray[Any] | UnreadableImageError:
        try:
            return prepare(record.image, record.masks, recipe, known.noting(file), segmenter)
        except UnreadableImageError as problem:
            return problem

    if workers <= 1:
        for content, record, file in jobs:
            yield content, work(record, file)
        return
    with ThreadPoolExecutor(workers) as pool:
        under_way: dict[Future[NDArray[Any] | UnreadableImageError], str] = {}
        try:
            for content, record, file in jobs:
                under_way[pool.submit(work, record, file)] = content
                if len(under_way) >= 2 * workers:
                    for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                        yield under_way.pop(future), future.result()
            for future in list(under_way):
                yield under_way[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _stopped(problems: dict[int, str], records: Sequence[Record]) -> UnreadableImageError:
    texts = list(dict.fromkeys(problems[index] for index in sorted(problems)))
    if len(texts) == 1:
        return UnreadableImageError(texts[0])
    shown = "".join(f"\n  {text}" for text in texts[:_NAMED_PROBLEMS])
    more = f"\n  and {len(texts) - _NAMED_PROBLEMS} more" if len(texts) > _NAMED_PROBLEMS else ""
    return UnreadableImageError(
        f"{len(problems)} of {len(records)} images can't be read; repair them, or set data.unreadable: skip in the site's "
        f"profile to leave them out:{shown}{more}"
    )


def _store(
    pack: Pack, records: Sequence[Record], unreadable: Literal["stop", "skip"], pixels: tuple[str, ...]
) -> ImageStore:
    failed = {index: row.problem for index, row in enumerate(pack.rows) if row.problem is not None}
    if failed and unreadable == "stop":
        raise _stopped({index: str(text) for index, text in failed.items()}, records)
    readable = np.ones(len(pack.rows), dtype=np.bool_)
    readable[list(failed)] = False
    problems = tuple(
        Problem(records[index].image, str(text).removeprefix(f"{records[index].image}: "))
        for index, text in failed.items()
    )
    return ImageStore(pack.images, readable, problems, pixels)


def _forget_oldest(place: Path) -> None:
    packs = sorted(place.glob("*.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in packs[_KEPT_PACKS:]:
        remove_pack(place, path.stem)


def _bytes_needed(records: Sequence[Record], recipe: Preprocessing) -> int:
    """The most that filling may take: rows and pack, both in the widest form."""
    return 2 * len(records) * recipe.planes * recipe.size**2 * 2
