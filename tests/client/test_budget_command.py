"""What a hospital's people see of the budget, and how they give back what a run never began."""

from __future__ import annotations

import json
import re
from pathlib import Path

import hospital_with_budget
import pytest
from hospital_with_budget import A_TO_D, OTHER, PLAIN, STUDY, Hospital, composed, patients
from typer.testing import CliRunner, Result

from client.budget_page import render_budget
from client.budget_report import BudgetReport, GroupSpent, budget_report
from client.cli import app
from shared.errors import InputError, LedgerError
from shared.ledger.entries import Lifetime

anna = hospital_with_budget.anna  # the fixture
RUN = CliRunner()


def command(*arguments: object, columns: int = 80) -> Result:
    """Raises what the command raises."""
    return RUN.invoke(app, [str(one) for one in arguments], catch_exceptions=False, env={"COLUMNS": str(columns)})


def test_spent_reserved_and_left_are_told_apart(anna: Hospital) -> None:
    anna.sets("20")
    anna.whole(STUDY, "run-1", patients("a", "b", "c"))
    anna.prepare(OTHER, "run-2", patients("c", "d"))
    anna.train(OTHER, "run-2", patients("c", "d"), 1)
    found = budget_report(anna.folder)
    assert found.patients == 4
    most, middle, least = found.groups
    assert (most.patients, most.runs) == (1, ["run-1", "run-2"])
    assert (middle.patients, middle.runs, middle.spent, middle.reserved) == (2, ["run-1"], composed(STUDY), 0.0)
    assert (least.patients, least.runs, least.counted) == (1, ["run-2"], composed(OTHER))
    assert most.counted == composed(STUDY, OTHER) and most.left == 20 - most.counted
    assert middle.spent < most.spent < most.counted and 0 < least.spent < least.counted
    first, second = found.runs
    assert (first.state, first.patients, first.spent, first.counted) == ("closed", 3, composed(STUDY), composed(STUDY))
    assert (second.state, second.begun, second.rounds, second.released) == ("open", 1, 2, [])
    assert json.loads(command("budget", anna.folder.path, "--json").output) == found.model_dump(mode="json")
    said = command("budget", anna.folder.path).output
    for words in (
        "epsilon 20 at delta 1e-5",
        "4 patients were in runs",
        "reserved",
        "left of 20",
        "1 of 2 rounds begun",
    ):
        assert words in said
    bars = [line for line in said.splitlines() if "patient(s)" in line]
    assert [line.split("  ")[1] for line in bars] == ["1 patient(s)", "2 patient(s)", "1 patient(s)"]
    assert "▒" in bars[0] and "▒" not in bars[1] and "▒" in bars[2]
    assert all(len(line.split("  ")[0]) == 40 for line in bars)


def test_a_run_without_a_bound_is_named_and_not_counted(anna: Hospital) -> None:
    anna.sets("20", "allow")
    anna.prepare(PLAIN, "run-plain", patients("a"))
    anna.prepare(STUDY, "run-1", patients("a"))
    found = budget_report(anna.folder)
    (group,) = found.groups
    assert (group.unbounded, group.counted) == (["run-plain"], composed(STUDY))
    said = command("budget", anna.folder.path).output
    assert "WITHOUT A BOUND, and in no figure above: run-plain" in said and "let pass, uncounted" in said
    assert "run-plain" in render_budget(found).split("Runs without a bound:")[1][:60]


def test_a_budget_that_is_not_there_is_said_with_what_to_do(anna: Hospital) -> None:
    anna.sets(None)
    for _ in range(2):
        said = command("budget", anna.folder.path).output
        assert "set no lifetime budget" in said and "policy.lifetime" in said and "site.json" in said
        assert "set no lifetime budget" in render_budget(budget_report(anna.folder))
        anna.prepare(PLAIN, "run-1", A_TO_D)
    anna.sets("8")
    said = command("budget", anna.folder.path).output
    assert "enters the ledger, for good, with the next run" in said and "epsilon 8" in said


def test_a_profile_that_asks_for_more_or_less_than_the_ledger_is_told(anna: Hospital) -> None:
    anna.sets("20")
    anna.prepare(STUDY, "run-1", A_TO_D)
    anna.sets("30")
    said = command("budget", anna.folder.path).output
    assert "more than the ledger has fixed" in said and "budget for life: epsilon 20" in said
    anna.sets("10")
    assert "lowers the budget to epsilon 10" in command("budget", anna.folder.path).output


def test_the_page_says_the_same_and_names_no_patient(anna: Hospital, tmp_path: Path) -> None:
    anna.sets("20")
    anna.whole(STUDY, "run-1", A_TO_D)
    page = tmp_path / "budget.html"
    assert str(page) in command("budget", anna.folder.path, "--html", page).output
    text = page.read_text(encoding="utf-8")
    assert page.stat().st_mode & 0o777 == 0o600
    assert f"{composed(STUDY):.4g} spent" in text and "run-1" in text and "Synthetic data" in text
    assert "<script" not in text and "http" not in text.replace("http-equiv", "")
    assert not re.search(r"[0-9a-f]{64}", text)


def test_the_page_escapes_and_its_bars_stay_inside() -> None:
    over = GroupSpent(patients=1, runs=["r"], unbounded=[], spent=9, counted=12, left=0)
    report = BudgetReport(
        site="anna", title="<b>Anna</b>", synthetic=False, stand_in="lesion_id", lifetime=Lifetime(epsilon="8", delta="1e-5"),
        notes=[], patients=1, groups=[over], runs=[],
    )  # fmt: skip
    text = render_budget(report)
    assert "<b>Anna" not in text and "lesion_id" in text and "Synthetic" not in text
    widths = [float(one) for one in re.findall(r'width="([0-9.]+)" height="20.0"', text)]
    assert max(widths) == 520 and widths[1] + widths[2] == pytest.approx(520)


def test_a_damaged_ledger_is_no_budget(anna: Hospital) -> None:
    anna.prepare(STUDY, "run-1", A_TO_D)
    path = anna.folder.path / "ledger.jsonl"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    with pytest.raises(LedgerError):
        command("budget", anna.folder.path)


def test_closing_by_command_asks_and_says_what_was_given_back(anna: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    anna.sets("20", "allow")
    anna.prepare(STUDY, "run-1", A_TO_D)
    anna.train(STUDY, "run-1", A_TO_D, 1)
    anna.prepare(PLAIN, "run-2", A_TO_D)
    with pytest.raises(InputError, match="add --yes"):
        command("close", anna.folder.path, "run-1")
    assert anna.rules().runs["run-1"].closed is False
    said = command("close", anna.folder.path, "run-1", "--yes").output
    assert "1 of 3 rounds have begun" in said and "2 round(s) that never began, and the evaluation" in said
    assert f"epsilon {composed(STUDY):.4g}" in said
    assert "no bound" in command("close", anna.folder.path, "run-2", "--yes").output
    assert all(run.closed for run in anna.rules().runs.values())
    entry = anna.types()[-1]
    assert entry == "CLOSE"


def test_the_ledgers_table_fits_80_columns_and_says_private(anna: Hospital) -> None:
    anna.sets("20", "allow")
    anna.whole(STUDY, "run-2027-03-01T091500.000Z", A_TO_D)
    anna.prepare(PLAIN, "run-2027-03-02T091500.000Z", A_TO_D)
    said = command("ledger", anna.folder.path).output
    table = [line for line in said.splitlines() if line[:1] in "┏┃┡│├└"]
    assert table and max(map(len, table)) <= 80
    assert "private" in said and "None" not in said and "1 evaluation " in said
