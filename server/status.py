"""How the federation stands, as people and programs read it: from the coordinator's files, and from Flower while it is up."""

from __future__ import annotations

import time
from typing import Literal

from pydantic import Field
from rich.console import Console
from rich.table import Table
from rich.text import Text

from server.coordinator import control_if_up, up_record
from server.home import Home
from server.live import LiveView, clock
from server.publishing import launched, publications
from server.run_folder import RunFolder
from server.run_progress import EventTail, RunProgress, SiteState
from server.running import Standing, runs_of, standing, unreadable_runs
from server.sites import SiteRow, site_rows
from server.superlink import Control
from shared.errors import ConsiliumError
from shared.run_records import Phase
from shared.schema import Strict


class SiteInRun(Strict):
    """A hospital in a run, as far as its answers tell."""

    site: str
    phase: Phase
    trouble: str | None = Field(description="what went wrong last, where nothing came after it")
    loss: float | None = Field(description="of the last round that it trained")
    accuracy: float | None


class RunStatus(Strict):
    """A run."""

    name: str
    state: Standing
    reason: str | None = Field(description="a sentence, where the state is stopped or failed")
    code: str | None = Field(description="code of docs/errors.md, where the state is failed")
    study: str
    study_digest: str
    started: str
    ended: str | None
    phase: Phase
    round: int = Field(description="the last that was begun; 0 is the preparation")
    rounds: int
    finished_rounds: int
    loss: float | None = Field(description="mean training loss of the last finished round")
    accuracy: float | None
    seconds_left: float | None = Field(description="until the last round is done, where an estimate is possible")
    sites: list[SiteInRun]


class PublishedStudy(Strict):
    """A study that is on offer."""

    study: str
    digest: str
    expires: str
    runs: int
    launched: list[str]


class Status(Strict):
    """`consilium-server status --json`"""

    format: Literal["consilium/status/1"] = "consilium/status/1"
    at: float = Field(description="Unix time")
    federation: str
    address: str
    fingerprint: str = Field(description="of the coordinator's signing key, as it is read out: ten groups")
    up: bool
    up_since: str | None
    port: int | None = Field(description="of the SuperLink on 127.0.0.1, while up")
    trouble: str | None = Field(description="why the SuperLink could not be asked, although it is up")
    sites: list[SiteRow]
    studies: list[PublishedStudy]
    runs: list[RunStatus]
    unreadable: dict[str, str] = Field(description="runs whose record is damaged, and what is wrong with it")


def status_of(home: Home) -> Status:
    """Everything at once. Raises InputError where a file of the folder is damaged."""
    record, up = home.record(), up_record(home)
    trouble: str | None = None
    try:
        with control_if_up(home) as control:
            sites, runs = site_rows(home, control), [run_status(folder, control) for folder in runs_of(home)]
    except ConsiliumError as problem:
        trouble = str(problem)
        sites, runs = site_rows(home, None), [run_status(folder, None) for folder in runs_of(home)]
    return Status(
        at=time.time(), federation=record.federation, address=record.address,
        fingerprint=home.signing_key().public.spoken, up=up is not None,
        up_since=up.started if up is not None else None, port=up.port if up is not None else None, trouble=trouble,
        sites=sites, studies=_studies(home), runs=runs, unreadable=unreadable_runs(home),
    )  # fmt: skip


def run_status(folder: RunFolder, control: Control | None) -> RunStatus:
    """One run. Raises RunFolderError where a file of it is damaged."""
    state, study = standing(folder, control), folder.study()
    progress, loss, accuracy = _folded(folder)
    run, now = folder.run(), time.time()
    return RunStatus(
        name=folder.name, state=state, reason=run.reason, code=run.code, study=study.name, study_digest=run.study_digest,
        started=run.started, ended=run.ended, phase=progress.phase, round=progress.round, rounds=progress.rounds,
        finished_rounds=progress.finished_rounds, loss=loss, accuracy=accuracy,
        seconds_left=progress.time_left(now) if state == "running" else None,
        sites=[_in_run(site, one) for site, one in sorted(progress.sites.items())],
    )  # fmt: skip


def print_run(folder: RunFolder, control: Control | None, console: Console) -> None:
    """The table of the live view, once, and how the run stands."""
    progress, _, _ = _folded(folder)
    console.print(LiveView(folder.name, progress, {}, time.time(), sparks=console.encoding.lower().startswith("utf")))
    run, state = folder.run(), standing(folder, control)
    code = f" ({run.code})" if run.code else ""
    console.print(
        f"{state}{code}{f': {run.reason}' if run.reason else ''}", soft_wrap=True, markup=False, highlight=False
    )


def print_status(status: Status, console: Console) -> None:
    """The federation in a few lines and two tables."""
    where = f"up since {status.up_since}, SuperLink on 127.0.0.1:{status.port}" if status.up else "not up"
    _say(console, f"{status.federation}: {where}; hospitals connect to {status.address}")
    _say(console, f"fingerprint to read out: {status.fingerprint}")
    if status.trouble is not None:
        _say(console, status.trouble)
    _say(console, f"hospitals: {_hospitals(status)}")
    for study in status.studies:
        left = study.runs - len(study.launched)
        _say(
            console,
            f"study {study.study} {study.digest[:12]}: {left} of {study.runs} runs left, until {study.expires}",
        )
    for name, why in status.unreadable.items():
        _say(console, f"run {name} can't be listed: {why}")
    if not status.runs:
        _say(console, "no run that can be read" if status.unreadable else "no run yet")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("run", "is", "round"):
        table.add_column(heading)
    for heading in ("loss", "accuracy", "left"):
        table.add_column(heading, justify="right")
    table.add_column("study")
    for run in status.runs:
        table.add_row(
            Text(run.name), Text(run.state + (f" ({run.code})" if run.code else "")), f"{run.finished_rounds} of {run.rounds}",
            _figure(run.loss), _figure(run.accuracy), "" if run.seconds_left is None else clock(run.seconds_left), Text(run.study),
        )  # fmt: skip
    console.print(table)


def _hospitals(status: Status) -> str:
    if not status.sites:
        return "none admitted"
    return ", ".join(f"{row.site} {row.state}" for row in status.sites)


def _studies(home: Home) -> list[PublishedStudy]:
    return [
        PublishedStudy(
            study=str(one.study["name"]), digest=digest, expires=one.expires, runs=one.runs, launched=launched(home, digest)
        )
        for digest, one in publications(home).items()
    ]  # fmt: skip


def _folded(folder: RunFolder) -> tuple[RunProgress, float | None, float | None]:
    """The run so far, and mean loss and accuracy of its last finished round."""
    progress = RunProgress(folder.study().federation.rounds, {site: SiteState() for site in folder.expected_sites()})
    loss: float | None = None
    accuracy: float | None = None
    for event in EventTail(folder.path / "events.jsonl").fresh():
        progress.take(event)
        if event.kind == "round" and event.phase == "done":
            loss, accuracy = event.loss, event.accuracy
    return progress, loss, accuracy


def _in_run(site: str, state: SiteState) -> SiteInRun:
    return SiteInRun(
        site=site,
        phase=state.phase,
        trouble=state.trouble,
        loss=next(iter(state.losses[-1:]), None),
        accuracy=state.accuracy,
    )


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, markup=False, highlight=False)
