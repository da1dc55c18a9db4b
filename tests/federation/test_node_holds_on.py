"""A real node whose coordinator goes away, answers with errors, forgets it or turns it away; and one that was killed itself."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.cli.build import build_fab_from_files

from benchmarks.bare_run import bare_folder, bare_study
from benchmarks.processes_of_a_federation import Federation, approve_everywhere, federation
from server.certificates import write_certificates
from server.state_database import trim_database
from server.superlink import Control, start_superlink
from shared.own_bundle import app_bundle
from shared.processes import descendants

pytestmark = [
    pytest.mark.federation,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ends processes as Linux does"),
]


def until(condition: Callable[[], Any], what: str, limit_s: float = 60) -> float:
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < limit_s, what
        time.sleep(0.2)
    return time.monotonic() - begun


def said(running: Federation, name: str) -> str:
    return (running.folder / "logs" / f"site-{name}.log").read_text(errors="replace")


def state(running: Federation, name: str) -> str:
    return {node.name: node.state for node in running.control.nodes()}[name]


def node_json(running: Federation, name: str) -> dict[str, Any]:
    return dict(json.loads((running.site(name).path / "node.json").read_text()))


def left_of(folder: Path) -> list[bytes]:
    """Command lines of this test's living processes that name the folder."""
    found = []
    for pid in descendants():
        with suppress(OSError):
            found.append(Path(f"/proc/{pid}/cmdline").read_bytes())
    return [line for line in found if str(folder).encode() in line]


def restart_superlink(running: Federation, database: Path) -> None:
    """On the same port, with the database as `consilium-server up` leaves it."""
    trim_database(database)
    with (running.folder / "superlink.log").open("ab") as log:
        started = start_superlink(
            running.superlink.certificates, port=int(running.superlink.address.rpartition(":")[2]),
            home=running.folder / "flwr", log=log, database=str(database),
        )  # fmt: skip
    running.superlink = replace(running.superlink, process=started.process)
    running.control.close()
    running.control = Control(running.superlink)
    running.control.wait_until_ready()


def test_a_node_outlives_its_coordinator_and_is_found_again_after_a_kill_and_ends_when_it_is_revoked(
    tmp_path: Path,
) -> None:
    database = tmp_path / "state.db"
    with federation(tmp_path / "federation", database=database) as running:
        node = running.start_node("anna")
        until(lambda: state(running, "anna") == "online", "anna online")

        second = running.start_node("anna", register=False)
        assert second.wait(60) == 3
        assert f"a node works in this folder already (process {node.pid})" in said(running, "anna")

        running.superlink.process.kill()
        running.superlink.process.wait()
        until(lambda: node_json(running, "anna")["state"] == "unreachable", "anna notices")
        time.sleep(3)
        assert node.poll() is None
        restart_superlink(running, database)
        until(lambda: node_json(running, "anna")["state"] == "online", "anna finds the coordinator again")
        until(lambda: state(running, "anna") == "online", "the coordinator finds anna again")

        os.kill(node.pid, signal.SIGKILL)
        node.wait()
        node = running.start_node("anna", register=False)
        until(lambda: "still counts the former process as online" in said(running, "anna"), "it is told")
        waited = until(lambda: node_json(running, "anna")["state"] == "online", "anna online again", 60)
        assert waited < 45, "two heartbeats of 15 s"
        assert node.poll() is None

        running.control.unregister(int(node_json(running, "anna")["node_id"]))
        assert node.wait(30) == 1
        assert "CONS-246" in said(running, "anna") and "no longer admits this node" in said(running, "anna")
        assert node_json(running, "anna")["state"] == "refused"
        again = running.start_node("anna", register=False)
        assert again.wait(90) == 1, "and so when it is started again"


def test_a_node_that_is_given_another_authority_ends_in_a_sentence(tmp_path: Path) -> None:
    with federation(tmp_path / "federation") as running:
        site = running.site("anna")
        other = write_certificates(tmp_path / "other", ["127.0.0.1"])
        site.ca.write_bytes(other.ca.read_bytes())
        node = running.start_node("anna")
        running.nodes.pop("anna")
        assert node.wait(60) == 3
        assert "does not prove to be the coordinator" in said(running, "anna")
        assert not left_of(site.path), "its executor has ended too"


def changed_by_one_byte() -> bytes:
    with zipfile.ZipFile(io.BytesIO(app_bundle())) as archive:
        files: dict[str, bytes | Path] = {
            name: archive.read(name) for name in archive.namelist() if not name.startswith(".info/")
        }
    gate = bytearray(files["client/gate.py"])  # type: ignore[arg-type]
    gate[gate.index(b"The one door")] = ord("t")
    bundle: bytes = build_fab_from_files({**files, "client/gate.py": bytes(gate)})[0]
    return bundle


def test_a_bundle_with_one_changed_byte_is_not_run_and_the_development_override_runs_the_sites_own(
    tmp_path: Path,
) -> None:
    study = bare_study(rounds=1, quorum=1, join_deadline_s=90, prepare_deadline_s=60, round_deadline_s=60)
    run = bare_folder(tmp_path / "run", study, {"w": np.ones((3, 5), np.float32)}, ["anna", "berta"])
    with federation(tmp_path / "federation") as running:
        approve_everywhere(running, ["anna", "berta"], run)
        running.start_node("anna")
        running.start_node("berta", options=["--any-release"])
        running.run_ours(run, deadline_s=200, bundle=changed_by_one_byte())
        anna, berta = running.site("anna").path, running.site("berta").path
        missing = {miss.site: (miss.reason, miss.code) for record in run.rounds() for miss in record.missing}
        assert missing == {"anna": ("refused", "CONS-245")}
        assert sorted(run.rounds()[1].trained) == ["berta"]
        assert "but installed here is" in said(running, "anna")
        assert not (anna / "runs" / "overrides.jsonl").exists() and not list((anna / "runs").glob("*/last-instruction"))
        assert len((berta / "runs" / "overrides.jsonl").read_text().splitlines()) == 1
        assert said(running, "berta").count("DEVELOPMENT OVERRIDE --any-release") == 2, "at the start, and at the run"
        for folder in (anna, berta):
            assert not (folder / "flwr" / "apps").exists(), "nothing was unpacked"
