"""`consilium-server export` and `compare`: what becomes of a run's model afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

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
    after_round: Annotated[
        int | None,
        typer.Option(
            "--round", min=1, help="After which round; the last if not given. federation.keep_models keeps earlier ones"
        ),
    ] = None,
    study: Annotated[Path | None, typer.Option(help="A study that is to use this model")] = None,
    use: Annotated[
        Literal["model", "mask"],
        typer.Option("--as", help="What that study does with it: starts from it, or lets it predict masks"),
    ] = "model",
    study_out: Annotated[Path | None, typer.Option(help="Where to write that study, beside the weights")] = None,
    public: Annotated[
        bool,
        typer.Option(
            "--public", help="The model was trained on no hospital's patients: private studies may start from it"
        ),
    ] = False,
) -> None:
    """Write a run's model as a weights file that names the run, and, where asked, a study that starts from it or takes its masks.

    Example: consilium-server export runs/demo model.safetensors
    """
    from server.export import divided_otherwise, export_model, study_from
    from server.run_folder import RunFolder

    if (study is None) != (study_out is None):
        raise InputError("--study and --study-out belong together")
    if use == "mask" and (study is None or without_head):
        raise InputError("--as mask belongs to --study, and needs the whole model: leave --without-head out")
    exported = export_model(
        RunFolder(run_dir), out, weights_root=weights_root or Path(), head=not without_head, after_round=after_round
    )
    console = Console()
    _say(console, f"{out}: {exported.tensors} tensors of the model after round {exported.provenance.round}")
    _say(console, f"sha256 {exported.weights['sha256']}")
    if study is not None and study_out is not None:
        following = study_from(study, study_out, exported, use=use, public=public)
        what = "with masks by" if use == "mask" else "from"
        _say(console, f"{study_out}: the study {study} {what} these weights, digest {following.digest()}")
        if not public and (keys := divided_otherwise(RunFolder(run_dir).study(), following)):
            _say(
                console,
                f"note: it differs from the run's study in {', '.join(keys)}, so it may test on patients whom the model has learned from; "
                "hospitals that trained in the run then refuse it (CONS-113). Give both studies one data.split.id",
            )


def ensemble(
    run_dirs: Annotated[list[Path], typer.Argument(help="Folders of two or more runs")],
    study_out: Annotated[Path, typer.Option(help="Study to write; the runs' models are written beside it")],
    weights_root: Annotated[
        Path | None, typer.Option(help="Where the runs' own starting weights lie; the working folder if not given")
    ] = None,
) -> None:
    """Write runs' models, and a study that averages their answers: it trains nothing, and hospitals evaluate it.

    Example: consilium-server ensemble runs/first runs/second --study-out ensemble/study.yaml
    """
    from server.ensembles import write_ensemble
    from server.run_folder import RunFolder

    made = write_ensemble([RunFolder(path) for path in run_dirs], study_out, weights_root=weights_root or Path())
    console = Console()
    for member in made.members:
        _say(console, f"{member.path}  sha256 {member.weights['sha256']}")
    _say(
        console,
        f"{study_out}: the study {made.study.name} of {len(made.members)} members, digest {made.study.digest()}",
    )
    for name, keys in made.otherwise.items():
        _say(
            console,
            f"note: {name}'s study differs from it in {', '.join(keys)}, so it may test on patients whom that model has learned from; "
            "hospitals that trained in the run then refuse it (CONS-113). Train the members with one data.split.id",
        )


def compare(
    run_dirs: Annotated[list[Path], typer.Argument(help="Folders of two or more runs on the same hospitals")],
) -> None:
    """Show the test figures of runs side by side, with what each costs a patient.

    Example: consilium-server compare runs/demo-private runs/demo-private-plain
    """
    from server.comparison import comparison, notes, side_of

    sides = [side_of(path) for path in run_dirs]
    console = Console()
    console.print(comparison(sides))
    for note in notes(sides):
        _say(console, note)


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, markup=False, highlight=False)
