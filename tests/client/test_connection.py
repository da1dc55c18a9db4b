"""The way to the coordinator: outages are waited for, refusals are told in a sentence, heartbeats never stop."""

from __future__ import annotations

import logging
import os
import re
import ssl
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from flwr.proto.fleet_pb2 import ActivateNodeRequest, ActivateNodeResponse, PullMessagesRequest, PushMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supercore import heartbeat
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supernode import fleet_http_connection
from flwr.supernode.fleet_http_client import FleetHttpClient

from client import connection as connection_module
from client import node as node_module
from client.connection import HEARTBEAT_S, Connection, NodeStatus, make_patient, patient_client
from client.node import is_up, only_node
from client.site_folder import SiteFolder
from shared.errors import EgressError, ProcessError, RevokedError
from shared.profile import Profile

Answer = Callable[[httpx.Request], httpx.Response]


def status(path: Path) -> NodeStatus:
    return NodeStatus.model_validate_json(path.read_text())


def a_connection(folder: Path, node_id: str | None = None) -> Connection:
    begun = NodeStatus(pid=os.getpid(), started="now", since="now", superlink="fl.example.org:443", node_id=node_id)
    return Connection(folder / "node.json", begun)


class Coordinator:
    """Answers requests in order; the last answer is given again and again."""

    def __init__(self, *answers: Answer | int | bytes | Exception) -> None:
        self._answers = list(answers)
        self.asked: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.url.path.rsplit("/", 1)[1])
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, int):
            return httpx.Response(answer)
        if isinstance(answer, bytes):
            return httpx.Response(200, content=answer)
        return answer(request)


def client_of(connection: Connection, coordinator: Coordinator, waits: list[float] | None = None) -> Any:
    kept = waits if waits is not None else []
    made = patient_client(FleetHttpClient, connection, sleep=kept.append)("https://fl.example.org")
    made._client = httpx.Client(transport=httpx.MockTransport(coordinator))
    return made


def activated(number: int) -> bytes:
    return ActivateNodeResponse(node_id=number).SerializeToString()


def tls_error() -> httpx.ConnectError:
    error = httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate has expired")
    error.__cause__ = ssl.SSLError("certificate has expired")
    return error


REQUEST = ActivateNodeRequest(public_key=b"key", heartbeat_interval=HEARTBEAT_S)


def test_after_a_kill_the_node_waits_until_its_former_process_is_forgotten(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An unregistered node fails in the same way: a request of its own tells that it is admitted all the same."""
    connection, waits = a_connection(tmp_path, node_id="42"), []
    coordinator = Coordinator(412, 403, 412, 403, activated(42))
    assert client_of(connection, coordinator, waits).ActivateNode(REQUEST).node_id == 42
    assert coordinator.asked == ["activate-node", "get-run", "activate-node", "get-run", "activate-node"]
    assert waits == [5.0, 5.0] and connection.ending is None
    assert caplog.text.count("the coordinator still counts the former process as online; trying again in 5 s") == 2
    assert status(tmp_path / "node.json").state == "online"


def test_a_node_that_was_revoked_while_it_was_down_ends(tmp_path: Path) -> None:
    connection = a_connection(tmp_path, node_id="42")
    with pytest.raises(httpx.HTTPStatusError) as raised:
        client_of(connection, Coordinator(412, 401)).ActivateNode(REQUEST)
    assert raised.value.response.status_code == 401, "by which Flower ends the node"
    assert isinstance(connection.ending, RevokedError)
    assert status(tmp_path / "node.json").state == "refused"


def test_a_node_that_was_never_admitted_gives_up_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    connection, waits = a_connection(tmp_path), []
    monkeypatch.setattr(connection_module.time, "monotonic", lambda: connection._began + sum(waits))
    with pytest.raises(httpx.HTTPStatusError):
        client_of(connection, Coordinator(412), waits).ActivateNode(REQUEST)
    assert 40 < sum(waits) <= 50
    assert isinstance(connection.ending, RevokedError) and "does not admit this node" in str(connection.ending)
    assert "does not admit this node yet" in caplog.text


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        (
            "NONE",
            "asks for a client certificate, which a node can't show by itself; .* `consilium-site gateway FOLDER`",
        ),
        ("FAILED:certificate has expired", r"refuses this hospital's client certificate \(certificate has expired\)"),
        ("FAILED:certificate revoked", "no longer admits this node"),
    ],
)
def test_a_gateway_that_refuses_the_client_certificate_is_told_from_a_revocation(
    tmp_path: Path, reason: str, told: str
) -> None:
    connection = a_connection(tmp_path)
    body = {"detail": "client certificate refused", "reason": reason}
    client = client_of(connection, Coordinator(lambda _request: httpx.Response(401, json=body)))
    with pytest.raises(httpx.HTTPStatusError):
        client.ActivateNode(REQUEST)
    assert isinstance(connection.ending, RevokedError)
    assert re.search(told, str(connection.ending))


def test_a_revoked_node_is_told_so_at_its_next_request(tmp_path: Path) -> None:
    connection = a_connection(tmp_path)
    client = client_of(connection, Coordinator(activated(42), b"", 401))
    client.ActivateNode(REQUEST)
    client.PullMessages(PullMessagesRequest())
    with pytest.raises(httpx.HTTPStatusError):
        client.PullMessages(PullMessagesRequest())
    assert isinstance(connection.ending, RevokedError)
    assert "no longer admits this node" in str(connection.ending) and "clock" in str(connection.ending)


@pytest.mark.parametrize(
    "trouble", [500, 502, 503, 504, 429, 403, b"<html>", httpx.ConnectError("refused"), httpx.ReadTimeout("slow"), tls_error()],
    ids=repr,
)  # fmt: skip
def test_whatever_happens_to_a_connected_node_its_next_request_is_tried_again_until_it_is_answered(
    tmp_path: Path, trouble: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """With Flower's own retries around, as in the node: three times trouble, then an answer. `<html>` is a proxy's page."""
    connection = a_connection(tmp_path)
    client = client_of(connection, Coordinator(activated(42), trouble, trouble, trouble, b""))
    client.ActivateNode(REQUEST)
    retries = make_simple_http_retry_invoker()
    retries.wait_function = lambda _seconds: None
    with caplog.at_level(logging.INFO):
        retries.invoke(client.PullMessages, PullMessagesRequest())
    assert connection.ending is None
    assert caplog.text.count("can't be reached") == 1, "once an outage"
    assert "answers again" in caplog.text
    assert status(tmp_path / "node.json").state == "online"


def test_an_outage_is_seen_in_node_json(tmp_path: Path) -> None:
    connection = a_connection(tmp_path)
    client = client_of(connection, Coordinator(activated(42), httpx.ConnectError("Connection refused")))
    client.ActivateNode(REQUEST)
    with pytest.raises(httpx.ConnectError):
        client.PullMessages(PullMessagesRequest())
    found = status(tmp_path / "node.json")
    assert (found.state, found.said, found.node_id) == ("unreachable", "Connection refused", "42")


def test_a_certificate_that_is_not_the_coordinators_ends_a_node_that_was_never_connected(tmp_path: Path) -> None:
    connection = a_connection(tmp_path)
    with pytest.raises(httpx.ConnectError):
        client_of(connection, Coordinator(tls_error())).ActivateNode(REQUEST)
    assert isinstance(connection.ending, ProcessError)
    assert "does not prove to be the coordinator" in str(connection.ending) and "expired" in str(connection.ending)


def test_something_else_at_the_address_ends_a_node_that_was_never_connected(tmp_path: Path) -> None:
    connection = a_connection(tmp_path)
    with pytest.raises(httpx.HTTPStatusError):
        client_of(connection, Coordinator(404)).ActivateNode(REQUEST)
    assert "no coordinator (HTTP status 404)" in str(connection.ending)


def test_a_piece_that_the_coordinator_can_never_take_is_given_up_at_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection, clock = a_connection(tmp_path), [0.0]
    monkeypatch.setattr(connection_module.time, "monotonic", lambda: clock[0])
    client = client_of(connection, Coordinator(500))
    request = PushMessagesRequest()
    seen = []
    for clock[0] in (0.0, 300.0, 601.0):
        with pytest.raises(httpx.HTTPStatusError) as raised:
            client.PushMessages(request)
        seen.append(raised.value.response.status_code)
    assert seen == [503, 503, 500]
    clock[0] = 5000.0
    with pytest.raises(httpx.HTTPStatusError) as raised:
        client.PullMessages(PullMessagesRequest())
    assert raised.value.response.status_code == 503, "looking for messages is never given up"


def test_heartbeats_go_on_after_any_answer(tmp_path: Path) -> None:
    """Flower's thread ends with any exception that is not a transport error, and the node is offline for good."""
    refused = SendNodeHeartbeatResponse(success=False).SerializeToString()
    taken = SendNodeHeartbeatResponse(success=True).SerializeToString()
    connection = a_connection(tmp_path)
    client = client_of(connection, Coordinator(500, 400, refused, b"<html>", taken))
    for _ in range(4):
        with pytest.raises(httpx.TransportError):
            client.SendNodeHeartbeat(SendNodeHeartbeatRequest())
    assert client.SendNodeHeartbeat(SendNodeHeartbeatRequest()).success


@pytest.mark.parametrize("what", ["error", "content"])
def test_no_message_leaves_with_a_text_of_its_own(tmp_path: Path, what: str) -> None:
    message = ProtoMessage()
    if what == "error":
        message.error.reason = "Mueller, Anna"
    else:
        message.content.items.add().key = "Mueller, Anna"
    coordinator = Coordinator(b"")
    with pytest.raises(EgressError):
        client_of(a_connection(tmp_path), coordinator).PushMessages(PushMessagesRequest(messages_list=[message]))
    assert not coordinator.asked


@pytest.fixture
def flowers_modules(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType]:
    for module in (fleet_http_connection, heartbeat):
        monkeypatch.setattr(module, "HEARTBEAT_DEFAULT_INTERVAL", 30)
    monkeypatch.setattr(fleet_http_connection, "FleetHttpClient", FleetHttpClient)
    return fleet_http_connection, heartbeat


def test_flowers_node_uses_the_patient_client_and_reports_every_fifteen_seconds(
    tmp_path: Path, flowers_modules: tuple[ModuleType, ModuleType]
) -> None:
    make_patient(*flowers_modules, a_connection(tmp_path))
    assert fleet_http_connection.FleetHttpClient.__name__ == "PatientClient"
    assert fleet_http_connection.HEARTBEAT_DEFAULT_INTERVAL == heartbeat.HEARTBEAT_DEFAULT_INTERVAL == 15


def test_another_flower_is_refused(
    tmp_path: Path, flowers_modules: tuple[ModuleType, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet, beats = flowers_modules
    monkeypatch.delattr(beats, "HEARTBEAT_DEFAULT_INTERVAL")
    with pytest.raises(ProcessError, match="no HEARTBEAT_DEFAULT_INTERVAL"):
        make_patient(fleet, beats, a_connection(tmp_path))
    monkeypatch.setattr(fleet, "FleetHttpClient", type("FleetHttpClient", (), {"_unary_unary": lambda self: None}))
    with pytest.raises(ProcessError, match=r"_unary_unary is not as expected .* flwr 1\.41\.0"):
        make_patient(fleet, beats, a_connection(tmp_path))


def test_a_second_node_in_one_folder_is_refused_in_a_sentence(tmp_path: Path) -> None:
    profile = {
        "schema": "consilium/profile/1", "site": "anna", "title": "Anna", "device": "cpu",
        "data": {"layout": "cbis_ddsm", "root": "/nowhere", "synthetic": True},
    }  # fmt: skip
    folder = SiteFolder.create(tmp_path / "site", Profile.model_validate(profile))
    assert not is_up(folder)
    with only_node(folder):
        a_connection(folder.path)
        assert is_up(folder)
        with (
            pytest.raises(ProcessError, match=rf"a node works in this folder already \(process {os.getpid()}\)"),
            only_node(folder),
        ):
            pass
    assert not is_up(folder), "however its last process ended"
    assert node_module._known_id(folder) is None
    a_connection(folder.path, node_id="42")
    assert node_module._known_id(folder) == "42"
