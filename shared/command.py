"""How the three commands end: with their own status, or with a mistake told in one sentence."""

from __future__ import annotations

import sys

import typer
from rich.console import Console
from rich.text import Text

from shared.errors import ConsiliumError


def run_command(app: typer.Typer, *, mistake_status: int | None = None) -> None:
    """Run `app`; a mistake with a name is one sentence and the mistake's own exit status, or `mistake_status`."""
    try:
        app()
    except ConsiliumError as problem:
        said = Text.assemble((problem.code, "bold red"), f" {problem}")  # no markup: a path may hold brackets
        Console(stderr=True).print(said, soft_wrap=True, highlight=False)
        sys.exit(problem.exit_code if mistake_status is None else mistake_status)
