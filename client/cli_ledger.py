"""`consilium-site ledger`: what was released of the hospital's patients, and a copy of the ledger for an auditor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from shared.ledger.summary import RunLine


def ledger(
    folder: Annotated[Path, typer.Argument(help="The site's own folder")],
    as_json: Annotated[bool, typer.Option("--json", help="For programs")] = False,
    export: Annotated[
        Path | None,
        typer.Option(help="Copy the ledger to this file, for an auditor; it holds no patient's id and no tag"),
    ] = None,
    accept: Annotated[
        bool,
        typer.Option(
            "--accept-as-newest",
            help="Only where ledger.head was lost: this ledger is complete, go on from its last entry",
        ),
    ] = False,
) -> None:
    """Verify the hospital's ledger, and say by run what was released of its patients.

    Example: consilium-site ledger /var/lib/consilium --export anna.ledger.jsonl
    """
    from client.ledger import accept_as_newest, read_ledger
    from client.site_folder import SiteFolder
    from shared.ledger.summary import run_lines
    from shared.private_file import write_private

    site = SiteFolder(folder)
    if accept:
        _say(f"Accepted as the newest: the ledger goes on after {accept_as_newest(site)} entries.")
    found = read_ledger(site)
    lines = run_lines(found[0]) if found is not None else []
    if export is not None and found is not None:
        write_private(export, found[1])
    if as_json:
        said = {"entries": len(found[0].links) if found else 0, "runs": [one.model_dump() for one in lines]}
        typer.echo(json.dumps(said, indent=2))
        return
    if found is None:
        _say("The ledger is empty: nothing was released.")
        return
    chain = found[0]
    if lines:
        Console().print(_table(lines))
    first, present = chain.links[0].signer, chain.key or chain.links[0].signer
    rotated = f", later by the key it passed on to, now {present.spoken}" if present != first else ""
    _say(
        f"{len(chain.links)} entries since {chain.links[0].entry.at}, all signed by this site ({first.spoken}{rotated}); verified."
    )
    if chain.torn:
        _say("The last line was cut off while it was written; it is dropped at the next entry. Its act had not begun.")
    if export is not None:
        _say(f"{export}: the ledger, to be checked with consilium-audit ledger {export} --trust FINGERPRINT")


def _table(lines: list[RunLine]) -> Table:
    table = Table(title="Released of our patients", title_justify="left")
    for title, least in (("run", 13), ("study", 8), ("patients", 8), ("rounds", 7), ("released", 11), ("privacy", 10)):
        table.add_column(title, overflow="fold", min_width=least)
    for one in lines:
        again = one.attempts - len(one.started)
        table.add_row(
            f"{one.run}\n{'closed' if one.closed else 'open'}",
            f"{one.study}\n{one.study_digest[:8]}",
            f"{'private' if one.patients is None else one.patients}\n{one.cohort[:8]}",
            f"{len(one.started)} of {one.rounds}\nbegun" + (f", {again}\nagain" if again else ""),
            f"{len(one.settled)} updates\n{one.evaluations} evaluation{'' if one.evaluations == 1 else 's'}",
            one.mechanism,
        )
    return table


def _say(text: str) -> None:
    Console().print(text, soft_wrap=True, markup=False, highlight=False)
