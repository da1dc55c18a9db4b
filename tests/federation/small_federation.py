"""A federation that is small enough for a test: phantom hospitals, a network of 32 pixels, two rounds; driven by the real commands.

Every process that a test starts carries a mark in its environment, by which `alive` finds it and all its descendants in /proc,
whoever their parent has become.
"""

from __future__ import annotations

import csv
import ctypes
import io
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from client.phantom import write_phantom
from server.run_folder import RunFolder

MARK = "CONSILIUM_TEST_MARK"
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)
#: Hospital, seed of its phantom, scanner.
HOSPITALS = (("anna", 1, "halide"), ("bertha", 2, "cassette"), ("clara", 3, "panel"))
PATIENTS = 18
#: Of 45 MB, where it matters how long it travels and how much room it takes; RCDnet has 6 MB.
LARGE = {"name": "resnet18"}
#: Stands in for a patient's id and in file names at anna, and must not be found outside her folder.
SECRET = "KENNWORT-7F3A"

STUDY: dict[str, Any] = {
    "schema": "consilium/study/1",
    "name": "small",
    "title": "A small study for tests",
    "governance": {"purpose": "test", "ethics": "none needed, synthetic", "retention": "none"},
    "seed": 3,
    "task": {
        "classes": {"benign": ["BENIGN", "BENIGN_WITHOUT_CALLBACK"], "malignant": ["MALIGNANT"]},
        "positive_class": "malignant",
        "unit": "finding",
    },
    "data": {"select": {"abnormality": ["calcification"]}, "split": {"train": 0.5, "validation": 0.2, "test": 0.3}},
    "preprocessing": {
        "region": "finding",
        "margin": 0.15,
        "size": 32,
        "channels": 3,
        "intensity": "region_percentiles",
        "normalise": {"mean": [0.5], "std": [0.25]},
    },
    "augmentation": {"horizontal_flip": 0.5, "quarter_turns": True},
    "model": {"name": "rcdnet"},
    "head": {
        "C": 10,
        "gamma": 0.001,
        "grid": {"C": [1, 10], "gamma": [0.0001, 0.001], "folds": 2},
        "calibration_folds": 2,
    },
    "training": {
        "local_epochs": 1,
        "batch_size": 16,
        "optimiser": "adam",
        "learning_rate": 5.0e-4,
        "optimiser_state": "keep",
        "loss": "binary_cross_entropy",
        "precision": "fp32",
    },
    "federation": {
        "rounds": 2,
        "quorum": 2,
        "join_deadline_s": 120,
        "prepare_deadline_s": 240,
        "round_deadline_s": 240,
        "evaluation_deadline_s": 240,
        "weighting": "counts",
        "wire": "bf16",
    },
    "evaluation": {"resamples": 100, "minimum_cell": 2},
}


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` put in, key by key at every depth."""
    result = deepcopy(dict(base))
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return result


def write_study(path: Path, changes: Mapping[str, Any] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(merged(STUDY, changes or {}), sort_keys=False), encoding="utf-8")
    return path


def write_profile(folder: Path, site: str, data: Path | str, changes: Mapping[str, Any] | None = None) -> Path:
    """`folder/profile.yaml`; returns the folder, as the command takes it."""
    profile = {
        "schema": "consilium/profile/1",
        "site": site,
        "title": f"{site.title()} (synthetic)",
        "data": {"layout": "cbis_ddsm", "root": str(data), "synthetic": True},
        "device": "cpu",
        "policy": {"minimum_patients": 5, "minimum_cell": 2},
    }
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(merged(profile, changes or {}), sort_keys=False)
    (folder / "profile.yaml").write_text(text, encoding="utf-8")
    return folder


def write_hospitals(folder: Path) -> dict[str, Path]:
    """The hospitals' data folders by name; one patient of anna's bears SECRET in tables and file names."""
    made: dict[str, Path] = {}
    for site, seed, scanner in HOSPITALS:
        made[site] = folder / site
        write_phantom(made[site], patients=PATIENTS, seed=seed, scanner=scanner, prevalence=0.5)
    rename_a_patient(made["anna"], SECRET)
    return made


def tables(root: Path) -> list[Path]:
    return sorted(root.glob("*.csv"))


def rows(table: Path) -> list[dict[str, str]]:
    with table.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def write_rows(table: Path, kept: Sequence[Mapping[str, str]], *, without: str = "") -> None:
    """Replace the table (a hard link's other name keeps the old one), leaving out one column."""
    columns = [name for name in rows(table)[0] if name != without]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(kept)
    replace_file(table, text.getvalue().encode())


def rename_a_patient(root: Path, new: str) -> None:
    """Give the first patient of the training table another id, in tables and file names."""
    old = rows(root / "calc_case_description_train_set.csv")[0]["patient_id"]
    for table in tables(root):
        replace_file(table, table.read_bytes().replace(old.encode(), new.encode()))
    for path in [path for path in root.rglob(f"*{old}*") if path.is_dir()]:
        path.rename(path.with_name(path.name.replace(old, new)))


def coordinators_files(run_dir: Path) -> Iterator[Path]:
    """All files of a local run that a coordinator on a machine of its own would have."""
    for path in sorted(run_dir.rglob("*")):
        inside = path.relative_to(run_dir).as_posix()
        if path.is_file() and not inside.startswith(("sites/", "logs/site-")):
            yield path


def holds(path: Path, text: str) -> bool:
    """Whether the file has `text` in one of the forms in which Python, NumPy and JSON write it."""
    content = path.read_bytes()
    return any(text.encode(form) in content for form in ("utf-8", "utf-16-le", "utf-32-le"))


def copied(data: Path, target: Path) -> Path:
    """A copy of a data folder that a test may damage (hard links: damage by replacing a file, never by writing into it)."""
    shutil.copytree(data, target, copy_function=os.link)
    return target


def first_mammogram(root: Path, patient: str = "*") -> Path:
    """The first mammogram by path (a folder that ends in its view; those of crops and masks end in a number)."""
    return min(path for view in ("CC", "MLO") for path in root.glob(f"CBIS-DDSM/*_{patient}_*_{view}/**/*.dcm"))


def replace_file(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    code: int
    output: str
    mark: str

    @property
    def sentence(self) -> str:
        """The output as one line, so that a phrase is found however it was wrapped."""
        return " ".join(self.output.split())


@dataclass
class Command:
    """A consilium command under way, in a process group of its own."""

    process: subprocess.Popen[str]
    mark: str
    said: list[str] = field(default_factory=list)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, limit_s: float = 600) -> Finished:
        output, _ = self.process.communicate(timeout=limit_s)
        return Finished(self.process.returncode, output, self.mark)


def command(name: str, *arguments: object) -> list[str]:
    """`consilium-server` or `consilium-site` as it is installed beside this Python."""
    return [str(Path(sys.executable).parent / name), *(str(argument) for argument in arguments)]


def start(
    arguments: Sequence[str], *, cwd: Path, environment: Mapping[str, str] | None = None,
    preexec: Callable[[], None] | None = None,
) -> Command:  # fmt: skip
    def prepare() -> None:
        if sys.platform.startswith("linux"):  # a test run that is killed leaves nothing either
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if preexec is not None:
            preexec()

    mark = uuid.uuid4().hex
    env = {**os.environ, "OMP_NUM_THREADS": "1", MARK: mark, **(environment or {})}
    process = subprocess.Popen(
        arguments, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", start_new_session=True, preexec_fn=prepare,
    )  # fmt: skip
    return Command(process, mark)


@contextmanager
def under_way(arguments: Sequence[str], **options: Any) -> Iterator[Command]:
    """A command that is ended with all its descendants when the block is left, so that a failed test leaves nothing."""
    started = start(arguments, **options)
    try:
        yield started
    finally:
        for pid in alive(started.mark):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        started.process.wait()


def run(arguments: Sequence[str], *, limit_s: float = 600, **options: Any) -> Finished:
    with under_way(arguments, **options) as started:
        return started.wait(limit_s)


def local(study: Path, sites: Sequence[Path], run_dir: Path) -> list[str]:
    return command("consilium-server", "local", study, *sites, "--run-dir", run_dir)


def alive(mark: str) -> dict[int, str]:
    """Command lines by process id of all living processes with this mark in their environment."""
    wanted = f"{MARK}={mark}".encode()
    found: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                found[int(folder.name)] = line
    return found


def wait_until(condition: Callable[[], object], what: str, limit_s: float = 120, every_s: float = 0.05) -> None:
    limit = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < limit, f"not within {limit_s:g} s: {what}"
        time.sleep(every_s)


def wait_for_phase(run_dir: Path, phase: str, number: int) -> None:
    """Until a site has been sent its message of this phase and round."""

    def reached() -> bool:
        told = RunFolder(run_dir).events()
        return any((event.kind, event.phase, event.round) == ("site", phase, number) for event in told)

    wait_until(reached, f"{phase} of round {number} in {run_dir}", 240)


def assert_gone(mark: str, within_s: float = 10) -> None:
    """No process with this mark is left (one that is ending may take a moment)."""
    limit = time.monotonic() + within_s
    while left := alive(mark):
        assert time.monotonic() < limit, f"left running after {within_s:g} s: {left}"
        time.sleep(0.05)
