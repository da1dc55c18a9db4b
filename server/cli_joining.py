"""`consilium-server init`, `admit`, `sites`, `revoke`, `renew`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from server.cli_arguments import AsJson, Folder
from shared.errors import FingerprintError, InputError

if TYPE_CHECKING:
    from server.joining import Applicant, Settled


def init(
    folder: Annotated[Path, typer.Argument(help="Folder to make; it must not be a coordinator's folder yet")],
    federation: Annotated[str, typer.Option(help="Name of the federation, as hospitals see it")],
    host: Annotated[
        list[str], typer.Option(help="Host name or address of this coordinator; may be given several times")
    ],
    address: Annotated[
        str | None, typer.Option(help="HOST:PORT that hospitals connect to; the first host and 443 if not given")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Loopback port of the SuperLink; a free one at each start if not given"),
    ] = None,
) -> None:
    """Make a coordinator's folder: certificate authority, server certificate, signing key.

    Example: consilium-server init /var/lib/consilium --federation "Mammography network" --host fl.example.org
    """
    from server.home import Home

    home = Home.create(folder, federation, host, address=_address(address, host), port=port)
    console = Console()
    _say(console, f"{folder}: the coordinator's folder of {federation}; hospitals connect to {home.record().address}")
    _say(console, f"signing key: {home.signing_key().public.spoken}")
    _say(
        console,
        "Hospitals compare these ten groups with you by telephone when they join. Keep a copy of the folder in a safe place.",
    )


def admit(
    folder: Folder,
    request: Annotated[Path, typer.Argument(help="The hospital's join request")],
    fingerprint: Annotated[
        str | None, typer.Option(help="The ten groups that the hospital read out by telephone")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Admit without comparing the fingerprint")] = False,
    out: Annotated[Path | None, typer.Option(help="Admission to write; beside the request if not given")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="The site has new keys: end its old ones")] = False,
) -> None:
    """Admit a hospital, or renew the certificate of one: shows who asks, registers its node, writes its admission.

    Example: consilium-server admit /var/lib/consilium anna.request.json --fingerprint "c6ef 7f00 ..."
    """
    from server.home import Home
    from server.joining import admit as admit_site
    from server.joining import check_fingerprint, read_applicant

    console, home = Console(), Home(folder)
    home.record()
    applicant = read_applicant(home, request)
    _show(console, applicant)
    if fingerprint is not None:
        check_fingerprint(applicant, fingerprint)
        _say(console, "The fingerprint is the one that was read out.")
    elif not yes:
        _ask(console, applicant)
    target = out if out is not None else request.parent / f"{applicant.request.site}.admission.json"
    settled = admit_site(home, applicant, target, replace=replace)
    _say(
        console,
        f"{applicant.request.site}: {'a new client certificate' if applicant.renews else 'admitted'}; send {target} back",
    )
    _say(console, f"Your own fingerprint, to read out: {home.signing_key().public.spoken}")
    _say_flower(
        console, settled,
        done="its node is registered", waiting="its node will be registered when it is",
    )  # fmt: skip


def sites(folder: Folder, as_json: AsJson = False) -> None:
    """List the hospitals: admitted, online, offline or revoked, and since when.

    Example: consilium-server sites /var/lib/consilium
    """
    from server.home import Home
    from server.sites import list_sites, print_sites

    rows, up = list_sites(Home(folder))
    if as_json:
        typer.echo("[" + ",\n ".join(row.model_dump_json() for row in rows) + "]")
        return
    print_sites(rows, Console(), up=up)


def revoke(folder: Folder, site: Annotated[str, typer.Argument(help="Name of the site")]) -> None:
    """Revoke a hospital, also during a run: nothing that it sends is believed any more, and its node is refused.

    Example: consilium-server revoke /var/lib/consilium anna
    """
    from server.gateway import gateway_folder
    from server.home import Home
    from server.joining import revoke as revoke_site

    console, home = Console(), Home(folder)
    home.record()
    settled = revoke_site(home, site)
    _say(console, f"{site}: revoked since {settled.record.revoked}")
    _say_flower(
        console, settled,
        done="its node is refused from now on", waiting="its node will be refused when it is",
    )  # fmt: skip
    if gateway_folder(home).reload():
        _say(console, "The gateway refuses its client certificates from now on.")
        return
    _say(
        console,
        f"{home.keys / 'crl.pem'} is written: a gateway that asks for client certificates must be reloaded (`nginx -s reload`)",
    )


def renew(
    folder: Folder,
    host: Annotated[list[str] | None, typer.Option(help="Host names or addresses, in place of those it had")] = None,
) -> None:
    """Make a new server certificate from the same authority: hospitals need not do anything.

    Example: consilium-server renew /var/lib/consilium
    """
    from server.gateway import gateway_folder
    from server.home import Home
    from server.joining import renew as renew_certificate

    home = Home(folder)
    names = renew_certificate(home, host or [])
    console = Console()
    _say(console, f"{home.certificates.certificate}: a new certificate for {', '.join(names)}")
    restart = "Restart the coordinator (`consilium-server up`, or its service) when no run is going on"
    if gateway_folder(home).reload():
        _say(console, f"The gateway shows it already. {restart}.")
        return
    _say(console, f"{restart}, and reload the gateway (`nginx -s reload`); until then the old certificate is in use.")


def _address(address: str | None, hosts: list[str]) -> str:
    if address is None:
        return f"[{hosts[0]}]:443" if ":" in hosts[0] else f"{hosts[0]}:443"
    name, _, port = address.rpartition(":")
    if not name or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InputError(f"--address: expected HOST:PORT, as in fl.example.org:443, but got '{address}'")
    return address


def _show(console: Console, applicant: Applicant) -> None:
    request, known = applicant.request, applicant.known
    versions = ", ".join(f"{name} {version}" for name, version in request.release.versions.items())
    _say(console, f"site         {request.site}")
    _say(console, f"title        {request.title}")
    _say(console, f"asked        {request.created}")
    _say(console, f"release      {versions}; code {request.release.code_digest[:16]}")
    _say(console, f"fingerprint  {applicant.key.spoken}")
    if applicant.renews:
        _say(console, "It is admitted with these keys; a new client certificate is all that it gets.")
    elif known is not None:
        standing = f"it was revoked on {known.revoked}" if known.revoked else "it is admitted with other keys"
        _say(console, f"A site of this name is known: {standing}.")


def _ask(console: Console, applicant: Applicant) -> None:
    if not sys.stdin.isatty():
        raise InputError(
            "nobody is at a terminal to compare the fingerprint: give --fingerprint with what the hospital read out, or --yes"
        )
    _say(console, "Telephone the hospital, over a number that you already had, and let it read its fingerprint to you.")
    if not typer.confirm(f"Are these its ten groups: {applicant.key.spoken}?"):
        raise FingerprintError(f"{applicant.request.site} was not admitted: the fingerprint was not confirmed")


def _say_flower(console: Console, settled: Settled, *, done: str, waiting: str) -> None:
    if settled.trouble is not None:
        _say(console, f"The SuperLink did not follow yet: {settled.trouble}. The coordinator tries again by itself.")
    else:
        _say(
            console,
            f"The coordinator is not up; {waiting}." if settled.flower is None else f"The coordinator is up; {done}.",
        )


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, markup=False, highlight=False)
