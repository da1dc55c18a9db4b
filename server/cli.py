"""`consilium-server`: the coordinator's command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from server import cli_documents as documents
from server import cli_folds as cross_validation
from server import cli_joining as joining
from server import cli_machine as machine
from server import cli_models as models
from server import cli_planning as planning
from server import cli_running as running
from server import cli_studies as studies
from shared.command import run_command

app = typer.Typer(
    name="consilium-server",
    help="Coordinate federated training across hospitals that never share an image.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

for command in (
    *(joining.init, joining.admit, joining.sites, joining.revoke, joining.renew),
    *(studies.publish, running.up, running.launch, running.status, running.logs, running.stop, running.resume),
    *(
        running.report,
        documents.documents,
        models.compare,
        models.ensemble,
        cross_validation.folds,
        cross_validation.cross_validated,
        models.export,
        machine.gateway,
        machine.service,
        planning.plan,
    ),
):
    app.command()(command)


@app.command()
def check(
    studies: Annotated[list[Path], typer.Argument(help="Study files, e.g. configs/*.yaml")],
) -> None:
    """Validate studies, build their models, run a batch forward and backward. Ends with the status of the first mistake.

    Example: consilium-server check configs/*.yaml
    """
    from server.check import check_studies

    if mistakes := check_studies(studies, Console()):
        raise typer.Exit(mistakes[0].exit_code)


@app.command()
def local(
    study: Annotated[Path, typer.Argument(help="Study file")],
    sites: Annotated[list[Path], typer.Argument(help="Site profiles: folders with a profile.yaml, or files")],
    run_dir: Annotated[Path, typer.Option(help="Folder of the run; it must be new or empty")],
    database: Annotated[bool, typer.Option(help="Keep Flower's state in a file instead of in memory")] = False,
) -> None:
    """Run a whole federation on this machine: SuperLink, one SuperNode a site, rounds, evaluation, report.

    Example: consilium-server local configs/demo.yaml sites/demo/* --run-dir runs/demo
    """
    from server.local import run_local
    from server.report import write_report

    console = Console()
    try:
        folder = run_local(study, sites, run_dir, console=console, database=database)
    except KeyboardInterrupt:
        console.print("Stopped; nothing is left running, and the rounds that were finished are kept.")
        raise typer.Exit(130) from None
    json_path, html_path = write_report(folder)
    console.print(f"Report: {html_path}  (figures: {json_path})", soft_wrap=True, markup=False)


@app.command()
def learned(run_dir: Annotated[Path, typer.Argument(help="Folder of a finished run")]) -> None:
    """Say whether a run learned: every hospital above chance, and the final model better than the round-0 model. Exit 1 if not.

    Of a run whose counts carry noise: whether all hospitals together are above chance.

    Example: consilium-server learned runs/demo
    """
    from server.learned import questions_of_run, without_baseline
    from server.run_folder import RunFolder

    console, folder = Console(), RunFolder(run_dir)
    asked = questions_of_run(folder)
    if (why := without_baseline(folder.study())) is not None:
        console.print(f"{why}.", soft_wrap=True, highlight=False)
    for question in asked:
        mark = "[green]yes[/]" if question.yes else "[bold red]no[/] "
        console.print(f"{mark}  {question.text}: {question.figure}", soft_wrap=True, highlight=False)
    if not all(question.yes for question in asked):
        raise typer.Exit(1)


def main() -> None:
    """Run the command."""
    run_command(app)


if __name__ == "__main__":
    main()
