"""What is killed, cut off, slow or full is recovered from: a run that was disturbed ends in the same weights, bit for bit on a CPU.

Everything is real: `consilium-server up`, two `consilium-site up`, SIGKILL, a cut cable. Each run is of the same published study.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from small_federation import LARGE, alive, wait_until
from standing_federation import SITES, Cable, Standing, standing, study_file, write_profiles

from server.run_folder import RunFolder

pytestmark = [
    pytest.mark.federation,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds processes in /proc"),
]

ROUNDS = 2
STEADY = {
    "head": None,
    "model": LARGE,
    "evaluation": {"baseline": False},
    "training": {"local_epochs": 2, "optimiser_state": "keep"},
    "federation": {"rounds": ROUNDS, "quorum": 2, "wire": "bf16", "round_deadline_s": 200},
}


@dataclass
class Recovering:
    """A federation under way, a published study, and the weights that an undisturbed run of it ends in."""

    federation: Standing
    digest: str
    weights: str
    cable: Cable

    def up_again(self, *sites: str) -> None:
        """Start what is down."""
        if self.federation.coordinator is None:
            self.federation.up()
        for site in sites:
            if site not in self.federation.nodes:
                start_node(self.federation, site, self.cable)
        self.federation.wait_online(*sites)


def start_node(federation: Standing, site: str, cable: Cable) -> None:
    """Bertha's cable to the coordinator can be cut."""
    federation.start_node(site, *(("--superlink", f"127.0.0.1:{cable.port}") if site == "bertha" else ()))


@pytest.fixture(scope="module")
def recovering(hospitals: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recovering]:
    base = tmp_path_factory.mktemp("recovering")
    with standing(base, write_profiles(base / "profiles", hospitals)) as federation:
        digest = federation.publish(study_file(base, "steady", STEADY), runs=20)
        cable = Cable(federation.port)
        federation.up()
        for site in SITES:
            start_node(federation, site, cable)
        federation.wait_online(*SITES)
        federation.launch(digest, "undisturbed")
        federation.wait_state("undisturbed", "finished", "failed", "stopped")
        assert federation.run_folder("undisturbed").run().state == "finished", federation.run_folder(
            "undisturbed"
        ).run()
        yield Recovering(federation, digest, federation.weights("undisturbed"), cable)
        cable.close()


def wait_event(folder: RunFolder, kind: str, phase: str, number: int) -> float:
    """Wait for the first such event; when it was (Unix time)."""

    def found() -> list[float]:
        return [one.at for one in folder.events() if (one.kind, one.phase, one.round) == (kind, phase, number)]

    wait_until(lambda: bool(found()), f"{kind} {phase} of round {number} in {folder.path}", 200)
    return found()[0]


def wait_training(federation: Standing, site: str, since: float) -> None:
    """Until the hospital's own folder says that it trains; what it said before `since` (Unix time) was of an earlier round."""
    path = federation.site(site) / "progress.json"

    def training() -> bool:
        return path.exists() and path.stat().st_mtime > since and '"train"' in path.read_text()

    wait_until(training, f"{site} trains", 60)


def server_app(federation: Standing) -> int:
    assert federation.coordinator is not None
    (found,) = [pid for pid, line in alive(federation.coordinator.mark).items() if "flwr-serverapp" in line]
    return found


def finished(one: Recovering, name: str) -> RunFolder:
    one.federation.wait_state(name, "finished", "failed", "stopped")
    folder = one.federation.run_folder(name)
    assert folder.run().state == "finished", folder.run()
    assert [record.round for record in folder.rounds()] == list(range(ROUNDS + 1))
    assert one.federation.weights(name) == one.weights, "the disturbed run ends in other weights"
    return folder


def test_a_site_killed_while_training_and_restarted_is_in_every_round(recovering: Recovering) -> None:
    federation = recovering.federation
    federation.launch(recovering.digest, "site-killed")
    folder = federation.run_folder("site-killed")
    wait_training(federation, "bertha", wait_event(folder, "site", "train", 2))
    federation.kill_node("bertha")
    recovering.up_again("bertha")
    assert not any(record.missing for record in finished(recovering, "site-killed").rounds())


@pytest.mark.parametrize(
    ("kind", "phase", "number"), [("site", "train", 2), ("round", "done", 1)], ids=["within", "between"]
)
def test_a_coordinator_killed_within_or_between_rounds_resumes(
    recovering: Recovering, kind: str, phase: str, number: int
) -> None:
    federation, name = recovering.federation, f"coordinator-killed-{phase}"
    federation.launch(recovering.digest, name)
    wait_event(federation.run_folder(name), kind, phase, number)
    os.kill(server_app(federation), signal.SIGKILL)
    federation.wait_state(name, "stopped", "failed", limit_s=30)
    federation.server("resume", name, "--detach")
    finished(recovering, name)


def test_a_power_cut_of_all_machines_at_once(recovering: Recovering) -> None:
    federation = recovering.federation
    federation.launch(recovering.digest, "power-cut")
    wait_event(federation.run_folder("power-cut"), "site", "train", 2)
    for site in SITES:
        federation.kill_node(site)
    federation.kill_coordinator()
    recovering.up_again(*SITES)
    assert federation.run_folder("power-cut").run().state == "stopped"
    federation.server("resume", "power-cut", "--detach")
    finished(recovering, "power-cut")


def test_a_disk_that_is_full_at_a_checkpoint(recovering: Recovering) -> None:
    federation = recovering.federation
    federation.launch(recovering.digest, "disk-full")
    folder = federation.run_folder("disk-full")
    wait_event(folder, "site", "train", 2)
    resource.prlimit(server_app(federation), resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    federation.wait_state("disk-full", "failed")
    assert folder.run().code == "CONS-330"
    assert [record.round for record in folder.rounds()] == [0, 1]
    assert not list(folder.path.glob("rounds/.*.partial"))
    federation.server("resume", "disk-full", "--detach")
    finished(recovering, "disk-full")


def test_a_connection_cut_for_a_minute(recovering: Recovering) -> None:
    federation = recovering.federation
    federation.launch(recovering.digest, "cut")
    wait_event(federation.run_folder("cut"), "site", "train", 2)
    recovering.cable.cut()
    time.sleep(60)
    recovering.cable.mend()
    assert not any(record.missing for record in finished(recovering, "cut").rounds())
    assert federation.nodes["bertha"].process.poll() is None


def test_a_superlink_that_is_gone_for_a_while_loses_no_node(recovering: Recovering) -> None:
    """The nodes wait, whatever they were doing; the run is resumed."""
    federation = recovering.federation
    federation.launch(recovering.digest, "superlink-gone")
    wait_event(federation.run_folder("superlink-gone"), "round", "done", 1)
    federation.kill_coordinator()
    time.sleep(5)
    recovering.up_again(*SITES)
    assert all(federation.nodes[site].process.poll() is None for site in SITES)
    federation.server("resume", "superlink-gone", "--detach")
    finished(recovering, "superlink-gone")


def test_a_late_answer_is_counted_and_ignored(recovering: Recovering, tmp_path: Path) -> None:
    federation = recovering.federation
    quick = {
        **STEADY,
        "training": {"local_epochs": 2},
        "federation": {**STEADY["federation"], "quorum": 1, "round_deadline_s": 12},
    }
    digest = federation.publish(study_file(tmp_path, "hasty", quick), runs=1)
    federation.launch(digest, "late")
    folder = federation.run_folder("late")
    wait_training(federation, "bertha", wait_event(folder, "site", "train", 1))
    with federation.asleep("bertha"):
        wait_event(folder, "site", "train", 2)
    federation.wait_state("late", "finished", "failed", "stopped")
    first, second = folder.rounds()[1:3]
    assert [(miss.site, miss.reason) for miss in first.missing] == [("bertha", "no answer")]
    assert sorted(first.trained) == ["anna"]
    assert "bertha" in [site for record in folder.rounds() for site in record.late]
    assert "bertha" not in second.update_digests or second.update_digests["bertha"] != first.update_digests.get(
        "bertha"
    )
