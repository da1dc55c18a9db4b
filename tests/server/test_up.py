"""The coordinator as a real process with a real SuperLink: nodes come, are revoked, runs are led, killed, resumed and stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from joining_hospital import Hospital
from small_study import write_study

from server.cli import app
from server.coordinator import control_if_up, up_record
from server.home import Home
from server.run_folder import RunFolder
from server.run_lock import leader
from server.sites import list_sites
from server.status import run_status
from shared.flower_settings import QUIET_FLOWER
from shared.processes import free_ports
from tests.in_this_process import ended

pytestmark = pytest.mark.federation

ROOT = Path(__file__).resolve().parents[2]
SERVER = [sys.executable, "-m", "server.cli"]


def server(home: Home, verb: str, *arguments: object, code: int = 0) -> str:
    """Run a command that must end with this status; returns what it says, on both streams."""
    status, said = ended(app, [verb, str(home.path), *map(str, arguments)], cwd=ROOT)
    assert status == code, (verb, arguments, said)
    return said


def wait_until(true: Callable[[], object], seconds: float = 60.0) -> None:
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit, f"{true} did not come true"
        time.sleep(0.1)


@dataclass
class Up:
    """A coordinator that is up."""

    home: Home
    process: subprocess.Popen[bytes]
    said: Path

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


def start(home: Home) -> Up:
    said = home.path / "up.txt"
    with said.open("wb") as stream:
        process = subprocess.Popen([*SERVER, "up", str(home.path)], cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT)
    up = Up(home, process, said)
    wait_until(lambda: "ready: " in said.read_text() or process.poll() is not None)
    assert process.poll() is None, said.read_text()
    return up


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.create(tmp_path / "home", "Federation", ["localhost"], address="localhost:443")


def test_up_trims_the_state_database_first_and_tells_of_a_damaged_one(home: Home) -> None:
    (home.path / "state.db").write_bytes(b"no database at all, but longer than a header of SQLite's" * 40)
    said = server(home, "up", code=3)
    assert "CONS-330" in said and "state.db: can't be trimmed" in said
    assert not (home.path / "superlink.json").exists()


@pytest.fixture
def up(home: Home) -> Iterator[Up]:
    one = start(home)
    yield one
    if one.process.poll() is None:
        one.end(signal.SIGTERM)


@contextmanager
def supernode(up: Up, hospital: Hospital) -> Iterator[subprocess.Popen[bytes]]:
    record = up_record(up.home)
    assert record is not None
    words = [
        *(str(Path(sys.executable).parent / "flower-supernode"), "--superlink", f"127.0.0.1:{record.port}"),
        *("--root-certificates", str(up.home.keys / "ca.crt")),
        *("--auth-supernode-private-key", str(hospital.write_node_key())),
        *("--host", "127.0.0.1", "--port", str(free_ports(1)[0])),
    ]
    path = str(Path(sys.executable).parent) + os.pathsep + os.environ.get("PATH", "")
    environment = {**os.environ, **QUIET_FLOWER, "FLWR_HOME": str(hospital.folder / "flwr"), "PATH": path}
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(30)


def states(home: Home) -> dict[str, str]:
    return {row.site: row.state for row in list_sites(home)[0]}


def run_state(home: Home, name: str) -> str:
    with control_if_up(home) as control:
        return run_status(RunFolder(home.path / "runs" / name), control).state


def superlink_processes(home: Home) -> list[int]:
    """Processes that were started for this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"FLWR_HOME={home.path.resolve() / 'flwr'}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_nodes_come_and_a_revoked_one_is_cut_off_and_never_comes_back(up: Up, tmp_path: Path) -> None:
    home, anna, bertha = up.home, *(Hospital.create(tmp_path / site, site) for site in ("anna", "bertha"))
    with supernode(up, bertha) as stranger:
        assert stranger.wait(60) != 0  # not admitted
    assert "up already" in server(home, "up", code=2)
    assert "its node is registered" in server(home, "admit", anna.request(), "--yes")
    assert states(home) == {"anna": "offline"}
    with supernode(up, anna) as node:
        wait_until(lambda: states(home) == {"anna": "online"})
        assert "its node is refused from now on" in server(home, "revoke", "anna")
        node.wait(60)  # Flower ends a node that is refused
    assert states(home) == {"anna": "revoked"}
    with supernode(up, anna) as node:
        assert node.wait(60) != 0
    assert up.end(signal.SIGTERM) == 0
    assert up_record(home) is None and not (home.path / "superlink.json").exists()
    assert superlink_processes(home) == []
    assert states(home) == {"anna": "revoked"}


def test_whoever_was_admitted_or_revoked_while_it_was_down_is_known_when_it_is_up(home: Home, tmp_path: Path) -> None:
    for site in ("anna", "bertha"):
        server(home, "admit", Hospital.create(tmp_path / site, site).request(), "--yes")
    up = start(home)
    assert states(home) == {"anna": "offline", "bertha": "offline"}
    before = {site: record.node_id for site, record in home.registry.all().items()}
    assert up.end(signal.SIGINT) == 0
    server(home, "revoke", "anna")
    up = start(home)
    assert "unregistered: anna" in up.said.read_text()
    assert home.registry.active()["bertha"].node_id == before["bertha"]
    up.end(signal.SIGTERM)
    for path in home.path.glob("state.db*"):
        path.unlink()
    up = start(home)
    assert home.registry.active()["bertha"].node_id != before["bertha"]
    assert states(home) == {"anna": "revoked", "bertha": "offline"}
    up.end(signal.SIGTERM)


def test_a_run_is_launched_killed_resumed_stopped_and_counted(up: Up, tmp_path: Path) -> None:
    home, study = up.home, write_study(tmp_path / "tiny.yaml", federation={"join_deadline_s": 100})
    server(home, "publish", study, "--out", tmp_path / "offer.json")
    assert "no hospital is admitted" in server(home, "launch", study, "--name", "one", code=2)
    server(home, "admit", Hospital.create(tmp_path / "anna", "anna").request(), "--yes")
    assert "bertha not among the admitted: anna" in server(
        home, "launch", study, "--name", "one", "--sites", "bertha", code=2
    )
    server(home, "launch", study, "--name", "one", "--detach")
    folder = RunFolder(home.path / "runs" / "one")

    wait_until(lambda: run_state(home, "one") == "running")
    assert "launched already: one" in server(home, "launch", study, "--name", "two", code=2)
    assert not (home.path / "runs" / "two").exists()
    assert "going on" in server(home, "resume", "one", code=2)

    killed = leader(folder)
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: run_state(home, "one") == "stopped", 10)  # Flower itself needs a minute
    server(home, "resume", "one", "--detach")
    wait_until(lambda: run_state(home, "one") == "running")
    led_by = leader(folder)
    assert led_by not in (None, killed)

    assert "stopped by hand" in server(home, "stop", "one")
    assert leader(folder) is None
    assert (folder.run().state, folder.run().code) == ("stopped", None)

    server(home, "resume", "one", "--detach")
    wait_until(lambda: run_state(home, "one") == "running")
    up.end(signal.SIGKILL)
    wait_until(lambda: superlink_processes(home) == [], 20)
    assert json.loads(server(home, "status", "--json"))["runs"][0]["state"] == "interrupted"
    again = start(home)
    assert folder.run().state == "stopped"
    again.end(signal.SIGTERM)


def test_a_run_without_its_quorum_ends_with_its_own_error_and_a_report(up: Up, tmp_path: Path) -> None:
    home, study = up.home, write_study(tmp_path / "tiny.yaml")
    server(home, "admit", Hospital.create(tmp_path / "anna", "anna").request(), "--yes")
    server(home, "publish", study, "--out", tmp_path / "offer.json")
    said = server(home, "launch", study, "--name", "one", code=3)
    assert "CONS-300" in said and "missing: anna" in said
    assert (home.path / "runs" / "one" / "report.html").exists()
    assert "missing: anna" in server(home, "status", "one")
