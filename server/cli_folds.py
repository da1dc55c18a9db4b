"""`consilium-server folds` and `cross-validated`: one study, every patient tested once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from server.cli_arguments import AsJson


def folds(
    study: Annotated[Path, typer.Argument(help="Study file, without data.split.folds")],
    out: Annotated[
        Path, typer.Option(help="Folder for the studies; beside its weights file, where the study names one")
    ],
    of: Annotated[int, typer.Option(min=2, max=20, help="Number of folds")] = 5,
) -> None:
    """Write a study for each fold of a cross-validation: NAME-fold1.yaml and so on.

    Example: consilium-server folds configs/demo.yaml --of 5 --out folds
    """
    from server.fold_studies import write_folds

    console = Console()
    for path, digest in write_folds(study, of=of, out=out).items():
        _say(console, f"{path}  digest {digest}")


def cross_validated(
    run_dirs: Annotated[list[Path], typer.Argument(help="Folders of the folds' runs")],
    as_json: AsJson = False,
) -> None:
    """Show mean and standard deviation over the folds' runs, and the figures of all folds' test patients together.

    Example: consilium-server cross-validated runs/fold1 runs/fold2 runs/fold3
    """
    from server.cross_validation import cross_validation
    from server.cross_validation_tables import tables

    found = cross_validation(run_dirs)
    if as_json:
        print(found.model_dump_json(by_alias=True, indent=2))
        return
    console = Console()
    for table in tables(found):
        console.print(table)
    for note in found.notes:
        _say(console, note)


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, markup=False, highlight=False)
