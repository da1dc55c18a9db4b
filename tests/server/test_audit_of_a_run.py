"""consilium-audit on a run that the coordinator made: each kind of tampering is named, and nothing is called proven without its file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_rounds import Federation, quick  # noqa: F401  (the fixture shortens the waits)

from shared.audit.run import check_run, read_run
from shared.audit.verdict import Check, exit_status
from shared.errors import InputError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three rounds of three sites, updates kept; sites' code digests equal the coordinator's."""
    federation = Federation.make(tmp_path / "run", rounds=3, keep_updates=True)
    federation.conduct()
    _edit(federation.folder.path / "run.json", lambda body: body.update(code_digest="0" * 64))
    return federation.folder.path


def outcomes(path: Path) -> dict[str, str]:
    return {check.name: check.outcome for check in check_run(read_run(path))}


def _edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))


def test_an_untouched_run_is_proven_but_for_who_wrote_it(run: Path) -> None:
    checks = check_run(read_run(run))
    assert {check.name for check in checks if check.outcome != "proven"} == {"who wrote the records"}
    assert exit_status(checks) == 2


TAMPERING: dict[str, tuple[str, Callable[[Path], object]]] = {
    "another study": (
        "the study is the one that the run names",
        lambda run: _edit(run / "study.json", lambda body: body.update(seed=body["seed"] + 1)),
    ),
    "other code at one site": (
        "every site ran the coordinator's code",
        lambda run: _edit(run / "run.json", lambda body: body["sites"]["anna"].update(code_digest="1" * 64)),
    ),
    "a round taken out": (
        "every round is on record",
        lambda run: (run / "rounds" / "0002" / "round.json").unlink(),
    ),
    "a round that starts elsewhere": (
        "each round starts from the model that the round before ended in",
        lambda run: _edit(run / "rounds" / "0002" / "round.json", lambda body: body.update(model_in="2" * 64)),
    ),
    "a model exchanged": (
        "stored models are the ones on record",
        lambda run: (run / "rounds" / "0003" / "model.safetensors").write_bytes(
            (run / "rounds" / "0002" / "model.safetensors").read_bytes()
        ),
    ),
    "a site taken out of a round": (
        "sites were weighted as the study says",
        lambda run: _edit(run / "rounds" / "0001" / "round.json", lambda body: body["trained"].pop("clara")),
    ),
    "an update exchanged": (
        "the models are what the updates add up to",
        lambda run: np.save(
            run / "rounds" / "0001" / "updates" / "anna.npy",
            np.load(run / "rounds" / "0001" / "updates" / "berta.npy"),
        ),
    ),
    "an evaluation of another model": (
        "the evaluation is of the last model",
        lambda run: _edit(run / "evaluation.json", lambda body: body.update(model="3" * 64)),
    ),
}


@pytest.mark.parametrize("name", TAMPERING)
def test_tampering_is_named(run: Path, name: str) -> None:
    check, tamper = TAMPERING[name]
    tamper(run)
    assert outcomes(run)[check] == "violated"


def test_a_missing_update_is_not_checkable_and_named(run: Path) -> None:
    (run / "rounds" / "0002" / "updates" / "berta.npy").unlink()
    found = next(
        check for check in check_run(read_run(run)) if check.name == "the models are what the updates add up to"
    )
    assert found.outcome == "not checkable"
    assert "berta" in found.why
    assert "round 2" in found.why


def test_a_starting_model_that_was_exchanged_breaks_the_chain(run: Path) -> None:
    (run / "model" / "initial.safetensors").write_bytes((run / "rounds" / "0003" / "model.safetensors").read_bytes())
    assert outcomes(run)["each round starts from the model that the round before ended in"] == "violated"


@pytest.mark.parametrize("name", ["run.json", "study.json", "model/manifest.json", "model/initial.safetensors"])
def test_a_file_that_is_missing_or_damaged_is_named(run: Path, name: str) -> None:
    (run / name).write_bytes(b"{]")
    with pytest.raises(InputError, match=Path(name).name):
        read_run(run)


def test_exit_statuses() -> None:
    proven, open_, violated = (Check("x", outcome, "y") for outcome in ("proven", "not checkable", "violated"))
    assert [exit_status([proven]), exit_status([proven, open_]), exit_status([open_, violated])] == [0, 2, 1]


def test_the_command_needs_no_pytorch_and_prints_json(run: Path) -> None:
    script = (
        "import sys; sys.modules['torch'] = None; sys.modules['flwr'] = None; "
        "sys.argv = ['consilium-audit', 'verify', sys.argv[1], '--json']; from shared.audit.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", script, str(run)], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert {check["outcome"] for check in json.loads(done.stdout)} == {"proven", "not checkable"}
