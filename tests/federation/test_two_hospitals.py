"""Two hospitals and a coordinator, from the first folder to a patient's withdrawal, by nothing but the commands.

What every participant would type, in their order; then what must have been refused on the way, and what must be found nowhere.
"""

from __future__ import annotations

import json
import os
import shutil
import ssl
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pydicom
import pytest
from small_federation import (
    LARGE,
    SECRET,
    alive,
    command,
    copied,
    first_mammogram,
    holds,
    replace_file,
    rows,
    run,
    start,
    wait_until,
)
from standing_federation import SITES, Standing, spoken_in, standing, study_file, write_profiles

from server.coordinator import control_of
from server.home import Home
from server.run_folder import RunFolder
from shared.own_bundle import app_bundle
from shared.processes import free_ports

pytestmark = [
    pytest.mark.federation,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds processes in /proc"),
]

WITH_NGINX = (shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")) is not None

NAME = "KENNWORT-NAME-51C9"
PIXELS = b"KENNWORT-PIXEL-E0"
#: Appends every file that is opened below DATA_ROOT to OPENED: an audit hook sees each opening, whoever asks for it.
WATCH = """
import os, sys
def hook(event, arguments, root=os.environ["DATA_ROOT"], log=os.environ["OPENED"]):
    if event == "open" and isinstance(arguments[0], (str, bytes)) and os.fsdecode(arguments[0]).startswith(root):
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, os.fsencode(arguments[0]) + b"\\n")
        os.close(descriptor)
sys.addaudithook(hook)
"""


@dataclass
class Story:
    """What happened, for the tests to look at."""

    federation: Standing
    base: Path
    data: dict[str, Path]
    digest: str = ""
    output: dict[str, str] = field(default_factory=dict)
    opened_before_consent: list[str] = field(default_factory=list)

    def run(self, name: str) -> RunFolder:
        return self.federation.run_folder(name)

    def opened(self) -> list[str]:
        path = self.base / "opened"
        return path.read_text().splitlines() if path.exists() else []


def plant(root: Path) -> int:
    """Put NAME and PIXELS into every mammogram; how many there are."""
    paths = [path for view in ("CC", "MLO") for path in root.glob(f"CBIS-DDSM/*_{view}/**/*.dcm")]
    for path in paths:
        image = pydicom.dcmread(path)
        image.PatientName = NAME
        content = bytearray(image.PixelData)
        middle = len(content) // 2
        content[middle : middle + len(PIXELS)] = PIXELS
        image.PixelData = bytes(content)
        path.unlink()
        image.save_as(path)
    return len(paths)


def watched(story: Story) -> dict[str, str]:
    """Environment of anna's node: what it opens of her data is noted."""
    folder = story.base / "watch"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(WATCH)
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
    return {"PYTHONPATH": path, "DATA_ROOT": str(story.data["anna"]), "OPENED": str(story.base / "opened")}


SMALL = {
    "model": LARGE,
    "evaluation": {"baseline": False},
    "federation": {"rounds": 4, "quorum": 1, "join_deadline_s": 15},
    "training": {"local_epochs": 2},
}


@pytest.fixture(scope="module")
def story(hospitals: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    base = tmp_path_factory.mktemp("story")
    data = {site: copied(hospitals[site], base / "data" / site) for site in SITES}
    assert plant(data["anna"]) > 10
    profiles = write_profiles(base / "profiles", data)
    with standing(base, profiles, behind_gateway=WITH_NGINX) as federation:
        told = Story(federation, base, data)
        run_story(told)
        yield told


def run_story(story: Story) -> None:
    federation = story.federation
    federation.up()
    story.output["services"] = federation.server("service").output + federation.hospital("anna", "service").output

    # Anna comes in through her own gateway and the coordinator's, which asks for a client certificate; Bertha sits beside the SuperLink.
    through: tuple[object, ...] = ()
    if WITH_NGINX:
        own = free_ports(1)[0]
        federation.server("gateway", "--listen", f"127.0.0.1:{federation.address}", "--check")
        federation.start_gateway(federation.home, federation.address)
        federation.hospital("anna", "gateway", "--listen", own, "--check")
        federation.start_gateway(federation.site("anna"), own)
        certificate = federation.site("anna") / "keys" / "gateway-ca.crt"
        through = ("--superlink", f"127.0.0.1:{own}", "--ca", certificate)

    # Her node is up and her data watched; no study was approved yet. The coordinator launches all the same.
    federation.start_node("anna", *through, environment=watched(story))
    federation.wait_online("anna")
    study = study_file(story.base, "story", SMALL)
    story.digest = federation.publish(study, runs=6, approve=())
    offer = study.with_suffix(".study.json")
    federation.launch(story.digest, "unapproved")
    federation.wait_state("unapproved", "failed")

    # She reads it and declines, and the coordinator asks again.
    story.output["review"] = federation.hospital("anna", "review", offer).output
    federation.hospital("anna", "decline", story.digest[:12], "--reason", "the ethics vote is missing")
    federation.launch(story.digest, "declined")
    federation.wait_state("declined", "failed")

    # A bundle with one changed byte.
    with control_of(Home(federation.home)) as control:
        launched_with(federation, control, story.digest, "other-code", changed_bundle())
    federation.wait_state("other-code", "failed")
    story.opened_before_consent = story.opened()

    # She approves. Bertha comes late: she enters after a round has begun.
    federation.hospital("anna", "approve", story.digest[:12], "--by", "Dr. Anna")
    federation.hospital("bertha", "approve", offer)
    story.output["doctor"] = federation.hospital("anna", "doctor", "--json", code=None).output
    damaged = first_mammogram(story.data["anna"], SECRET)
    whole = damaged.read_bytes()
    replace_file(damaged, whole[:2000])  # its path and the error that names it bear SECRET
    federation.launch(story.digest, "late")
    wait_told(story, "late", "round", 1)
    with federation.asleep("anna"):  # else a small round may be over before a node has started
        federation.start_node("bertha", "--superlink", f"127.0.0.1:{federation.port}")
        federation.wait_online("bertha")
    wait_told(story, "late", "round", 2)
    with federation.asleep("anna"):
        wait_told(story, "late", "site", 0, site="bertha", text="prepared")
    federation.wait_state("late", "finished", "failed")
    story.output["status"] = federation.server("status", "late", "--json").output
    story.output["status of all"] = federation.server("status", "--json").output
    story.output["report"] = federation.server("report", "late").output
    story.output["results"] = federation.hospital("anna", "results").output
    story.output["site status"] = federation.hospital("anna", "status", "--json").output
    story.output["logs"] = federation.server("logs", "late").output

    # Stopped by hand, resumed.
    federation.launch(story.digest, "stopped")
    wait_until(lambda: len(story.run("stopped").rounds()) > 1, "round 1 done", 200)
    federation.server("stop", "stopped")
    assert story.run("stopped").run().state == "stopped"
    replace_file(damaged, whole)

    # A patient withdraws; the run goes on without.
    story.output["withdraw"] = federation.hospital("anna", "withdraw", SECRET, "--reason", "asked by letter").output
    federation.server("resume", "stopped", "--detach")
    wait_until(lambda: len(story.run("stopped").rounds()) > 2, "round 2 done", 200)

    # Bertha is revoked while the run goes on.
    federation.server("revoke", "bertha")
    federation.wait_state("stopped", "finished", "failed")
    bertha = federation.nodes.pop("bertha")
    story.output["revoked node"] = bertha.wait(90).output
    assert not alive(bertha.mark)
    story.output["sites"] = federation.server("sites", "--json").output


def wait_told(story: Story, name: str, kind: str, number: int, **values: object) -> None:
    """Until the run has told of such an event."""

    def told() -> bool:
        return any(
            (event.kind, event.round) == (kind, number)
            and all(getattr(event, key) == value for key, value in values.items())
            for event in story.run(name).events()
        )

    wait_until(told, f"{kind} of round {number} in {name}", 200)


def changed_bundle() -> bytes:
    """This release's bundle with one byte of a comment changed."""
    from flwr.cli.build import build_fab_from_files

    from shared.own_bundle import app_declaration
    from shared.release import source_files, source_root

    files: dict[str, bytes | Path] = {"pyproject.toml": app_declaration().encode()}
    for path in source_files():
        files[path.relative_to(source_root()).as_posix()] = path
    files["client/gate.py"] = (
        (source_root() / "client/gate.py").read_bytes().replace(b"The one door", b"The one d00r", 1)
    )
    changed: bytes = build_fab_from_files(files)[0]
    assert changed != app_bundle()
    return changed


def launched_with(federation: Standing, control: object, digest: str, name: str, bundle: bytes) -> None:
    """`launch`, with another bundle than the coordinator's own."""
    from server import running

    own = running.app_bundle
    running.app_bundle = lambda: bundle  # type: ignore[assignment]
    try:
        home = Home(federation.home)
        from server.publishing import find_publication

        running.launch(home, find_publication(home, digest), name, None)
    finally:
        running.app_bundle = own


def reasons(folder: RunFolder) -> dict[str, str | None]:
    """Why sites were missing in the preparation, by site; from the record or from what the run told."""
    told = [(event.site, event.text or "") for event in folder.events() if event.kind == "site" and event.site]
    return {site: text.partition(", ")[2] or text for site, text in told if text.startswith("missing")}


def log_of(story: Story, site: str) -> str:
    return "".join(
        path.read_text(errors="replace") for path in sorted((story.federation.site(site) / "logs").glob("*"))
    )


# -- refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run_name", "code"), [("unapproved", "CONS-210"), ("declined", "CONS-211"), ("other-code", "CONS-245")]
)
def test_it_was_refused_with_its_code_at_both_ends(story: Story, run_name: str, code: str) -> None:
    assert code in (reasons(story.run(run_name))["anna"] or "")
    assert code in (story.run(run_name).run().reason or "")
    assert code in log_of(story, "anna")


def test_not_a_byte_of_data_was_opened_before_she_approved(story: Story) -> None:
    assert story.opened_before_consent == []
    assert story.opened(), "the watch sees what is opened afterwards"


def test_the_coordinator_is_not_told_why_she_declined(story: Story) -> None:
    for path in files_below(story.federation.home):
        assert not holds(path, "ethics vote is missing")


def test_a_wrong_fingerprint_admits_and_joins_nobody(story: Story) -> None:
    federation = story.federation
    wrong = "0000 " * 10
    request, admission = federation.base / "anna.request.json", federation.base / "anna.admission.json"
    assert "CONS-131" in federation.server("admit", request, "--fingerprint", wrong, code=2).output
    assert "CONS-131" in federation.hospital("anna", "join", admission, "--fingerprint", wrong, code=2).output


@pytest.mark.parametrize("name", ["anna.request.json", "anna.admission.json", "story.study.json"])
def test_a_document_with_one_changed_character_is_refused(story: Story, name: str, tmp_path: Path) -> None:
    text = (story.base / name).read_text()
    envelope = json.loads(text)
    middle = len(envelope["payload"]) // 2
    other = "A" if envelope["payload"][middle] != "A" else "B"
    envelope["payload"] = envelope["payload"][:middle] + other + envelope["payload"][middle + 1 :]
    changed = tmp_path / name
    changed.write_text(json.dumps(envelope))
    federation = story.federation
    ended = {
        "anna.request.json": lambda: federation.server("admit", changed, "--yes", code=2),
        "anna.admission.json": lambda: federation.hospital("anna", "join", changed, "--yes", code=2),
        "story.study.json": lambda: federation.hospital("anna", "review", changed, code=2),
    }[name]()
    assert "CONS-130" in ended.output


def test_a_node_that_was_never_admitted_is_turned_away(story: Story, tmp_path: Path) -> None:
    federation = story.federation
    stranger = tmp_path / "stranger"
    run(command("consilium-site", "init", stranger, "--profile", story.base / "profiles" / "anna"), cwd=tmp_path)
    for name in ("coordinator.json", "keys/ca.crt"):
        (stranger / name).write_bytes((federation.site("anna") / name).read_bytes())
    directly = ("--superlink", f"127.0.0.1:{federation.port}")
    ended = run(command("consilium-site", "up", stranger, *directly), cwd=tmp_path, limit_s=90)
    assert ended.code != 0
    assert "CONS-246" in ended.output


def test_a_node_that_trusts_another_authority_does_not_connect(story: Story, tmp_path: Path) -> None:
    other = tmp_path / "other"
    run(command("consilium-server", "init", other, "--federation", "other", "--host", "127.0.0.1"), cwd=tmp_path)
    node = start(
        command("consilium-site", "up", story.federation.site("bertha"), "--ca", other / "keys" / "ca.crt"),
        cwd=tmp_path,
    )
    try:
        wait_until(
            lambda: "certificate" in log_of(story, "bertha").lower() or node.process.poll() is not None, "said", 60
        )
    finally:
        for pid in alive(node.mark):
            os.kill(pid, 9)
        output = node.wait(10).output
    assert "certificate" in (output + log_of(story, "bertha")).lower()


def test_a_revoked_node_ends_with_a_sentence_and_can_not_come_back(story: Story) -> None:
    assert "CONS-246" in story.output["revoked node"]
    directly = ("--superlink", f"127.0.0.1:{story.federation.port}")
    again = run(command("consilium-site", "up", story.federation.site("bertha"), *directly), cwd=story.base, limit_s=90)
    assert again.code != 0 and "CONS-246" in again.output
    states = {one["site"]: one["state"] for one in json.loads(story.output["sites"])}
    assert states == {"anna": "online", "bertha": "revoked"}


# -- what people see ---------------------------------------------------------------------------------------------------


def test_the_review_says_what_leaves_and_on_whose_behalf(story: Story) -> None:
    words = " ".join(story.output["review"].split())
    for expected in ("A small study for tests", "none needed, synthetic", "auc", "4, each with 2 pass(es)"):
        assert expected in words


def test_a_site_that_came_late_is_in_from_the_next_round(story: Story) -> None:
    records = story.run("late").rounds()
    assert story.run("late").run().state == "finished"
    assert "bertha" not in records[1].trained
    assert "bertha" in records[-1].trained


def test_the_doctor_finds_no_fault_on_the_way_to_the_coordinator(story: Story) -> None:
    findings = json.loads(story.output["doctor"])["findings"]
    assert len(findings) > 10
    assert [one for one in findings if one["outcome"] == "fault"] == []


def test_both_houses_have_units_for_systemd(story: Story) -> None:
    folders = [story.federation.home / "services", story.federation.site("anna") / "services"]
    units = [path for folder in folders for path in folder.glob("*.service")]
    assert len(units) >= 2
    assert all("NoNewPrivileges" in path.read_text() for path in units)


@pytest.mark.skipif(not WITH_NGINX, reason="nginx is not installed (Debian: apt install nginx-light)")
def test_hospitals_reach_nothing_but_the_calls_of_a_node(story: Story) -> None:
    """With the hospital's own certificate in hand."""
    keys = story.federation.site("anna") / "keys"
    context = ssl.create_default_context(cafile=keys / "ca.crt")
    context.load_cert_chain(keys / "tls.pem", keys / "tls.key")
    with httpx.Client(
        base_url=f"https://127.0.0.1:{story.federation.address}", verify=context, trust_env=False
    ) as client:
        answers = {
            path: client.post(path).status_code for path in ("/v1/control/start-run", "/v1/runtime/get-nodes", "/")
        }
        known = client.post("/v1/fleet/pull-messages").status_code
    assert set(answers.values()) == {403}
    assert known == 415, "a call of a node gets through to Flower, which finds no message in it"


def test_status_for_programs(story: Story) -> None:
    one, everything = json.loads(story.output["status"]), json.loads(story.output["status of all"])
    assert (one["state"], one["finished_rounds"], one["rounds"]) == ("finished", 4, 4)
    assert everything["up"] is True
    assert {site["site"]: site["state"] for site in everything["sites"]} == dict.fromkeys(SITES, "online")
    assert json.loads(story.output["site status"])


def test_results_are_in_the_hospital(story: Story) -> None:
    """Anna's page of that run named the patient who withdrew later, and is gone."""
    run_id = story.run("late").run_id()
    assert run_id in story.output["results"]
    assert (story.federation.site("bertha") / "runs" / run_id / "evaluation.html").exists()
    assert not (story.federation.site("anna") / "runs" / run_id / "evaluation.html").exists()


def test_logs_of_both_houses_are_json_lines_with_run_round_and_site(story: Story) -> None:
    lines = [
        json.loads(line)
        for path in (story.federation.site("anna") / "logs").glob("*.jsonl*")
        for line in path.read_text().splitlines()
    ]
    assert lines
    told = [line for line in lines if line.get("run") == story.run("late").run_id() and line.get("round") is not None]
    assert told and all(line["site"] == "anna" for line in told)


def test_a_withdrawn_patient_is_in_no_later_round(story: Story) -> None:
    records = story.run("stopped").rounds()
    assert story.run("stopped").run().state == "finished"
    trained = [record.trained["anna"].patients for record in records[1:] if "anna" in record.trained]
    assert len(trained) == 4
    patients = {row["patient_id"] for table in ("calc_case_description_train_set.csv", "calc_case_description_test_set.csv")
                for row in rows(story.data["anna"] / table)}  # fmt: skip
    assert SECRET in patients
    assert "late" in story.output["withdraw"]
    site = story.federation.site("anna")
    left = [path for path in files_below(site) if holds(path, SECRET) and path.parent.name != "logs"]
    assert left == []


# -- what is found nowhere ---------------------------------------------------------------------------------------------


def files_below(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def test_a_site_that_is_revoked_in_a_run_is_in_none_of_its_later_rounds(story: Story) -> None:
    records = story.run("stopped").rounds()
    assert "bertha" in records[1].trained
    assert "bertha" not in records[-1].trained
    final = story.run("stopped").final()
    assert final is not None and sorted(final.sites) == ["anna"]


def test_what_was_planted_in_a_hospital_is_nowhere_at_the_coordinator(story: Story) -> None:
    """Names, ids and pixels; in the state database, logs, run folders, and what the processes said - after runs with errors."""
    federation = story.federation
    assert SECRET in log_of(story, "anna"), "there was an error that named the patient, and it stayed in the hospital"
    files = files_below(federation.home)
    assert {"state.db", "coordinator.json"} <= {path.name for path in files}
    for path in files:
        content = path.read_bytes()
        assert PIXELS not in content, path
        for word in (SECRET, NAME, "KENNWORT"):
            assert not holds(path, word), (path, word)
    server_side = [story.output[key] for key in ("status", "status of all", "report", "logs", "sites")]
    assert not any("KENNWORT" in text for text in server_side)
    assert federation.coordinator is not None
    federation.coordinator.signal(2)
    assert "KENNWORT" not in federation.coordinator.wait(60).output
    assert not alive(federation.coordinator.mark)
    federation.coordinator = None


def test_the_planted_bytes_are_really_in_the_hospitals_files(story: Story) -> None:
    assert any(PIXELS in path.read_bytes() for path in story.data["anna"].rglob("*.dcm"))
    assert spoken_in((story.federation.home / "fingerprint").read_text())
