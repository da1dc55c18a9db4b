"""`consilium-site gateway`, `doctor` and `service`: what the hospital's machine and network need."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

_OUTCOMES = {
    "ok": ("ok", "green"),
    "warning": ("warning", "bold yellow"),
    "fault": ("FAULT", "bold red"),
    "skipped": ("-", "dim"),
}

Folder = Annotated[Path, typer.Argument(help="The site's own folder")]


def gateway(
    folder: Folder,
    listen: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1")] = 9443,
    check: Annotated[bool, typer.Option("--check", help="Let nginx read the file, and say what it finds")] = False,
) -> None:
    """Write the nginx configuration that shows the hospital's client certificate to the coordinator, where it asks for one.

    Needed because Flower's node can't show one itself. nginx uses no HTTP proxy: the machine must reach the coordinator directly.

    Example: consilium-site gateway /var/lib/consilium --check
    """
    from client.gateway import gateway_folder, local_authority, write_gateway
    from client.site_folder import SiteFolder
    from shared.errors import NotInstalledError
    from shared.nginx import check_configuration

    site = SiteFolder(folder)
    path, place = write_gateway(site, port=listen), gateway_folder(site)
    _say(f"{path}: written")
    if check:
        try:
            _say(check_configuration(place, path))
        except NotInstalledError as problem:
            raise NotInstalledError(f"{path} is written but NOT checked: {problem}") from None
    if place.reload():
        _say("The nginx that runs from this folder reads it now.")
    else:
        _say(
            f"To run both: nginx -c {path} -p {place.path}\n"
            f"             consilium-site up {folder} --superlink 127.0.0.1:{listen} --ca {local_authority(site)}\n"
            f"or, as system services: consilium-site service {folder}"
        )


def doctor(
    folder: Folder,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON")] = False,
    page: Annotated[Path | None, typer.Option(help="Also write them as a page, for instance doctor.html")] = None,
    data: Annotated[bool, typer.Option("--data", help="Also read every image, which takes long")] = False,
    with_paths: Annotated[
        bool, typer.Option("--with-paths", help="Name folders of the data in what is written")
    ] = False,
) -> None:
    """Check the machine and the way to the coordinator: each fault with its remedy. Changes nothing. Exit 1 where there is a fault.

    Example: consilium-site doctor /var/lib/consilium --page doctor.html
    """
    from client.doctor import Finding, examine
    from client.doctor.page import verdict, write_page
    from client.site_folder import SiteFolder

    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each request
    console, aside = Console(), Console(stderr=True)

    def tell(finding: Finding) -> None:
        if as_json:
            return
        word, style = _OUTCOMES[finding.outcome]
        console.print(
            Text.assemble((f"{word:8}", style), (finding.title, "bold"), f": {finding.found}"),
            soft_wrap=True,
            highlight=False,
        )
        if finding.remedy:
            console.print(f"{'':8}-> {finding.remedy}", soft_wrap=True, markup=False, highlight=False)

    with aside.status("") as status:
        made = examine(
            SiteFolder(folder), with_data=data, with_paths=with_paths,
            begins=lambda title: status.update(f"checking: {title}"), ends=tell,
        )  # fmt: skip
    if as_json:
        typer.echo(made.model_dump_json(indent=2))
    else:
        _say(verdict(made))
    if page is not None:
        write_page(made, page)
        if not as_json:
            _say(f"{page}: written; it names no patient, no image and no private key")
    if not made.healthy:
        raise typer.Exit(1)


def service(
    folder: Folder,
    user: Annotated[str, typer.Option(help="Account without rights that owns the folder")] = "consilium",
    out: Annotated[Path | None, typer.Option(help="Folder to write to; services/ in the folder if not given")] = None,
) -> None:
    """Write systemd units: the node, and the hospital's gateway once its configuration is written.

    Example: consilium-site service /var/lib/consilium
    """
    from client.service import units
    from client.site_folder import SiteFolder
    from shared.systemd_unit import installation, write_units

    paths = write_units(units(SiteFolder(folder), user=user), out or folder / "services")
    _say(installation(paths, folder, user))


def _say(text: str) -> None:
    Console().print(text, soft_wrap=True, markup=False, highlight=False)
