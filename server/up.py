"""`consilium-server up`: the SuperLink in the foreground, and Flower's nodes kept equal to the registry, until it is told to end.

However it ends, no process is left, and no run is left looking as if it went on.
"""

from __future__ import annotations

import contextlib
import os
import time
from datetime import UTC, datetime
from pathlib import Path

from httpx import HTTPError
from rich.console import Console

from server.admitted_nodes import bring_into_line
from server.coordinator import UpRecord, only_one_up, tell_up
from server.ending import deaf, stoppable
from server.home import Home
from server.running import settle_runs
from server.state_database import trim_database
from server.superlink import Control, SuperLink, start_superlink
from shared.errors import ConsiliumError, NotUpError, ProcessError
from shared.logs import RotatingPipe
from shared.processes import adopt_orphans, end_descendants, free_ports, is_taken

#: Seconds between two looks at the SuperLink, and between two at the registry and the runs.
PAUSE_S, LOOK_S = 0.3, 2.0


def run_up(home: Home, console: Console) -> None:
    """Run the coordinator until SIGTERM or Ctrl-C. Raises ProcessError where the SuperLink does not start or ends, InputError where
    the folder's coordinator is up already, StorageError where state.db is damaged."""
    record = home.record()
    home = Home(home.path.resolve())
    with only_one_up(home):
        adopt_orphans()
        port = record.port if record.port is not None else free_ports(1)[0]
        if is_taken(port):
            raise ProcessError(f"port {port} of 127.0.0.1 is taken by another program; end it, or choose another port")
        with contextlib.suppress(NotUpError):  # a former SuperLink is just ending: the next start trims
            trim_database(home.path / "state.db")
        log = RotatingPipe(home.path / "logs" / "superlink.log")
        try:
            with contextlib.suppress(KeyboardInterrupt), stoppable():
                superlink = start_superlink(
                    home.certificates, port=port, home=home.path / "flwr", log=log, database=str(home.path / "state.db")
                )
                _lead(home, superlink, port, console)
        finally:
            with deaf():
                end_descendants()
                settle_runs(home, None)
                log.close()


def _lead(home: Home, superlink: SuperLink, port: int, console: Console) -> None:
    with contextlib.closing(Control(superlink)) as control:
        control.wait_until_ready()
        settle_runs(home, control)
        _follow_registry(home, control, console)
        tell_up(home, UpRecord(pid=os.getpid(), port=port, started=datetime.now(UTC).isoformat(timespec="seconds")))
        admitted, record = len(home.registry.active()), home.record()
        console.print(
            f"ready: {record.federation}, SuperLink on 127.0.0.1:{port}, hospitals connect to {record.address}; {admitted} admitted",
            soft_wrap=True, markup=False, highlight=False,
        )  # fmt: skip
        seen, looked = _state_of(home), time.monotonic()
        while superlink.process.poll() is None:
            time.sleep(PAUSE_S)
            if time.monotonic() - looked < LOOK_S:
                continue
            looked = time.monotonic()
            if (now := _state_of(home)) != seen and _follow_registry(home, control, console):
                seen = now
            for name in settle_runs(home, control):
                console.print(f"run {name}: its process has ended; `consilium-server resume` goes on", markup=False)
    raise ProcessError(
        f"the SuperLink ended with status {superlink.process.returncode}; see {home.path / 'logs' / 'superlink.log'}"
    )


def _follow_registry(home: Home, control: Control, console: Console) -> bool:
    """Whether Flower's nodes are those of the registry; what stands in the way is told, and tried again."""
    try:
        changes = bring_into_line(home, control)
    except (ConsiliumError, HTTPError) as problem:
        console.print(f"The nodes could not be brought into line: {problem}", soft_wrap=True, markup=False)
        return False
    for done, names in (("registered", changes.registered), ("unregistered", changes.unregistered)):
        if names:
            console.print(f"{done}: {', '.join(names)}", soft_wrap=True, markup=False, highlight=False)
    return True


def _state_of(home: Home) -> dict[Path, int]:
    """Changes whenever a record of the registry does."""
    found: dict[Path, int] = {}
    for path in (home.path / "sites").glob("*.json"):
        with contextlib.suppress(OSError):
            found[path] = path.stat().st_mtime_ns
    return found
