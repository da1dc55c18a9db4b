"""The doctor, against coordinators that are ill in known ways: each fault is caused, and found with its remedy."""

from __future__ import annotations

import json
import re
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from connect_proxy import proxy
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.server.superlink.linkstate import LinkState
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.error.catalog import API_ERROR_MAP
from flwr.superlink.servicer.fleet import fleet_handlers
from hypothesis import given
from hypothesis import strategies as st
from publications import profile_of, published
from typer.testing import CliRunner

from client.cli import app
from client.doctor import EXAMINATIONS, Examination, Finding, examine, network
from client.doctor import machine as machine_checks
from client.doctor.page import page_of, write_page
from client.gateway import gateway_folder
from client.proxies import proxy_for
from client.publications import receive
from client.site_folder import Coordinator, SiteFolder
from shared import nginx
from shared.errors import ConsiliumError, InputError
from shared.processes import free_ports
from shared.profile import Profile
from shared.release import Release
from shared.signing import SigningKey

Reply = tuple[int, dict[str, Any]]


class Authority:
    """A certificate authority of a coordinator, and a server certificate of it: whatever the test wants it to be."""

    def __init__(self, folder: Path, name: str = "Coordinator's authority") -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.ca = folder / "ca.crt"
        self.ca.write_bytes(self._signed(self.name, self.key.public_key(), -1, 3650, ca=True))

    def issue(self, *names: str, begins: float = -1, ends: float = 100) -> tuple[Path, Path]:
        """Certificate and key, from `begins` to `ends` in days from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        certificate, private = self.folder / "server.pem", self.folder / "server.key"
        certificate.write_bytes(self._signed(subject, key.public_key(), begins, ends, names=names))
        pem = serialization.Encoding.PEM
        private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
        return certificate, private

    def _signed(
        self, subject: x509.Name, key: Any, begins: float, ends: float, *, ca: bool = False, names: tuple[str, ...] = ()
    ) -> bytes:
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(
            self.name,
            subject,
            key,
            x509.random_serial_number(),
            now + timedelta(days=begins),
            now + timedelta(days=ends),
        ).add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), False)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


ACCEPTED: Reply = (
    400,
    {"code": int(ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL), "detail": "Invalid heartbeat interval."},
)
UNKNOWN: Reply = (
    412,
    {"code": int(ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED), "detail": "Failed to activate SuperNode."},
)
UNSIGNED: Reply = (401, {"detail": "Invalid SuperNode authentication"})


@contextmanager
def coordinator(certificate: tuple[Path, Path], reply: Reply = ACCEPTED, *, ahead_s: float = 0.0) -> Iterator[int]:
    """A gateway that answers everything so, with a clock that is behind the hospital's by `ahead_s`; its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            body = json.dumps(reply[1]).encode()
            self.send_response_only(reply[0])
            self.send_header("Date", format_datetime(datetime.now(UTC) - timedelta(seconds=ahead_s), usegmt=True))
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*certificate)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def join(site: SiteFolder, address: str, ca: Path, key: SigningKey | None = None, **changes: Any) -> SiteFolder:
    public = str(key.public) if key is not None else "ed25519:" + "A" * 43 + "="
    made = Coordinator(
        federation="Three hospitals", address=address, coordinator_key=public, joined="2026-03-01T10:00:00+00:00"
    )
    (site.path / "coordinator.json").write_text(made.model_copy(update=changes).model_dump_json())
    shutil.copyfile(ca, site.path / "keys" / "ca.crt")
    return site


@pytest.fixture
def site(tmp_path: Path) -> SiteFolder:
    (tmp_path / "mammograms-of-ward-7").mkdir()
    return SiteFolder.create(tmp_path / "site", profile_of(root=str(tmp_path / "mammograms-of-ward-7")))


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.fixture(autouse=True)
def _device_without_torch(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Importing PyTorch takes seconds; one test looks at the real one."""
    if "real_device" not in request.keywords and "real_device" not in request.fixturenames:
        fake = machine_checks.DEVICE.ok("the CPU")
        examined = tuple(
            (words, (lambda visit: fake) if words.name == "device" else check) for words, check in EXAMINATIONS
        )
        monkeypatch.setattr("client.doctor.examination.EXAMINATIONS", examined)


@pytest.fixture
def real_device() -> None:
    """The device is looked at with PyTorch."""


def look(site: SiteFolder, **options: Any) -> dict[str, Finding]:
    """Findings by name; no proxy, no system services, unless the test says so."""
    made = examine(site, **{"environment": {}, "unit_folders": (), "timeout_s": 5.0, **options})
    return {one.name: one for one in made.findings}


def at(site: SiteFolder, authority: Authority, reply: Reply = ACCEPTED, **options: Any) -> dict[str, Finding]:
    """Findings at a coordinator that answers with `reply`."""
    with coordinator(authority.issue("localhost"), reply, **options) as port:
        return look(join(site, f"localhost:{port}", authority.ca))


# Before a hospital has joined


def test_a_new_folder_is_told_how_to_join_and_nothing_is_connected_to(
    site: SiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "create_connection", lambda *_: pytest.fail("connected"))
    found = look(site)
    assert found["joined"].outcome == "fault" and "consilium-site request" in found["joined"].remedy
    assert {found[name].outcome for name in ("dns", "proxy", "tcp", "tls", "node-key", "clock", "studies")} == {
        "skipped"
    }
    assert found["folder"].outcome == found["keys"].outcome == found["data"].outcome == "ok"


def test_a_folder_of_something_else_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a site's folder"):
        look(SiteFolder(tmp_path))


# Folder and keys


@pytest.mark.parametrize("name", ["node.key", "signing.key", "tls.key", "executor.secret"])
def test_a_private_key_that_others_can_read_is_a_fault(site: SiteFolder, name: str) -> None:
    (site.path / "keys" / name).chmod(0o644)
    found = look(site)["keys"]
    assert (
        found.outcome == "fault" and f"keys/{name} (0644)" in found.found and f"chmod 600 keys/{name}" in found.remedy
    )


def test_the_key_of_the_own_gateway_counts_too(site: SiteFolder) -> None:
    (site.path / "keys" / "gateway.key").write_text("x")
    (site.path / "keys" / "gateway.key").chmod(0o640)
    assert "keys/gateway.key (0640)" in look(site)["keys"].found


def test_a_missing_key_is_a_fault(site: SiteFolder) -> None:
    site.node_key.unlink()
    assert "missing: keys/node.key" in look(site)["keys"].found


def test_a_folder_that_others_can_look_into_is_a_warning(site: SiteFolder) -> None:
    site.path.chmod(0o755)
    assert look(site)["folder"].outcome == "warning"


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


# The client certificate


def certificate_of(site: SiteFolder, ends: float) -> None:
    key: Any = serialization.load_pem_private_key(site.tls_key.read_bytes(), password=None)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "anna")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(
        name, name, key.public_key(), 1, now - timedelta(days=40), now + timedelta(days=ends)
    )
    site.tls_certificate.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


@pytest.mark.parametrize(("ends", "outcome"), [(100, "ok"), (10.5, "warning"), (-1, "fault")])
def test_the_hospitals_own_certificate_and_its_end(site: SiteFolder, ends: float, outcome: str) -> None:
    certificate_of(site, ends)
    found = look(site)["client-certificate"]
    assert found.outcome == outcome and ("consilium-site request" in found.remedy) == (outcome != "ok")


def test_a_certificate_for_another_key(site: SiteFolder, tmp_path: Path) -> None:
    certificate_of(site, 100)
    other = SiteFolder.create(tmp_path / "other", site.profile())
    shutil.copyfile(other.tls_key, site.tls_key)
    assert look(site)["client-certificate"].outcome == "fault"


# Release and studies


def test_another_release_is_named_on_both_sides(
    site: SiteFolder, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Release.installed()
    join(site, "no-such-host.invalid:443", authority.ca, release=own)
    assert look(site)["release"].outcome == "ok"
    theirs = own.model_copy(update={"code_digest": "9" * 64, "versions": {**own.versions, "consilium": "7.7.7"}})
    join(site, "no-such-host.invalid:443", authority.ca, release=theirs)
    found = look(site)["release"]
    assert (
        found.outcome == "fault"
        and f"consilium {own.versions['consilium']}" in found.found
        and "consilium 7.7.7" in found.found
    )
    join(site, "no-such-host.invalid:443", authority.ca)
    assert look(site)["release"].outcome == "skipped"


def test_a_study_that_waits_and_its_release_which_is_newer_than_the_admissions(
    site: SiteFolder, authority: Authority, tmp_path: Path
) -> None:
    key = SigningKey.create(tmp_path / "key")
    join(site, "no-such-host.invalid:443", authority.ca, key, release=Release.installed())
    assert look(site)["studies"].outcome == "ok"
    newer = Release.installed().model_copy(update={"code_digest": "8" * 64})
    receive(site, published(tmp_path / "study.json", key, release=newer))
    found = look(site)
    assert (
        found["studies"].outcome == "warning"
        and "waiting" in found["studies"].found
        and "review" in found["studies"].remedy
    )
    assert found["release"].outcome == "fault" and "88888888" in found["release"].found


# Machine


@pytest.mark.parametrize(("free", "outcome"), [(100, "ok"), (5, "warning"), (0.5, "fault")])
def test_disk_space(site: SiteFolder, monkeypatch: pytest.MonkeyPatch, free: float, outcome: str) -> None:
    usage = shutil.disk_usage("/")._replace(free=int(free * (1 << 30)))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    found = look(site)["disk"]
    assert found.outcome == outcome and f"{free:.1f} GiB" in found.found


def test_a_gpu_that_the_profile_wants_and_that_is_not_there(tmp_path: Path, real_device: None) -> None:
    torch = pytest.importorskip("torch")
    wanted = f"cuda:{torch.cuda.device_count()}"
    profile = Profile.model_validate({**profile_of().model_dump(by_alias=True), "device": wanted})
    found = look(SiteFolder.create(tmp_path / "gpu", profile))["device"]
    assert found.outcome == "fault" and wanted in found.found and "nvidia-smi" in found.remedy
    assert f"PyTorch {torch.__version__}" in found.found


def test_data_that_is_not_there_and_data_that_can_not_be_used(site: SiteFolder, tmp_path: Path) -> None:
    found = look(site, with_data=True)["data"]
    assert found.outcome == "fault" and "consilium-site check" in found.remedy
    (tmp_path / "mammograms-of-ward-7").rmdir()
    found = look(site)["data"]
    assert found.outcome == "fault" and "not there" in found.found


def test_data_that_can_be_read_is_ok(tmp_path: Path) -> None:
    from client.phantom import SCANNERS, write_phantom

    write_phantom(tmp_path / "data", patients=4, seed=1, scanner=next(iter(SCANNERS)), prevalence=0.5)
    site = SiteFolder.create(tmp_path / "site", profile_of(root=str(tmp_path / "data")))
    found = look(site, with_data=True)["data"]
    assert found.outcome == "ok" and "every image" in found.found


def test_a_gateway_without_nginx_and_one_that_does_not_run(
    site: SiteFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert look(site)["gateway"].outcome == "skipped"
    (port,) = free_ports(1)
    gateway_folder(site).make()
    gateway_folder(site).configuration.write_text(f"listen 127.0.0.1:{port} ssl;")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(nginx, "_PLACES", ())
    assert "nginx-light" in look(site)["gateway"].remedy
    (tmp_path / "nginx").write_text("#!/bin/sh\n")
    (tmp_path / "nginx").chmod(0o755)
    found = look(site)["gateway"]
    assert (
        found.outcome == "fault"
        and f"127.0.0.1:{port}" in found.found
        and "consilium-site-anna-gateway" in found.remedy
    )
    with socket.create_server(("127.0.0.1", port)):
        assert look(site)["gateway"].outcome == "ok"


def test_a_service_is_installed_when_its_unit_names_this_folder(
    site: SiteFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert look(site)["service"].outcome == "warning"
    monkeypatch.setattr(machine_checks, "has_systemd", lambda: True)
    unit = tmp_path / "consilium-site-anna.service"
    unit.write_text("ExecStart=/usr/bin/consilium-site up /another/folder\n")
    assert "consilium-site service" in look(site, unit_folders=(tmp_path,))["service"].remedy
    unit.write_text(f"ExecStart=/usr/bin/consilium-site up {site.path}\n")
    assert look(site, unit_folders=(tmp_path,))["service"].outcome == "ok"


def test_a_check_that_breaks_is_a_fault_without_its_text_and_the_others_go_on(
    site: SiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> object:
        raise RuntimeError("patient Miller")

    monkeypatch.setattr(shutil, "disk_usage", broken)
    found = look(site)
    assert (
        found["disk"].outcome == "fault"
        and "RuntimeError" in found["disk"].found
        and "Miller" not in found["disk"].found
    )
    assert found["data"].outcome == "ok"


# What is written


def everything(site: SiteFolder, authority: Authority, **options: Any) -> Examination:
    with coordinator(authority.issue("localhost"), UNKNOWN) as port:
        return examine(join(site, f"localhost:{port}", authority.ca), environment={}, unit_folders=(), **options)


def test_every_check_is_made_once_and_whatever_is_wrong_has_a_remedy(site: SiteFolder, authority: Authority) -> None:
    begun: list[str] = []
    ended: list[Finding] = []
    made = everything(site, authority, begins=begun.append, ends=ended.append)
    assert (
        begun == [words.title for words, _ in EXAMINATIONS] == [one.title for one in made.findings]
        and ended == made.findings
    )
    assert len({one.name for one in made.findings}) == len(made.findings)
    for one in made.findings:
        assert bool(one.remedy) == (one.outcome in ("warning", "fault")), one


def test_neither_page_nor_json_holds_a_key_or_a_path_of_the_data_unless_asked(
    site: SiteFolder, authority: Authority, tmp_path: Path
) -> None:
    made = everything(site, authority)
    secrets = [line for path in site.path.glob("keys/*.key") for line in path.read_text().split("\n") if len(line) > 20]
    secrets += [(site.path / "keys" / "executor.secret").read_text(), str(tmp_path), "mammograms-of-ward-7"]
    for text in (page_of(made), made.model_dump_json()):
        assert not [secret for secret in secrets if secret in text]
    with_paths = everything(site, authority, with_paths=True)
    assert "mammograms-of-ward-7" in page_of(with_paths) and "mammograms-of-ward-7" in with_paths.model_dump_json()


def test_a_damaged_coordinators_file_is_not_taken_for_a_site_that_has_not_joined(
    site: SiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "create_connection", lambda *_: pytest.fail("connected"))
    (site.path / "coordinator.json").write_text("{]")
    assert "damaged" in look(site)["joined"].found


def test_the_page_stands_alone_and_escapes_what_it_shows(
    site: SiteFolder, authority: Authority, tmp_path: Path
) -> None:
    made = everything(site, authority).model_copy(update={"title": "<script>alert(1)</script>"})
    write_page(made, tmp_path / "doctor.html")
    text = (tmp_path / "doctor.html").read_text()
    assert "<script" not in text and "&lt;script&gt;" in text
    assert not re.search(r"(src|href)\s*=|url\(|@import|http://|https://", text)
    for one in made.findings:
        assert one.title in text
    with pytest.raises(ConsiliumError, match="can't be written"):
        write_page(made, tmp_path / "no" / "doctor.html")


def test_the_command_ends_with_1_where_there_is_a_fault_and_its_json_is_the_examination(
    site: SiteFolder, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with coordinator(authority.issue("localhost")) as port:
        join(site, f"localhost:{port}", authority.ca)
        told = CliRunner().invoke(app, ["doctor", str(site.path), "--page", str(tmp_path / "doctor.html")])
        assert told.exit_code == 0 and "Admission of this node: the coordinator knows" in told.output
        (site.path / "keys" / "node.key").chmod(0o644)
        told = CliRunner().invoke(app, ["doctor", str(site.path), "--json"])
    assert told.exit_code == 1
    made = Examination.model_validate_json(told.stdout)
    assert [one.name for one in made.findings if one.outcome == "fault"] == ["keys"]
    assert (tmp_path / "doctor.html").read_text().startswith("<!doctype html>")
