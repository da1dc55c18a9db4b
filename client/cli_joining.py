"""`consilium-site request` and `join`: from a new folder to a hospital that knows its coordinator."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from shared.errors import FingerprintError, InputError
from shared.signing import PublicKey

Folder = Annotated[Path, typer.Argument(help="The site's own folder")]


def request(
    folder: Folder,
    out: Annotated[Path | None, typer.Option(help="File to write; SITE.request.json here if not given")] = None,
) -> None:
    """Write the request to join: public keys, signed. Send it by e-mail, and read its fingerprint out over the telephone.

    Example: consilium-site request /var/lib/consilium --out anna.request.json
    """
    from client.joining import write_request
    from client.site_folder import SiteFolder

    site = SiteFolder(folder)
    target = out or Path(f"{site.profile().site}.request.json")
    made = write_request(site, target)
    _say(
        f"{target}: written. It holds no secret; send it to the coordinator.\n"
        "When the coordinator calls, or you call on a number you already had, read out this fingerprint:\n\n"
        f"    {PublicKey.read(made.signing_key).spoken}\n\n"
        "It must be the one that `consilium-server admit` shows there."
    )


def join(
    folder: Folder,
    admission: Annotated[Path, typer.Argument(help="Admission that came back from the coordinator")],
    fingerprint: Annotated[
        str | None, typer.Option(help="What the coordinator read out: the fingerprint of its key, ten groups of four")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Take the key in the file without comparing it")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Change to another coordinator, or another key")] = False,
) -> None:
    """Join the coordinator that sent this admission, once its fingerprint was compared; again to renew certificates.

    Example: consilium-site join /var/lib/consilium anna.admission.json
    """
    from client.joining import Confirm, join, read_for, spoken_as
    from client.site_folder import SiteFolder
    from shared.release import Release

    site = SiteFolder(folder)
    read = read_for(site, admission)
    key = PublicKey.read(read.coordinator_key)
    _say(f"Federation   {read.federation}\nAddress      {read.address}\nFingerprint  {key.spoken}")
    own = Release.installed()
    if read.release.code_digest != own.code_digest:
        _say(
            f"Note: the coordinator runs consilium {read.release.versions['consilium']} (code {read.release.code_digest[:12]}), here is "
            f"{own.versions['consilium']} (code {own.code_digest[:12]}); studies need the same release on both sides."
        )
    confirmed: Confirm
    if fingerprint is not None:
        confirmed = spoken_as(fingerprint)
        if not confirmed(key):  # also where the key is known: whoever gives a fingerprint wants it compared
            raise FingerprintError(
                f"the fingerprint that was read out is not that of the admission's key, {key.spoken}"
            )
    elif yes:
        confirmed = _unquestioned
    elif sys.stdin.isatty():
        confirmed = _asked
    else:
        confirmed = _nobody_to_ask
    made = join(site, read, confirmed=confirmed, replace=replace)
    _say(f"Joined '{made.federation}' at {made.address}. Start the node with `consilium-site up {folder}`.")


def _unquestioned(_key: PublicKey) -> bool:
    _say("Note: taken without comparing the fingerprint. Whoever could change the file on its way is now trusted.")
    return True


def _asked(_key: PublicKey) -> bool:
    return typer.confirm("Did the coordinator read out the same fingerprint, over a telephone number you already had?")


def _nobody_to_ask(key: PublicKey) -> bool:
    raise InputError(
        "nobody can be asked here: give --fingerprint with what the coordinator read out over the telephone, or --yes to take "
        f"{key.spoken} without comparing"
    )


def _say(text: str) -> None:
    Console().print(text, soft_wrap=True, markup=False, highlight=False)
