"""Watching a run until it ends, and how it ended: the run's own error, as if it had happened here."""

from __future__ import annotations

import time

from rich.console import Console

from server.coordinator import control_if_up
from server.home import Home
from server.live import watch
from server.run_folder import RunFolder
from server.running import INTERRUPTED, Standing, standing
from server.superlink import Control
from shared.errors import ConsiliumError, ProcessError

#: Seconds between two looks at whether the run's process lives.
LOOK_S = 0.5


def follow(home: Home, folder: RunFolder, console: Console) -> None:
    """Show the run until it ends. Raises its error where it failed, ProcessError where it was stopped or interrupted.

    Ctrl-C passes on as KeyboardInterrupt, and the run goes on.
    """
    with control_if_up(home) as control:
        watch(folder, running=_Alive(folder, control), site_progress=None, console=console)
    require_finished(folder)


def require_finished(folder: RunFolder) -> None:
    """Raises the error that the run ended with, if it did."""
    run = folder.run()
    if run.state == "finished":
        return
    if run.state == "failed":
        raise error_of(run.code)(run.reason or "the run failed")
    raise ProcessError(f"{folder.name}: {run.reason or INTERRUPTED}")


def error_of(code: str | None) -> type[ConsiliumError]:
    """The class of mistake with this code; ProcessError where there is none."""
    waiting: list[type[ConsiliumError]] = [ConsiliumError]
    while waiting:
        one = waiting.pop()
        if one.code == code:
            return one
        waiting.extend(one.__subclasses__())
    return ProcessError


class _Alive:
    """Whether the run goes on; looked at now and then, because the live view asks several times a second."""

    def __init__(self, folder: RunFolder, control: Control | None) -> None:
        self._folder, self._control = folder, control
        self._looked = 0.0
        self._standing: Standing = "starting"

    def __call__(self) -> bool:
        if time.monotonic() - self._looked > LOOK_S:
            self._looked = time.monotonic()
            self._standing = standing(self._folder, self._control)
        return self._standing in ("starting", "running")
