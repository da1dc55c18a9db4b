"""The way to the coordinator: each fault of network, certificate, admission, clock or proxy is caused, and found with its remedy."""

from __future__ import annotations

import re
import socket
import ssl
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import doctor_visit
import httpx
import pytest
from connect_proxy import proxy
from doctor_visit import ACCEPTED, UNKNOWN, UNSIGNED, Authority, Reply, at, coordinator, join, look
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.server.superlink.linkstate import LinkState
from flwr.supercore.error import FlowerError
from flwr.supercore.error.catalog import API_ERROR_MAP
from flwr.superlink.servicer.fleet import fleet_handlers
from hypothesis import given
from hypothesis import strategies as st

from client.doctor import network
from client.gateway import gateway_folder
from client.proxies import proxy_for
from client.site_folder import SiteFolder
from shared.processes import free_ports

site, authority = doctor_visit.site, doctor_visit.authority
device_without_torch = doctor_visit.device_without_torch


# The way to the coordinator


def test_a_healthy_way_is_ok_at_every_step(site: SiteFolder, authority: Authority) -> None:
    found = at(site, authority)
    steps = ("joined", "proxy", "dns", "tcp", "tls", "node-key", "clock")
    assert {name: found[name].outcome for name in steps} == dict.fromkeys(steps, "ok")
    assert "Coordinator's authority" in found["tls"].found and "(99 days left)" in found["tls"].found


def test_a_name_that_nobody_knows(site: SiteFolder, authority: Authority) -> None:
    found = look(join(site, "no-such-host.invalid:443", authority.ca))
    assert (
        found["dns"].outcome == "fault"
        and "no-such-host.invalid" in found["dns"].found
        and "DNS" in found["dns"].remedy
    )
    assert found["tcp"].outcome == "skipped" and "Name of the coordinator" in found["tcp"].found


def test_a_closed_port(site: SiteFolder, authority: Authority) -> None:
    (port,) = free_ports(1)
    found = look(join(site, f"localhost:{port}", authority.ca))
    assert found["tcp"].outcome == "fault" and "refused" in found["tcp"].found.lower()
    assert f"outbound TCP to localhost port {port}" in found["tcp"].remedy
    assert found["tls"].outcome == found["node-key"].outcome == "skipped"


def test_a_firewall_that_swallows_packets_is_not_waited_for_long(site: SiteFolder, authority: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        fillers = [socket.socket() for _ in range(4)]
        try:
            for one in fillers:
                one.setblocking(False)
                one.connect_ex(full.getsockname())
            started = time.monotonic()
            found = look(join(site, f"127.0.0.1:{full.getsockname()[1]}", authority.ca), timeout_s=0.3)["tcp"]
        finally:
            for one in fillers:
                one.close()
    assert found.outcome == "fault" and "no answer" in found.found and time.monotonic() - started < 10


def test_another_authority_is_named_as_a_firewall_shows_up(
    site: SiteFolder, authority: Authority, tmp_path: Path
) -> None:
    inspecting = Authority(tmp_path / "firewall", "Hospital firewall")
    with coordinator(inspecting.issue("localhost")) as port:
        found = look(join(site, f"localhost:{port}", authority.ca))
    assert found["tls"].outcome == "fault" and "issued by Hospital firewall" in found["tls"].found
    assert "inspects TLS" in found["tls"].remedy and found["node-key"].outcome == "skipped"


def test_an_expired_certificate(site: SiteFolder, authority: Authority) -> None:
    with coordinator(authority.issue("localhost", begins=-30, ends=-2)) as port:
        found = look(join(site, f"localhost:{port}", authority.ca))["tls"]
    ended = datetime.now(UTC) - timedelta(days=2)
    assert (
        found.outcome == "fault"
        and f"ended on {ended:%Y-%m-%d}" in found.found
        and "consilium-server renew" in found.remedy
    )


def test_a_certificate_that_begins_tomorrow(site: SiteFolder, authority: Authority) -> None:
    with coordinator(authority.issue("localhost", begins=1)) as port:
        found = look(join(site, f"localhost:{port}", authority.ca))["tls"]
    assert found.outcome == "fault" and "begins on" in found.found and "clock" in found.remedy


def test_a_certificate_that_ends_soon(site: SiteFolder, authority: Authority) -> None:
    with coordinator(authority.issue("localhost", ends=12.5)) as port:
        found = look(join(site, f"localhost:{port}", authority.ca))["tls"]
    assert found.outcome == "warning" and "(12 days left)" in found.found


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_certificate_for_another_name(site: SiteFolder, authority: Authority, host: str) -> None:
    with coordinator(authority.issue("fl.example.org")) as port:
        found = look(join(site, f"{host}:{port}", authority.ca))["tls"]
    assert found.outcome == "fault" and f"for fl.example.org, but not for {host}" in found.found
    assert f"--host {host}" in found.remedy


def test_something_that_speaks_no_tls(site: SiteFolder, authority: Authority) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        found = look(join(site, f"localhost:{server.server_address[1]}", authority.ca))["tls"]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert found.outcome == "fault" and "no TLS connection" in found.found


# Whether the node is admitted, and the clock


@pytest.mark.parametrize(
    ("reply", "found_words", "remedy_words"),
    [
        (UNKNOWN, "not admitted, or it has been revoked", "consilium-server sites"),
        (UNSIGNED, "does not take this node's signature", "keys/node.pub"),
        ((401, {"detail": "client certificate refused", "reason": "NONE"}), "which a node can't show by itself", "consilium-site gateway"),
        ((401, {"detail": "client certificate refused", "reason": "FAILED:certificate revoked"}), "has revoked", "new keys"),
        ((401, {"detail": "client certificate refused", "reason": "FAILED:certificate has expired"}), "expired", "consilium-server admit"),
        ((403, {"detail": "not offered here"}), "does not offer what a node calls", "consilium-server gateway"),
        ((502, {}), "coordinator behind it does not", "consilium-server up"),
        ((404, {"detail": "Not Found"}), "no coordinator (HTTP status 404)", "address"),
    ],
)  # fmt: skip
def test_each_refusal_has_its_own_words(
    site: SiteFolder, authority: Authority, reply: Reply, found_words: str, remedy_words: str
) -> None:
    found = at(site, authority, reply)["node-key"]
    assert found.outcome == "fault" and found_words in found.found and remedy_words in found.remedy


@pytest.mark.parametrize(
    ("ahead_s", "outcome"),
    [
        (0, "ok"),
        (1, "ok"),
        (-1, "ok"),
        (4.5, "warning"),
        (-20, "warning"),
        (-290, "warning"),
        (12, "fault"),
        (-320, "fault"),
        (4000, "fault"),
    ],
)
def test_a_clock_that_differs(site: SiteFolder, authority: Authority, ahead_s: float, outcome: str) -> None:
    found = at(site, authority, ahead_s=ahead_s)["clock"]
    assert found.outcome == outcome
    if outcome != "ok":
        assert ("ahead of" if ahead_s > 0 else "behind") in found.found and "NTP" in found.remedy


def test_a_signature_that_is_refused_because_of_the_clock_says_so(site: SiteFolder, authority: Authority) -> None:
    found = at(site, authority, UNSIGNED, ahead_s=60)
    assert "clocks differ" in found["node-key"].found and "clock" in found["node-key"].remedy
    assert found["clock"].outcome == "fault" and re.search("6[01] s ahead", found["clock"].found)


def test_the_window_of_the_clock_is_the_installed_flowers() -> None:
    assert (network.BEHIND_S, network.AHEAD_S) == (TIMESTAMP_TOLERANCE, SYSTEM_TIME_TOLERANCE)


def test_the_question_is_one_that_the_installed_flower_answers_without_changing_anything() -> None:
    """With Flower's own handler: known and unknown keys differ, and of the state nothing but the key is looked up."""

    class State:
        def __init__(self, node_id: int | None) -> None:
            self.node_id = node_id

        def get_node_id_by_public_key(self, key: bytes) -> int | None:
            return self.node_id

        def __getattr__(self, name: str) -> Any:
            pytest.fail(f"the SuperLink's state was asked for {name}")

    question = ActivateNodeRequest(public_key=b"key", heartbeat_interval=0)
    for node_id, expected in ((7, ACCEPTED), (None, UNKNOWN)):
        state: Any = State(node_id)
        with pytest.raises(FlowerError) as refused:
            fleet_handlers.activate_node(question, state)
        assert (API_ERROR_MAP[refused.value.code].http_status_code, refused.value.code) == (
            expected[0],
            expected[1]["code"],
        )
    assert hasattr(LinkState, "get_node_id_by_public_key")


# Proxies


def test_everything_goes_through_the_proxy_which_looks_the_name_up(
    site: SiteFolder, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name is one that only the proxy knows."""
    with coordinator(authority.issue("fl.hospitals.invalid")) as port, proxy(lambda *_: None) as (proxy_port, asked):
        join(site, f"fl.hospitals.invalid:{port}", authority.ca)
        found = look(site, environment={"HTTPS_PROXY": f"http://someone:secret@127.0.0.1:{proxy_port}"})
    for name in ("proxy", "dns", "tcp", "tls", "node-key"):
        assert found[name].outcome == "ok", found[name]
    assert asked and set(asked) == {f"CONNECT fl.hospitals.invalid:{port} HTTP/1.1"}
    assert "secret" not in "".join(one.found + one.remedy for one in found.values())


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "NAME:PASSWORD"),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "allow CONNECT"),
        (b"", "allow CONNECT"),
    ],
)
def test_a_proxy_that_refuses(site: SiteFolder, authority: Authority, refusal: bytes, words: str) -> None:
    with proxy(lambda *_: refusal) as (port, _):
        found = look(join(site, "fl.example.org:443", authority.ca), environment={"https_proxy": f"127.0.0.1:{port}"})[
            "tcp"
        ]
    assert found.outcome == "fault" and words in found.remedy and "proxy refuses" in found.found


def test_the_account_is_given_to_a_proxy_that_asks_for_one(site: SiteFolder, authority: Authority) -> None:
    def answer(target: str, headers: list[str]) -> bytes | None:
        return None if "Proxy-Authorization: Basic bsO2OnA=" in headers else b"HTTP/1.1 407 Who are you\r\n\r\n"  # nö:p

    with coordinator(authority.issue("localhost")) as port, proxy(answer) as (proxy_port, _):
        join(site, f"localhost:{port}", authority.ca)
        found = look(site, environment={"HTTPS_PROXY": f"http://n%C3%B6:p@127.0.0.1:{proxy_port}"})
    assert found["tls"].outcome == found["node-key"].outcome == "ok"


def test_a_proxy_that_is_not_there_an_unusable_one_and_none_at_all(site: SiteFolder, authority: Authority) -> None:
    join(site, "fl.example.org:443", authority.ca)
    assert look(site, environment={"HTTPS_PROXY": f"http://127.0.0.1:{free_ports(1)[0]}"})["tcp"].outcome == "fault"
    assert look(site, environment={"HTTPS_PROXY": "http://proxy:port"})["proxy"].outcome == "fault"
    assert "socks5" in look(site, environment={"ALL_PROXY": "socks5://proxy:1080"})["proxy"].found
    assert "directly" in look(site, environment={"HTTPS_PROXY": "http://p:1", "NO_PROXY": "example.org"})["proxy"].found


def test_the_own_gateway_uses_no_proxy_and_that_is_said(site: SiteFolder, authority: Authority) -> None:
    gateway_folder(site).make()
    gateway_folder(site).configuration.write_text(f"listen 127.0.0.1:{free_ports(1)[0]} ssl;")
    with coordinator(authority.issue("localhost")) as port:
        join(site, f"localhost:{port}", authority.ca)
        found = look(site, environment={"HTTPS_PROXY": f"http://127.0.0.1:{free_ports(1)[0]}"})
    assert found["proxy"].outcome == "ok" and "HTTPS_PROXY is not used" in found["proxy"].found
    assert found["tls"].outcome == found["node-key"].outcome == "ok"


HOSTS = st.sampled_from(
    ["fl.example.org", "example.org", "org", "192.0.2.7", "localhost", "notexample.org", "a.localhost", "1.192.0.2.7"]
)
EXCEPTIONS = st.lists(
    st.sampled_from(["example.org", ".example.org", "*", "192.0.2.7", "org", "localhost", "fl.example.org", ""]),
    max_size=3,
)


@given(HOSTS, EXCEPTIONS, st.booleans(), st.booleans(), st.booleans())
def test_the_proxy_is_the_one_that_the_nodes_http_client_would_take(
    host: str, exceptions: list[str], https: bool, everything: bool, unset: bool
) -> None:
    environment = {"NO_PROXY": ",".join(exceptions)}
    environment |= {"https_proxy": ""} if unset else {}
    environment |= {"HTTPS_PROXY": "http://a:1"} if https else {}
    environment |= {"ALL_PROXY": "http://b:2"} if everything else {}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("http", "https", "all", "no"):
            patch.delenv(f"{name}_proxy", raising=False)
            patch.delenv(f"{name}_proxy".upper(), raising=False)
        for name, value in environment.items():
            patch.setenv(name, value)
        with httpx.Client(verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)) as client:
            chosen: Any = client._transport_for_url(httpx.URL(f"https://{host}"))
            pool = chosen._pool
            expected = None if not hasattr(pool, "_proxy_url") else pool._proxy_url.port
    found = proxy_for(host, environment)
    assert (found.port if found is not None else None) == expected
