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
from shared.logs import RotatingPipe
from shared.processes import die_with_parent

#: How a database file is used. Flower's own 5 s of waiting are exceeded where a model of many tensors is registered on a busy machine,
#: and a node that gets an error for an answer ends. Large pages write and delete pieces of 5 MB in less than half the time; 1000 of them
#: are SQLite's usual number between two merges of its log. The page size is the first, because it is fixed once there is a log.
#: A log that grew beyond them because it was read all the time is cut when it can be.
DATABASE_SETTINGS = {
    "page_size": "65536",
    "busy_timeout": "60000",
    "wal_autocheckpoint": "1000",
    "journal_size_limit": "67108864",
}

#: Flower's marker for state that is held in memory.
IN_MEMORY = ":flwr-in-memory:"


@dataclass(frozen=True, slots=True)
class SuperLink:
    """A running SuperLink."""

    process: subprocess.Popen[bytes]
    address: str
    certificates: ServerCertificates


def start_superlink(
    certificates: ServerCertificates, *, port: int, home: Path, log: IO[bytes] | RotatingPipe, database: str = IN_MEMORY
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
    process = subprocess.Popen(
        command, env=environment, stdout=log.fileno(), stderr=subprocess.STDOUT, start_new_session=True
    )
    return SuperLink(process, f"127.0.0.1:{port}", certificates)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a SuperLink of this machine is reached that another process started."""

    address: str
    certificates: ServerCertificates


@dataclass(frozen=True, slots=True)
class Node:
    """A node as Flower knows it. `state` is registered (never seen yet), online, offline or unregistered; times are ISO 8601."""

    node_id: int
    name: str
    key: bytes
    state: str
    registered: str
    online_since: str | None
    offline_since: str | None


class Control:
    """The control API of a SuperLink on this machine. No call is tried twice."""

    def __init__(self, superlink: SuperLink | Endpoint) -> None:
        from flwr.supercore.control import ControlHttpClient
        from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

        self._superlink = superlink
        self._client = ControlHttpClient.from_server_address(
            server_address=superlink.address,
            insecure=False,
            root_certificates=superlink.certificates.ca.read_bytes(),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="consilium-server")],
        )

    def wait_until_ready(self, deadline_s: float = 60.0) -> None:
        """Until the API answers. Raises ProcessError where the SuperLink ends or does not answer in time."""
        from flwr.proto.control_pb2 import ListRunsRequest

        limit = time.monotonic() + deadline_s
        while time.monotonic() < limit:
            if isinstance(self._superlink, SuperLink) and self._superlink.process.poll() is not None:
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
        """Admit a node by the file of its public key (OpenSSH form); returns its id."""
        return self.register_key(name, public_key.read_text(encoding="utf-8"))

    def register_key(self, name: str, public_key: str) -> int:
        """Admit a node by its public key (OpenSSH form); returns its id. Raises ProcessError where Flower does not take it."""
        from flwr.proto.control_pb2 import RegisterNodeRequest

        response = self._client.RegisterNode(RegisterNodeRequest(public_key=key_in_flower(public_key), name=name))
        if not response.HasField("node_id") or not response.node_id:
            raise ProcessError(f"the SuperLink did not register the node of {name}; see logs/superlink.log")
        return int(response.node_id)

    def unregister(self, node_id: int) -> None:
        """Whoever holds this node's key is refused from now on, and the key can't be registered again."""
        from flwr.proto.control_pb2 import UnregisterNodeRequest

        self._client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))

    def nodes(self) -> list[Node]:
        """Every node that was ever registered in this SuperLink's database."""
        from flwr.proto.control_pb2 import ListNodesRequest

        return [
            Node(
                node_id=int(one.node_id),
                name=one.name,
                key=bytes(one.public_key),
                state=one.status,
                registered=one.registered_at,
                online_since=one.last_activated_at or None,
                offline_since=one.last_deactivated_at or None,
            )
            for one in self._client.ListNodes(ListNodesRequest()).nodes_info
        ]

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


def key_in_flower(public_key: str) -> bytes:
    """A node's public key (OpenSSH form) as Flower stores it. Raises ProcessError where it is of another kind."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes

    key = load_ssh_public_key(public_key.encode())
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ProcessError(f"expected an elliptic-curve public key, but got '{public_key[:60]}'")
    return public_key_to_bytes(key)


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
