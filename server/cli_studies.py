"""`consilium-server publish`."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from server.cli_arguments import Folder


def publish(
    folder: Folder,
    study: Annotated[Path, typer.Argument(help="Study file")],
    runs: Annotated[int, typer.Option(min=1, max=1000, help="How often you mean to run it")] = 1,
    expires: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Last day, UTC; in a year if not given")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write; NAME.study.json in this folder if not given")] = None,
) -> None:
    """Sign a study for the hospitals, with its starting model, this release, the number of runs and a last day.

    Example: consilium-server publish /var/lib/consilium configs/demo.yaml --runs 3 --expires 2027-06-30
    """
    from server.home import Home
    from server.publishing import publish as publish_study
    from shared.study import load_study

    target = out if out is not None else Path(f"{load_study(study).name}.study.json")
    published = publish_study(Home(folder), study, target, runs=runs, expires=expires.date() if expires else None)
    offer = published.publication
    console = Console()
    _say(console, f"study {offer.study['name']}, digest {offer.study_digest}")
    _say(console, f"{offer.runs} run{'s' if offer.runs > 1 else ''}, until {offer.expires}")
    _say(console, f"send to every hospital: {', '.join(str(path) for path in published.files)}")
    if published.replaced is not None:
        _say(
            console,
            f"It takes the place of the publication of {published.replaced.created}; hospitals that approved that one review this one.",
        )


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, markup=False, highlight=False)
