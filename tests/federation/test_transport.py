"""A true SuperLink and true SuperNodes: TLS, node authentication, the product's own processes; only the training is trivial."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.bare_run import bare_folder, bare_study
from benchmarks.processes_of_a_federation import Federation, approve_everywhere, federation
from server.checkpoint import latest_checkpoint, read_starting_model
from shared.processes import descendants

pytestmark = [
    pytest.mark.federation,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for left processes in /proc"),
]

ARRAYS = {"w": np.linspace(-1, 1, 3000, dtype=np.float32).reshape(30, 100), "b": np.zeros(7, np.float32)}


def online(running: Federation) -> dict[str, str]:
    """Status of each registered node by name."""
    from flwr.proto.control_pb2 import ListNodesRequest

    return {node.name: node.status for node in running.control._client.ListNodes(ListNodesRequest()).nodes_info}


def log_of(running: Federation, name: str) -> str:
    return (running.folder / "logs" / f"site-{name}.log").read_text(errors="replace")


def test_rounds_go_through_real_processes_and_none_is_left(tmp_path: Path) -> None:
    study = bare_study(rounds=2, join_deadline_s=90, round_deadline_s=90, wire="bf16")
    run = bare_folder(tmp_path / "run", study, ARRAYS, ["anna", "berta"])
    with federation(tmp_path / "federation", database=tmp_path / "state.db") as running:
        approve_everywhere(running, ["anna", "berta"], run)
        for name in ("anna", "berta"):
            running.start_node(name)
        stranger = running.start_node("stranger", register=False)
        running.run_ours(run, deadline_s=150)
        assert stranger.wait(timeout=60) != 0, "a node whose key is not registered must be turned away"
        assert "Failed to initialize the connection" in log_of(running, "stranger")
        assert sorted(online(running)) == ["anna", "berta"]
    rounds = run.rounds()
    assert [record.round for record in rounds] == [0, 1, 2]
    for record in rounds[1:]:
        assert sorted(record.trained) == ["anna", "berta"] and not record.missing
        assert all(timing.bytes_up == 2 * 3007 for timing in record.sites.values())
    start = read_starting_model(run)
    final = latest_checkpoint(run, start.manifest, study.federation.optimiser).flat
    np.testing.assert_allclose(final, start.flat + 0.002, atol=2e-4)
    evaluation = run.final()
    assert evaluation is not None and sorted(evaluation.sites) == ["anna", "berta"]
    assert not descendants()


def test_a_site_that_is_killed_in_a_round_leaves_nothing_behind_and_the_others_finish(tmp_path: Path) -> None:
    """The executor of a killed node ends too; a study that a site has not approved never reaches its work."""
    study = bare_study(rounds=1, quorum=1, join_deadline_s=90, round_deadline_s=20, prepare_deadline_s=20)
    run = bare_folder(tmp_path / "run", study, ARRAYS, ["anna", "berta", "clara"])
    with federation(tmp_path / "federation") as running:
        approve_everywhere(running, ["anna", "berta"], run)
        for name in ("anna", "berta", "clara"):
            running.start_node(name)
        limit = time.monotonic() + 90
        while list(online(running).values()).count("online") < 3:
            assert time.monotonic() < limit, online(running)
            time.sleep(0.3)
        berta = running.nodes.pop("berta")
        children = children_of(berta)
        assert children
        os.kill(berta.pid, signal.SIGKILL)
        berta.wait()
        for pid in children:
            assert ends(pid), "the executor outlived its node"
        running.run_ours(run, deadline_s=150)
    record = run.rounds()[0]
    assert {miss.site: (miss.reason, miss.code) for miss in record.missing} == {
        "berta": ("no answer", None),
        "clara": ("refused", "CONS-210"),
    }
    assert sorted(run.rounds()[1].trained) == ["anna"]
    assert not descendants()


def children_of(process: subprocess.Popen[bytes]) -> list[int]:
    threads = Path(f"/proc/{process.pid}/task").glob("*/children")
    return [int(pid) for thread in threads for pid in thread.read_text().split()]


def ends(pid: int) -> bool:
    limit = time.monotonic() + 15
    while time.monotonic() < limit:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.1)
    return False
