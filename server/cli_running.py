"""`consilium-server up`, `launch`, `status`, `logs`, `stop`, `resume`, `report`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from server.cli_arguments import AsJson, Folder, RunName
from shared.errors import InputError

if TYPE_CHECKING:
    from server.home import Home
    from server.run_folder import RunFolder

Detach = Annotated[bool, typer.Option("--detach", help="Don't watch: the run goes on by itself")]

#: Seconds between two pictures of `status --follow`.
REDRAW_S = 2.0


def up(folder: Folder) -> None:
    """Run the coordinator until it is stopped: hospitals can connect, runs can be launched.

    Example: consilium-server up /var/lib/consilium
    """
    from server.home import Home
    from server.up import run_up

    run_up(Home(folder), Console())


def launch(
    folder: Folder,
    study: Annotated[str, typer.Argument(help="First digits of a published digest, or the study file")],
    name: Annotated[str, typer.Option(help="Name of the run")],
    sites: Annotated[
        str | None, typer.Option(help="Only these sites, as anna,bertha; all admitted if not given")
    ] = None,
    detach: Detach = False,
) -> None:
    """Start a run of a published study, and watch it. Ctrl-C ends the watching, not the run.

    Example: consilium-server launch /var/lib/consilium configs/demo.yaml --name demo-1
    """
    from server.home import Home
    from server.publishing import find_publication
    from server.running import launch as launch_run

    home = Home(folder)
    home.record()
    chosen = [one.strip() for one in sites.split(",") if one.strip()] if sites is not None else None
    made = launch_run(home, find_publication(home, study), name, chosen)
    _watch_or_leave(home, made, detach)


def resume(
    folder: Folder,
    run: RunName,
    other_code: Annotated[
        bool, typer.Option("--other-code", help="Go on although another release is installed now")
    ] = False,
    detach: Detach = False,
) -> None:
    """Go on with a run that was stopped, failed or interrupted, from its last finished round.

    Example: consilium-server resume /var/lib/consilium demo-1
    """
    from server.home import Home
    from server.publishing import find_publication
    from server.running import existing_run
    from server.running import resume as resume_run

    home = Home(folder)
    digest = existing_run(home, run).run().study_digest
    made = resume_run(home, find_publication(home, digest), run, other_code=other_code)
    _watch_or_leave(home, made, detach)


def stop(folder: Folder, run: RunName) -> None:
    """End a run now. Rounds that were finished are kept; `resume` goes on from them.

    Example: consilium-server stop /var/lib/consilium demo-1
    """
    from server.home import Home
    from server.running import stop as stop_run

    ended = stop_run(Home(folder), run)
    _say(Console(), f"{run}: {ended.state}{f': {ended.reason}' if ended.reason else ''}")


def status(
    folder: Folder,
    run: Annotated[str | None, typer.Argument(help="One run; the whole federation if not given")] = None,
    as_json: AsJson = False,
    follow: Annotated[bool, typer.Option("--follow", help="Go on showing it; Ctrl-C ends")] = False,
) -> None:
    """Say how the federation stands, or one run.

    Example: consilium-server status /var/lib/consilium demo-1 --follow
    """
    from server.coordinator import control_if_up
    from server.following import follow as follow_run
    from server.home import Home
    from server.running import existing_run
    from server.status import print_run, print_status, run_status, status_of

    if as_json and follow:
        raise InputError("--json is one picture; ask again for the next instead of --follow")
    console, home = Console(), Home(folder)
    if run is None:
        while True:
            found = status_of(home)
            typer.echo(found.model_dump_json(indent=2)) if as_json else print_status(found, console)
            if not follow:
                return
            if not _pause():
                return
            if console.is_terminal:
                console.clear()
    shown = existing_run(home, run)
    if follow:
        try:
            follow_run(home, shown, console)
        except KeyboardInterrupt:
            return
        return
    with control_if_up(home) as control:
        if as_json:
            typer.echo(run_status(shown, control).model_dump_json(indent=2))
        else:
            print_run(shown, control, console)


def logs(
    folder: Folder,
    run: Annotated[str | None, typer.Argument(help="One run; the coordinator's own log if not given")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on showing what is added; Ctrl-C ends")] = False,
    lines: Annotated[int, typer.Option(min=0, help="Last lines to show first")] = 50,
) -> None:
    """Show the last lines of the coordinator's log, or of what happened in a run.

    Example: consilium-server logs /var/lib/consilium demo-1 --follow
    """
    from server.home import Home
    from server.log_view import log_files, show_logs

    show_logs(log_files(Home(folder), run), Console(), lines=lines, follow=follow)


def report(
    folder: Annotated[
        Path, typer.Argument(help="Folder of a run, or the coordinator's folder with the run's name after it")
    ],
    run: Annotated[str | None, typer.Argument(help="Name of a run")] = None,
) -> None:
    """Write report.json and report.html of a run, finished or not, from its records.

    Example: consilium-server report /var/lib/consilium demo-1
    """
    from server.home import Home
    from server.run_folder import RunFolder
    from server.running import existing_run

    if run is None and (folder / "coordinator.json").exists():
        raise InputError(
            f"{folder}: a coordinator's folder; say which run, as in `consilium-server report {folder} RUN`"
        )
    _write_report(RunFolder(folder) if run is None else existing_run(Home(folder), run))


def _watch_or_leave(home: Home, run: RunFolder, detach: bool) -> None:
    from server.following import follow, require_finished

    console = Console()
    if detach:
        _say(
            console,
            f"{run.name} goes on by itself; watch it with `consilium-server status {home.path} {run.name} --follow`",
        )
        return
    try:
        follow(home, run, console)
    except KeyboardInterrupt:
        _say(console, f"{run.name} goes on. Watch it with `consilium-server status {home.path} {run.name} --follow`,")
        _say(console, f"end it with `consilium-server stop {home.path} {run.name}`.")
        return
    finally:
        if run.run().state not in ("starting", "running"):
            _write_report(run)
    require_finished(run)


def _write_report(run: RunFolder) -> None:
    from server.report import write_report

    json_path, html_path = write_report(run)
    _say(Console(), f"Report: {html_path}  (figures: {json_path})")


def _pause() -> bool:
    try:
        time.sleep(REDRAW_S)
    except KeyboardInterrupt:
        return False
    return True


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, markup=False, highlight=False)
