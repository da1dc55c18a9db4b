"""How runs stand, by their files and by whether their process lives; what may be stopped, resumed and launched."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from small_study import write_study
from test_run_lock import led
from typer.testing import CliRunner

from server.cli import app
from server.following import error_of, require_finished
from server.home import Home
from server.log_view import show_logs
from server.run_folder import RunFolder
from server.running import (
    BEGIN_WITHIN_S,
    BY_HAND,
    INTERRUPTED,
    FlowerRun,
    runs_of,
    settle_runs,
    standing,
    stop,
)
from server.starting_model import claim_folder, fill_folder
from server.status import Status
from shared.errors import ConsiliumError, NotUpError, ProcessError, QuorumError, RunFolderError
from shared.run_records import Event
from shared.study import load_study


@dataclass
class FakeFlower:
    """What Flower says of a run; `stopped` are the runs that it was told to stop."""

    status: str = "running"
    stopped: list[int] = field(default_factory=list)

    def run_status(self, run_id: int) -> str:
        return self.status

    def stop_run(self, run_id: int) -> None:
        self.stopped.append(run_id)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has just been made."""
    base = tmp_path_factory.mktemp("made")
    study = load_study(write_study(base / "tiny.yaml"))
    fill_folder(claim_folder(base / "run"), study, ["anna", "bertha"], weights_root=base)
    return base / "run"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.create(tmp_path / "home", "Federation", ["localhost"], address="localhost:443")


@pytest.fixture
def folder(home: Home, made: Path) -> RunFolder:
    shutil.copytree(made, home.path / "runs" / "one")
    return RunFolder(home.path / "runs" / "one")


def submitted(folder: RunFolder, ago_s: float = 0.0) -> None:
    folder.write("flower.json", FlowerRun(run_id="77", submitted=time.time() - ago_s))


def command(home: Home, *arguments: object) -> str:
    words = [str(argument) for argument in arguments]
    result = CliRunner().invoke(app, [words[0], str(home.path), *words[1:]])
    if isinstance(result.exception, ConsiliumError):
        raise result.exception
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


@pytest.mark.parametrize("state", ["finished", "stopped", "failed"])
def test_a_run_that_has_ended_stands_as_its_folder_says(folder: RunFolder, state: str) -> None:
    folder.update_run(state=state)
    assert standing(folder, None) == state
    assert standing(folder, FakeFlower()) == state  # type: ignore[arg-type]


def test_a_running_run_is_one_whose_process_lives(folder: RunFolder) -> None:
    folder.update_run(state="running")
    assert standing(folder, FakeFlower()) == "interrupted"  # type: ignore[arg-type]
    with led(folder.path):
        assert standing(folder, None) == "running"
    assert standing(folder, None) == "interrupted"


def test_a_run_that_was_submitted_may_still_begin_for_a_while(folder: RunFolder) -> None:
    flower: Any = FakeFlower("pending")
    submitted(folder)
    assert standing(folder, flower) == "starting"
    assert standing(folder, None) == "interrupted"  # no coordinator that could start it
    flower.status = "finished:failed"
    assert standing(folder, flower) == "interrupted"
    flower.status = "running"
    submitted(folder, BEGIN_WITHIN_S + 1)
    assert standing(folder, flower) == "interrupted"
    with led(folder.path):
        assert standing(folder, flower) == "starting"


def test_a_run_that_is_about_to_be_resumed_is_not_taken_for_interrupted(home: Home, folder: RunFolder) -> None:
    """`up` looks every two seconds, also between the moment that `resume` says so and the one that Flower has the run anew."""
    flower: Any = FakeFlower("finished:stopped")
    folder.write("flower.json", FlowerRun(run_id=None, submitted=time.time()))
    folder.update_run(state="starting")
    assert settle_runs(home, flower) == []
    assert standing(folder, flower) == "starting"
    folder.write("flower.json", FlowerRun(run_id=None, submitted=time.time() - BEGIN_WITHIN_S - 1))
    assert settle_runs(home, flower) == ["one"], "a resume that died on its way"


def test_interrupted_runs_are_noted_and_ended_in_flower_and_others_left_alone(home: Home, folder: RunFolder) -> None:
    submitted(folder)
    folder.update_run(state="running")
    flower: Any = FakeFlower()
    with led(folder.path):
        assert settle_runs(home, flower) == []
        assert folder.run().state == "running"
    assert settle_runs(home, flower) == ["one"]
    run = folder.run()
    assert (run.state, run.reason, flower.stopped) == ("stopped", INTERRUPTED, [77])
    assert settle_runs(home, flower) == []
    with pytest.raises(ProcessError, match="interrupted"):
        require_finished(folder)


def test_a_damaged_run_does_not_keep_the_others_from_being_settled(home: Home, folder: RunFolder, made: Path) -> None:
    folder.update_run(state="running")
    (home.path / "runs" / "broken").mkdir()
    (home.path / "runs" / "broken" / "run.json").write_text("{")
    assert settle_runs(home, None) == ["one"]
    assert [one.name for one in runs_of(home)] == ["one"]


def test_a_stop_waits_for_the_process_and_keeps_the_reason(home: Home, folder: RunFolder) -> None:
    folder.update_run(state="running")
    with led(folder.path) as process:
        run = stop(home, "one")
        assert process.wait(5) == -15
    assert (run.state, run.reason) == ("stopped", BY_HAND)
    with pytest.raises(RunFolderError, match="is stopped already"):
        stop(home, "one")


def test_a_stop_that_comes_too_late_does_not_change_how_the_run_ended(home: Home, folder: RunFolder) -> None:
    folder.update_run(state="finished")
    with pytest.raises(RunFolderError, match="is finished already"):
        stop(home, "one")
    assert folder.run().state == "finished"


@pytest.mark.parametrize("verb", ["stop", "resume", "status", "logs", "report"])
def test_a_run_that_is_not_there_is_told_with_those_that_are(home: Home, folder: RunFolder, verb: str) -> None:
    with pytest.raises(RunFolderError, match=r"two: no such run in .* there are: one"):
        command(home, verb, "two")


def test_resuming_needs_a_coordinator_that_is_up(home: Home, folder: RunFolder, tmp_path: Path) -> None:
    command(home, "publish", write_study(tmp_path / "tiny.yaml"), "--out", tmp_path / "o.json")
    folder.update_run(state="stopped")
    with pytest.raises(NotUpError):
        command(home, "resume", "one")
    assert folder.run().state == "stopped"


def test_a_failed_run_ends_with_its_own_error(folder: RunFolder) -> None:
    folder.end("failed", "0 of 2 sites", "CONS-300")
    with pytest.raises(QuorumError, match="0 of 2 sites"):
        require_finished(folder)
    assert error_of("CONS-999") is ProcessError
    folder.update_run(state="finished")
    require_finished(folder)


def test_status_works_from_files_alone(home: Home, folder: RunFolder) -> None:
    for event in (
        Event(at=10.0, kind="round", round=1, phase="train"),
        Event(at=11.0, kind="site", site="anna", round=1, phase="done", loss=0.75, accuracy=0.5),
        Event(at=12.0, kind="site", site="bertha", round=1, text="missing: no answer"),
        Event(at=20.0, kind="round", round=1, phase="done", loss=0.75, accuracy=0.5),
    ):
        folder.note(event)
    folder.update_run(state="running")
    with led(folder.path):
        found = json.loads(command(home, "status", "--json"))
        one = json.loads(command(home, "status", "one", "--json"))
    assert (found["format"], found["up"], found["port"]) == ("consilium/status/1", False, None)
    (run,) = found["runs"]
    assert {key: value for key, value in run.items() if key != "seconds_left"} == {
        key: value for key, value in one.items() if key != "seconds_left"
    }
    assert (run["state"], run["round"], run["rounds"], run["finished_rounds"]) == ("running", 1, 2, 1)
    assert (run["loss"], run["accuracy"], run["seconds_left"]) == (0.75, 0.5, 10.0)
    assert [(site["site"], site["loss"], site["trouble"]) for site in run["sites"]] == [
        ("anna", 0.75, None),
        ("bertha", None, "missing: no answer"),
    ]
    assert json.loads(command(home, "status", "--json"))["runs"][0]["state"] == "interrupted"
    assert "not up" in command(home, "status") and "interrupted" in command(home, "status", "one")


def test_every_key_of_the_json_is_on_the_page() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "coordinating.md").read_text()
    schema = Status.model_json_schema()
    keys = {key for one in (schema, *schema["$defs"].values()) for key in one.get("properties", {})}
    assert {"up", "fingerprint", "launched", "seconds_left", "trouble"} <= keys
    assert {key for key in keys if f"`{key}`" not in page} == set()


def test_the_last_lines_of_a_log_are_shown_without_control_characters(tmp_path: Path) -> None:
    log = tmp_path / "superlink.log"
    log.write_bytes(b"one\ntwo\n\x1b[31mthree\x1b[0m\xff\x07\nunfinished")
    console = Console(width=80, record=True, file=(tmp_path / "out").open("w"))
    show_logs([log], console, lines=2, follow=False)
    assert console.export_text().splitlines() == ["two", "three� "]


def test_a_runs_log_is_what_happened_and_what_its_processes_wrote(home: Home, folder: RunFolder) -> None:
    folder.note(Event(at=1.0, kind="note", text="a note"))
    (folder.path / "logs" / "other.log").write_text("line of a process\n")
    said = command(home, "logs", "one")
    assert "a note" in said and "line of a process" in said
    assert "a note" not in command(home, "logs", "one", "--lines", "0")


def test_a_report_takes_a_runs_folder_or_its_name(home: Home, folder: RunFolder) -> None:
    command(home, "report", "one")
    assert (folder.path / "report.json").exists()
    with pytest.raises(ConsiliumError, match="say which run"):
        command(home, "report")


def test_a_run_whose_record_is_damaged_is_told_of_and_not_dropped(home: Home, folder: RunFolder) -> None:
    (folder.path / "run.json").write_text("{]")
    assert "run one can't be listed" in command(home, "status")
    assert list(json.loads(command(home, "status", "--json"))["unreadable"]) == ["one"]
