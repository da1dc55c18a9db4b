"""`consilium-audit`: the auditor's command. It reads files; it never connects to anything."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from shared.command import run_command

app = typer.Typer(
    name="consilium-audit",
    help="Check a run from its files alone.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_COLOURS = {"proven": "green", "not checkable": "yellow", "violated": "bold red"}


@app.callback()
def _commands() -> None:
    """Check a run from its files alone."""


@app.command()
def verify(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a run")],
    trust: Annotated[
        list[str] | None,
        typer.Option(
            help="A fingerprint that you got by another way than these files, or a file of them; may be repeated"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON")] = False,
) -> None:
    """Check that every record of a run follows from the ones before it. Exit 0 proven, 2 something not checkable, 1 violated.

    Example: consilium-audit verify runs/demo --trust runs/demo.trust
    """
    from shared.audit.records import read_run
    from shared.audit.run import check_run, summary
    from shared.audit.trust import read_trust
    from shared.audit.verdict import exit_status

    checks = check_run(read_run(run_dir), read_trust(trust or []))
    if as_json:
        print(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        table = Table(title=f"Audit of {run_dir}", title_justify="left")
        for title in ("outcome", "check", "why"):
            table.add_column(title, overflow="fold")
        for check in checks:
            table.add_row(f"[{_COLOURS[check.outcome]}]{check.outcome}[/]", check.name, check.why)
        console = Console()
        console.print(table)
        console.print(summary(checks))
    raise typer.Exit(exit_status(checks))


def main() -> None:
    """Run the command. Exit 3 where the files can't be read at all."""
    run_command(app, mistake_status=3)


if __name__ == "__main__":
    main()
