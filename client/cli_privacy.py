"""`consilium-site conformance`: what a hospital can measure of the private mechanism on its own machine."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text


def conformance(
    as_json: Annotated[bool, typer.Option("--json", help="Print all measurements as JSON")] = False,
    mode: Annotated[str, typer.Option(help="How each patient's gradient is computed: hooks or ghost")] = "hooks",
) -> None:
    """Measure whether this release's DP-SGD does what its accountants assume: noise, clipping, sampling, normaliser.

    It runs on random images and needs no folder. Exit 1 where a check fails.

    Example: consilium-site conformance --json
    """
    from rich.progress import Progress, TextColumn

    from client.conformance import built, measure
    from client.private.gradients import Mode
    from shared.errors import InputError

    if mode != "hooks" and mode != "ghost":
        raise InputError(f"--mode: expected hooks or ghost, but got '{mode}'")
    chosen: Mode = "hooks" if mode == "hooks" else "ghost"
    columns = (*Progress.get_default_columns(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        line = bar.add_task("conformance", total=None)
        found = measure(
            built(chosen),
            mode=chosen,
            progress=lambda done, total, title: bar.update(line, completed=done, total=total, description=title),
        )
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        console = Console()
        for check in found.checks:
            word, style = ("ok", "green") if check.passed else ("FAILED", "bold red")
            console.print(Text.assemble((f"{word:8}", style), (check.title, "bold")), soft_wrap=True, highlight=False)
            for one in check.measurements:
                low, high = (
                    ("-inf" if one.low is None else f"{one.low:.5g}"),
                    ("inf" if one.high is None else f"{one.high:.5g}"),
                )
                value = "not a number" if one.value is None else f"{one.value:.5g}"
                mark = "" if one.passed else "  <- outside"
                console.print(
                    f"{'':8}{one.what}: {value} in [{low}, {high}]{mark}", soft_wrap=True, markup=False, highlight=False
                )
        console.print(
            "The mechanism conforms."
            if found.passed
            else "The mechanism does NOT conform: don't train privately with it."
        )
    if not found.passed:
        raise typer.Exit(1)
