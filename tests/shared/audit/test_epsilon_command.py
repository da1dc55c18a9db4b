"""`consilium-audit epsilon`: three figures, one answer, and an exit status that a script can trust."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

import shared.audit.epsilon as epsilon_module
from shared.audit.cli import app
from shared.audit.epsilon import EpsilonCheck
from shared.errors import MechanismError

ASKED = ["epsilon", "--sampling-rate", "1/20", "--noise-multiplier", "2", "--steps", "30", "--delta", "1e-5"]


def test_three_accountants_answer_and_agree() -> None:
    result = CliRunner().invoke(app, [*ASKED, "--json"])
    said = json.loads(result.output)
    assert result.exit_code == 0 and said["agree"] and said["charged_enough"]
    assert said["rdp"] > said["pld"] == pytest.approx(said["independent"], abs=0.002)
    assert said["difference"] == said["independent"] - said["pld"]


def test_counts_with_noise_add_to_the_cost() -> None:
    alone = json.loads(CliRunner().invoke(app, [*ASKED, "--json"]).output)
    more = json.loads(CliRunner().invoke(app, [*ASKED, "--geometric", "0.5", "--json"]).output)
    for name in ("rdp", "pld", "independent"):
        assert alone[name] + 0.1 < more[name] <= alone[name] + 0.51


def test_the_table_names_each_accountant() -> None:
    result = CliRunner().invoke(app, ASKED)
    assert result.exit_code == 0
    for words in ("RDP (what a hospital charges)", "PLD by dp-accounting", "independent", "agree within 0.02"):
        assert words in result.output


@pytest.mark.parametrize(
    ("change", "sentence"),
    [({"independent": 1.03}, "trust neither"), ({"rdp": 0.9}, "charges too little")],
)
def test_exit_1_where_they_contradict_each_other(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, float], sentence: str
) -> None:
    wrong = replace(EpsilonCheck(delta=1e-5, rdp=1.1, pld=1.0, independent=1.0), **change)
    monkeypatch.setattr(epsilon_module, "check_epsilon", lambda events, delta: wrong)
    result = CliRunner().invoke(app, ASKED)
    assert result.exit_code == 1 and sentence in result.output


@pytest.mark.parametrize(
    ("option", "value"), [("--sampling-rate", "32 of 350"), ("--noise-multiplier", "0"), ("--delta", "0")]
)
def test_a_number_that_can_not_be_is_named(option: str, value: str) -> None:
    arguments = list(ASKED)
    arguments[arguments.index(option) + 1] = value
    assert isinstance(CliRunner().invoke(app, arguments).exception, MechanismError)
