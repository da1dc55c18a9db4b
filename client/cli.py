"""`consilium-site`: the hospital's command."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from client import cli_budget, cli_consent, cli_joining, cli_keys, cli_ledger, cli_machine, cli_privacy, cli_records
from shared.command import run_command

app = typer.Typer(
    name="consilium-site",
    help="Take part in federated training without sharing an image.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Folder = Annotated[Path, typer.Argument(help="The site's own folder (keys, approvals, cache, results)")]


@app.command()
def check(
    profile: Annotated[Path, typer.Argument(help="Site profile: a folder with profile.yaml, or the file")],
    study: Annotated[Path | None, typer.Option(help="Also divide the data as this study would")] = None,
) -> None:
    """Open the data and say what is there: patients, images, classes, unreadable files, duplicates, device, disk.

    Example: consilium-site check sites/demo/anna --study configs/demo.yaml
    """
    from client.data.check import check_profile
    from shared.profile import load_profile
    from shared.study import load_study

    loaded = load_study(study) if study is not None else None
    if not check_profile(load_profile(profile), loaded, Console()):
        raise typer.Exit(1)


@app.command()
def phantom(
    folder: Annotated[Path, typer.Argument(help="Folder to make; it must be new or empty")],
    patients: Annotated[int, typer.Option(min=1)],
    seed: Annotated[int, typer.Option(min=0)] = 0,
    scanner: Annotated[str, typer.Option(help="Name of a synthetic scanner")] = "",
    prevalence: Annotated[
        float | None, typer.Option(help="Share of malignant findings; the scanner's own if not given")
    ] = None,
) -> None:
    """Write synthetic mammograms in the published layout of CBIS-DDSM: DICOM, masks, crops, tables.

    Example: consilium-site phantom data/anna --patients 80 --seed 1 --scanner NAME
    """
    import os

    from rich.progress import Progress

    from client.phantom import SCANNERS, write_phantom
    from shared.errors import InputError

    if scanner not in SCANNERS:
        raise InputError(f"--scanner: expected one of {', '.join(SCANNERS)}, but got '{scanner}'")
    console = Console(stderr=True)
    with Progress(console=console, transient=True) as bar:
        line = bar.add_task(f"{folder.name}: synthetic patients", total=patients)
        write_phantom(
            folder,
            patients=patients,
            seed=seed,
            scanner=scanner,
            prevalence=prevalence,
            workers=os.cpu_count() or 1,
            progress=lambda done, total: bar.update(line, completed=done, total=total),
        )
    Console().print(
        f"{folder}: {patients} synthetic patients, scanner {scanner}, seed {seed}", soft_wrap=True, markup=False
    )


@app.command()
def init(
    folder: Folder,
    profile: Annotated[Path, typer.Option(help="Site profile: a folder with profile.yaml, or the file")],
) -> None:
    """Make the site's folder: its keys, and room for approvals, cache and results. Private keys never leave it.

    Example: consilium-site init /var/lib/consilium --profile sites/demo/anna
    """
    from client.site_folder import SiteFolder
    from shared.profile import load_profile

    SiteFolder.create(folder, load_profile(profile))
    Console().print(f"{folder}: made; next: consilium-site request {folder}", soft_wrap=True, markup=False)


app.command()(cli_joining.request)
app.command()(cli_joining.join)
app.command()(cli_consent.review)
app.command()(cli_consent.approve)
app.command()(cli_consent.decline)
app.command()(cli_records.status)
app.command()(cli_records.results)
app.command()(cli_records.withdraw)
app.command()(cli_ledger.ledger)
app.command()(cli_budget.budget)
app.command()(cli_budget.close)
app.command()(cli_keys.rotate_key)
app.command()(cli_keys.revoke_key)
app.command()(cli_machine.doctor)
app.command()(cli_machine.gateway)
app.command()(cli_machine.service)
app.command()(cli_privacy.conformance)


@app.command()
def up(
    folder: Folder,
    superlink: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT to connect to, in place of the coordinator's address: a gateway of this hospital, say"
        ),
    ] = None,
    ca: Annotated[
        Path | None, typer.Option(help="CA certificate (PEM) that signs it, in place of the coordinator's")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads, where the profile names none")] = None,
    any_release: Annotated[
        bool,
        typer.Option(
            "--any-release",
            help="DEVELOPMENT ONLY: also work for a coordinator with another release; the own code runs, and it is recorded",
        ),
    ] = False,
    end_with_parent: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Run the hospital's node until it is stopped. It waits for a coordinator that can't be reached.

    Example: consilium-site up /var/lib/consilium
    """
    from client.node import run_node
    from client.site_folder import SiteFolder
    from shared.processes import die_with_parent

    if end_with_parent:
        die_with_parent()
    run_node(SiteFolder(folder.resolve()), superlink, ca, threads, any_release=any_release)


def main() -> None:
    """Run the command."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    run_command(app)


if __name__ == "__main__":
    main()
