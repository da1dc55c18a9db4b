"""`consilium-server plan`: what noise costs what privacy, before a study is written, or of one that was."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from shared.errors import InputError

if TYPE_CHECKING:
    from server.planning import Plan, Question, Row


def plan(
    study: Annotated[
        Path | None, typer.Argument(help="File of a private study; in its place, the numbers as options")
    ] = None,
    sampling_rate: Annotated[
        str | None,
        typer.Option(help="Probability with which a step draws each patient: 0.0914286, or a fraction, 32/350"),
    ] = None,
    steps_per_round: Annotated[int | None, typer.Option(help="Steps that a hospital makes in a round")] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds of the run")] = None,
    delta: Annotated[float | None, typer.Option(help="Delta of the guarantee; well below 1 / patients")] = None,
    epsilon: Annotated[float | None, typer.Option(help="Solve for the noise that keeps this epsilon (PLD)")] = None,
    lifetime_epsilon: Annotated[
        float | None, typer.Option(help="What a hospital allows its patients in all, at the same delta (RDP)")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with a picture of both curves")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON")] = False,
) -> None:
    """Show which noise multiplier gives which epsilon, by RDP (what hospitals charge) and by PLD (what one run costs).

    Of a study with all its releases, its own noise multiplier marked; or of the numbers that are given as options.

    Example: consilium-server plan --sampling-rate 32/350 --steps-per-round 11 --rounds 20 --delta 1e-5 --epsilon 8
    """
    from rich.progress import Progress

    from server.planning import plan as make_plan
    from server.planning_page import render_plan
    from server.run_folder import write_atomic

    numbers = {
        "--sampling-rate": sampling_rate,
        "--steps-per-round": steps_per_round,
        "--rounds": rounds,
        "--delta": delta,
    }
    given = [name for name, value in {**numbers, "--epsilon": epsilon}.items() if value is not None]
    bar_console = Console(stderr=True)
    with Progress(console=bar_console, transient=True, disable=not bar_console.is_terminal) as bar:
        line = bar.add_task("Privacy loss distributions", total=None)
        if study is not None:
            if given:
                raise InputError(f"{study}: the study says it all; leave out {', '.join(given)}, or the study")
            question = _of_study(study, lifetime_epsilon)
        else:
            question = _of_numbers(sampling_rate, steps_per_round, rounds, delta, epsilon, lifetime_epsilon)
        made = make_plan(question, lambda done, total: bar.update(line, completed=done, total=total))
    if html is not None:
        write_atomic(html, render_plan(made).encode())
    if as_json:
        print(json.dumps(asdict(made), indent=2))
        return
    console = Console()
    console.print(_table(made))
    if made.question.stated is not None:
        console.print("> the study's own noise multiplier", highlight=False)
    if made.calibration is not None:
        console.print(f"Solved: {made.calibration.sentence()}.", soft_wrap=True, highlight=False)
    if html is not None:
        console.print(f"Page: {html}", soft_wrap=True, markup=False, highlight=False)


def _of_numbers(
    sampling_rate: str | None,
    steps_per_round: int | None,
    rounds: int | None,
    delta: float | None,
    epsilon: float | None,
    lifetime_epsilon: float | None,
) -> Question:
    """Raises InputError where one is not given."""
    from server.planning import Question
    from shared.privacy.mechanisms import sampling_rate as rate

    if sampling_rate is None or steps_per_round is None or rounds is None or delta is None:
        numbers = {
            "--sampling-rate": sampling_rate,
            "--steps-per-round": steps_per_round,
            "--rounds": rounds,
            "--delta": delta,
        }
        missing = [name for name, value in numbers.items() if value is None]
        raise InputError(f"expected a study, or all four numbers; {', '.join(missing)} is not given")
    return Question(rate(sampling_rate), steps_per_round, rounds, delta, epsilon, lifetime_epsilon)


def _of_study(path: Path, lifetime_epsilon: float | None) -> Question:
    """Where only an epsilon is stated it is solved for with the table. Raises StudyError, InputError."""
    from server.planning import question_of
    from shared.errors import StudyError
    from shared.study import Study
    from shared.yaml_source import read_yaml, validate

    return question_of(validate(read_yaml(path, StudyError), Study, StudyError), lifetime_epsilon)


def _table(made: Plan) -> Table:
    question = made.question
    of = f"{question.study}: " if question.study is not None else ""
    besides = f", {len(question.besides)} other release(s) included" if question.besides else ""
    table = Table(
        title=f"{of}{question.rounds} rounds of {question.steps_per_round} steps, sampling rate {question.sampling_rate:.6g}, "
        f"delta {question.delta:g}: epsilon of the run{besides}",
        title_justify="left",
    )
    columns = ["noise multiplier", "PLD (one run)", "RDP (charged)"]
    if question.lifetime_epsilon is not None:
        columns += [f"share of {question.lifetime_epsilon:g}", "such runs in a lifetime"]
    for column in columns:
        table.add_column(column, justify="right")
    for row in made.rows:
        cells = [_sigma(row), f"{row.pld_epsilon:.3f}", f"{row.rdp_epsilon:.3f}"]
        if row.lifetime_share is not None:
            cells += [f"{100 * row.lifetime_share:.0f} %", str(row.runs_in_lifetime)]
        table.add_row(*cells, style="bold green" if row.solved or row.stated else None)
    return table


def _sigma(row: Row) -> str:
    if row.stated:
        return f"> {row.noise_multiplier:g}"
    return f"{row.noise_multiplier:.4f}" if row.solved else f"{row.noise_multiplier:g}"
