"""`consilium-server gateway` and `service`: what the coordinator's machine needs beside Consilium."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from server.cli_arguments import Folder


def gateway(
    folder: Folder,
    listen: Annotated[str, typer.Option(help="Port, or ADDRESS:PORT, that hospitals connect to")] = "443",
    out: Annotated[
        Path | None, typer.Option(help="File to write; gateway/nginx.conf in the folder if not given")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Let nginx read the file, and say what it finds")] = False,
    require_client_certificates: Annotated[
        bool, typer.Option(help="Refuse hospitals that show no client certificate, or only those that show a bad one")
    ] = True,
    included: Annotated[
        bool, typer.Option("--included", help="Write only what another nginx's http block can include")
    ] = False,
) -> None:
    """Write the nginx configuration through which hospitals reach the coordinator: node calls, and nothing else.

    With client certificates each hospital needs nginx too (`consilium-site gateway`), and can't go through an HTTP proxy; without, a
    hospital is known by its node key alone.

    Example: consilium-server gateway /var/lib/consilium --check
    """
    from server.gateway import gateway_folder, write_gateway
    from server.home import Home
    from shared.errors import InputError, NotInstalledError
    from shared.nginx import check_configuration

    if included and check:
        raise InputError("--check: what is to be included can't be checked alone; include it, then `nginx -t`")
    home = Home(folder)
    place = gateway_folder(home)
    path = write_gateway(
        home, listen=listen, out=out, require_certificates=require_client_certificates, included=included
    )
    _say(f"{path}: written")
    if check:
        try:
            _say(check_configuration(place, path.absolute()))
        except NotInstalledError as problem:
            raise NotInstalledError(f"{path} is written but NOT checked: {problem}") from None
    if included:
        _say(f"Name it in the http block of your nginx: include {path.absolute()};")
    elif out is None and place.reload():
        _say("The nginx that runs from this folder reads it now.")
    else:
        _say(
            f"To run it: nginx -c {path.absolute()} -p {place.path}   or, as a system service: consilium-server service {folder}"
        )


def service(
    folder: Folder,
    user: Annotated[str, typer.Option(help="Account without rights that owns the folder")] = "consilium",
    out: Annotated[Path | None, typer.Option(help="Folder to write to; services/ in the folder if not given")] = None,
) -> None:
    """Write systemd units: the coordinator, and its gateway once its configuration is written.

    Example: consilium-server service /var/lib/consilium
    """
    from server.home import Home
    from server.service import units
    from shared.systemd_unit import installation, write_units

    paths = write_units(units(Home(folder), user=user), out or folder / "services")
    _say(installation(paths, folder, user))


def _say(text: str) -> None:
    Console().print(text, soft_wrap=True, markup=False, highlight=False)
