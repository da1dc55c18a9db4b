"""Arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Folder = Annotated[Path, typer.Argument(help="The coordinator's folder, made by `consilium-server init`")]
RunName = Annotated[str, typer.Argument(help="Name of a run, as given to `consilium-server launch`")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, as documented in docs/coordinating.md")]
