"""No process outlives the one that started it, however that one ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared.processes import free_ports

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

CHILD = "import time; from shared.processes import die_with_parent; die_with_parent(); print('ready', flush=True); time.sleep(600)"

STUBBORN = (
    "import signal, time; from shared.processes import die_with_parent; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "die_with_parent(); print('ready', flush=True); time.sleep(600)"
)


def lives(pid: int) -> bool:
    """Whether the process still runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def ends(pid: int, within_s: float) -> bool:
    limit = time.monotonic() + within_s
    while time.monotonic() < limit:
        if not lives(pid):
            return True
        time.sleep(0.05)
    return False


def parent_of(child: str) -> tuple[subprocess.Popen[str], int]:
    """A process that starts `child`, tells its pid once it is ready, and waits."""
    program = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE, start_new_session=True)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    return parent, int(parent.stdout.readline())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_ends_when_its_parent_does(number: signal.Signals) -> None:
    parent, child = parent_of(CHILD)
    assert lives(child)
    parent.send_signal(number)
    parent.wait()
    assert ends(child, within_s=10)


def test_a_child_that_ignores_sigterm_is_killed() -> None:
    parent, child = parent_of(STUBBORN)
    parent.kill()
    parent.wait()
    assert ends(child, within_s=20)


def test_end_descendants_leaves_none_not_even_a_stubborn_grandchild_whose_parent_is_gone() -> None:
    grandchild = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
    middle = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {grandchild!r}], stdout=subprocess.PIPE, start_new_session=True)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
    )
    program = (
        "import subprocess, sys\n"
        "from shared.processes import adopt_orphans, descendants, end_descendants\n"
        "adopt_orphans()\n"
        f"told = subprocess.run([sys.executable, '-c', {middle!r}], stdout=subprocess.PIPE, text=True, check=True).stdout\n"
        "assert descendants() == {int(told)}, (descendants(), told)\n"
        "end_descendants(grace_s=0.3)\n"
        "assert not descendants()\n"
        "print(told)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not lives(int(done.stdout))


def test_free_ports_differ_and_can_be_bound() -> None:
    ports = free_ports(5)
    assert len(set(ports)) == 5
    for port in ports:
        with socket.socket() as one:
            one.bind(("127.0.0.1", port))


def test_a_zombie_does_not_count_as_living() -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not lives(child.pid)
    child.wait()
