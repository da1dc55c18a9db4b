"""`consilium-site rotate-key` and `revoke-key`: the key that signs what the hospital answers, and its ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

Folder = Annotated[Path, typer.Argument(help="The site's own folder")]


def rotate_key(
    folder: Folder,
    yes: Annotated[bool, typer.Option("--yes", help="Exchange it without asking")] = False,
) -> None:
    """Make a new signing key and pass the ledger on to it. The old one is destroyed; the coordinator must admit the new.

    Stop the node first, and rotate when no run is under way. Cut off by a crash, run it again: it ends what was begun.

    Example: consilium-site rotate-key /var/lib/consilium
    """
    import sys

    from client.key_rotation import rotate
    from client.site_folder import SiteFolder
    from shared.errors import InputError

    site = SiteFolder(folder)
    name = site.profile().site
    if not yes:
        if not sys.stdin.isatty():
            raise InputError("nobody can be asked here: add --yes to exchange the key")
        if not typer.confirm(
            "Exchange the signing key? Until the coordinator admits the new one, no answer is accepted"
        ):
            raise typer.Abort
    old, new = rotate(site)
    _say(
        f"The ledger is signed by a new key from here on.\n  old  {old.spoken}  (destroyed; backups still hold it)\n  new  {new.spoken}\n"
        "Next:\n"
        f"  consilium-site request {folder}          send the file to the coordinator, and read out the new fingerprint\n"
        f"  consilium-server admit COORDINATOR {name}.request.json --replace          (the coordinator)\n"
        f"  consilium-site join {folder} {name}.admission.json          then start the node again\n"
        "Back up the keys, the ledger and cohorts/ together now. Where the old key may be in other hands:\n"
        f"  consilium-site revoke-key {folder} '{old.spoken}' --reason '...'"
    )


def revoke_key(
    folder: Folder,
    fingerprint: Annotated[str, typer.Argument(help="Of a former key: its ten groups, or all of its 64 digits")],
    reason: Annotated[str, typer.Option(help="Stands in the ledger, where auditors read it: at most 200 signs")] = "",
) -> None:
    """Enter in the ledger that a former key signs nothing any more.

    Example: consilium-site revoke-key /var/lib/consilium "9f2c 01ab ..." --reason "laptop stolen in May"
    """
    from client.key_rotation import revoke
    from client.site_folder import SiteFolder
    from shared.errors import InputError

    if len(reason) > 200:
        raise InputError(f"--reason: expected at most 200 signs, but got {len(reason)}")
    gone = revoke(SiteFolder(folder), fingerprint, reason)
    _say(
        f"Revoked from the next entry on: {gone.spoken}. Entries before it stay valid. Tell the coordinator and your auditors."
    )


def _say(text: str) -> None:
    Console().print(text, soft_wrap=True, markup=False, highlight=False)
