"""A run as one file for an auditor: the records, the signatures and the numbers that the checks read, and nothing else.

A ZIP file (stored, not compressed: the numbers don't shrink), the same bytes for the same run. What lies in a run's folder besides - logs,
keys, a hospital's own folder in a run on one machine - has no place in it, on the way in and on the way out.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from shared.audit.records import read_run
from shared.errors import InputError

_ROUND = r"rounds/[0-9]{4,6}"
_SITE = r"[a-z0-9][a-z0-9_.-]{0,62}"
_SIGNED = rf"{_SITE}\.(prepare|train|evaluate)\.(instruction|answer)\.json"
#: What an auditor reads.
_NAMES = re.compile(
    rf"study\.json|run\.json|evaluation\.json|model/(manifest\.json|initial\.safetensors)|{_ROUND}/(round\.json|model\.safetensors)"
    rf"|{_ROUND}/signed/{_SIGNED}|{_ROUND}/updates/{_SITE}\.npy|evaluation-signed/{_SIGNED}"
)
#: Where these lie: a run's folder can also hold hospitals' folders, with caches of images.
_TOPS = ("*", "model/*", "evaluation-signed/*", "rounds/*/*", "rounds/*/signed/*", "rounds/*/updates/*")
#: The moment that every entry bears, so that equal runs are equal files.
_MOMENT = (1980, 1, 1, 0, 0, 0)


def write_bundle(run_dir: Path, target: Path) -> list[str]:
    """Pack the run and return the names of what was packed. Raises InputError where it is no run's folder or the file can't be written."""
    read_run(run_dir)
    names = [
        name
        for path in sorted(one for top in _TOPS for one in run_dir.glob(top))
        if path.is_file() and not path.is_symlink() and _NAMES.fullmatch(name := path.relative_to(run_dir).as_posix())
    ]
    partial = target.with_name(f".{target.name}.partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as packed:
            for name in names:
                entry = zipfile.ZipInfo(name, _MOMENT)
                entry.external_attr = 0o644 << 16
                with (run_dir / name).open("rb") as source, packed.open(entry, "w", force_zip64=True) as written:
                    shutil.copyfileobj(source, written, 1 << 20)
        partial.replace(target)
    except OSError as problem:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise InputError(f"{target}: can't be written: {problem.strerror or problem}") from None
    return names


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Path]:
    """The folder of a run: `path` itself, or a bundle unpacked for as long as this lasts. Raises InputError for what is neither."""
    if not path.is_file():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="consilium-audit-") as name:
        folder = Path(name)
        _unpack(path, folder)
        yield folder


def _unpack(path: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(path) as packed:
            names = packed.namelist()
            stranger = next((name for name in names if not _NAMES.fullmatch(name)), None)
            if stranger is not None:
                raise InputError(f"{path}: holds '{stranger[:80]}', which belongs to no bundle")
            if len(set(names)) != len(names):
                raise InputError(f"{path}: holds two files of one name")
            for name in names:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                with packed.open(name) as source, (folder / name).open("wb") as written:
                    shutil.copyfileobj(source, written, 1 << 20)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError) as problem:
        raise InputError(
            f"{path}: not a bundle of `consilium-audit bundle`, or damaged on its way: {problem}"
        ) from None
    except OSError as problem:
        raise InputError(f"{path}: can't be read or unpacked: {problem.strerror or problem}") from None
