"""`consilium-server export` and `compare`: what becomes of a run's model afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from shared.errors import InputError


def export(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a run")],
    out: Annotated[Path, typer.Argument(help="File to write, .safetensors")],
    weights_root: Annotated[
        Path | None, typer.Option(help="Where the run's own starting weights lie; the working folder if not given")
    ] = None,
    without_head: Annotated[
        bool,
        typer.Option(
            "--without-head", help="Leave the last linear layer out: whoever starts from it begins with a random one"
        ),
    ] = False,
    study: Annotated[Path | None, typer.Option(help="A study that is to start from this model")] = None,
    study_out: Annotated[Path | None, typer.Option(help="Where to write that study, beside the weights")] = None,
    public: Annotated[
        bool,
        typer.Option(
            "--public", help="The model was trained on no hospital's patients: private studies may start from it"
        ),
    ] = False,
) -> None:
    """Write a run's last model as a weights file, and, where asked, a study that starts from it.

    Example: consilium-server export runs/demo model.safetensors
    """
    from server.export import export_model, study_from
    from server.run_folder import RunFolder

    if (study is None) != (study_out is None):
        raise InputError("--study and --study-out belong together")
    exported = export_model(RunFolder(run_dir), out, weights_root=weights_root or Path(), head=not without_head)
    console = Console()
    _say(console, f"{out}: {exported.tensors} tensors of the model after round {exported.provenance.round}")
    _say(console, f"sha256 {exported.weights['sha256']}")
    if study is not None and study_out is not None:
        digest = study_from(study, study_out, exported, public=public)
        _say(console, f"{study_out}: the study {study} from these weights, digest {digest}")


def compare(
    run_dirs: Annotated[list[Path], typer.Argument(help="Folders of two or more runs on the same hospitals")],
) -> None:
    """Show the test figures of runs side by side, with what each costs a patient.

    Example: consilium-server compare runs/demo-private runs/demo-private-plain
    """
    from server.comparison import comparison, side_of

    Console().print(comparison([side_of(path) for path in run_dirs]))


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, markup=False, highlight=False)
