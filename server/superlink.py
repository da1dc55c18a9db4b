"""Flower's SuperLink as a child process, and its control API: register nodes, start and stop a run.

`python -m server.superlink ARGS` is `flower-superlink ARGS` that ends with the process that started it.
The control API has no authentication in the open-source SuperLink: it is only ever bound to the loopback interface here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from server.certificates import ServerCertificates
from shared.errors import ProcessError
from shared.flower_settings import QUIET_FLOWER
from shared.processes import die_with_parent

#: How a database file is used. Flower's own 5 s of waiting are exceeded where a model of many tensors is registered on a busy machine,
#: and a node that gets an error for an answer ends. Large pages write and delete pieces of 5 MB in less than half the time; 1000 of them
#: are SQLite's usual number between two merges of its log. The page size is the first, because it is fixed once there is a log.
DATABASE_SETTINGS = {"page_size": "65536", "busy_timeout": "60000", "wal_autocheckpoint": "1000"}

#: Flower's marker for state that is held in memory.
IN_MEMORY = ":flwr-in-memory:"


@dataclass(frozen=True, slots=True)
class SuperLink:
    """A running SuperLink."""

    process: subprocess.Popen[bytes]
    address: str
    certificates: ServerCertificates


def start_superlink(
    certificates: ServerCertificates, *, port: int, home: Path, log: IO[bytes], database: str = IN_MEMORY
) -> SuperLink:
    """Start it on 127.0.0.1:port. Its ServerApp will find the packages of this installation."""
    command = [
        *(sys.executable, "-m", "server.superlink"),
        *("--ssl-ca-certfile", str(certificates.ca)),
        *("--ssl-certfile", str(certificates.certificate)),
        *("--ssl-keyfile", str(certificates.key)),
        "--enable-supernode-auth",
        *("--host", "127.0.0.1"),
        *("--port", str(port)),
        *("--database", database),
        "--disable-runtime-dependency-installation",
    ]
    bin_folder = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        **QUIET_FLOWER,
        "FLWR_HOME": str(home),
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5",  # it has one task, the ServerApp, and asks for more all through the run
        "PATH": bin_folder + os.pathsep + os.environ.get("PATH", ""),  # it starts flower-superexec by name
        "NO_PROXY": "127.0.0.1,localhost",
    }
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    return SuperLink(process, f"127.0.0.1:{port}", certificates)


class Control:
    """The control API of a SuperLink on this machine."""

    def __init__(self, superlink: SuperLink) -> None:
        from flwr.supercore.control import ControlHttpClient
        from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
        from flwr.supercore.retry import make_simple_http_retry_invoker

        retry = make_simple_http_retry_invoker()
        retry.max_tries = 1
        self._superlink = superlink
        self._client = ControlHttpClient.from_server_address(
            server_address=superlink.address,
            insecure=False,
            root_certificates=superlink.certificates.ca.read_bytes(),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="consilium-server")],
            retry_invoker=retry,
        )

    def wait_until_ready(self, deadline_s: float = 60.0) -> None:
        """Until the API answers. Raises ProcessError where the SuperLink ends or does not answer in time."""
        from flwr.proto.control_pb2 import ListRunsRequest

        limit = time.monotonic() + deadline_s
        while time.monotonic() < limit:
            if self._superlink.process.poll() is not None:
                raise ProcessError(
                    f"the SuperLink ended with status {self._superlink.process.returncode}; see logs/superlink.log"
                )
            try:
                self._client.ListRuns(ListRunsRequest())
                return
            except Exception:
                time.sleep(0.1)
        raise ProcessError(f"the SuperLink did not answer within {deadline_s:g} s; see logs/superlink.log")

    def register(self, name: str, public_key: Path) -> int:
        """Admit a node by its public key (OpenSSH form); returns its id."""
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import load_ssh_public_key
        from flwr.proto.control_pb2 import RegisterNodeRequest
        from flwr.supercore.primitives.asymmetric import public_key_to_bytes

        key = load_ssh_public_key(public_key.read_bytes())
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ProcessError(f"{public_key}: expected an elliptic-curve public key")
        response = self._client.RegisterNode(RegisterNodeRequest(public_key=public_key_to_bytes(key), name=name))
        return int(response.node_id)

    def start_run(self, fab: bytes, run_config: dict[str, Any]) -> int:
        """Submit the app with these overrides of its run configuration; returns the run's id."""
        import hashlib

        from flwr.common.serde import fab_to_proto, user_config_to_proto
        from flwr.proto.control_pb2 import StartRunRequest
        from flwr.supercore.fab import Fab

        request = StartRunRequest(
            fab=fab_to_proto(Fab(hashlib.sha256(fab).hexdigest(), fab, {})),
            override_config=user_config_to_proto(run_config),
            federation="",
        )
        response = self._client.StartRun(request)
        if not response.HasField("run_id"):
            raise ProcessError("the SuperLink did not accept the run; see logs/superlink.log")
        return int(response.run_id)

    def run_status(self, run_id: int) -> str:
        """Flower's status of the run: pending, starting, running or finished:SUB."""
        from flwr.proto.control_pb2 import ListRunsRequest

        response = self._client.ListRuns(ListRunsRequest(run_id=run_id))
        status = response.run_dict[run_id].status
        return f"{status.status}:{status.sub_status}" if status.sub_status else str(status.status)

    def stop_run(self, run_id: int) -> None:
        from flwr.proto.control_pb2 import StopRunRequest

        self._client.StopRun(StopRunRequest(run_id=run_id))

    def close(self) -> None:
        self._client.close()


def app_bundle() -> bytes:
    """The FAB of this installation: the three packages' Python files and the app's declaration, and nothing else."""
    from flwr.cli.build import build_fab_from_files

    root = Path(__file__).resolve().parent.parent
    files: dict[str, bytes | Path] = {"pyproject.toml": app_declaration().encode()}
    for package in ("server", "client", "shared"):
        for path in sorted((root / package).rglob("*.py")):
            files[path.relative_to(root).as_posix()] = path
    bundle: bytes = build_fab_from_files(files)[0]
    return bundle


def app_declaration() -> str:
    """The part of pyproject.toml that Flower reads, rebuilt so that an installation from a wheel has it too."""
    from shared.release import versions

    return f"""[project]
name = "consilium"
version = "{versions()["consilium"]}"

[tool.flwr.app]
publisher = "consilium"
fab-include = ["/server/**/*.py", "/client/**/*.py", "/shared/**/*.py"]

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"

[tool.flwr.app.config]
run-dir = ""
"""


def set_up_database() -> None:
    """Put `DATABASE_SETTINGS` into Flower's own, in this process. Raises ProcessError where this Flower has no such settings."""
    from flwr.supercore import sql_mixin

    pragmas: dict[str, str] = dict(vars(sql_mixin).get("SQLITE_PRAGMAS", ()))
    if "busy_timeout" not in pragmas:
        raise ProcessError("flwr's SQLITE_PRAGMAS has no busy_timeout: this release was made for flwr 1.41.0")
    vars(sql_mixin)["SQLITE_PRAGMAS"] = tuple({**DATABASE_SETTINGS, **pragmas, **DATABASE_SETTINGS}.items())


def main() -> None:
    die_with_parent()
    set_up_database()
    from flwr.superlink.cli.flower_superlink import flower_superlink

    sys.argv[0] = "flower-superlink"
    flower_superlink()


if __name__ == "__main__":
    main()
