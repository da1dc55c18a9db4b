"""`consilium-server plan`: what noise costs what privacy, before a study is written."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from server.planning import Plan


def plan(
    sampling_rate: Annotated[
        str, typer.Option(help="Probability with which a step draws each patient: 0.0914286, or a fraction, 32/350")
    ],
    steps_per_round: Annotated[int, typer.Option(help="Steps that a hospital makes in a round")],
    rounds: Annotated[int, typer.Option(help="Rounds of the run")],
    delta: Annotated[float, typer.Option(help="Delta of the guarantee; well below 1 / patients")],
    epsilon: Annotated[float | None, typer.Option(help="Solve for the noise that keeps this epsilon (PLD)")] = None,
    lifetime_epsilon: Annotated[
        float | None, typer.Option(help="What a hospital allows its patients in all, at the same delta (RDP)")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with a picture of both curves")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON")] = False,
) -> None:
    """Show which noise multiplier gives which epsilon, by RDP (what hospitals charge) and by PLD (what one run costs).

    Example: consilium-server plan --sampling-rate 32/350 --steps-per-round 11 --rounds 20 --delta 1e-5 --epsilon 8
    """
    from rich.progress import Progress

    from server.planning import Question
    from server.planning import plan as make_plan
    from server.planning_page import render_plan
    from server.run_folder import write_atomic
    from shared.privacy.mechanisms import sampling_rate as rate

    question = Question(rate(sampling_rate), steps_per_round, rounds, delta, epsilon, lifetime_epsilon)
    bar_console = Console(stderr=True)
    with Progress(console=bar_console, transient=True, disable=not bar_console.is_terminal) as bar:
        line = bar.add_task("Privacy loss distributions", total=None)
        made = make_plan(question, lambda done, total: bar.update(line, completed=done, total=total))
    if html is not None:
        write_atomic(html, render_plan(made).encode())
    if as_json:
        print(json.dumps(asdict(made), indent=2))
        return
    console = Console()
    console.print(_table(made))
    if made.calibration is not None:
        console.print(f"Solved: {made.calibration.sentence()}.", soft_wrap=True, highlight=False)
    if html is not None:
        console.print(f"Page: {html}", soft_wrap=True, markup=False, highlight=False)


def _table(made: Plan) -> Table:
    question = made.question
    table = Table(
        title=f"{question.rounds} rounds of {question.steps_per_round} steps, sampling rate {question.sampling_rate:.6g}, "
        f"delta {question.delta:g}: epsilon of the run",
        title_justify="left",
    )
    columns = ["noise multiplier", "PLD (one run)", "RDP (charged)"]
    if question.lifetime_epsilon is not None:
        columns += [f"share of {question.lifetime_epsilon:g}", "such runs in a lifetime"]
    for column in columns:
        table.add_column(column, justify="right")
    for row in made.rows:
        sigma = f"{row.noise_multiplier:.4f}" if row.solved else f"{row.noise_multiplier:g}"
        cells = [sigma, f"{row.pld_epsilon:.3f}", f"{row.rdp_epsilon:.3f}"]
        if row.lifetime_share is not None:
            cells += [f"{100 * row.lifetime_share:.0f} %", str(row.runs_in_lifetime)]
        table.add_row(*cells, style="bold green" if row.solved else None)
    return table
