"""The hospital's SuperNode: Flower's own, in this process, with these changes.

- It works only for runs of this site's own code (`client.own_code`), and what it sends passes `client.door`.
- An outage is waited for, and it is counted as offline 30 s after it was killed (`client.connection`).
- Its waits of 3 s (nothing to do), 0.5 s (is the reply there?) and 1 to 10 s (is the next piece there?) are capped, since they are
  most of a small round.
- Tasks are run by `client.executor`, which has imported PyTorch already, and which needs a secret to take them. One that ends is
  started again.
- Nothing is reported to Flower's makers, and no update is looked for.

The names that are changed are private to Flower; its version is pinned, and a name that is missing or takes other parameters stops the
node before it connects.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from client.ledger import settle_rotation
from client.proxies import except_this_machine
from client.site_folder import SiteFolder
from shared.errors import ConsiliumError, InputError, ProcessError
from shared.file_lock import is_locked
from shared.flower_settings import QUIET_FLOWER, shorten_back_off
from shared.logs import set_up_logs
from shared.pacing import Pacing
from shared.processes import free_ports, is_taken

log = logging.getLogger("consilium.node")

#: First and longest wait of the SuperNode between two looks for a message, and between two looks for a reply.
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 0.5

#: Held by the node's process as long as it lives; what it says of itself.
LOCK, STATUS = "node.lock", "node.json"


def run_node(
    folder: SiteFolder,
    superlink: str | None = None,
    ca: Path | None = None,
    threads: int | None = None,
    *,
    any_release: bool = False,
) -> None:
    """Connect to `superlink` (host:port) and work until told to stop; ends only by a signal or with an error.

    Address and CA certificate are those of the admission where they are not given. `any_release` is the development override.
    Raises InputError where the node's key is missing or none, the folder has not joined or `ca` is no file, ProcessError where a node
    works in this folder already or another program took the executor's port, RevokedError where the coordinator does not admit the node.
    """
    profile = folder.profile()
    _require_node_key(folder.node_key)
    settle_rotation(folder)
    address = superlink or folder.coordinator().address
    certificate = ca or folder.ca
    if not certificate.is_file():
        raise InputError(f"{certificate}: no such file; --ca must name the coordinator's CA certificate")
    with only_node(folder):
        except_this_machine(os.environ)
        os.environ.update(QUIET_FLOWER, FLWR_HOME=str(folder.path / "flwr"), FLWR_SUPEREXEC_TASK_POLL_INTERVAL="0.2")
        set_up_logs(
            folder.path / "logs", house="site", site=profile.site
        )  # it imports Flower, which looks at these once
        port = free_ports(1)[0]
        executor = _Executor(folder, port, _executor_environment(profile.threads or threads))
        ending = _Ending()
        try:
            executor.begin()  # it takes as long to import PyTorch as this process takes to import Flower
            _run_supernode(folder, address, certificate, port, ending, any_release=any_release)
        except RuntimeError:
            if not is_taken(port):
                raise
            raise ProcessError(
                f"another program took port {port} of 127.0.0.1, over which this node was to reach its executor; start the node again"
            ) from None
        except SystemExit:
            ending.tell()
            raise
        finally:
            executor.end()
        ending.tell()
        raise ProcessError("Flower's SuperNode ended by itself; the lines above say why")


def _require_node_key(path: Path) -> None:
    """Flower would end with a traceback."""
    try:
        key = load_ssh_private_key(path.read_bytes(), None)
        trouble = "" if isinstance(key, ec.EllipticCurvePrivateKey) else "a key of another kind"
    except OSError as problem:
        trouble = problem.strerror or str(problem)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        trouble = "not a private key in OpenSSH form, or damaged"
    if trouble:
        raise InputError(
            f"{path}: the node's key can't be used: {trouble}; restore it from the backup, or make a new folder with `consilium-site init` "
            "and let the coordinator admit it with --replace"
        )


@contextlib.contextmanager
def only_node(folder: SiteFolder) -> Iterator[None]:
    """Hold the folder's lock. Raises ProcessError where another node works in it."""
    path = folder.path / LOCK
    try:
        stream = path.open("a")
    except OSError as problem:
        raise InputError(f"{path}: can't be written: {problem.strerror or problem}") from None
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ProcessError(
                f"{folder.path}: a node works in this folder already{_named(folder)}; a second one would take its tasks away"
            ) from None
        yield


def is_up(folder: SiteFolder) -> bool:
    """Whether a node works in this folder now, however its last process ended."""
    return is_locked(folder.path / LOCK)


def _named(folder: SiteFolder) -> str:
    try:
        return f" (process {int(json.loads((folder.path / STATUS).read_text())['pid'])})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


class _Ending:
    """Why the node has to end, where it is known."""

    def __init__(self) -> None:
        self.reason: Callable[[], ConsiliumError | None] = lambda: None

    def tell(self) -> None:
        problem = self.reason()
        if problem is not None:
            log.error("%s: %s", problem.code, problem)
            raise problem from None


class _Executor:
    """The process that runs the tasks, started again whenever it ends before the node does."""

    def __init__(self, folder: SiteFolder, port: int, environment: Mapping[str, str]) -> None:
        self._command = [
            *(sys.executable, "-m", "client.executor"),
            *(f"127.0.0.1:{port}", str(folder.executor_secret), str(folder.path.resolve())),
        ]
        self._environment = dict(environment)
        self._ended = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Its parent is the thread that lives as long as this process, since the kernel watches the thread that made a child."""
        threading.Thread(target=self._keep, daemon=True, name="executor").start()

    def _keep(self) -> None:
        pacing = Pacing(1.0, 60.0)
        while True:
            with self._lock:
                if self._ended.is_set():
                    return
                self._process = subprocess.Popen(self._command, env=self._environment)
            status = self._process.wait()
            if self._ended.is_set():
                return
            wait = pacing.wait_s()
            log.error("the executor ended with status %s; starting it again in %.0f s", status, wait)
            self._ended.wait(wait)

    def end(self) -> None:
        self._ended.set()
        with self._lock:
            process = self._process
        if process is None:
            return
        process.terminate()
        try:
            process.wait(3)  # Flower ends this process five seconds after it was told to stop
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _executor_environment(threads: int | None) -> dict[str, str]:
    environment = dict(os.environ)
    if threads is not None:
        environment.update(OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
    return environment


def _run_supernode(
    folder: SiteFolder,
    superlink: str,
    ca: Path,
    port: int,
    ending: _Ending,
    *,
    any_release: bool,
) -> None:
    from flwr.supercore import heartbeat
    from flwr.supercore.exit.exit_handler import trigger_exit_handlers
    from flwr.supernode import fleet_http_connection
    from flwr.supernode import start_client_internal as internal
    from flwr.supernode.cli.flower_supernode import flower_supernode

    from client import own_code
    from client.connection import Connection, NodeStatus, make_patient, utc_now
    from client.door import Door

    shorten_waits(internal, LONGEST_WAIT_S)
    shorten_back_off()
    door = Door(folder)
    own_code.install(internal, own_code.OwnCode.installed(folder, any_release=any_release), door)
    door.install(internal)
    began = utc_now()
    status = NodeStatus(
        pid=os.getpid(),
        started=began,
        since=began,
        superlink=superlink,
        any_release=any_release,
        node_id=_known_id(folder),
    )
    connection = Connection(folder.path / STATUS, status)
    ending.reason = lambda: connection.ending
    make_patient(fleet_http_connection, heartbeat, connection)
    sys.argv = [
        "flower-supernode",
        *("--root-certificates", str(ca)),
        *("--superlink", superlink),
        *("--auth-supernode-private-key", str(folder.node_key)),
        *("--host", "127.0.0.1"),
        *("--port", str(port)),
        *("--isolation", "process"),
        *("--superexec-auth-secret-file", str(folder.executor_secret)),
        *(
            "--node-config",
            f'site-folder="{folder.path.resolve()}" {own_code.ANY_RELEASE}={"true" if any_release else "false"}',
        ),
    ]
    try:
        flower_supernode()
    finally:
        trigger_exit_handlers(run_before_force_exit=False)  # else its server's thread would keep this process alive


def _known_id(folder: SiteFolder) -> str | None:
    """The id under which the coordinator last knew this node."""
    try:
        known = json.loads((folder.path / STATUS).read_text())["node_id"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return known if isinstance(known, str) and known.isdecimal() else None


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
