"""Bad input through the real commands: one sentence that names the file or key and what to do, an exit status that is not 0, nothing
half-written, no traceback, no process left."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
import pytest
from small_federation import (
    LARGE,
    SECRET,
    Finished,
    alive,
    assert_gone,
    command,
    coordinators_files,
    copied,
    first_mammogram,
    holds,
    local,
    merged,
    replace_file,
    rows,
    run,
    tables,
    under_way,
    wait_for_phase,
    wait_until,
    write_profile,
    write_rows,
    write_study,
)

from server.certificates import write_certificates
from server.run_folder import RunFolder
from shared.profile import load_profile

pytestmark = pytest.mark.federation

#: Nothing but rounds: no SVM, no baseline.
ROUNDS_ONLY = {
    "head": None,
    "evaluation": {"baseline": False},
    "training": {"optimiser": "sgd", "optimiser_state": "reset"},
    "federation": {"quorum": 1, "rounds": 1, "wire": "fp32"},
}


def assert_sentence(finished: Finished, *phrases: str, code: int) -> None:
    assert finished.code == code, finished.output
    assert "Traceback" not in finished.output, finished.output
    for phrase in phrases:
        assert phrase in finished.sentence, finished.output
    assert re.search(r"CONS-\d{3} ", finished.sentence)
    assert_gone(finished.mark)


def line_of(path: Path, text: str) -> int:
    return next(number for number, line in enumerate(path.read_text().splitlines(), 1) if text in line)


# -- what is refused before anything is started ------------------------------------------------------------------------


@pytest.fixture
def one_site(tmp_path: Path) -> Path:
    return write_profile(tmp_path / "profiles" / "anna", "anna", tmp_path / "nothing")


@pytest.mark.parametrize(
    ("changes", "key", "phrase"),
    [
        ({"training": {"learning_rat": 0.1}}, "learning_rat:", "unknown key 'learning_rat' in training; did you mean 'learning_rate'?"),
        ({"federaton": {"rounds": 1}}, "federaton:", "unknown key 'federaton'; did you mean 'federation'?"),
        ({"training": {"batch_size": "many"}}, "batch_size:", "training.batch_size"),
        ({"training": {"learning_rate": -1}}, "learning_rate:", "but got -1"),
    ],
)  # fmt: skip
def test_a_wrong_key_of_a_study_is_named_with_file_line_and_the_nearest_right_one(
    changes: Mapping[str, Any], key: str, phrase: str, one_site: Path, tmp_path: Path
) -> None:
    study = write_study(tmp_path / "study.yaml", changes)
    finished = run(local(study, [one_site], tmp_path / "run"), cwd=tmp_path)
    assert_sentence(finished, f"{study}:{line_of(study, key)}: ", phrase, code=2)
    assert not (tmp_path / "run").exists()


def test_missing_keys_of_a_study_are_each_named(one_site: Path, tmp_path: Path) -> None:
    study = write_study(tmp_path / "study.yaml")
    kept = [line for line in study.read_text().splitlines() if not line.startswith("seed:") and "  loss:" not in line]
    study.write_text("\n".join(kept))
    finished = run(local(study, [one_site], tmp_path / "run"), cwd=tmp_path)
    assert_sentence(finished, "key 'seed' is missing", "key 'training.loss' is missing", str(study), code=2)
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_no_study_or_is_not_there(one_site: Path, tmp_path: Path) -> None:
    (tmp_path / "torn.yaml").write_text("schema: [consilium/study/1\nname: x\n")
    torn = run(local(tmp_path / "torn.yaml", [one_site], tmp_path / "run"), cwd=tmp_path)
    assert_sentence(torn, "torn.yaml:", "not valid YAML", code=2)
    absent = run(local(tmp_path / "absent.yaml", [one_site], tmp_path / "run"), cwd=tmp_path)
    assert_sentence(absent, "absent.yaml: no such file", code=2)
    assert not (tmp_path / "run").exists()


def test_a_profile_whose_environment_variable_is_not_set(tmp_path: Path) -> None:
    site = write_profile(tmp_path / "anna", "anna", "${CONSILIUM_NO_SUCH_VARIABLE}/anna")
    finished = run(local(write_study(tmp_path / "study.yaml"), [site], tmp_path / "run"), cwd=tmp_path)
    assert_sentence(
        finished, str(site / "profile.yaml"), "data.root", "environment variable CONSILIUM_NO_SUCH_VARIABLE is not set", code=2
    )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_two_profiles_with_one_name(one_site: Path, tmp_path: Path) -> None:
    other = write_profile(tmp_path / "other", "anna", tmp_path)
    finished = run(local(write_study(tmp_path / "study.yaml"), [one_site, other], tmp_path / "run"), cwd=tmp_path)
    assert_sentence(finished, str(other), str(one_site), "site name 'anna'", "must differ", code=2)
    assert not (tmp_path / "run").exists()


def test_a_quorum_larger_than_the_sites(one_site: Path, tmp_path: Path) -> None:
    study = write_study(tmp_path / "study.yaml", {"federation": {"quorum": 3}})
    finished = run(local(study, [one_site], tmp_path / "run"), cwd=tmp_path)
    assert_sentence(finished, "quorum is 3", "1 site (anna)", "lower federation.quorum", code=2)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_something_is_left_as_it_is(one_site: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "letter.txt").write_text("dear")
    finished = run(local(write_study(tmp_path / "study.yaml", ROUNDS_ONLY), [one_site], mine), cwd=tmp_path)
    assert_sentence(finished, f"{mine}: already holds something", "choose another folder", code=2)
    assert [path.name for path in mine.iterdir()] == ["letter.txt"]
    in_the_way = run(
        local(write_study(tmp_path / "study.yaml", ROUNDS_ONLY), [one_site], mine / "letter.txt"), cwd=tmp_path
    )
    assert_sentence(in_the_way, "letter.txt", "can't be made", code=2)
    assert (mine / "letter.txt").read_text() == "dear"


def test_a_name_with_brackets_is_told_as_it_is(tmp_path: Path) -> None:
    site = write_profile(tmp_path / "anna [/old]", "anna", "${CONSILIUM_NO_SUCH_VARIABLE}/[red]anna")
    finished = run(local(write_study(tmp_path / "study.yaml"), [site], tmp_path / "run"), cwd=tmp_path)
    assert_sentence(finished, str(site), "'${CONSILIUM_NO_SUCH_VARIABLE}/[red]anna'", code=2)


def test_starting_weights_that_are_not_there_leave_an_empty_folder(one_site: Path, tmp_path: Path) -> None:
    weights = {"file": "absent.safetensors", "sha256": "0" * 64, "source": "nowhere"}
    study = write_study(tmp_path / "study.yaml", {"model": {"weights": weights}, "federation": {"quorum": 1}})
    finished = run(local(study, [one_site], tmp_path / "run"), cwd=tmp_path)
    assert finished.code != 0
    assert_sentence(finished, str(tmp_path / "absent.safetensors"), "No such file", code=finished.code)
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {".lock"}


# -- hospitals whose data can't be used --------------------------------------------------------------------------------


@dataclass(frozen=True)
class BadRun:
    """A run none of whose hospitals could serve it, with the file or folder that was at fault at each."""

    finished: Finished
    folder: RunFolder
    at_fault: dict[str, Path]

    def told(self, site: str) -> str:
        """What the command says of the site, on one line."""
        return next(
            line.strip() for line in self.finished.output.splitlines() if line.strip().startswith(f"{site}: CONS-")
        )


def keep_patients(root: Path, pathologies: Mapping[str, int]) -> None:
    """Of the patients with findings of one pathology alone, keep so many of each."""
    found: dict[str, set[str]] = {}
    for table in tables(root):
        for row in rows(table):
            found.setdefault(row["patient_id"], set()).add(row["pathology"].partition("_")[0])
    kept = {
        patient
        for wanted, count in pathologies.items()
        for patient in sorted(patient for patient, has in found.items() if has == {wanted})[:count]
    }
    for table in tables(root):
        write_rows(table, [row for row in rows(table) if row["patient_id"] in kept])


@pytest.fixture(scope="module")
def bad_run(hospitals: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> BadRun:
    base = tmp_path_factory.mktemp("bad")
    roots = {name: base / "data" / name for name in ("columns", "corrupt", "few", "oneclass", "report", "truncated")}
    for name, root in roots.items():
        copied(hospitals["clara" if name != "truncated" else "anna"], root)
    roots["empty"] = base / "data" / "empty"
    roots["empty"].mkdir()
    at_fault = dict(roots)

    at_fault["columns"] = tables(roots["columns"])[-1]
    write_rows(at_fault["columns"], rows(at_fault["columns"]), without="pathology")

    at_fault["corrupt"] = first_mammogram(roots["corrupt"])
    healthy = at_fault["corrupt"].read_bytes()
    replace_file(at_fault["corrupt"], bytes(reversed(healthy)))

    at_fault["truncated"] = first_mammogram(roots["truncated"], SECRET)
    replace_file(at_fault["truncated"], at_fault["truncated"].read_bytes()[:-5000])

    at_fault["report"] = first_mammogram(roots["report"])
    dataset = pydicom.dcmread(at_fault["report"])
    for keyword in ("PixelData", "Rows", "Columns", "BitsStored", "BitsAllocated", "PhotometricInterpretation"):
        del dataset[keyword]
    at_fault["report"].unlink()
    dataset.save_as(at_fault["report"])

    keep_patients(roots["oneclass"], {"BENIGN": 9})
    keep_patients(roots["few"], {"BENIGN": 3, "MALIGNANT": 3})

    sites = [write_profile(base / "profiles" / name, name, root) for name, root in roots.items()]
    study = write_study(base / "study.yaml", {"federation": {"quorum": 1}})
    finished = run(local(study, sites, base / "run"), cwd=base)
    return BadRun(finished, RunFolder(base / "run"), at_fault)


def test_when_no_hospital_can_serve_the_study_the_run_ends_in_a_sentence(bad_run: BadRun) -> None:
    assert_sentence(bad_run.finished, "0 of 7 sites prepared, but the quorum is 1", code=3)
    record = bad_run.folder.run()
    assert (record.state, record.code) == ("failed", "CONS-300")
    assert not list(bad_run.folder.path.glob("rounds/*"))


@pytest.mark.parametrize(
    ("site", "code", "phrases"),
    [
        ("empty", "CONS-110", ["the folder is empty", "calc_case_description_train_set.csv"]),
        ("columns", "CONS-110", ["column 'pathology' missing"]),
        ("corrupt", "CONS-110", ["1 file or row can't be used", "data.unreadable: skip"]),
        ("truncated", "CONS-111", ["its pixels can't be decoded", "get the file again from its source"]),
        ("report", "CONS-110", ["a DICOM file without an image", "data.unreadable: skip"]),
        ("oneclass", "CONS-110", ["class malignant has no patient at all"]),
        ("few", "CONS-110", ["1 patient in train, but the SVM's 2 folds need 2"]),
    ],
)
def test_each_hospital_is_told_what_is_wrong_with_its_data(
    bad_run: BadRun, site: str, code: str, phrases: list[str]
) -> None:
    told = bad_run.told(site)
    assert code in told
    if site not in ("oneclass", "few"):
        assert str(bad_run.at_fault[site]) in told
    for phrase in phrases:
        assert phrase in told


def test_the_coordinators_records_hold_codes_and_no_file_names(bad_run: BadRun) -> None:
    reason = bad_run.folder.run().reason or ""
    assert reason.count("refused (CONS-11") == 7
    assert SECRET in bad_run.finished.output  # on one machine the terminal may tell what the hospital's log says
    names = [SECRET, *(str(path) for path in bad_run.at_fault.values())]
    for path in coordinators_files(bad_run.folder.path):
        assert [name for name in names if holds(path, name)] == [], path


# -- hospitals that fail in the middle of a run ------------------------------------------------------------------------


def test_when_every_update_ends_in_nan_the_round_fails_and_says_so(sites: list[Path], tmp_path: Path) -> None:
    changes = merged(ROUNDS_ONLY, {"training": {"learning_rate": 1e30}})
    finished = run(local(write_study(tmp_path / "study.yaml", changes), sites[:2], tmp_path / "run"), cwd=tmp_path)
    assert_sentence(
        finished, "0 of 2 sites finished round 1", "anna: refused (CONS-250)", "bertha: refused (CONS-250)",
        "anna: CONS-250: the training loss is not finite", "lower the learning rate", code=3,
    )  # fmt: skip
    folder = RunFolder(tmp_path / "run")
    assert (folder.run().state, folder.run().code) == ("failed", "CONS-300")
    assert [path.name for path in (folder.path / "rounds").iterdir()] == ["0000"]
    report = run(command("consilium-server", "report", folder.path), cwd=tmp_path)
    assert report.code == 0, report.output


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[bool]:
    """`folder` as a disk of its own of this size; False where this machine does not let us mount one."""
    folder.mkdir(parents=True)
    options = ["-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    mount = shutil.which("mount")
    mounted = (
        mount is not None and subprocess.run([mount, "-t", "tmpfs", *options], capture_output=True).returncode == 0
    )
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


@dataclass(frozen=True)
class HardRun:
    """Two hospitals that work, and four that fail each in its own way (`crowded` only where its small disk could be made)."""

    finished: Finished
    folder: RunFolder
    has_crowded: bool

    def missing(self, number: int) -> dict[str, tuple[str, str | None]]:
        record = self.folder.rounds()[number]
        return {miss.site: (miss.reason, miss.code) for miss in record.missing}


def processes_of(mark: str, site: str, *words: str) -> list[int]:
    return [
        pid for pid, line in alive(mark).items() if f"/sites/{site}" in line and all(word in line for word in words)
    ]


@pytest.fixture(scope="module")
def hard_run(hospitals: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[HardRun]:
    base = tmp_path_factory.mktemp("hard")
    changes = merged(
        ROUNDS_ONLY, {"federation": {"quorum": 2, "round_deadline_s": 45}, "training": {"local_epochs": 8}}
    )
    study = write_study(base / "study.yaml", changes)
    folder = RunFolder(base / "run")
    with small_disk(base / "disk", 24) as mounted:
        caches = {"crowded": {"cache": str(base / "disk" / "cache")}} if mounted else {}
        data = {"anna": "anna", "clara": "clara", "frozen": "anna", "killed": "clara", "unapproved": "anna"}
        data |= {"crowded": "clara"} if mounted else {}
        profiles = [
            write_profile(base / "profiles" / site, site, hospitals[one], caches.get(site))
            for site, one in data.items()
        ]
        with under_way(local(study, profiles, folder.path), cwd=base) as started:
            wait_until((folder.path / "logs" / "site-unapproved.log").exists, "the nodes start")
            for approval in (folder.path / "sites" / "unapproved" / "approvals").iterdir():
                text = approval.read_text()
                digit = text[text.index('"study_digest": "') + 17]
                approval.write_text(
                    text.replace(f'"study_digest": "{digit}', f'"study_digest": "{"1" if digit == "0" else "0"}')
                )
            wait_for_phase(folder.path, "train", 1)
            frozen = processes_of(started.mark, "frozen", "client.executor")
            for pid in frozen:
                os.kill(pid, signal.SIGSTOP)
            for pid in processes_of(started.mark, "killed"):
                os.kill(pid, signal.SIGKILL)
            wait_until(lambda: len(folder.rounds()) == 2 or not alive(started.mark), "round 1 is over", 300)
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)
            yield HardRun(started.wait(), folder, mounted)


def test_a_run_with_a_quorum_finishes_whatever_befalls_the_others(hard_run: HardRun) -> None:
    assert hard_run.finished.code == 0, hard_run.finished.output
    assert "Traceback" not in hard_run.finished.output
    assert hard_run.folder.run().state == "finished"
    assert {"anna", "clara"} == set(hard_run.folder.rounds()[1].trained)
    final = hard_run.folder.final()
    assert final is not None
    assert {"anna", "clara"} <= set(final.sites)
    assert_gone(hard_run.finished.mark)


def test_a_site_that_never_answers_is_named(hard_run: HardRun) -> None:
    assert hard_run.missing(1)["frozen"] == ("no answer", None)
    assert "frozen missing: no answer" in hard_run.finished.sentence


def test_a_site_that_is_killed_in_the_middle_of_a_round_is_named(hard_run: HardRun) -> None:
    assert hard_run.missing(1)["killed"][0] in ("no answer", "offline")
    assert "killed its node ended with status -9; see logs/site-killed.log" in hard_run.finished.sentence


def test_a_study_that_a_site_has_not_approved_is_refused_there(hard_run: HardRun) -> None:
    for number in (0, 1):
        assert hard_run.missing(number)["unapproved"] == ("refused", "CONS-210")
    assert not (hard_run.folder.path / "sites" / "unapproved" / "cache").exists()


def test_a_site_whose_cache_does_not_fit_on_its_disk_is_named(hard_run: HardRun) -> None:
    if not hard_run.has_crowded:
        pytest.skip("this machine lets us mount no small disk, so a cache on a full one was NOT tested")
    assert hard_run.missing(0)["crowded"] == ("refused", "CONS-330")
    log = (hard_run.folder.path / "logs" / "site-crowded.log").read_text(errors="replace")
    assert "the image cache could not be written" in log
    assert "Free some space" in log


# -- a hospital's node on its own --------------------------------------------------------------------------------------


@pytest.fixture
def site_folder(one_site: Path, tmp_path: Path) -> Path:
    made = run(command("consilium-site", "init", tmp_path / "site", "--profile", one_site), cwd=tmp_path)
    assert made.code == 0, made.output
    return tmp_path / "site"


def test_a_node_without_the_coordinators_certificate(site_folder: Path, tmp_path: Path) -> None:
    finished = run(
        command("consilium-site", "up", site_folder, "--superlink", "127.0.0.1:1", "--ca", "absent.crt"), cwd=tmp_path
    )
    assert_sentence(finished, "absent.crt: no such file; --ca must name the coordinator's CA certificate", code=2)


def test_a_node_whose_own_port_another_program_takes(site_folder: Path, tmp_path: Path) -> None:
    certificates = write_certificates(tmp_path / "certificates", ["127.0.0.1"])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        program = (
            f"import client.node; client.node.free_ports = lambda _: [{port}]; from client.cli import main; main()"
        )
        arguments = ["up", str(site_folder), "--superlink", "127.0.0.1:1", "--ca", str(certificates.ca)]
        finished = run([sys.executable, "-c", program, *arguments], cwd=Path(__file__).parents[2])
    assert_sentence(finished, f"another program took port {port}", "start the node again", code=3)


# -- the coordinator's machine -----------------------------------------------------------------------------------------


def test_a_disk_that_fills_up_ends_the_run_with_the_rounds_before_kept(sites: list[Path], tmp_path: Path) -> None:
    """On a small disk of its own; where none can be mounted, by a limit on the size of the ServerApp's files."""
    study = write_study(tmp_path / "study.yaml", {**ROUNDS_ONLY, "model": LARGE})
    caches = [
        write_profile(
            tmp_path / "profiles" / site.name, site.name, root, {"cache": str(tmp_path / "cache" / site.name)}
        )
        for site, root in [(site, load_profile(site).data.root) for site in (sites[0], sites[2])]
    ]
    with (
        small_disk(tmp_path / "run", 200_000) as mounted,
        under_way(local(study, caches, tmp_path / "run"), cwd=tmp_path) as started,
    ):
        folder = RunFolder(tmp_path / "run")
        wait_for_phase(folder.path, "train", 1)
        if mounted:
            room = shutil.disk_usage(folder.path).free - 60_000_000  # for one update of 45 MB, not for two
            with (folder.path / "filler").open("wb") as filler:
                os.posix_fallocate(filler.fileno(), 0, room)
        else:
            (server_app,) = [pid for pid, line in alive(started.mark).items() if "flwr-serverapp" in line]
            resource.prlimit(server_app, resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        finished = started.wait()
        assert_sentence(
            finished, "CONS-330", str(folder.path / "rounds"), "can't be written", "free some space", code=3
        )  # fmt: skip
        assert "rounds before this one are kept" in finished.sentence
        assert (folder.run().state, folder.run().code) == ("failed", "CONS-330")
        assert [path.name for path in (folder.path / "rounds").iterdir()] == ["0000"]


WITH_TAKEN_PORTS = """
import sys
import server.local
from server.cli import main
taken, real, times = int(sys.argv.pop(1)), server.local.free_ports, int(sys.argv.pop(1))
given = []
def ports(count):
    given.append(count)
    return [taken] * count if len(given) <= times else real(count)
server.local.free_ports = ports
main()
"""


@pytest.mark.parametrize("times", [1, 99])
def test_a_port_that_another_program_takes(times: int, sites: list[Path], tmp_path: Path) -> None:
    changes = merged(ROUNDS_ONLY, {"federation": {"rounds": 0}})
    study = write_study(tmp_path / "study.yaml", changes)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        program = [sys.executable, "-c", WITH_TAKEN_PORTS, listener.getsockname()[1], times]
        arguments = [str(word) for word in (*program, "local", study, sites[0], "--run-dir", tmp_path / "run")]
        finished = run(arguments, cwd=Path(__file__).parents[2])
    state = RunFolder(tmp_path / "run").run().state
    if times == 1:
        assert (finished.code, state) == (0, "finished"), finished.output
    else:
        assert_sentence(finished, "CONS-320", "another program took the port", "run it again", code=3)
        assert state == "failed"


def test_a_coordinator_whose_process_is_killed(sites: list[Path], tmp_path: Path) -> None:
    changes = merged(ROUNDS_ONLY, {"training": {"local_epochs": 500}})
    with under_way(
        local(write_study(tmp_path / "study.yaml", changes), sites[:1], tmp_path / "run"), cwd=tmp_path
    ) as started:
        wait_for_phase(tmp_path / "run", "train", 1)
        for pid in [pid for pid, line in alive(started.mark).items() if "flwr-serverapp" in line]:
            os.kill(pid, signal.SIGKILL)
        finished = started.wait(120)
    assert_sentence(finished, "CONS-320", "the coordinator's process ended before the run did", "superlink.log", code=3)
    assert RunFolder(tmp_path / "run").run().state == "failed"
