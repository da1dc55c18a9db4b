"""A federation on one machine from the command to the report: what a run leaves, what stays in the hospitals, and how it can be stopped."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Disturbed, Run
from small_federation import (
    SECRET,
    Command,
    alive,
    assert_gone,
    command,
    coordinators_files,
    holds,
    local,
    merged,
    run,
    under_way,
    wait_for_phase,
    write_study,
)

from server.report.schema import Report
from server.run_folder import RunFolder
from shared.audit.signatures import ANSWERS, INSTRUCTIONS, PREVIOUS, WRITERS
from shared.canonical import file_digest
from shared.results import Estimate

pytestmark = pytest.mark.federation

SITES = ("anna", "bertha", "clara")
#: No SVM, no baseline: nothing but rounds, for runs that are stopped in the middle of one.
ROUNDS_ONLY = {
    "head": None,
    "evaluation": {"baseline": False},
    "training": {"local_epochs": 500, "optimiser_state": "reset"},
    "federation": {"quorum": 1, "rounds": 1000, "wire": "fp32"},
}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def weights(folder: RunFolder) -> dict[str, str]:
    return {path.parent.name: file_digest(path) for path in sorted(folder.path.glob("rounds/*/model.safetensors"))}


# -- a run that goes well ----------------------------------------------------------------------------------------------


def test_each_hospital_gets_its_figures_for_network_and_svm(undisturbed: Run) -> None:
    report = Report.model_validate_json((undisturbed.path / "report.json").read_text())
    assert report.run.state == "finished"
    assert report.run.rounds_done == 2
    assert set(report.sites) == set(SITES)
    for site in report.sites.values():
        for head in (site.network, site.svm):
            assert head is not None
            assert head.auc.images > 0
            assert head.auc.value is not None
            assert 0 <= head.auc.value <= 1
    assert report.pooled.svm is not None
    assert report.pooled.network is not None
    assert report.synthetic


def test_the_page_needs_no_other_file_and_no_network(undisturbed: Run) -> None:
    page = (undisturbed.path / "report.html").read_text(encoding="utf-8")
    assert all(site.title() in page or site in page for site in SITES)
    asked_for = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)|url\(([^)]*)\)|@import\s+([^;]*)""", page)
    outside = [text for found in asked_for for text in found if text and not text.startswith(("#", "data:"))]
    assert outside == []


def test_both_rounds_have_an_update_of_every_hospital(undisturbed: Run) -> None:
    rounds = undisturbed.folder.rounds()
    assert [record.round for record in rounds] == [0, 1, 2]
    for record in rounds[1:]:
        assert set(record.trained) == set(record.update_digests) == set(SITES)
        assert not record.missing
        assert sum(record.weights.values()) == pytest.approx(1)


def test_an_image_that_cannot_be_read_is_left_out_and_counted_where_the_profile_says_so(undisturbed: Run) -> None:
    prepared = undisturbed.folder.rounds()[0].prepared
    assert {site: one.unreadable > 0 for site, one in prepared.items()} == {
        "anna": False,
        "bertha": True,
        "clara": False,
    }


def test_the_same_study_seed_and_machine_give_the_same_bytes(undisturbed: Run, repeated: Disturbed) -> None:
    assert set(weights(undisturbed.folder)) == {"0001", "0002"}
    assert weights(repeated.folder) == weights(undisturbed.folder)


def test_the_same_study_seed_and_machine_give_the_same_figures(undisturbed: Run, repeated: Disturbed) -> None:
    def figures(one: Run) -> dict[tuple[str, str, str], Estimate]:
        final = one.folder.final()
        assert final is not None
        heads = {
            (site, name): getattr(found, name) for site, found in final.sites.items() for name in ("network", "svm")
        }
        return {(*key, metric): getattr(head, metric) for key, head in heads.items() for metric in ("auc", "accuracy")}

    assert figures(repeated) == figures(undisturbed)


def test_a_second_run_in_the_folder_is_refused_in_a_sentence(repeated: Disturbed) -> None:
    assert repeated.intruder.code == 2
    assert "another run is going on in this folder" in repeated.intruder.sentence
    assert "Traceback" not in repeated.intruder.output


def test_no_process_is_left_after_a_run(undisturbed: Run, repeated: Disturbed) -> None:
    for mark in (undisturbed.finished.mark, repeated.finished.mark, repeated.intruder.mark):
        assert alive(mark) == {}


def test_the_command_says_where_the_report_is_and_nothing_of_tracebacks(undisturbed: Run) -> None:
    assert str(undisturbed.path / "report.html") in undisturbed.finished.sentence
    assert "Traceback" not in undisturbed.finished.output
    logs = "".join(path.read_text(errors="replace") for path in (undisturbed.path / "logs").iterdir())
    assert "Traceback" not in logs


# -- what stays in the hospital ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", SITES)
def test_keys_page_and_scores_are_for_the_hospital_alone(undisturbed: Run, site: str) -> None:
    folder = undisturbed.path / "sites" / site
    assert mode(folder) == 0o700
    assert mode(folder / "keys") == 0o700
    private = [
        folder / "site.json",
        folder / "keys" / "node.key",
        folder / "keys" / "executor.secret",
        undisturbed.site_files(site) / "evaluation.html",
        undisturbed.site_files(site) / "cohort.npz",
        *undisturbed.site_files(site).glob("scores-*.npz"),
        *folder.glob("cache/*/*.npy"),
    ]
    assert len(private) >= 8  # scores of two models, one pack of images
    assert {str(path): mode(path) for path in private} == dict.fromkeys(map(str, private), 0o600)


def test_each_hospital_has_a_folder_and_a_key_of_its_own(undisturbed: Run) -> None:
    folders = sorted(path.name for path in (undisturbed.path / "sites").iterdir())
    assert folders == sorted(SITES)
    keys = {(undisturbed.path / "sites" / site / "keys" / "node.pub").read_text() for site in SITES}
    assert len(keys) == len(SITES)
    for site in SITES:
        others = set(SITES) - {site}
        names = (undisturbed.path / "sites" / site / "site.json").read_text()
        assert not any(other in names for other in others)


def test_the_hospitals_page_is_nowhere_among_the_coordinators_files(undisturbed: Run) -> None:
    pages = {file_digest(undisturbed.site_files(site) / "evaluation.html") for site in SITES}
    assert len(pages) == len(SITES)
    assert pages.isdisjoint(file_digest(path) for path in coordinators_files(undisturbed.path))


def test_no_patient_id_and_no_file_name_reaches_the_coordinator(
    undisturbed: Run, repeated: Disturbed, hospitals: dict[str, Path]
) -> None:
    for one in (undisturbed, repeated):
        assert holds(one.site_files("anna") / "cohort.npz", SECRET)  # it was there to be told
        seen = list(coordinators_files(one.path))
        assert {"superlink.log", "run.json", "round.json", "evaluation.json", "model.safetensors"} <= {
            path.name for path in seen
        }
        assert [path for path in seen if holds(path, SECRET) or holds(path, str(hospitals["anna"]))] == []
    assert "state.db" in {path.name for path in coordinators_files(repeated.path)}


# -- the commands on a run that has ended ------------------------------------------------------------------------------


def test_report_can_be_written_again(undisturbed: Run, tmp_path: Path) -> None:
    before = (undisturbed.path / "report.json").read_bytes()
    again = run(command("consilium-server", "report", undisturbed.path), cwd=tmp_path)
    assert again.code == 0, again.output
    assert (undisturbed.path / "report.json").read_bytes() == before


def test_an_auditor_who_has_the_fingerprints_finds_everything_signed_by_whom_it_says(undisturbed: Run) -> None:
    trusted = undisturbed.path.with_name(f"{undisturbed.path.name}.trust")
    done = run(command("consilium-audit", "verify", undisturbed.path, "--trust", trusted, "--json"), cwd=trusted.parent)
    found = {check["name"]: check["outcome"] for check in json.loads(done.output)["checks"]}
    assert [found[name] for name in (WRITERS, INSTRUCTIONS, ANSWERS, PREVIOUS)] == ["proven"] * 4
    assert "violated" not in found.values()


def test_learned_answers_for_each_hospital_and_for_both_heads(undisturbed: Run, tmp_path: Path) -> None:
    asked = run(command("consilium-server", "learned", undisturbed.path), cwd=tmp_path)
    answers = [line for line in asked.output.splitlines() if line.strip()]
    assert len(answers) == len(SITES) + 2
    assert all(line.startswith(("yes", "no")) for line in answers)
    assert asked.code == (0 if all(line.startswith("yes") for line in answers) else 1)


def test_without_aggregation_nothing_has_been_learned(sites: list[Path], tmp_path: Path) -> None:
    federation = {"rounds": 1, "quorum": 1, "optimiser": {"learning_rate": 1e-12}}
    study = write_study(tmp_path / "study.yaml", {"federation": federation, "training": {"local_epochs": 3}})
    finished = run(local(study, sites[:1], tmp_path / "run"), cwd=tmp_path)
    assert finished.code == 0, finished.output
    asked = run(command("consilium-server", "learned", tmp_path / "run"), cwd=tmp_path)
    assert asked.code == 1
    gains = [line for line in asked.output.splitlines() if "beats that on the round-0 model" in line]
    assert len(gains) == 2
    assert all(line.startswith("no") for line in gains)


# -- stopping it -------------------------------------------------------------------------------------------------------


def interrupted_twice(started: Command) -> None:
    """Ctrl-C goes to the whole process group; impatient people press it again."""
    os.killpg(started.process.pid, signal.SIGINT)
    started.process.poll()
    try:
        started.process.wait(0.3)
    except Exception:
        os.killpg(started.process.pid, signal.SIGINT)


def terminated(started: Command) -> None:
    started.signal(signal.SIGTERM)


@pytest.mark.parametrize("stop", [interrupted_twice, terminated])
def test_a_run_that_is_stopped_keeps_its_rounds_and_leaves_no_process(
    stop: Callable[[Command], None], sites: list[Path], tmp_path: Path
) -> None:
    study = write_study(tmp_path / "study.yaml", merged(ROUNDS_ONLY, {"training": {"local_epochs": 10}}))
    folder = RunFolder(tmp_path / "run")
    with under_way(local(study, sites[:1], folder.path), cwd=tmp_path) as started:
        wait_for_phase(folder.path, "train", 2)
        assert len(alive(started.mark)) > 4
        stop(started)
        finished = started.wait(60)
        assert_gone(started.mark)
    assert finished.code == 130
    assert "Traceback" not in finished.output
    assert "nothing is left running" in finished.sentence
    record = folder.run()
    assert (record.state, record.code) == ("stopped", None)
    assert record.ended is not None
    rounds = [one.round for one in folder.rounds()]
    assert rounds[:2] == [0, 1]
    assert (folder.round_path(rounds[-1]) / "model.safetensors").exists()
    assert not list(folder.path.glob("rounds/.*.partial"))
    report = run(command("consilium-server", "report", folder.path), cwd=tmp_path)
    assert report.code == 0, report.output
    written = Report.model_validate_json((folder.path / "report.json").read_text())
    assert (written.run.state, written.run.rounds_done, written.evaluated) == ("stopped", rounds[-1], False)
    asked = run(command("consilium-server", "learned", folder.path), cwd=tmp_path)
    assert asked.code == 2
    assert "no final evaluation" in asked.sentence


def test_a_command_that_is_killed_takes_everything_with_it(sites: list[Path], tmp_path: Path) -> None:
    study = write_study(tmp_path / "study.yaml", ROUNDS_ONLY)
    folder = RunFolder(tmp_path / "run")
    with under_way(local(study, sites[:1], folder.path), cwd=tmp_path) as started:
        wait_for_phase(folder.path, "train", 1)
        assert len(alive(started.mark)) > 4
        started.signal(signal.SIGKILL)
        assert started.wait(30).code == -signal.SIGKILL
        assert_gone(started.mark, 15)
    report = run(command("consilium-server", "report", folder.path), cwd=tmp_path)
    assert report.code == 0, report.output
