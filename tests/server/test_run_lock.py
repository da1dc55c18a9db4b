"""A run is led for exactly as long as the process that leads it lives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from server.run_folder import RunFolder
from server.run_lock import hold_run_lock, is_led, leader
from shared.errors import RunFolderError

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys, time
from pathlib import Path
from server.run_folder import RunFolder
from server.run_lock import hold_run_lock
hold_run_lock(RunFolder(Path(sys.argv[1])))
print("held", flush=True)
time.sleep(60)
"""


@contextmanager
def led(path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def test_nobody_leads_a_folder_that_nobody_has_led(tmp_path: Path) -> None:
    assert not is_led(RunFolder(tmp_path))
    assert leader(RunFolder(tmp_path)) is None


def test_the_lock_names_the_process_and_ends_with_it_however_it_ends(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with led(tmp_path) as process:
        assert is_led(folder)
        assert leader(folder) == process.pid
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        limit = time.monotonic() + 5
        while is_led(folder) and time.monotonic() < limit:
            time.sleep(0.01)
        assert not is_led(folder)
        assert leader(folder) is None


def test_a_run_has_one_leader(tmp_path: Path) -> None:
    with led(tmp_path) as process:
        with pytest.raises(RunFolderError, match="another process leads this run"):
            hold_run_lock(RunFolder(tmp_path))
        assert leader(RunFolder(tmp_path)) == process.pid


def test_looking_often_does_not_keep_a_leader_out(tmp_path: Path) -> None:
    (tmp_path / ".led").touch()
    looking = (
        "import sys\nfrom pathlib import Path\nfrom shared.file_lock import is_locked\nprint('go', flush=True)\n"
        + ("while True: is_locked(Path(sys.argv[1]))")
    )
    watcher = subprocess.Popen(
        [sys.executable, "-c", looking, str(tmp_path / ".led")], cwd=ROOT, stdout=subprocess.PIPE
    )
    try:
        assert watcher.stdout is not None
        watcher.stdout.readline()
        with led(tmp_path):
            assert is_led(RunFolder(tmp_path))
    finally:
        watcher.kill()
        watcher.wait()
