"""`consilium-site budget` and `close`: what is left of the patients' lifetime budget, and giving back what a run never began."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from shared.errors import InputError

if TYPE_CHECKING:
    from client.budget_report import BudgetReport, GroupSpent, RunSpent
    from client.closing import Closing

#: Signs of a bar.
_BAR = 40

Folder = Annotated[Path, typer.Argument(help="The site's own folder")]


def budget(
    folder: Folder,
    as_json: Annotated[bool, typer.Option("--json", help="For programs")] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="PAGE", help="Also write it as a page, for the data protection officer")
    ] = None,
) -> None:
    """Say what was spent of the patients' lifetime privacy budget, on what, what is reserved, and what is left.

    It reads the ledger and the lists of patients in cohorts/, and changes nothing. Nothing of it is sent.

    Example: consilium-site budget /var/lib/consilium --html budget.html
    """
    from client.budget_page import render_budget
    from client.budget_report import budget_report
    from client.site_folder import SiteFolder
    from shared.private_file import write_private

    found = budget_report(SiteFolder(folder))
    if html is not None:
        write_private(html, render_budget(found).encode())
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    _show(found, folder)
    if html is not None:
        _say(f"{html}: the same as a page.")


def close(
    folder: Folder,
    run: Annotated[str, typer.Argument(help="The run, as `budget` and `ledger` name it")],
    yes: Annotated[bool, typer.Option("--yes", help="Close it without asking")] = False,
) -> None:
    """Close a run that will not go on, for good: what it reserved and never began no longer counts against the patients' budget.

    What has begun stays spent. A coordinator that wants to go on with the run is refused (CONS-261).

    Example: consilium-site close /var/lib/consilium run-2027-03-01T091500.000Z
    """
    from client.closing import close, look
    from client.site_folder import SiteFolder

    site = SiteFolder(folder)
    seen = look(site, run)
    _say(f"Run {seen.run}, study {seen.study}: {seen.begun} of {seen.rounds} rounds have begun.")
    if not yes:
        if not sys.stdin.isatty():
            raise InputError("nobody can be asked here: add --yes to close the run, for good")
        if not typer.confirm("Close it? It can't go on afterwards"):
            raise typer.Abort
    _say(_given_back(close(site, run)))


def _given_back(done: Closing) -> str:
    if done.before is None or done.after is None:
        return f"Closed: {done.run}. It has no bound (no differential privacy), so nothing of the budget was reserved for it."
    evaluation = "" if done.evaluated else ", and the evaluation, which was not released"
    return (
        f"Closed: {done.run}. Given back: {done.unbegun} round(s) that never began{evaluation}. The run counted with epsilon "
        f"{done.before:.4g} for each of its patients, and counts with {done.after:.4g} now (RDP, delta {done.delta})."
    )


def _show(found: BudgetReport, folder: Path) -> None:
    from client.budget_report import in_words

    _say(f"{found.title} ({found.site})")
    if found.lifetime is None:
        _say(_none(folder))
    else:
        _say(f"Each patient's budget for life: {in_words(found.lifetime)}.")
    for note in found.notes:
        _say(f"Note: {note}")
    if not found.runs:
        _say("Nothing was spent: no run is on the ledger.")
        return
    stands_in = f" ({found.stand_in} stands in for the patient)" if found.stand_in else ""
    _say(f"{found.patients} patients{stands_in} were in runs. Those with the same history are shown together.\n")
    for group in found.groups:
        _bar(group, found)
    if found.lifetime is not None:
        _say("█ spent   ▒ reserved, not begun   · left. Patients who were in no run have spent nothing.\n")
    _say("Runs")
    for run in found.runs:
        _say(_line(run))
    if found.lifetime is not None:
        _say(
            f"\nEvery epsilon is of one patient, by RDP at delta {found.lifetime.delta}. Runs of the same patient together cost less "
            "than the sum of what each costs alone."
        )


def _none(folder: Path) -> str:
    return (
        "This hospital has set no lifetime budget, so private studies are refused (CONS-262), and nothing limits what runs without "
        f"differential privacy say of a patient. To set one, add policy.lifetime (epsilon and delta) to {folder / 'site.json'}: "
        '"lifetime": {"epsilon": "8", "delta": "1e-5"}. It can be lowered later, never raised.'
    )


def _bar(group: GroupSpent, found: BudgetReport) -> None:
    runs = ", ".join(group.runs)
    if found.lifetime is not None and group.left is not None:
        spent, counted = _signs(group.spent, group.reserved, group.left)
        bar = Text.assemble(
            ("█" * spent, "red"), ("▒" * (counted - spent), "yellow"), ("·" * (_BAR - counted), "green"), "  "
        )
        bar.append(f"{group.patients} patient(s)")
        Console().print(bar, soft_wrap=True)
        reserved = f", {group.reserved:.4g} reserved" if group.reserved > 0 else ""
        _say(f"  epsilon {group.spent:.4g} spent{reserved}, {group.left:.4g} left of {found.lifetime.epsilon}")
    else:
        _say(f"{group.patients} patient(s)")
    _say(f"  in {runs}")
    if group.unbounded:
        _say(f"  WITHOUT A BOUND, and in no figure above: {', '.join(group.unbounded)}")


def _signs(spent: float, reserved: float, left: float) -> tuple[int, int]:
    """Where in a bar what was spent ends, and what is reserved; nothing that is there is rounded away."""
    whole = spent + reserved + left
    first = min(round(_BAR * spent / whole), _BAR - (reserved > 0) - (left > 0))
    second = max(round(_BAR * (spent + reserved) / whole), first + (reserved > 0))
    return first, min(second, _BAR - (left > 0))


def _line(run: RunSpent) -> str:
    again = f", {run.begun_again} time(s) one was begun again" if run.begun_again else ""
    lines = [
        f"  {run.run}  study {run.study} ({run.study_digest[:12]}), {run.state}, {run.patients} patients",
        f"    {run.begun} of {run.rounds} rounds begun{again}; released: {', '.join(run.released) or 'no figures'}",
    ]
    if run.spent is None or run.counted is None:
        lines.append("    no differential privacy: what it says of a patient has no bound")
    else:
        more = f"; with what is reserved {run.counted:.4g}" if run.counted > run.spent else ""
        lines.append(f"    epsilon {run.spent:.4g} spent{more}")
    return "\n".join(lines)


def _say(text: str) -> None:
    Console().print(text, soft_wrap=True, markup=False, highlight=False)
