"""`consilium-site review`, `approve` and `decline`: what a hospital says to a study, after seeing what it is."""

from __future__ import annotations

import getpass
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from client.review import Review
    from client.site_folder import SiteFolder
    from shared.documents import Publication

Folder = Annotated[Path, typer.Argument(help="The site's own folder")]
Wanted = Annotated[str, typer.Argument(help="Digest of the study, its first 8 digits or more, or the file")]


def review(
    folder: Folder,
    publication: Annotated[
        str | None,
        typer.Argument(help="File from the coordinator, or first digits of a digest; without it all are listed"),
    ] = None,
    data: Annotated[
        bool, typer.Option("--data", help="Also open our tables, to count the patients and images that it reaches")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs")] = False,
) -> None:
    """Take in a published study and show what it would do here; without a file, list the studies that are here.

    Example: consilium-site review /var/lib/consilium study.json
    """
    from client.review import review
    from client.site_folder import SiteFolder

    site = SiteFolder(folder)
    if publication is None:
        _list(site, as_json)
        return
    found = review(site, _taken_in(site, publication), count_data=data)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    _show(found, Console())
    _say(f"Approve it:  consilium-site approve {folder} {found.study_digest[:12]}")
    _say(f"Decline it:  consilium-site decline {folder} {found.study_digest[:12]}")


def approve(
    folder: Folder,
    study: Wanted,
    runs: Annotated[int | None, typer.Option(help="How many runs; as many as offered if not given")] = None,
    until: Annotated[str | None, typer.Option(help="Last day, YYYY-MM-DD (UTC); the offer's if not given")] = None,
    by: Annotated[str | None, typer.Option(help="Who approves; the account's name if not given")] = None,
) -> None:
    """Approve a study that was taken in: from now on the node works for it. Other code, libraries, weights or key ask again.

    Example: consilium-site approve /var/lib/consilium 3f9a1c07 --runs 1 --until 2027-06-30 --by "Dr. Meyer"
    """
    from client.approvals import approve, published_study
    from client.policy import require_within
    from client.publications import weights_folder
    from client.review_privacy import require_allowed
    from client.site_folder import SiteFolder

    site = SiteFolder(folder)
    publication = _taken_in(site, study)
    asked, profile = published_study(publication), site.profile()
    require_within(asked, profile.policy)
    require_allowed(asked, profile, site)
    made = approve(
        site,
        publication,
        by=by or getpass.getuser(),
        runs=runs,
        expires=until,
        weights_folder=weights_folder(site, publication.study_digest),
    )
    _say(
        f"Approved: {made.study_name}, digest {made.study_digest}, for {made.runs} run(s) of {made.rounds} rounds until {made.expires} "
        f"(UTC), by {made.approved_by}."
    )


def decline(
    folder: Folder,
    study: Wanted,
    reason: Annotated[str, typer.Option(help="Kept here; the coordinator learns that it was declined, not why")] = "",
    by: Annotated[str | None, typer.Option(help="Who declines; the account's name if not given")] = None,
) -> None:
    """Decline a study; an approval of it ends. It can be approved later after all.

    Example: consilium-site decline /var/lib/consilium 3f9a1c07 --reason "no ethics vote yet"
    """
    from client.approvals import decline
    from client.site_folder import SiteFolder

    site = SiteFolder(folder)
    made = decline(site, _taken_in(site, study), by=by or getpass.getuser(), reason=reason)
    _say(
        f"Declined: {made.study_name}, digest {made.study_digest}. The coordinator is told CONS-211, and nothing else."
    )


def _taken_in(site: SiteFolder, wanted: str) -> Publication:
    """What a file holds, or what was taken in before under these digits."""
    from client.publications import find_publication, receive

    path = Path(wanted)
    return receive(site, path) if path.is_file() else find_publication(site, wanted)


def _list(site: SiteFolder, as_json: bool) -> None:
    from client.publications import standings
    from shared.release import Release

    found = standings(site, Release.installed())
    if as_json:
        typer.echo(json.dumps([one.model_dump(mode="json") for one in found], indent=2))
        return
    if not found:
        _say("No study was taken in yet: consilium-site review FOLDER FILE, with the file that the coordinator sent.")
    for one in found:
        told = f"{one.study}  (runs: {one.runs_made} of {one.runs}; until {one.until})"
        _say(f"{one.digest[:12]}  {one.state:<9}  {told}")


def _show(found: Review, console: Console) -> None:
    state = {
        "waiting": "nobody has said yes or no",
        "changed": "approved once, but something has changed since: it asks again",
    }
    _say(f"{found.name}: {state.get(found.state, found.state)}\n")
    for section in found.sections:
        _rows(section.title, section.rows, console)
    if found.changes is None:
        _rows(
            "What has changed", [("Since", "nothing was approved before, so there is nothing to compare with")], console
        )
    else:
        told = [(one.key, f"{one.approved} -> {one.offered}") for one in found.changes] or [("Since", "nothing")]
        _rows(f"What has changed against what was approved last: {found.compared_with}", told, console)
    if found.obstacles:
        _rows("What stands in the way here", [("", one) for one in found.obstacles], console, style="bold red")


def _rows(title: str, rows: list[tuple[str, str]], console: Console, style: str = "bold") -> None:
    console.print(Text(title, style=style))
    if not console.is_terminal:  # lines stay whole, so that they can be searched and copied
        for what, so in rows:
            console.print(Text(f"  {what}: {so}" if what else f"  {so}"), soft_wrap=True)
        console.print()
        return
    table = Table.grid(padding=(0, 2), pad_edge=True)
    table.add_column(min_width=18, max_width=26, overflow="fold")
    table.add_column(overflow="fold")
    for what, so in rows:
        table.add_row(Text(what), Text(so))
    console.print(table)
    console.print()


def _say(text: str) -> None:
    Console().print(text, soft_wrap=True, markup=False, highlight=False)
