"""`consilium-server learned` on counts with noise: a clear answer, above chance or not, and no question about round 0."""

from __future__ import annotations

from pathlib import Path

import private_run
import pytest
from private_run import private_study, write_private_run
from typer.testing import CliRunner

from server.cli import app


def test_a_private_run_that_learned_is_said_to_have(tmp_path: Path) -> None:
    folder = write_private_run(tmp_path / "r", study=private_study(svm=True))
    said = CliRunner().invoke(app, ["learned", str(folder.path)])
    assert said.exit_code == 0, said.output
    lines = said.output.splitlines()
    assert "no round 0 to compare with" in lines[0]
    assert [line.split()[0] for line in lines[1:]] == ["yes", "yes"]
    assert "the network is above chance: balanced accuracy" in lines[1] and "chance 0.500" in lines[1]
    assert "private SVM" in lines[2]


def test_one_that_did_not_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_run, "COUNTS", {"harbour": [[9, 0], [8, -1]], "north": [[12, 1], [9, 0]]})
    folder = write_private_run(tmp_path / "r")
    said = CliRunner().invoke(app, ["learned", str(folder.path)])
    assert said.exit_code == 1
    assert said.output.splitlines()[-1].startswith("no")
