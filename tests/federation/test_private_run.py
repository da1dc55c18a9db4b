"""A private run whose hospital loses its power at the worst moments, by real processes: the ledger never shows less than was spent.

Anna's machine is killed - node, executor and the process that trains, at once - right after an entry is on disk: after START, and after
SETTLE, before the answer leaves (tests/client/test_budget.py goes through every step in one process). Then a second study asks for more
than her patients have left.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from small_federation import LARGE, command, run, wait_until
from standing_federation import SITES, Standing, standing, study_file, write_profiles

from server.run_folder import RunFolder
from shared.ledger.chain import Chain, read_chain
from shared.ledger.entries import Start
from shared.ledger.spending import charged_events
from shared.privacy.mechanisms import SubsampledGaussian
from shared.wire import encode, flat_digest

pytestmark = [
    pytest.mark.federation,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds processes in /proc"),
]

DELTA = 1e-3
PRIVATE = {
    "head": None,
    "model": {**LARGE, "norm": "group"},
    "training": {"local_epochs": None, "batch_size": None, "optimiser": "sgd", "learning_rate": 0.1},
    "evaluation": {"baseline": False, "release": {"epsilon": 1}},
    "federation": {
        "rounds": 2, "quorum": 2, "weighting": "uniform", "wire": "fp32", "join_deadline_s": 20, "round_deadline_s": 200,
    },
    "privacy": {
        "sampling_rate": "1/4", "steps_per_round": 2, "clipping_norm": 1.0, "normaliser": 4, "noise_multiplier": 1.0, "delta": DELTA,
    },
}  # fmt: skip
#: One run costs 4.05 (RDP), with a round begun again 4.60; two runs cost 5.92.
LIFETIME = {"epsilon": 5.5, "delta": DELTA}
#: Ends the machine when the ledger's last entry is the first of PLAN, once for each: its head is written after it is on disk.
KILLER = """
import base64, json, os, sys
def parent(pid):
    with open(f"/proc/{pid}/stat") as stream:
        return int(stream.read().rsplit(")", 1)[1].split()[1])
def hook(event, arguments, plan=os.environ["KILL_PLAN"], ledger=os.environ["KILL_LEDGER"]):
    if event != "open" or not isinstance(arguments[0], str) or os.path.basename(arguments[0]).startswith(".ledger.head.") is False:
        return
    try:
        wanted = [line for line in open(plan).read().split() if line]
        last = json.loads(base64.b64decode(json.loads(open(ledger).read().splitlines()[-1])["payload"]))["type"]
    except (OSError, IndexError):
        return
    if wanted and wanted[0] == last:
        with open(plan, "w") as stream:
            stream.write("\\n".join(wanted[1:]))
        executor = parent(os.getpid())
        for pid in (parent(executor), executor, os.getpid()):
            os.kill(pid, 9)
sys.addaudithook(hook)
"""


@dataclass
class Story:
    """What happened to the first run and the second."""

    federation: Standing
    base: Path
    deaths: int

    def run(self, name: str) -> RunFolder:
        return self.federation.run_folder(name)

    def ledger(self, site: str) -> Chain:
        return read_chain((self.federation.site(site) / "ledger.jsonl").read_bytes())


@pytest.fixture(scope="module")
def story(hospitals: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    base = tmp_path_factory.mktemp("private")
    profiles = write_profiles(base / "profiles", hospitals, policy={"lifetime": LIFETIME})
    with standing(base, profiles) as federation:
        digest = federation.publish(study_file(base, "private", PRIVATE), runs=3)
        federation.up()
        plan = base / "plan"
        plan.write_text("START\nSETTLE")
        (base / "killer").mkdir()
        (base / "killer" / "sitecustomize.py").write_text(KILLER)
        path = os.pathsep.join(filter(None, [str(base / "killer"), os.environ.get("PYTHONPATH", "")]))
        environment = {
            "PYTHONPATH": path, "KILL_PLAN": str(plan), "KILL_LEDGER": str(federation.site("anna") / "ledger.jsonl"),
        }  # fmt: skip
        for site in SITES:
            federation.start_node(site, environment=environment if site == "anna" else None)
        federation.wait_online(*SITES)
        federation.launch(digest, "killed")
        deaths = 0
        for left in (1, 0):
            wait_until(lambda left=left: len(plan.read_text().split()) == left, f"{left} deaths left", 240)  # type: ignore[misc]
            node = federation.nodes.pop("anna")
            wait_until(lambda node=node: node.process.poll() is not None, "anna is dead", 30)  # type: ignore[misc]
            deaths += 1
            federation.start_node("anna", environment=environment)
            federation.wait_online("anna")
        federation.wait_state("killed", "finished", "failed")
        federation.launch(digest, "too-much")
        federation.wait_state("too-much", "finished", "failed")
        yield Story(federation, base, deaths)


def test_the_run_goes_on_to_its_end(story: Story) -> None:
    assert story.deaths == 2
    assert story.run("killed").run().state == "finished", story.run("killed").run()
    assert all("bertha" in record.trained for record in story.run("killed").rounds()[1:])


def test_the_ledger_shows_every_beginning_and_charges_for_each(story: Story) -> None:
    chain = story.ledger("anna")
    assert chain.faults == []
    (own,) = chain.rules.runs.values()
    starts = [link.entry for link in chain.links if isinstance(link.entry, Start)]
    begun_again = len(starts) - len({one.round for one in starts})
    assert begun_again >= 1, "she died after START"
    assert own.redone == begun_again
    events = charged_events(own) or []
    (training,) = [event for event in events if isinstance(event, SubsampledGaussian)]
    assert training.steps == 2 * len(starts)
    again = [one for one in starts if one.attempt > 1]
    reserved = own.reserve.charged
    assert reserved is not None and all(float(one.charged or 0) > float(reserved) for one in again)


def test_what_was_settled_and_lost_left_again_in_the_same_bytes(story: Story) -> None:
    """One SETTLE a round; what the coordinator put together has its digest."""
    (own,) = story.ledger("anna").rules.runs.values()
    assert len({one.round for one in own.updates}) == len(own.updates)
    digests = {one.round: one.update for one in own.updates}
    found = 0
    for record in story.run("killed").rounds()[1:]:
        if "anna" in record.trained:
            assert record.update_digests["anna"] == digests[record.round]
            stored = np.load(story.run("killed").round_path(record.round) / "updates" / "anna.npy")
            assert flat_digest(encode(stored, "fp32")) == digests[record.round]
            found += 1
    assert found >= 1


def test_more_than_her_patients_have_left_is_refused(story: Story) -> None:
    events = [event for event in story.run("too-much").events() if event.site == "anna" and event.text]
    assert any("CONS-262" in (event.text or "") for event in events)
    assert len(story.ledger("anna").rules.runs) == 1


def test_the_auditor_finds_nothing_wrong(story: Story) -> None:
    ended = run(command("consilium-audit", "verify", story.run("killed").path, "--json"), cwd=story.base, limit_s=120)
    checks = json.loads(ended.output)["checks"]
    assert [check for check in checks if check["outcome"] == "violated"] == []
