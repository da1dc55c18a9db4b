"""`consilium-server plan`: the table is what the accountants say, and the page holds the same figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

import server.planning as planning
from server.cli import app
from server.planning import Plan, Question, plan
from server.planning_page import MOST_DRAWN, render_plan
from shared.errors import CalibrationError, MechanismError, StorageError
from shared.privacy.mechanisms import SubsampledGaussian
from shared.privacy.pld import pld_epsilon
from shared.privacy.rdp import rdp_epsilon

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
