"""The hospital's SuperNode: Flower's own, in this process, with three changes.

- Its waits of 3 s (nothing to do), 0.5 s (is the reply there?) and 1 to 10 s (is the next piece there?) are capped, since they are
  most of a small round.
- Tasks are run by `client.executor`, which has imported PyTorch already, and which needs a secret to take them.
- Nothing is reported to Flower's makers, and no update is looked for.

The names that are changed are private to Flower; its version is pinned, and a missing name stops the node before it connects.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from client.site_folder import SiteFolder
from shared.errors import InputError, ProcessError
from shared.flower_settings import QUIET_FLOWER, quieten_logs, shorten_back_off
from shared.pacing import Pacing
from shared.processes import free_ports, is_taken

#: First and longest wait of the SuperNode between two looks for a message, and between two looks for a reply.
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 0.5


def run_node(folder: SiteFolder, superlink: str, ca: Path, threads: int | None = None) -> None:
    """Connect to `superlink` (host:port) and work until told to stop; ends only by a signal or an error of Flower's.

    Raises InputError where `ca` is no file, ProcessError where another program took the port meant for the node's executor.
    """
    profile = folder.profile()
    if not ca.is_file():
        raise InputError(f"{ca}: no such file; --ca must name the coordinator's CA certificate")
    quieten_logs()
    os.environ.update(QUIET_FLOWER, FLWR_HOME=str(folder.path / "flwr"), FLWR_SUPEREXEC_TASK_POLL_INTERVAL="0.2")
    port = free_ports(1)[0]
    executor = subprocess.Popen(
        [sys.executable, "-m", "client.executor", f"127.0.0.1:{port}", str(folder.executor_secret)],
        env=_executor_environment(profile.threads or threads),
    )
    try:
        _run_supernode(folder, superlink, ca, port)
    except RuntimeError:
        if not is_taken(port):
            raise
        raise ProcessError(
            f"another program took port {port} of 127.0.0.1, over which this node was to reach its executor; start the node again"
        ) from None
    finally:
        executor.terminate()
        executor.wait()


def _executor_environment(threads: int | None) -> dict[str, str]:
    environment = dict(os.environ)
    if threads is not None:
        environment.update(OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
    return environment


def _run_supernode(folder: SiteFolder, superlink: str, ca: Path, port: int) -> None:
    from flwr.supernode import start_client_internal as internal
    from flwr.supernode.cli.flower_supernode import flower_supernode

    shorten_waits(internal, LONGEST_WAIT_S)
    shorten_back_off()
    sys.argv = [
        "flower-supernode",
        *("--root-certificates", str(ca)),
        *("--superlink", superlink),
        *("--auth-supernode-private-key", str(folder.node_key)),
        *("--host", "127.0.0.1"),
        *("--port", str(port)),
        *("--isolation", "process"),
        *("--superexec-auth-secret-file", str(folder.executor_secret)),
        *("--node-config", f'site-folder="{folder.path.resolve()}"'),
    ]
    flower_supernode()


def shorten_waits(module: object, longest_s: float) -> None:
    """Let `module` sleep in short waits that grow up to `longest_s`. Raises ProcessError where it no longer keeps time that way."""
    if getattr(module, "time", None) is not time:
        raise ProcessError(f"{module} has no attribute 'time': this release was made for flwr 1.41.0")
    module.time = SimpleNamespace(**{**vars(time), "sleep": _paced(time.sleep, longest_s)})  # type: ignore[attr-defined]


def _paced(sleep: Callable[[float], None], longest_s: float) -> Callable[[float], None]:
    """`sleep` in growing waits. The SuperNode sleeps 3 s for want of a message and 0.5 s for want of a reply: a change starts anew."""
    pacing, last = Pacing(FIRST_WAIT_S, longest_s), 0.0

    def paced(seconds: float) -> None:
        nonlocal last
        if seconds != last:
            pacing.restart()
            last = seconds
        sleep(min(seconds, pacing.wait_s()))

    return paced
