"""Hospitals and runs that many tests look into; each is made once."""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from small_federation import (
    HOSPITALS,
    Finished,
    first_mammogram,
    local,
    replace_file,
    run,
    under_way,
    wait_for_phase,
    write_hospitals,
    write_profile,
    write_study,
)

from server.run_folder import RunFolder


@dataclass(frozen=True)
class Run:
    """A run that has ended: its folder and how the command ended."""

    folder: RunFolder
    finished: Finished

    @property
    def path(self) -> Path:
        return self.folder.path

    def site_files(self, site: str) -> Path:
        return self.path / "sites" / site / "runs" / self.folder.run_id()


@pytest.fixture(scope="session")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Data folders by site, which nobody writes into; anna's hold SECRET, bertha's one mammogram that is cut off.

    All of pytest-xdist's workers have them in common: the first that asks makes them, the others wait.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "hospitals"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "made").exists():
            made = write_hospitals(folder)
            damaged = first_mammogram(made["bertha"])
            replace_file(damaged, damaged.read_bytes()[:2000])
            (folder / "made").touch()
    return {site: folder / site for site, *_ in HOSPITALS}


@pytest.fixture(scope="session")
def sites(hospitals: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Profiles of the three hospitals."""
    folder = tmp_path_factory.mktemp("profiles")
    changes = {"bertha": {"data": {"unreadable": "skip"}}}
    return [write_profile(folder / site, site, data, changes.get(site)) for site, data in hospitals.items()]


@pytest.fixture(scope="session")
def undisturbed(sites: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three hospitals, two rounds, to the end."""
    base = tmp_path_factory.mktemp("undisturbed")
    finished = run(local(write_study(base / "study.yaml"), sites, base / "run"), cwd=base)
    assert finished.code == 0, finished.output
    return Run(RunFolder(base / "run"), finished)


@dataclass(frozen=True)
class Disturbed(Run):
    """A run during which a second one was started in its folder."""

    intruder: Finished


@pytest.fixture(scope="session")
def repeated(sites: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Disturbed:
    """The same again with Flower's state in a file, while a second command tries to use the same folder."""
    base = tmp_path_factory.mktemp("repeated")
    study, run_dir = write_study(base / "study.yaml"), base / "run"
    with under_way([*local(study, sites, run_dir), "--database"], cwd=base) as first:
        wait_for_phase(run_dir, "prepare", 0)
        intruder = run(local(study, sites, run_dir), cwd=base)
        finished = first.wait()
    assert finished.code == 0, finished.output
    return Disturbed(RunFolder(run_dir), finished, intruder)
