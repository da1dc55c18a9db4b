"""`consilium-server documents`: a model card and a privacy statement of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def documents(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a run")],
    out: Annotated[Path, typer.Option(help="Folder for the documents; made where it is missing")],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write over documents that somebody may have filled in")
    ] = False,
) -> None:
    """Write a model card and a privacy statement, as Markdown and HTML; what only people can say is marked TO BE FILLED BY.

    Example: consilium-server documents runs/demo --out documents
    """
    from server.documents import write_documents
    from server.run_folder import RunFolder

    console = Console()
    for path in write_documents(RunFolder(run_dir), out, overwrite=overwrite):
        console.print(str(path), soft_wrap=True, markup=False, highlight=False)
