"""The node's connection to its coordinator, made patient: an outage is waited for, a refusal is told in a sentence.

Flower ends a node on an error 500, on a failed activation and on a TLS error, stops its heartbeats on any odd answer, and leaves a
node online for a minute after it was killed. Every request passes one method of its client; that method is wrapped here.
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import httpx
from flwr.proto.fleet_pb2 import ActivateNodeRequest, ActivateNodeResponse, PushMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from pydantic import Field

from shared.errors import ConsiliumError, EgressError, ProcessError, RevokedError
from shared.flower_settings import require_parameters
from shared.private_file import write_private
from shared.schema import Strict

log = logging.getLogger("consilium.connection")

#: A node is counted as offline after two heartbeats were missed: 30 s. Flower allows no less than 10.
HEARTBEAT_S = 15
#: How long a node that the coordinator has never answered tries to be admitted: longer than a former process is counted as online.
ADMISSION_S = 40.0
_RETRY_S = 5.0
#: How long a piece of a message is offered to a coordinator that answers with errors.
GIVE_UP_S = 600.0
_VITAL = ("activate-node", "pull-messages", "send-node-heartbeat")

State = Literal["connecting", "online", "unreachable", "refused"]


class NodeStatus(Strict):
    """`node.json`: what `consilium-site status` reads. The node is up only while a process of this id holds `node.lock`."""

    pid: int
    started: str = Field(description="UTC, ISO 8601")
    superlink: str
    any_release: bool = False
    state: State = "connecting"
    since: str = Field(description="since when it is in this state")
    node_id: str | None = Field(default=None, description="as Flower knows it, from the last activation")
    said: str | None = Field(default=None, description="why it can't reach the coordinator")


class Connection:
    """What is known of the way to the coordinator; told in the log when it changes, and in `node.json`."""

    def __init__(self, path: Path, status: NodeStatus) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._status = status
        self.ending: ConsiliumError | None = None
        self._began = time.monotonic()
        self._lost: float | None = None
        self._failing: dict[str, float] = {}
        self._write()

    @property
    def node_id(self) -> int | None:
        """The id that the coordinator last gave this node, in this process or an earlier one."""
        return int(self._status.node_id) if self._status.node_id is not None else None

    @property
    def never_online(self) -> bool:
        """Whether this process has not been connected yet."""
        return self._status.state == "connecting"

    def reached(self, node_id: int | None = None) -> None:
        """The coordinator has answered."""
        with self._lock:
            known = self._status.node_id if node_id is None else str(node_id)
            if self._status.state == "online" and known == self._status.node_id:
                return
            if self._status.state == "connecting" and node_id is None:
                return
            if self._lost is not None:
                log.info("the coordinator answers again, after %.0f s", time.monotonic() - self._lost)
            elif node_id is not None:
                log.info("connected to the coordinator at %s", self._status.superlink)
            self._lost = None
            self._change("online", node_id=known, said=None)

    def worked(self, path: str) -> None:
        """A request of this kind was carried out."""
        self._failing.pop(path, None)

    def failing_s(self, path: str) -> float:
        """For how long requests of this kind have been answered with errors only; this one is such an error."""
        return time.monotonic() - self._failing.setdefault(path, time.monotonic())

    def lost(self, reason: str) -> None:
        """It has not; the request is tried again until it does."""
        with self._lock:
            if self._lost is not None:
                return
            self._lost = time.monotonic()
            log.warning(
                "the coordinator at %s can't be reached: %s; trying again until it can", self._status.superlink, reason
            )
            if self._status.state != "connecting":
                self._change("unreachable", said=reason)

    def end(self, problem: ConsiliumError) -> None:
        """The node is to end with this sentence; the first one counts."""
        with self._lock:
            if self.ending is None:
                self.ending = problem
                self._change("refused", said=str(problem))

    def revoked(self) -> None:
        self.end(
            RevokedError(
                f"the coordinator at {self._status.superlink} no longer admits this node; ask the coordinator, "
                "and compare this machine's clock (it refuses a node whose clock is five minutes off)"
            )
        )

    def certificate_refused(self, reason: str) -> None:
        """By the coordinator's gateway; `reason` is nginx's."""
        if reason == "NONE":
            said = (
                "asks for a client certificate, which a node can't show by itself; write this hospital's own gateway with "
                "`consilium-site gateway FOLDER`, and start the node as it says"
            )
        else:
            why = reason.removeprefix("FAILED:")
            said = f"refuses this hospital's client certificate ({why}); `consilium-site doctor FOLDER` says what to do"
        self.end(RevokedError(f"the coordinator at {self._status.superlink} {said}"))

    def untrusted(self, reason: str) -> None:
        self.end(
            ProcessError(
                f"{self._status.superlink} does not prove to be the coordinator: {reason}; "
                "compare the address and the certificate (keys/ca.crt) with what the coordinator gave"
            )
        )

    def not_admitted(self) -> bool:
        """After a failed first activation: whether to give up. Says what is waited for."""
        if self.node_id is None and time.monotonic() - self._began > ADMISSION_S:
            self.end(
                RevokedError(
                    f"the coordinator at {self._status.superlink} does not admit this node; has it admitted this hospital's join request, "
                    "and is this the folder that the request was made in?"
                )
            )
            return True
        if self.node_id is None:
            log.warning(
                "the coordinator does not admit this node yet, or still counts a former process as online; trying again in %.0f s",
                _RETRY_S,
            )
        else:
            log.warning("the coordinator still counts the former process as online; trying again in %.0f s", _RETRY_S)
        return False

    def _change(self, state: State, *, node_id: str | None = None, said: str | None) -> None:
        self._status = self._status.model_copy(
            update={"state": state, "since": utc_now(), "said": said, "node_id": node_id or self._status.node_id}
        )
        self._write()

    def _write(self) -> None:
        try:
            write_private(self._path, self._status.model_dump_json(indent=2).encode())
        except ConsiliumError as problem:  # a full disk must not end the node
            log.error("%s: %s", problem.code, problem)


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def make_patient(fleet: ModuleType, heartbeat: ModuleType, connection: Connection) -> None:
    """Put the wrapped client and the shorter heartbeat into Flower's modules `fleet_http_connection` and `heartbeat`.

    Raises ProcessError where this Flower's are not as expected.
    """
    base = getattr(fleet, "FleetHttpClient", None)
    if not isinstance(base, type):
        raise ProcessError("flwr's fleet_http_connection has no FleetHttpClient: this release was made for flwr 1.41.0")
    require_parameters(base, "_unary_unary", "self", "path", "rpc_method", "request", "response_type", "timeout")
    for name in ("ActivateNode", "SendNodeHeartbeat", "GetRun", "PushMessages"):
        require_parameters(base, name, "self", "request")
    for module in (fleet, heartbeat):
        if not isinstance(vars(module).get("HEARTBEAT_DEFAULT_INTERVAL"), int):
            raise ProcessError(
                f"{module.__name__} has no HEARTBEAT_DEFAULT_INTERVAL: this release was made for flwr 1.41.0"
            )
        module.HEARTBEAT_DEFAULT_INTERVAL = HEARTBEAT_S  # type: ignore[attr-defined]
    fleet.FleetHttpClient = patient_client(base, connection)  # type: ignore[attr-defined]


def patient_client(base: Any, connection: Connection, *, sleep: Callable[[float], None] = time.sleep) -> type:
    """Flower's client with one answer to each kind of trouble; what it raises, Flower's own retries understand."""

    class PatientClient(base):  # type: ignore[misc]
        def _unary_unary(self, *, path: str, request: Any, **rest: Any) -> Any:
            _require_bare(request)
            try:
                response = super()._unary_unary(path=path, request=request, **rest)
            except httpx.HTTPStatusError as problem:
                raise _told(problem, path, connection) from None
            except httpx.TransportError as problem:
                raise _transport(problem, connection) from None
            except ValueError:  # something else than Flower answered: a proxy's page, say
                connection.lost("something else than the coordinator answered")
                raise httpx.RemoteProtocolError("not the coordinator's answer") from None
            connection.reached()
            connection.worked(path)
            return response

        def ActivateNode(self, request: ActivateNodeRequest) -> ActivateNodeResponse:
            while True:
                try:
                    response: ActivateNodeResponse = super().ActivateNode(request)
                except httpx.HTTPStatusError as problem:
                    status = problem.response.status_code
                    if status == httpx.codes.PRECONDITION_FAILED:
                        self._require_admitted()
                        if connection.not_admitted():
                            raise
                        sleep(_RETRY_S)
                        continue
                    if status not in _RETRIED_BY_FLOWER and status != httpx.codes.UNAUTHORIZED:
                        connection.end(
                            ProcessError(
                                f"what answers at the coordinator's address is no coordinator (HTTP status {status})"
                            )
                        )
                    raise
                connection.reached(response.node_id)
                return response

        def _require_admitted(self) -> None:
            """A node that was unregistered fails to be activated like one that is online: any other request tells them apart."""
            if connection.node_id is None:
                return
            try:
                super().GetRun(GetRunRequest(node=Node(node_id=connection.node_id), run_id=0))
            except httpx.HTTPStatusError as problem:
                if problem.response.status_code == httpx.codes.UNAUTHORIZED:
                    raise
            except httpx.TransportError:
                pass

        def SendNodeHeartbeat(self, request: SendNodeHeartbeatRequest) -> SendNodeHeartbeatResponse:
            """A heartbeat that fails is tried again; Flower would stop sending any."""
            try:
                response: SendNodeHeartbeatResponse = super().SendNodeHeartbeat(request)
            except httpx.HTTPStatusError as problem:
                if problem.response.status_code == httpx.codes.UNAUTHORIZED:
                    raise
                raise httpx.ConnectError(f"HTTP status {problem.response.status_code}") from None
            if not response.success:
                raise httpx.ConnectError("the coordinator did not take the heartbeat")
            return response

    return PatientClient


_RETRIED_BY_FLOWER = (502, 503, 504)


def _told(problem: httpx.HTTPStatusError, path: str, connection: Connection) -> httpx.HTTPStatusError:
    """The error as Flower's retries are to see it."""
    status = problem.response.status_code
    if status == httpx.codes.UNAUTHORIZED:
        reason = _certificate_refused(problem.response)
        if reason is None or "revoked" in reason:
            connection.revoked()
        else:
            connection.certificate_refused(reason)
        return problem
    # 403 says "this run has ended", which can't be of a request that names no run: there it is the gateway's own.
    if status >= 500 or status == httpx.codes.TOO_MANY_REQUESTS or (status == 403 and path.endswith("pull-messages")):
        if connection.failing_s(path) > GIVE_UP_S and not path.endswith(_VITAL):
            return problem  # Flower gives this message up, and looks for the next
        connection.lost(f"HTTP status {status}")
        response = httpx.Response(503, request=problem.request)
        return httpx.HTTPStatusError(f"HTTP status {status}", request=problem.request, response=response)
    return problem


def _certificate_refused(response: httpx.Response) -> str | None:
    """Why a gateway refuses the client certificate; None where it was not that."""
    try:
        body = response.json()
    except ValueError:
        return None
    if not isinstance(body, dict) or body.get("detail") != "client certificate refused":
        return None
    return str(body.get("reason", ""))[:200]


def _transport(problem: httpx.TransportError, connection: Connection) -> httpx.TransportError:
    reason = str(problem) or type(problem).__name__
    if not _is_tls(problem):
        connection.lost(reason)
        return problem
    if connection.never_online:
        connection.untrusted(reason)
        return problem
    connection.lost(reason)
    return httpx.ConnectError("no connection")  # in other words, since Flower ends on these


def _is_tls(problem: BaseException | None) -> bool:
    while problem is not None:
        if isinstance(problem, ssl.SSLError):
            return True
        problem = problem.__cause__ or problem.__context__
    return False


def _require_bare(request: Any) -> None:
    """What is announced of a reply is its metadata: no content, no error's text. The pieces were checked by the door."""
    if isinstance(request, PushMessagesRequest):
        for message in request.messages_list:
            if message.HasField("error") or message.content.ByteSize():
                raise EgressError("a message with a text of its own was about to leave")
