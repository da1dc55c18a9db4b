"""`consilium-audit`: the auditor's command. It reads files; it never connects to anything."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from shared.atomic_file import write_atomic
from shared.audit.verdict import Check
from shared.command import run_command

if TYPE_CHECKING:
    from shared.audit.spending import Cost

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
    run: Annotated[Path, typer.Argument(metavar="DIR|BUNDLE", help="Folder of a run, or a bundle of it")],
    trust: Annotated[
        list[str] | None,
        typer.Option(
            help="A fingerprint that you got by another way than these files, or a file of them; may be repeated"
        ),
    ] = None,
    ledger: Annotated[
        list[Path] | None,
        typer.Option(help="What a hospital's `consilium-site ledger --export` wrote; may be repeated"),
    ] = None,
    model: Annotated[
        list[Path] | None,
        typer.Option(help="A model file that the study names, of a federation's; may be repeated"),
    ] = None,
    earlier: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR|BUNDLE", help="The run that such a model comes from; may be repeated"),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page for people who don't read JSON")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the checks and the epsilons as JSON")] = False,
) -> None:
    """Check who wrote the records of a run, whether each follows from the ones before it, and what the run cost in privacy.

    Exit 0 proven, 2 something not checkable, 1 violated. Example: consilium-audit verify runs/demo --trust runs/demo.trust
    """
    from shared.audit.bundle import opened
    from shared.audit.exports import read_export
    from shared.audit.named_models import read_model_file
    from shared.audit.records import read_run
    from shared.audit.run import audit_run, summary
    from shared.audit.trust import read_trust
    from shared.audit.verdict import exit_status

    trusted = read_trust(trust or [])
    exports = [read_export(path, trusted) for path in ledger or []]
    models = [read_model_file(path) for path in model or []]
    with ExitStack() as folders:
        files, *before = [read_run(folders.enter_context(opened(path))) for path in (run, *(earlier or []))]
        audit = audit_run(files, trusted, exports, models=models, earlier=before)
    checks = audit.checks
    if html is not None:
        from shared.audit import page  # its templates cost a tenth of a second

        write_atomic(html, page.render(files, audit, trusted).encode(), mode=0o644)
    if as_json:
        said = {
            "checks": [asdict(check) for check in checks],
            "costs": [cost.as_json() for cost in audit.costs],
        }
        print(json.dumps(said, indent=2))
    else:
        console = Console()
        console.print(_table(f"Audit of {run}", checks))
        if audit.costs:
            console.print(_cost_table(audit.costs))
        console.print(summary(checks))
    raise typer.Exit(exit_status(checks))


@app.command()
def bundle(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a run")],
    out: Annotated[Path, typer.Option(help="The file to write")],
) -> None:
    """Pack what an auditor needs of a run into one file, and nothing else: no log, no key, no hospital's own files.

    Example: consilium-audit bundle runs/demo --out demo.bundle.zip
    """
    from shared.audit.bundle import write_bundle

    names = write_bundle(run_dir, out)
    print(
        f"{out}: {len(names)} files, {out.stat().st_size / 1e6:.1f} MB; check it with `consilium-audit verify {out} --trust ...`"
    )


@app.command()
def ledger(
    file: Annotated[Path, typer.Argument(help="What `consilium-site ledger --export` wrote")],
    trust: Annotated[
        list[str] | None,
        typer.Option(help="The hospital's fingerprint, from another way than this file, or a file of them"),
    ] = None,
    head: Annotated[
        Path | None, typer.Option(help="An earlier export, or the ledger.head of one: the ledger must go on from it")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Folder of a run: what it holds of this hospital must be here")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON")] = False,
) -> None:
    """Check what a hospital says it has released. Exit 0 proven, 2 something not checkable, 1 violated.

    Example: consilium-audit ledger anna.ledger.jsonl --trust demo.trust --run runs/demo
    """
    from shared.audit.ledger import check_against_run, check_ledger, read_file
    from shared.audit.records import read_run
    from shared.audit.run import summary
    from shared.audit.trust import read_trust
    from shared.audit.verdict import exit_status
    from shared.ledger.summary import run_lines

    kept = read_file(head) if head is not None else None
    chain, checks = check_ledger(read_file(file), read_trust(trust or []), kept)
    if run is not None:
        checks += check_against_run(chain, read_run(run))
    lines = run_lines(chain)
    if as_json:
        print(
            json.dumps(
                {"checks": [asdict(check) for check in checks], "runs": [line.model_dump() for line in lines]}, indent=2
            )
        )
    else:
        console = Console()
        console.print(_table(f"Audit of the ledger {file}", checks))
        for line in lines:
            said = f"run {line.run}: {len(line.settled)} of {line.rounds} rounds left, {line.evaluations} evaluations; {line.mechanism}"
            console.print(said, soft_wrap=True, markup=False, highlight=False)
        console.print(summary(checks))
    raise typer.Exit(exit_status(checks))


@app.command()
def epsilon(
    sampling_rate: Annotated[
        str, typer.Option(help="Probability with which a step draws each patient: 0.0914286, or a fraction, 32/350")
    ],
    noise_multiplier: Annotated[float, typer.Option(help="Standard deviation of the noise / clipping norm")],
    steps: Annotated[int, typer.Option(help="Steps of the whole run at one hospital")],
    delta: Annotated[float, typer.Option(help="Delta of the guarantee")],
    geometric: Annotated[
        list[float] | None,
        typer.Option(help="Epsilon of a release of counts with geometric noise, added to the cost; may be repeated"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the epsilons as JSON")] = False,
) -> None:
    """Compute what DP-SGD costs by three accountants. Exit 0 where the two tight ones agree and RDP is not below them, else 1.

    Example: consilium-audit epsilon --sampling-rate 32/350 --noise-multiplier 1 --steps 220 --delta 1e-5
    """
    from shared.audit.epsilon import check_epsilon
    from shared.privacy.mechanisms import Geometric, SubsampledGaussian
    from shared.privacy.mechanisms import sampling_rate as rate

    training = SubsampledGaussian(rate(sampling_rate), noise_multiplier, steps)
    check = check_epsilon([training, *map(Geometric, geometric or [])], delta)
    if as_json:
        print(json.dumps(check.as_json(), indent=2))
    else:
        table = Table(title=f"Epsilon at delta {delta:g}, adding or removing one patient", title_justify="left")
        table.add_column("accountant", overflow="fold")
        table.add_column("epsilon", justify="right")
        for name, value in check.lines():
            table.add_row(name, f"{value:.4f}")
        console = Console()
        console.print(table)
        console.print(check.sentence(), soft_wrap=True, highlight=False)
    raise typer.Exit(0 if check.agree and check.charged_enough else 1)


def _table(title: str, checks: list[Check]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("outcome", "check", "why"):
        table.add_column(column, overflow="fold")
    for check in checks:
        table.add_row(f"[{_COLOURS[check.outcome]}]{check.outcome}[/]", check.name, escape(check.why))
    return table


def _cost_table(costs: list[Cost]) -> Table:
    table = Table(title="What the run cost each patient, epsilon", title_justify="left")
    from shared.audit.spending import COLUMNS

    for column in COLUMNS:
        table.add_column(column, overflow="fold")
    for cost in costs:
        table.add_row(*cost.row())
    return table


def main() -> None:
    """Run the command. Exit 3 where the files can't be read at all."""
    run_command(app, mistake_status=3)


if __name__ == "__main__":
    main()
