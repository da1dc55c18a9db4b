"""`consilium-site status`, `results` and `withdraw`: what the site is doing, what came of it, and who is out."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from shared.errors import InputError

if TYPE_CHECKING:
    from client.status import SiteStatus
    from client.withdrawn import Withdrawal

#: How often --follow looks, and how many runs are shown.
_LOOK_S, _RUNS_SHOWN = 1.0, 5

Folder = Annotated[Path, typer.Argument(help="The site's own folder")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs")]


def status(
    folder: Folder,
    as_json: AsJson = False,
    follow: Annotated[bool, typer.Option("--follow", help="Show it again whenever it changes, until Ctrl-C")] = False,
) -> None:
    """Say whom the site has joined, whether its node is up, what it is doing now, its runs, approvals and disk.

    Example: consilium-site status /var/lib/consilium --follow
    """
    from client.site_folder import SiteFolder
    from client.status import status

    site = SiteFolder(folder)
    shown = ""
    while True:
        found = status(site)
        text = found.model_dump_json(indent=None if follow else 2) if as_json else "\n".join(_status_lines(found))
        if text != shown:
            if as_json:
                typer.echo(text)
            else:
                _say(f"{_clock()}\n{text}\n" if follow else text)
            shown = text
        if not follow:
            return
        try:
            time.sleep(_LOOK_S)
        except KeyboardInterrupt:
            return


def results(
    folder: Folder,
    run: Annotated[str | None, typer.Argument(help="Only this run")] = None,
    as_json: AsJson = False,
    show: Annotated[bool, typer.Option("--open", help="Open the latest run's page in a browser")] = False,
) -> None:
    """List the runs with this hospital's own figures, on its own test images, and the page that shows more. Nothing of it is sent.

    Example: consilium-site results /var/lib/consilium
    """
    from client.site_folder import SiteFolder
    from client.status import metric_lines, results

    found = results(SiteFolder(folder), run)
    if as_json:
        typer.echo(json.dumps([one.model_dump(mode="json") for one in found], indent=2))
    elif not found:
        _say("No run yet.")
    else:
        for one in found:
            _say(f"{one.run}  study {one.study}, begun {one.begun}, rounds trained here: {one.last_round or 'none'}")
            if one.figures is None:
                _say("  no model was evaluated yet")
            else:
                seen = one.figures.evaluated
                _say(f"  after round {one.figures.round}, on {seen.images} test images of {seen.patients} patients")
                _say("\n".join(f"    {line}" for line in metric_lines(one.figures)))
            _say(f"  page: {one.page or 'none: no evaluation yet, or a patient on it has withdrawn'}")
    if show:
        page = next((one.page for one in found if one.page is not None), None)
        if page is None:
            raise InputError("--open: there is no page to open")
        typer.launch(page)


def withdraw(
    folder: Folder,
    patient: Annotated[
        str | None, typer.Argument(help="The patient's id as the data has it; - reads it from standard input")
    ] = None,
    reason: Annotated[str, typer.Option(help="Kept here, as written: don't name the patient in it")] = "",
    show: Annotated[
        bool, typer.Option("--list", help="List who has withdrawn, by tag, and what was spent before")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Exclude a patient from the next instruction on, clean caches and runs, and list the models that used the patient.

    A round that is under way ends with the patient. Case and spaces of the id don't matter. What models have learnt stays in them.

    Example: consilium-site withdraw /var/lib/consilium P_00012 --reason "letter of 3 March"
    """
    from client.site_folder import SiteFolder
    from client.withdrawal import withdraw
    from client.withdrawn import withdrawn

    site = SiteFolder(folder)
    site.profile()
    if show:
        known = withdrawn(site)
        if as_json:
            typer.echo(json.dumps([one.model_dump(mode="json") for one in known], indent=2))
            return
        if not known:
            _say("Nobody has withdrawn.")
        for one in known:
            _say(
                f"{one.tag[:12]}  {one.withdrawn_at}  {one.reason or 'no reason given'}{'' if one.purged else '  NOT CLEANED YET'}"
            )
            _say(_spent(one))
        return
    name = sys.stdin.readline().strip() if patient == "-" else patient
    if not name:
        raise InputError("PATIENT: expected a patient's id, - to read it from standard input, or --list")
    done = withdraw(site, name, reason=reason)
    if as_json:
        typer.echo(done.withdrawal.model_dump_json(indent=2))
        return
    _say(
        f"Withdrawn, tag {done.withdrawal.tag[:12]}: {done.images} image(s) are in no instruction from the next one on."
    )
    _say(_spent(done.withdrawal))
    for page in done.pages:
        _say(f"Removed, as it could show the patient's images: {page}")
    for run in done.running:
        _say(
            f"Run {run} is carrying out an instruction now; that one ends with the patient, and is cleaned at its end."
        )
    for note in done.notes:
        _say(f"Note: {note}")
    _say("Not touched: the data itself, the logs in logs/ (which may name files), and what models have learnt.")


def _status_lines(found: SiteStatus) -> list[str]:
    joined = (
        f"joined to {found.federation} at {found.address}, {found.joined}" if found.federation else "not joined yet"
    )
    node = found.node
    up = (
        f"up (process {node.pid}), {node.state} since {node.since}"
        if node.up
        else "not up; start it with consilium-site up"
    )
    lines = [f"Site      {found.title} ({found.site}), {joined}", f"Node      {up}"]
    if node.up and node.said:
        lines.append(f"          {node.said}")
    lines.append(f"Now       {_work(found)}")
    for run in found.runs[:_RUNS_SHOWN]:
        last = run.last
        ended = f"; last: {last.kind} {last.round} {last.event} {last.at}" if last is not None else ""
        code = f" with {last.code}" if last is not None and last.code else ""
        lines.append(
            f"Run       {run.run}, study {run.study}: round {run.last_round or 0} of {run.rounds}{ended}{code}"
        )
    for one in found.studies:
        left = f"{one.runs_made} of {one.runs} runs made, until {one.until}"
        lines.append(f"Study     {one.study} ({one.digest[:12]}): {one.state}; {left}")
    if found.withdrawn:
        rest = f"; {found.not_cleaned} not cleaned in full, run withdraw again" if found.not_cleaned else ""
        lines.append(f"Withdrawn {found.withdrawn} patient(s){rest}")
    disk = found.disk
    lines.append(
        f"Disk      {disk.free / 1e9:.1f} GB free; cache {disk.cache / 1e9:.2f} GB, runs {disk.runs / 1e9:.2f} GB"
    )
    return lines


def _work(found: SiteStatus) -> str:
    now = found.now
    if now is None:
        return "nothing" if found.node.up else "nothing, as the node is not up"
    said = f"{now.kind}, round {now.round} of {now.rounds} of run {now.run} (study {now.study}), since {now.begun}"
    progress = now.progress
    if progress is not None and progress.total:
        loss = f", loss {progress.loss:.3f}" if progress.loss is not None else ""
        said += f": {progress.phase} {progress.done} of {progress.total}{loss}"
    return said


def _clock() -> str:
    return time.strftime("%H:%M:%S")


def _spent(one: Withdrawal) -> str:
    if not one.spent:
        return "  No run on record had used the patient."
    lines = []
    for spent in one.spent:
        rounds = ", ".join(str(number) for number in spent.rounds) or "none"
        changed = {
            "train": f"changed the model in rounds {rounds}",
            "validation": f"looked at, without changing the model, in rounds {rounds}",
            "test": "tested on, never trained on",
        }[spent.part]
        lines.append(
            f"  Run {spent.run}, study {spent.study_name} ({spent.study_digest[:12]}): in its {spent.part} part, {changed}; "
            f"evaluations: {spent.evaluations}"
        )
    return "\n".join(lines)


def _say(text: str) -> None:
    Console().print(text, soft_wrap=True, markup=False, highlight=False)
