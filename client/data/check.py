"""What `consilium-site check` says about a hospital's data, device and disk, before any study runs. Nothing of it is sent."""

from __future__ import annotations

import os
import platform
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from client.data.image_survey import Masks, Survey, find_duplicates, images_of, survey
from client.data.metadata import encoded
from client.data.records import Holding, Problem, Record
from client.data.registry import adapter_named, read_holding
from client.data.selection import Cohort, choose
from client.data.splits import PARTS
from client.data.taken import coverage, folded
from shared.errors import ConsiliumError
from shared.profile import Profile
from shared.study import Study

_SHOWN = 100
_LARGEST_SIZE = 224


def check_profile(profile: Profile, study: Study | None, console: Console) -> bool:
    """Open the profile's data, read every image, and print what is there; True where the study (if any) can run on it.

    With a study, patients, images and classes are given for each part as the study divides them; without, labels overall.
    False where the folder is not of the layout, nothing can be read, files can't be used and the profile says `unreadable: stop`,
    the study can't be served, the device is not there, or the disk of the cache is too full.
    """
    _heading(profile, study, console)
    try:
        adapter = adapter_named(profile.data.layout)
        unit = study.task.unit if study is not None else adapter.units[0]
        holding = read_holding(profile.data, unit=unit)
    except ConsiliumError as problem:
        return _verdict([str(problem)], console)
    _print_patient(holding, console)
    found = _read_all(holding, study, console)
    faults: list[str] = []
    problems = (*holding.problems, *found.problems)
    _print_problems(problems, console)
    _print_notes(holding, profile, console)
    if problems and profile.data.unreadable == "stop":
        faults.append(
            f"{_count(len(problems), 'file or row', 'files or rows')} can't be used and the profile says data.unreadable: stop"
        )
    chosen: Sequence[Record] = found.usable
    if study is not None:
        try:
            cohort = choose(
                study,
                replace(holding, records=found.usable),
                minimum_patients=profile.policy.minimum_patients,
                external=profile.role == "external_test",
            )
            _print_cohort(cohort, study, console)
            chosen = cohort.records
            _print_metadata(chosen, study, console)
        except ConsiliumError as problem:
            faults.append(str(problem))
            _print_labels(found.usable, unit, console)
    else:
        _print_labels(found.usable, unit, console)
        if not found.usable:
            faults.append("no image can be read")
    _print_duplicates(found, chosen, console)
    faults.extend(_machine(profile, console))
    faults.extend(_disk(profile, found, chosen, study, console))
    return _verdict(faults, console)


def _say(console: Console, text: str, style: str | None = None) -> None:
    """Plain text: file names and titles may hold anything, so no markup and no wrapping inside a path."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _heading(profile: Profile, study: Study | None, console: Console) -> None:
    data = profile.data
    _say(console, f"{profile.title} ({profile.site})", style="bold")
    _say(console, f"Data: {data.layout} in {data.root}")
    if data.synthetic:
        _say(
            console,
            "Synthetic: yes. These images are of no person; no number from them says anything about care",
            style="yellow",
        )
    else:
        _say(console, "Synthetic: no")
    if profile.role == "external_test":
        _say(console, "Role: external test. This site never trains; all its patients test the final model")
    if study is not None:
        _say(console, f"Study: {study.name} ({study.title})")
        if (mask := study.preprocessing.mask_in_words()) is not None:
            _say(console, f"Mask: one more plane of each prepared image, {mask}")


def _print_patient(holding: Holding, console: Console) -> None:
    stand_in = holding.patient_stand_in
    if stand_in is None:
        _say(console, "Patient: the data's own patient id")
    else:
        _say(
            console,
            f"Patient: the data does not name every patient; {stand_in} stands in, and every report will repeat it",
        )


def _read_all(holding: Holding, study: Study | None, console: Console) -> Survey:
    needed_by = study.preprocessing.masks_needed_by if study is not None else None
    masks: Masks = "read" if study is None else "ignore" if needed_by is None else "require"
    images = images_of(holding.records)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        read = progress.track(images, description="Reading images")
        return survey(
            holding.records,
            masks=masks,
            read=read,
            taken=lambda record: _taken(record, study),
            needed_by=needed_by or "",
        )


def _taken(record: Record, study: Study | None) -> bool:
    return study is None or study.task.class_of(record.label) is not None


def _print_problems(problems: Sequence[Problem], console: Console) -> None:
    if not problems:
        _say(console, "Unusable files or rows: none")
        return
    _say(console, f"Unusable files or rows: {len(problems)}", style="bold red")
    for problem in problems[:_SHOWN]:
        _say(console, f"  {problem}")
    if len(problems) > _SHOWN:
        _say(console, f"  ... and {len(problems) - _SHOWN} more")


def _print_notes(holding: Holding, profile: Profile, console: Console) -> None:
    notes = list(holding.notes)
    if holding.patient_stand_in is None and profile.data.patient_stand_in is not None:
        notes.append(
            f"the profile says that {profile.data.patient_stand_in} stands in for the patient, but the data names every patient; remove "
            "data.patient_stand_in, or every report will say so"
        )
    for note in notes:
        _say(console, f"Note: {note}", style="yellow")


def _print_cohort(cohort: Cohort, study: Study, console: Console) -> None:
    unit = f"{study.task.unit}s"
    table = Table(title=f"Divided as the study says ({unit}; in brackets patients)", title_justify="left")
    groups = [*(cohort.parts[part] for part in PARTS), np.arange(len(cohort.records))]
    for column in ("", *PARTS, "all"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("patients", *(str(cohort.patients_in(indices)) for indices in groups))
    table.add_row(unit, *(str(len(indices)) for indices in groups), end_section=True)
    for index, name in enumerate(study.task.class_names):
        members = [indices[cohort.labels[indices] == index] for indices in groups]
        table.add_row(name, *(f"{len(own)} ({cohort.patients_in(own)})" for own in members))
    console.print(table)
    for one in folded(cohort, study):
        _say(console, f"By the study's hierarchy: {one}", style="yellow")
    for described in coverage(cohort, study):
        _say(console, f"Descriptor {described.name}: {described}")
    if cohort.left_out:
        _say(console, f"Left out, as their label is in no class of the study: {cohort.left_out}")
    if cohort.classes_left_out:
        names = ", ".join(cohort.classes_left_out)
        _say(console, f"Classes with too few patients here, left out as the study allows: {names}", style="yellow")


def _print_metadata(records: Sequence[Record], study: Study, console: Console) -> None:
    """Of how many images what the study tells its network is known. Raises DataError where nothing is, or a number is none."""
    encoded(records, study.metadata, required=study.privacy is None)
    for one in study.metadata:
        known = sum(record.metadata.get(one.name) not in (None, "") for record in records)
        _say(console, f"Metadata {one.name}: given with {known} of {_count(len(records), 'image', 'images')}")


def _print_labels(records: Sequence[Record], unit: str, console: Console) -> None:
    table = Table(title="Labels", title_justify="left")
    for column in ("label", "patients", f"{unit}s"):
        table.add_column(column, justify="left" if column == "label" else "right")
    for label, count in sorted(Counter(record.label for record in records).items()):
        patients = {record.patient for record in records if record.label == label}
        table.add_row(label, str(len(patients)), str(count))
    table.add_row("all", str(len({record.patient for record in records})), str(len(records)))
    console.print(table)


def _print_duplicates(found: Survey, records: Sequence[Record], console: Console) -> None:
    duplicates = find_duplicates(found, records)
    extra = sum(len(group) - 1 for group in duplicates.groups)
    _say(console, f"Duplicate images (same pixels): {extra or 'none'}")
    if duplicates.across:
        _say(
            console,
            f"Warning: {_count(len(duplicates.across), 'image stands', 'images stand')} under more than one patient, which can leak "
            "from training into test:",
            style="bold yellow",
        )
        for group in duplicates.across[:_SHOWN]:
            _say(console, "  " + " = ".join(str(path) for path in group))
        if len(duplicates.across) > _SHOWN:
            _say(console, f"  ... and {len(duplicates.across) - _SHOWN} more")


def _machine(profile: Profile, console: Console) -> list[str]:
    from client.device import chosen_device  # imports torch, which takes seconds

    try:
        device = chosen_device(profile.device)
    except ConsiliumError as problem:
        return [str(problem)]
    if device.type == "cuda":
        import torch

        properties = torch.cuda.get_device_properties(device)
        _say(console, f"Device: {properties.name}, {_size(properties.total_memory)} of memory")
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        _say(console, f"Device: CPU ({_processor()}), {os.cpu_count()} cores, {_size(memory)} of memory")
    return []


def _disk(
    profile: Profile, found: Survey, records: Sequence[Record], study: Study | None, console: Console
) -> list[str]:
    size = study.preprocessing.size if study is not None else _LARGEST_SIZE
    planes = study.preprocessing.planes if study is not None and study.preprocessing.mask is not None else None
    needed = found.prepared_bytes(records, size, planes=planes)
    wanted = Path(profile.cache) if profile.cache is not None else Path.cwd()
    folder = next(path for path in (wanted, *wanted.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    where = (
        f"at {wanted}"
        if profile.cache is not None
        else f"here ({wanted}; the profile names no cache, which is then in the site's folder)"
    )
    _say(
        console,
        f"Disk: the images prepared at {size} x {size} pixels take about {_size(needed)}; {_size(free)} are free {where}",
    )
    if needed > free:
        return [f"the cache needs about {_size(needed)}, but only {_size(free)} are free {where}"]
    return []


def _verdict(faults: Sequence[str], console: Console) -> bool:
    for fault in faults:
        _say(console, f"Can't be used as it is: {fault}", style="bold red")
    if not faults:
        _say(console, "Ready", style="bold green")
    return not faults


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _count(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"
