"""A whole phantom site on disk: tables and images, all or nothing."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np

from client.phantom.cases import Case, plan_cases
from client.phantom.patient_files import write_patient
from client.phantom.scanners import SCANNERS, Scanner
from client.phantom.tables import TEST_TABLE, TRAIN_TABLE, Row, table_text
from shared.errors import InputError, StorageError


@dataclass(frozen=True, kw_only=True)
class PhantomSummary:
    """What was written. `findings` counts table rows: one abnormality in two views counts twice."""

    root: Path
    scanner: str
    patients: int
    malignant_patients: int
    images: int
    findings: int
    malignant_findings: int
    train_findings: int
    test_findings: int


def write_phantom(
    root: Path,
    *,
    patients: int,
    seed: int,
    scanner: str,
    prevalence: float | None = None,
    progress: Callable[[int, int], None] | None = None,
    workers: int = 1,
) -> PhantomSummary:
    """Write a synthetic mammography site in the layout of CBIS-DDSM to the new or empty folder `root`.

    Args:
        root: gets the two case-description tables and `CBIS-DDSM/`. Appears complete or not at all.
        patients: number of patients, at least 1; each has one to four mammograms.
        seed: not negative. Equal arguments give byte-identical files, whatever the number of workers.
        scanner: a key of `SCANNERS`.
        prevalence: share of patients whose main finding is malignant, in [0, 1]; None takes the scanner's.
        progress: called with (patients written, patients in all) after each patient.
        workers: processes; 1 works in this one.

    Raises:
        InputError: an argument is out of range, or `root` is a file or a folder that is not empty.
        StorageError: the disk is full, or nothing may be written there.
    """
    preset = _checked(root, patients=patients, seed=seed, scanner=scanner, prevalence=prevalence, workers=workers)
    share = preset.prevalence if prevalence is None else prevalence
    identity = f"{scanner}/{seed}/{patients}/{share!r}"
    sequence = np.random.SeedSequence([seed, int.from_bytes(sha256(identity.encode()).digest()[:8], "big")])
    cases = plan_cases(patients=patients, prevalence=share, sequence=sequence)
    with _complete_or_absent(root) as partial_root:
        rows: list[Row] = []
        for done, written in enumerate(_written(partial_root, cases, preset, identity, workers), start=1):
            rows.extend(written)
            if progress is not None:
                progress(done, patients)
        train, test = [row for row in rows if not row.case.test], [row for row in rows if row.case.test]
        (partial_root / TRAIN_TABLE).write_text(table_text(train), encoding="utf-8", newline="")
        (partial_root / TEST_TABLE).write_text(table_text(test), encoding="utf-8", newline="")
    return PhantomSummary(
        root=root,
        scanner=scanner,
        patients=patients,
        malignant_patients=sum(case.malignant for case in cases),
        images=sum(len(case.views) for case in cases),
        findings=len(rows),
        malignant_findings=sum(row.finding.malignant for row in rows),
        train_findings=len(train),
        test_findings=len(test),
    )


def _checked(root: Path, *, patients: int, seed: int, scanner: str, prevalence: float | None, workers: int) -> Scanner:
    if scanner not in SCANNERS:
        raise InputError(f"scanner: expected one of {', '.join(SCANNERS)}, but got {scanner!r}.")
    for name, value, least in (("patients", patients, 1), ("seed", seed, 0), ("workers", workers, 1)):
        if value < least:
            raise InputError(f"{name}: expected at least {least}, but got {value}.")
    if prevalence is not None and not 0 <= prevalence <= 1:
        raise InputError(f"prevalence: expected a share between 0 and 1, but got {prevalence}.")
    if root.exists() and not root.is_dir():
        raise InputError(f"{root}: expected a folder, but it is a file. Name a folder that does not exist yet.")
    if root.is_dir() and any(root.iterdir()):
        raise InputError(
            f"{root}: expected a new or empty folder, but it holds files, and the phantom never overwrites. "
            "Name another folder or empty this one."
        )
    return SCANNERS[scanner]


def _written(
    root: Path, cases: tuple[Case, ...], scanner: Scanner, identity: str, workers: int
) -> Iterator[tuple[Row, ...]]:
    write = partial(_write_one, root, scanner.name, identity)
    if workers == 1:
        yield from map(write, cases)
        return
    with ProcessPoolExecutor(min(workers, len(cases)), mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(write, cases, chunksize=max(1, min(8, len(cases) // workers)))


def _write_one(root: Path, scanner: str, identity: str, case: Case) -> tuple[Row, ...]:
    return write_patient(root, case, SCANNERS[scanner], identity)


@contextmanager
def _complete_or_absent(root: Path) -> Iterator[Path]:
    """A folder beside `root` that takes its name at the end; an error or an interrupt leaves nothing behind."""
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=root.parent, prefix=f".{root.name}.partial-", ignore_cleanup_errors=True
        ) as beside:
            # The inner folder gets the ordinary permissions of the user, not the 0700 of a temporary one.
            building = Path(beside) / "phantom"
            building.mkdir()
            yield building
            try:
                building.rename(root)
            except OSError as error:
                raise InputError(f"{root}: can't put the finished phantom in place ({error.strerror}).") from error
    except OSError as problem:
        raise StorageError(f"{root}: can't be written: {problem.strerror or problem}") from None
