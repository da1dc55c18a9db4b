"""A patient withdraws: from the next instruction on no study sees the patient, and caches and runs forget whose images they held.

What models have learnt stays learnt: which runs used the patient, and in which rounds, is kept on record and listed. An instruction that is
being carried out ends with the patient; what it writes at its end is cleaned then. Everything here can be killed and run again.
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import html
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from client.answered import forget as forget_answer
from client.data.cache import forget_records
from client.data.records import Record
from client.data.registry import adapter_for
from client.kept_rows import forget_rows
from client.own_runs import PAGE_NAME, OwnRun, own_runs, read_run
from client.publications import publications
from client.roll import Roll, forget_in_roll, load_roll
from client.site_folder import SiteFolder
from client.withdrawn import Spent, Tags, Withdrawal, normalised, withdrawn, withdrawn_tags, write_withdrawn
from shared.errors import ConsiliumError, InputError, StorageError


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a withdrawal came to. `running` are runs whose present instruction still has the patient; `notes` what could not be seen to."""

    withdrawal: Withdrawal
    images: int
    pages: tuple[Path, ...]
    running: tuple[str, ...]
    notes: tuple[str, ...]


def withdraw(folder: SiteFolder, patient: str, *, reason: str = "") -> Outcome:
    """Exclude the patient from now on, and take everything that names the patient out of caches and runs.

    For a patient who has withdrawn already this only cleans again. Raises InputError where neither the data nor any run knows the patient,
    StorageError where not all could be cleaned: the exclusion holds nevertheless, and running it again goes on.
    """
    tags = Tags.of(folder)
    tag = tags.tag(patient)
    with _one_at_a_time(folder):
        records, notes = _records_of(folder, tags, tag, patient)
        rolls = _rolls_with(folder, tag)
        known = {one.tag: one for one in withdrawn(folder)}
        if tag not in known and not records and not rolls:
            raise _unknown(folder, tags, patient, notes)
        entry = known.get(tag) or Withdrawal(tag=tag, withdrawn_at=_now(), reason=reason, purged=False)
        entry = entry.model_copy(update={"spent": _spent(entry.spent, rolls, tag), "purged": False})
        write_withdrawn(
            folder, tags, {**known, tag: entry}.values()
        )  # from here on no instruction begins with the patient
        keys = {record.key for record in records}.union(*(roll.keys_of(tag) for _, roll in rolls))
        files = None if notes else {path for record in records for path in (record.image, *record.masks)}
        pages = _forget(folder, tag, keys, files, rolls)
        running = tuple(run.note.run for run, _ in rolls if run.now is not None)
        entry = entry.model_copy(update={"purged": True})
        write_withdrawn(folder, tags, {**known, tag: entry}.values())
    return Outcome(entry, len(keys), pages, running, tuple(notes))


def settle(folder: SiteFolder, run_folder: Path, roll: Roll) -> None:
    """At the end of an instruction that was carried out with `roll`: clean what it wrote of patients who withdrew meanwhile.

    Raises StorageError, InputError.
    """
    run = read_run(run_folder)
    if run is None or not withdrawn_tags(folder) & set(roll.tags):
        return
    with _one_at_a_time(folder):
        tags, known = Tags.of(folder), {one.tag: one for one in withdrawn(folder)}
        for tag in sorted(known.keys() & set(roll.tags)):
            known[tag] = known[tag].model_copy(update={"spent": _spent(known[tag].spent, [(run, roll)], tag)})
            write_withdrawn(folder, tags, known.values())
            _forget(folder, tag, roll.keys_of(tag), None, [(run, roll)])


def _records_of(folder: SiteFolder, tags: Tags, tag: str, patient: str) -> tuple[list[Record], list[str]]:
    """The patient's records by the hospital's tables, for every unit that a study here has, and what could not be looked at."""
    data = folder.profile().data
    records: list[Record] = []
    notes: list[str] = []
    for record in _all_records(folder, notes):
        if tags.tag(record.patient) == tag:
            records.append(record)
    if notes:
        notes.append(
            f"the data ({data.layout} in {data.root}) could not be opened in full, so caches of runs that were removed were not searched"
        )
    return records, notes


def _all_records(folder: SiteFolder, notes: list[str]) -> Iterator[Record]:
    data = folder.profile().data
    adapter = adapter_for(data)
    wanted = {adapter.units[0]}
    with contextlib.suppress(ConsiliumError):  # not joined: there is no study then
        wanted |= {unit for one in publications(folder) for unit in adapter.units if one.study["task"]["unit"] == unit}
    for unit in sorted(wanted):
        try:
            yield from adapter(Path(data.root), unit=unit).records
        except ConsiliumError as problem:
            notes.append(str(problem))


def _rolls_with(folder: SiteFolder, tag: str) -> list[tuple[OwnRun, Roll]]:
    rolls = ((run, load_roll(run.folder)) for run in own_runs(folder))
    return [(run, roll) for run, roll in rolls if roll is not None and tag in roll.tags]


def _spent(before: Collection[Spent], rolls: Collection[tuple[OwnRun, Roll]], tag: str) -> list[Spent]:
    """What is on record, and what the runs add that still hold the patient: by run, nothing is taken back."""
    found = {one.run: one for one in before}
    for run, roll in rolls:
        part = roll.part_of(tag)
        if part is None:
            continue
        earlier = found.get(run.note.run)
        found[run.note.run] = Spent(
            run=run.note.run,
            study_name=run.note.study_name,
            study_digest=run.note.study_digest,
            part=part,
            rounds=sorted({*run.begun_rounds, *(earlier.rounds if earlier is not None else ())}),
            evaluations=max(run.evaluations, earlier.evaluations if earlier is not None else 0),
        )
    return list(found.values())


def _forget(
    folder: SiteFolder,
    tag: str,
    keys: Collection[str],
    files: Collection[Path] | None,
    rolls: Collection[tuple[OwnRun, Roll]],
) -> tuple[Path, ...]:
    """Caches first and the runs' rolls last: as long as these name the patient's records, a killed withdrawal finds them again."""
    forget_records(folder.cache, keys, files)
    pages = []
    touched = {run.folder for run, _ in rolls}
    for run_folder in sorted(path for path in (folder.path / "runs").glob("*") if path.is_dir()):
        for path in sorted([*run_folder.glob("scores-*.npz"), *run_folder.glob("masks-*.npz")]):
            forget_rows(path, keys)
        page = run_folder / PAGE_NAME
        if page.exists() and (run_folder in touched or _names_one(page, keys)):
            page.unlink(missing_ok=True)
            pages.append(page)
    for run_folder in touched:
        forget_answer(run_folder)
        forget_in_roll(run_folder, {tag})
    return tuple(pages)


def _names_one(page: Path, keys: Collection[str]) -> bool:
    text = page.read_text(encoding="utf-8", errors="replace")
    return any(key in text or html.escape(key) in text for key in keys)


def _unknown(folder: SiteFolder, tags: Tags, patient: str, notes: list[str]) -> InputError:
    if notes:
        return InputError(f"no run here holds the patient '{patient}', and the data can't be looked at: {notes[0]}")
    known = {normalised(record.patient): record.patient for record in _all_records(folder, [])}
    close = difflib.get_close_matches(normalised(patient), sorted(known), n=1, cutoff=0.6)
    hint = f"; did you mean '{known[close[0]]}'?" if close else ""
    stand_in = folder.profile().data.patient_stand_in
    whose = f"ids are those of {stand_in}, which stands in for the patient" if stand_in else "ids are those of the data"
    return InputError(
        f"no patient '{patient}' here: neither the data ({len(known)} patients) nor a run has that id{hint} ({whose}; case and "
        "spaces don't matter)"
    )


@contextlib.contextmanager
def _one_at_a_time(folder: SiteFolder) -> Iterator[None]:
    """The kernel lets go when the holder dies."""
    try:
        handle = os.open(folder.path / "keys", os.O_RDONLY)
    except OSError as problem:
        raise StorageError(f"{folder.path / 'keys'}: can't be opened: {problem.strerror or problem}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
