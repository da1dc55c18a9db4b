"""What a site says of itself is what lies in its folder, and a process that has died does nothing."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from publications import joined, profile_of, published
from typer.testing import CliRunner

import client.status as status_module
from benchmarks.bare_run import bare_study, evaluated_answer
from client import cli_records
from client.approvals import approve, require_approval
from client.cli import app
from client.node import only_node
from client.own_runs import keep_figures, on_record, own_runs
from client.publications import receive
from client.site_folder import Progress, SiteFolder
from client.status import results, status
from shared.errors import InputError, PolicyError
from shared.messages import Instruction, Kind
from shared.release import Release
from shared.signing import SigningKey

RUN = CliRunner()


@pytest.fixture
def folder(tmp_path: Path) -> SiteFolder:
    return SiteFolder.create(tmp_path / "anna", profile_of())


def instruction(kind: Kind, number: int, run: str = "run-1") -> Instruction:
    study = bare_study()
    return Instruction(
        kind=kind, run=run, site="anna", round=number, issued=1, expires=2, study=study.to_data(), study_digest=study.digest(),
        model_digest="0" * 64, manifest_digest="0" * 64, previous=None, release=Release.installed(),
    )  # fmt: skip


def told(*arguments: str) -> str:
    said = RUN.invoke(app, [*arguments], catch_exceptions=False)
    assert said.exit_code == 0, said.output
    return said.output


def test_a_new_site_says_that_it_is_new(folder: SiteFolder) -> None:
    found = status(folder)
    assert (found.federation, found.node.up, found.now, found.runs, found.studies) == (None, False, None, [], [])
    assert "not joined yet" in told("status", str(folder.path))
    assert "not up" in told("status", str(folder.path))
    assert "No run yet" in told("results", str(folder.path))


def test_what_is_going_on_is_shown_while_it_goes_on(folder: SiteFolder) -> None:
    with only_node(folder):
        with on_record(folder.run_folder("run-1"), instruction("train", 2), bare_study()):
            folder.show_progress(Progress(phase="train", done=3, total=8, loss=0.5))
            now = status(folder).now
            assert now is not None
            assert (now.run, now.kind, now.round, now.rounds) == ("run-1", "train", 2, 3)
            assert now.progress == Progress(phase="train", done=3, total=8, loss=0.5)
            assert "train 3 of 8, loss 0.500" in told("status", str(folder.path))
        assert status(folder).now is None


def test_a_process_that_was_killed_at_work_does_nothing_now(folder: SiteFolder) -> None:
    code = (
        "import os, signal; from pathlib import Path; from client.own_runs import on_record;"
        "from test_status import *; folder = SiteFolder(Path(os.environ['SITE']));\n"
        "with on_record(folder.run_folder('run-1'), instruction('train', 2), bare_study()):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    environment = {**os.environ, "SITE": str(folder.path), "PYTHONPATH": os.pathsep.join(paths)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    with only_node(folder):
        found = status(folder)
    assert found.now is None
    assert found.runs[0].last is not None and found.runs[0].last.event == "begun"
    assert found.runs[0].last_round == 2


def test_an_instruction_that_fails_ends_with_its_code(folder: SiteFolder) -> None:
    with (
        pytest.raises(PolicyError),
        on_record(folder.run_folder("run-1"), instruction("train", 1), bare_study()),
    ):
        raise PolicyError("too much")
    (run,) = own_runs(folder)
    assert [(step.event, step.code) for step in run.steps] == [("begun", None), ("ended", "CONS-230")]
    assert "CONS-230" in told("status", str(folder.path))


def test_a_line_that_a_kill_cut_off_hides_no_other(folder: SiteFolder) -> None:
    run_folder = folder.run_folder("run-1")
    with on_record(run_folder, instruction("prepare", 0), bare_study()):
        pass
    path = run_folder / "instructions.jsonl"
    path.write_bytes(path.read_bytes() + b'{"event":"begun","kind":"tr')
    with on_record(run_folder, instruction("train", 1), bare_study()):
        pass
    (run,) = own_runs(folder)
    assert [(step.event, step.kind) for step in run.steps] == [
        ("begun", "prepare"), ("ended", "prepare"), ("begun", "train"), ("ended", "train"),
    ]  # fmt: skip
    assert run.begun_rounds == (1,)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_approvals_with_what_is_left_of_them(folder: SiteFolder, tmp_path: Path) -> None:
    key = SigningKey.create(tmp_path / "coordinator.key")
    joined(folder, key)
    publication = receive(folder, published(tmp_path / "study.json", key, runs=3))
    approve(folder, publication, by="Dr. A", runs=2, expires="2999-01-01", weights_folder=tmp_path)
    require_approval(folder, bare_study(), coordinator_key=str(key.public), run="run-1", release=Release.installed())
    found: dict[str, Any] = json.loads(told("status", str(folder.path), "--json"))
    (study,) = found["studies"]
    assert (study["state"], study["runs_made"], study["runs"], study["until"]) == ("approved", 1, 2, "2999-01-01")
    assert found["federation"] == "Three hospitals"


def test_results_are_this_hospitals_own_figures(folder: SiteFolder) -> None:
    for run in ("run-1", "run-2"):
        with on_record(folder.run_folder(run), instruction("evaluate", 3, run), bare_study()):
            keep_figures(folder.run_folder(run), 3, evaluated_answer(images=40))
    page = folder.run_folder("run-2") / "evaluation.html"
    page.write_text("figures")
    assert {one.run: one.page for one in results(folder)} == {"run-1": None, "run-2": str(page)}
    (one,) = results(folder, "run-1")
    assert one.figures is not None and one.figures.evaluated == evaluated_answer(images=40)
    said = told("results", str(folder.path), "run-2")
    assert "auc: network 0.500 (0.400 to 0.600)" in said and str(page) in said
    with pytest.raises(InputError, match="no run 'run-3' here; runs: "):
        results(folder, "run-3")


def test_following_shows_a_change_once(folder: SiteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = [0]

    def sleep(_seconds: float) -> None:
        looks[0] += 1
        if looks[0] == 3:
            with on_record(folder.run_folder("run-1"), instruction("train", 1), bare_study()):
                pass
        if looks[0] == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(cli_records.time, "sleep", sleep)
    monkeypatch.setattr(status_module.shutil, "disk_usage", lambda _path: SimpleNamespace(free=10**9))
    shown = [json.loads(line) for line in told("status", str(folder.path), "--follow", "--json").splitlines()]
    assert [len(one["runs"]) for one in shown] == [0, 1]


def test_a_folder_that_is_none_is_said_so(tmp_path: Path) -> None:
    for command in ("status", "results", "withdraw"):
        with pytest.raises(InputError, match="not a site's folder"):
            RUN.invoke(app, [command, str(tmp_path)], catch_exceptions=False)
