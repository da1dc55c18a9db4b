"""`consilium-server plan`: the table is what the accountants say, and the page holds the same figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from private_run import private_study
from small_study import write_study
from typer.testing import CliRunner

import server.planning as planning
from server.cli import app
from server.planning import Plan, Question, plan, question_of
from server.planning_page import MOST_DRAWN, render_plan
from shared.errors import CalibrationError, InputError, MechanismError, StorageError, StudyError
from shared.privacy.mechanisms import SubsampledGaussian
from shared.privacy.pld import pld_epsilon
from shared.privacy.rdp import rdp_epsilon
from shared.study import load_study
from shared.study_cost import run_epsilon, study_events

ASKED = ["plan", "--sampling-rate", "1/100", "--steps-per-round", "500", "--rounds", "20", "--delta", "1e-6"]
GRID = (0.6, 1.0, 4.0)


@pytest.fixture(autouse=True)
def _three_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "GRID", GRID)


@pytest.fixture(scope="module")
def made() -> Plan:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "GRID", GRID)
        return plan(Question(0.01, 500, 20, 1e-6, epsilon=2.0, lifetime_epsilon=6.0))


def test_rows_are_what_the_accountants_say(made: Plan) -> None:
    assert [row.noise_multiplier for row in made.rows] == sorted({*GRID, made.rows[2].noise_multiplier})
    for row in made.rows:
        event = SubsampledGaussian(0.01, row.noise_multiplier, 10_000)
        assert row.rdp_epsilon == rdp_epsilon([event], 1e-6)
        assert row.lifetime_share == row.rdp_epsilon / 6.0
        assert row.pld_epsilon < row.rdp_epsilon
    event = SubsampledGaussian(0.01, 4.0, 10_000)
    assert made.rows[-1].pld_epsilon == pld_epsilon([event], 1e-6)


def test_the_solved_row_is_the_only_one_marked(made: Plan) -> None:
    [solved] = [row for row in made.rows if row.solved]
    assert made.calibration is not None and solved.noise_multiplier == made.calibration.noise_multiplier
    assert 1.99 < solved.pld_epsilon <= 2.0


def test_as_many_runs_fit_in_a_lifetime_as_rdp_allows_and_no_more(made: Plan) -> None:
    assert [row.runs_in_lifetime for row in made.rows][:2] == [0, 0]
    for row in made.rows:
        fit = row.runs_in_lifetime
        assert fit is not None
        event = SubsampledGaussian(0.01, row.noise_multiplier, 10_000)
        assert rdp_epsilon([event] * (fit + 1), 1e-6) > 6.0
        assert fit == 0 or rdp_epsilon([event] * fit, 1e-6) <= 6.0


def test_progress_reaches_its_end_and_never_goes_back() -> None:
    seen: list[tuple[int, int]] = []
    plan(Question(1.0, 1, 1, 1e-6, epsilon=0.5), lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen) and seen[-1][0] == seen[-1][1]


def test_the_page_stands_alone_and_holds_every_figure(made: Plan) -> None:
    page = render_plan(made)
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")
    for row in made.rows:
        assert f"{row.pld_epsilon:.3f}" in page and f"{row.rdp_epsilon:.3f}" in page
    assert "noise multiplier σ (multiples of the clipping norm)" in page and "ε of the run at δ = 1e-06" in page


def test_the_picture_shows_both_curves_and_the_epsilon_asked_for(made: Plan) -> None:
    page = render_plan(made)
    drawing = ElementTree.fromstring(page[page.index('<svg class="chart"') : page.index("</svg>") + 6])
    curves = [_points(line.attrib["points"]) for line in drawing.iter("polyline")]
    shown = [row for row in made.rows if row.rdp_epsilon <= MOST_DRAWN]
    assert len(curves) == 3 and len(shown) == len(made.rows) - 1
    tight, charged, asked = curves
    assert len(charged) == len(shown)
    assert all(
        low > high for (_, low), (_, high) in zip(tight[-len(shown) :], charged, strict=True)
    )  # y grows downwards
    assert asked[0][1] == asked[1][1] == pytest.approx(tight[-2][1], abs=0.5)


def test_the_command_prints_the_table_and_writes_the_page(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [*ASKED, "--lifetime-epsilon", "20", "--html", str(tmp_path / "plan.html")])
    assert result.exit_code == 0, result.output
    row = next(line for line in result.output.splitlines() if line.startswith("│") and " 4 " in line.split("│")[1])
    event = SubsampledGaussian(0.01, 4.0, 10_000)
    assert f"{pld_epsilon([event], 1e-6):.3f}" in row and f"{rdp_epsilon([event], 1e-6):.3f}" in row and "%" in row
    assert (tmp_path / "plan.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_command_prints_json() -> None:
    said = json.loads(CliRunner().invoke(app, [*ASKED, "--json"]).output)
    assert [row["noise_multiplier"] for row in said["rows"]] == list(GRID) and said["calibration"] is None
    assert said["question"]["sampling_rate"] == 0.01 and said["rows"][0]["lifetime_share"] is None


@pytest.mark.parametrize(
    ("more", "error"),
    [
        (["--rounds", "0"], MechanismError),
        (["--sampling-rate", "2"], MechanismError),
        (["--delta", "2"], MechanismError),
        (["--lifetime-epsilon", "-1"], MechanismError),
        (["--epsilon", "1e-9"], CalibrationError),
        (["--html", "/nonexistent/plan.html"], StorageError),
    ],
)
def test_what_can_not_be_is_an_error(more: Sequence[str], error: type[Exception]) -> None:
    assert isinstance(CliRunner().invoke(app, [*ASKED, *more]).exception, error)


def _points(text: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in text.split())]


# -- of a study --------------------------------------------------------------------------------------------------------


def study_file(path: Path, **changes: Any) -> Path:
    values = private_study(svm=True, **changes).to_data()
    if "epsilon" in changes:
        values["privacy"]["noise_multiplier"] = None
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def test_a_studys_rows_hold_all_its_releases_and_its_own_is_marked(tmp_path: Path) -> None:
    study = private_study(svm=True, noise_multiplier="0.85")
    made = plan(question_of(study, lifetime_epsilon=10.0))
    assert [row.noise_multiplier for row in made.rows] == sorted({*GRID, 0.85})
    [own] = [row for row in made.rows if row.stated]
    assert (own.pld_epsilon, own.rdp_epsilon) == run_epsilon(study)
    assert own.lifetime_share == own.rdp_epsilon / 10.0 and not own.solved
    alone = pld_epsilon([SubsampledGaussian(0.05, 0.85, 20)], 1e-5)
    assert own.pld_epsilon > alone
    fits = own.runs_in_lifetime
    assert fits is not None
    assert rdp_epsilon(study_events(study) * fits, 1e-5) <= 10.0 < rdp_epsilon(study_events(study) * (fits + 1), 1e-5)
    page = render_plan(made)
    assert "(the study&#39;s)" in page or "(the study's)" in page
    assert "a private SVM of 5 steps with noise multiplier 4, counts with geometric noise of epsilon 1" in page


def test_a_study_that_states_an_epsilon_is_solved_as_it_is_when_it_is_read(tmp_path: Path) -> None:
    path = study_file(tmp_path / "study.yaml", epsilon="3")
    said = json.loads(CliRunner().invoke(app, ["plan", str(path), "--json"]).output)
    [solved] = [row for row in said["rows"] if row["solved"]]
    read = load_study(path).privacy
    assert read is not None and read.noise_multiplier is not None
    assert solved["noise_multiplier"] == float(read.noise_multiplier)
    assert 2.9 < solved["pld_epsilon"] <= 3.0


def test_the_command_takes_a_study_or_numbers(tmp_path: Path) -> None:
    path = study_file(tmp_path / "study.yaml")

    def refused(*arguments: str) -> str:
        problem = CliRunner().invoke(app, ["plan", *arguments]).exception
        assert isinstance(problem, InputError)
        return str(problem)

    said = CliRunner().invoke(app, ["plan", str(path), "--lifetime-epsilon", "20"])
    assert said.exit_code == 0 and "the study's own" in said.output and "2 other release(s)" in said.output
    assert "--rounds" in refused(str(path), "--rounds", "3")
    assert "--delta is not given" in refused(*ASKED[1:7])
    assert "expected a study" in refused()
    plain = write_study(tmp_path / "plain.yaml")
    assert "no privacy section" in refused(str(plain))
    assert isinstance(CliRunner().invoke(app, ["plan", str(tmp_path / "none.yaml")]).exception, StudyError)
