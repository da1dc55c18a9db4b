"""The door, with the real nginx: what hospitals reach through it, and who is refused."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest, PullMessagesRequest
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from flwr.superlink.routers.fleet.router import router
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from typer.testing import CliRunner

from client import gateway as site_gateway
from client.doctor.findings import Finding, Visit
from client.doctor.machine import GATEWAY, check_gateway
from client.doctor.network import NETWORK
from client.site_folder import Coordinator, SiteFolder
from server import gateway
from server.certificates import Authority
from server.cli import app
from server.home import Home
from server.joining import write_revocation_list
from server.registry import SiteRecord
from server.superlink import Control, SuperLink, start_superlink
from shared.errors import InputError, NotInstalledError, ProcessError
from shared.nginx import INSTALLING, GatewayFolder, check_configuration, find_nginx, quoted
from shared.processes import free_ports
from shared.profile import Profile
from shared.release import Release
from tests.client.connect_proxy import proxy

FLEET = {route.path for route in router.routes}
PULL = "/v1/fleet/pull-messages"


def require_nginx() -> None:
    try:
        find_nginx()
    except NotInstalledError:
        pytest.skip(f"NOT TESTED: the gateway needs nginx, which is not installed here; {INSTALLING}")


def request_of(folder: Path) -> str:
    """A certificate request for a new key, which is left in `folder/tls.key`."""
    key = ec.generate_private_key(ec.SECP256R1())
    folder.mkdir(parents=True, exist_ok=True)
    pem = serialization.Encoding.PEM
    (folder / "tls.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "anna")])
    return x509.CertificateSigningRequestBuilder(subject).sign(key, hashes.SHA256()).public_bytes(pem).decode()


def issued(folder: Path, authority: Authority, **options: int) -> int:
    """`tls.pem` and `tls.key` in `folder`; the serial number."""
    certificate = authority.issue_client(request_of(folder), "anna", **options)
    (folder / "tls.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return certificate.serial_number


def site_folder(path: Path) -> SiteFolder:
    profile = {
        "schema": "consilium/profile/1", "site": "anna", "title": "Anna",
        "data": {"layout": "cbis_ddsm", "root": "/nowhere", "synthetic": True}, "device": "cpu",
    }  # fmt: skip
    return SiteFolder.create(path, Profile.model_validate(profile))


def join(site: SiteFolder, home: Home, certificate: Path, address: str) -> None:
    """As if `certificate`'s folder held what came with the admission."""
    coordinator = Coordinator(
        federation="f", address=address, coordinator_key=str(home.signing_key().public), joined="2026-03-01"
    )
    (site.path / "coordinator.json").write_text(coordinator.model_dump_json())
    for name in ("tls.pem", "tls.key"):
        shutil.copyfile(certificate / name, site.path / "keys" / name)
    shutil.copyfile(home.certificates.ca, site.path / "keys" / "ca.crt")


def former_site(name: str, serial: int) -> SiteRecord:
    return SiteRecord(
        site=name, title=name, node_key="none", signing_key="ed25519:" + "A" * 43 + "=", release=Release.installed(),
        admitted="2026-03-01T10:00:00+00:00", certificates=[str(serial)],
    )  # fmt: skip


@contextmanager
def nginx(folder: GatewayFolder, port: int) -> Iterator[None]:
    log = (folder.path / "output.log").open("wb")
    process = subprocess.Popen(folder.command(), stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        limit = time.monotonic() + 20
        while True:
            assert process.poll() is None, (folder.path / "output.log").read_text()
            with socket.socket() as one:
                if one.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert time.monotonic() < limit
            time.sleep(0.05)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)
        log.close()


@dataclass(frozen=True)
class Door:
    """Hospital's gateway -> coordinator's gateway -> SuperLink, all on this machine."""

    home: Home
    control: Control
    superlink: SuperLink
    strict: int  # port of the coordinator's gateway that asks for client certificates
    lenient: int  # of one that does not
    local: int  # of the hospital's
    site: SiteFolder
    node_id: int
    certificates: Path  # one folder each: good, foreign, expired, revoked


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    require_nginx()
    base = tmp_path_factory.mktemp("door")
    superlink_port, strict, lenient, local = free_ports(4)
    home = Home.create(base / "home", "f", ["gateway.example.org"], address=f"localhost:{strict}", port=superlink_port)
    certificates = base / "certificates"
    issued(certificates / "good", home.authority())
    issued(certificates / "expired", home.authority(), days=-1)
    issued(certificates / "foreign", Authority.create(certificates, "another authority"))
    revoked = issued(certificates / "revoked", home.authority())
    home.registry.put(former_site("former", revoked).model_copy(update={"revoked": "2026-03-01T10:00:00+00:00"}))
    write_revocation_list(home)
    site = site_folder(base / "site")
    join(site, home, certificates / "good", f"localhost:{strict}")
    gateway.write_gateway(home, listen=f"127.0.0.1:{strict}")
    open_home = Home(shutil.copytree(home.path, base / "lenient"))
    gateway.write_gateway(open_home, listen=f"127.0.0.1:{lenient}", require_certificates=False)
    site_gateway.write_gateway(site, port=local)
    with ExitStack() as stack:
        log = stack.enter_context((base / "superlink.log").open("wb"))
        superlink = start_superlink(home.certificates, port=superlink_port, home=home.path / "flwr", log=log)
        stack.callback(superlink.process.wait)
        stack.callback(os.killpg, superlink.process.pid, signal.SIGKILL)
        control = Control(superlink)
        stack.callback(control.close)
        stack.enter_context(nginx(gateway.gateway_folder(home), strict))
        stack.enter_context(nginx(gateway.gateway_folder(open_home), lenient))
        stack.enter_context(nginx(site_gateway.gateway_folder(site), local))
        control.wait_until_ready()
        node_id = control.register("anna", site.path / "keys" / "node.pub")
        yield Door(home, control, superlink, strict, lenient, local, site, node_id, certificates)


def context(ca: Path, certificate: Path | None = None) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=str(ca))
    if certificate is not None:
        made.load_cert_chain(certificate / "tls.pem", certificate / "tls.key")
    return made


def answer(port: int, tls: ssl.SSLContext, method: str, target: str, body: bytes = b"") -> tuple[int, bytes]:
    """Status and body of one request whose line is sent as it stands here."""
    connection = http.client.HTTPSConnection("localhost", port, context=tls, timeout=20)
    try:
        connection.putrequest(method, target, skip_accept_encoding=True)
        connection.putheader("Content-Type", PROTOBUF_MEDIA_TYPE)
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def fleet(door: Door, address: str, ca: Path, certificate: Path | None = None) -> FleetHttpClient:
    private = serialization.load_ssh_private_key(door.site.node_key.read_bytes(), password=None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    interceptor = NodeAuthHttpInterceptor(private, private.public_key())
    return FleetHttpClient(f"https://{address}", interceptors=[interceptor], verify=context(ca, certificate))


def own_key(door: Door) -> bytes:
    private = serialization.load_ssh_private_key(door.site.node_key.read_bytes(), password=None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    return public_key_to_bytes(private.public_key())


# What is let through, without nginx


def test_hospitals_may_post_to_the_fleet_paths_of_the_installed_flower_except_those_that_admit_nodes() -> None:
    assert set(gateway.fleet_paths()) == FLEET - {"/v1/fleet/register-node", "/v1/fleet/unregister-node"}


def test_a_flower_with_a_path_more_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastapi import APIRouter
    from flwr.superlink.routers.fleet import router as module

    other = APIRouter(prefix="/v1/fleet")
    for route in router.routes:
        other.add_api_route(route.path.removeprefix("/v1/fleet"), lambda: None, methods=["POST"])
    monkeypatch.setattr(module, "router", other)
    assert set(gateway.fleet_paths()) < FLEET
    other.add_api_route("/read-file", lambda: None, methods=["GET"])
    with pytest.raises(ProcessError, match="new: GET /v1/fleet/read-file"):
        gateway.fleet_paths()


def test_a_flower_with_a_path_less_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastapi import APIRouter
    from flwr.superlink.routers.fleet import router as module

    monkeypatch.setattr(module, "router", APIRouter(prefix="/v1/fleet"))
    with pytest.raises(ProcessError, match="missing: POST /v1/fleet/activate-node"):
        gateway.fleet_paths()


def test_a_superlink_without_a_fixed_port_is_told(tmp_path: Path) -> None:
    home = Home.create(tmp_path / "home", "f", ["localhost"], address="localhost:443")
    with pytest.raises(InputError, match="port is not fixed"):
        gateway.write_gateway(home)
    assert not gateway.gateway_folder(home).configuration.exists()


def test_a_hospital_that_has_not_joined_gets_no_gateway(tmp_path: Path) -> None:
    site = site_folder(tmp_path / "site")
    with pytest.raises(InputError, match="not joined yet"):
        site_gateway.write_gateway(site)


@pytest.mark.parametrize("listen", ["", "0", "70000", "443;", "http", "127.0.0.1", "a b:443", "1;}:443"])
def test_what_is_no_address_to_listen_on_is_told(tmp_path: Path, listen: str) -> None:
    home = Home.create(tmp_path / "home", "f", ["localhost"], address="localhost:443", port=9092)
    with pytest.raises(InputError, match="--listen"):
        gateway.write_gateway(home, listen=listen)


def test_a_path_that_nginx_would_read_otherwise_is_refused() -> None:
    assert quoted(Path("/a folder/ö")) == '"/a folder/ö"'
    for name in ('a"b', "a$b", "a\nb", "a;b", "a\\b"):
        with pytest.raises(InputError, match="nginx can't be given"):
            quoted(Path("/x") / name)


@pytest.mark.parametrize("required", [True, False])
def test_nginx_finds_no_fault_with_the_file_and_works_as_part_of_a_larger_configuration(
    tmp_path: Path, required: bool
) -> None:
    require_nginx()
    home = Home.create(
        tmp_path / "a home", "f", ["fl.example.org", "192.0.2.7", "::1"], address="fl.example.org:443", port=9092
    )
    (port,) = free_ports(1)
    folder = gateway.gateway_folder(home)
    whole = gateway.write_gateway(home, listen=str(port), require_certificates=required)
    assert "successful" in check_configuration(folder, whole)
    part = gateway.write_gateway(
        home, listen=str(port), require_certificates=required, included=True, out=tmp_path / "consilium.conf"
    )
    larger = tmp_path / "nginx.conf"
    larger.write_text(
        f"pid {tmp_path}/pid; error_log {tmp_path}/log; events {{}} http {{ access_log off; client_body_temp_path {tmp_path}/t; "
        f"proxy_temp_path {tmp_path}/t; fastcgi_temp_path {tmp_path}/t; uwsgi_temp_path {tmp_path}/t; scgi_temp_path {tmp_path}/t; "
        f"include {part}; }}"
    )
    assert "successful" in check_configuration(folder, larger)
    larger.write_text(larger.read_text().replace("include", "unknown_word"))
    with pytest.raises(ProcessError, match="unknown_word"):
        check_configuration(folder, larger)


def test_the_local_certificate_is_trusted_for_this_machine_only_and_its_authority_has_no_key(tmp_path: Path) -> None:
    home = Home.create(tmp_path / "home", "f", ["localhost"], address="localhost:443", port=9092)
    site = site_folder(tmp_path / "site")
    issued(tmp_path / "c", home.authority())
    join(site, home, tmp_path / "c", "localhost:443")
    site_gateway.write_gateway(site)
    keys = site.path / "keys"
    leaf = x509.load_pem_x509_certificate((keys / "gateway.pem").read_bytes())
    root = x509.load_pem_x509_certificate((keys / "gateway-ca.crt").read_bytes())
    leaf.verify_directly_issued_by(root)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {str(one.value) for one in names} == {"127.0.0.1", "localhost"}
    assert {path.name for path in keys.glob("gateway*")} == {"gateway.pem", "gateway.key", "gateway-ca.crt"}
    assert (keys / "gateway.key").stat().st_mode & 0o777 == 0o600
    key = serialization.load_pem_private_key((keys / "gateway.key").read_bytes(), password=None)
    assert key.public_key() == leaf.public_key() != root.public_key()


def test_a_gateway_that_is_written_again_keeps_the_certificate_that_a_running_node_trusts(tmp_path: Path) -> None:
    home = Home.create(tmp_path / "home", "f", ["localhost"], address="localhost:443", port=9092)
    site = site_folder(tmp_path / "site")
    issued(tmp_path / "c", home.authority())
    join(site, home, tmp_path / "c", "localhost:443")
    files = [site.path / "keys" / name for name in ("gateway.pem", "gateway.key", "gateway-ca.crt")]
    site_gateway.write_gateway(site)
    first = [path.read_bytes() for path in files]
    site_gateway.write_gateway(site, port=9444)
    assert [path.read_bytes() for path in files] == first
    for damaged in files:
        damaged.write_bytes(b"damaged")
        site_gateway.write_gateway(site)
        assert b"damaged" not in [path.read_bytes() for path in files]
        context(files[2]).load_cert_chain(files[0], files[1])


# With nginx in front of a real SuperLink

OUTSIDE = sorted({path for _, path in PROTOBUF_REQUEST_TYPES} - FLEET)
HOSTILE = (
    "/", "/docs", "/openapi.json", "/health", "/v1/responses", "/v1/fleet", "/v1/fleet/", "/v1/fleet/unknown",
    "/v1/fleet/register-node", "/v1/fleet/unregister-node",
    "/v1/fleet/../control/list-runs", "/v1/fleet/%2e%2e/control/list-runs", "/v1/fleet/%2E%2E/control/list-runs",
    "/v1/fleet/..%2fcontrol/list-runs", "/v1/fleet/.%2e/control/list-runs", "/v1/fleet//../control/list-runs",
    "//v1/control/list-runs", "/v1//control/list-runs", "/v1/control//list-runs", "/v1/fleet/./../control/list-runs",
    "/v1/fleet/pull-messages/../../control/list-runs", "/v1/fleet/pull-messages%2f..%2f..%2fcontrol/list-runs",
    "/v1/control/../fleet/pull-messages", "/v1/control/%2e%2e/fleet/pull-messages", "//v1/fleet/pull-messages",
    "/v1//fleet/pull-messages", "/v1/fleet//pull-messages", "/v1/fleet/./pull-messages", "/v1/fleet/pull-messages/",
    "/v1/fleet/pull%2dmessages", "/v1/fleet/pull-messages?x=1", "/v1/fleet/pull-messages%00", "/v1/fleet/pull-messages;x",
    "/V1/FLEET/PULL-MESSAGES", "/v1/fleet/pull-messages%20", "/v1\\fleet\\pull-messages", "https://localhost/v1/control/list-runs",
)  # fmt: skip


@pytest.mark.federation
def test_no_control_and_no_runtime_path_is_reached(door: Door) -> None:
    good = context(door.home.certificates.ca, door.certificates / "good")
    assert len(OUTSIDE) > 50
    for path in OUTSIDE:
        assert answer(door.strict, good, "POST", path)[0] == 403, path
    # without the door in front, the same request is carried out
    superlink = int(door.superlink.address.rpartition(":")[2])
    assert answer(superlink, context(door.home.certificates.ca), "POST", "/v1/control/list-runs")[0] == 200


@pytest.mark.federation
@pytest.mark.parametrize("through", ["strict", "local"])
def test_no_other_spelling_of_a_path_gets_through(door: Door, through: str) -> None:
    if through == "strict":
        tls = context(door.home.certificates.ca, door.certificates / "good")
    else:
        tls = context(site_gateway.local_authority(door.site))
    for target in HOSTILE:
        # nginx itself finds fault with a byte 0 in a path
        expected = {400} if target.endswith("%00") else {403}
        assert answer(getattr(door, through), tls, "POST", target)[0] in expected, target


@pytest.mark.federation
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "PROPFIND"])
def test_nothing_but_post_gets_through(door: Door, method: str) -> None:
    good = context(door.home.certificates.ca, door.certificates / "good")
    for path in gateway.fleet_paths():
        assert answer(door.strict, good, method, path)[0] == 403, path


@pytest.mark.federation
def test_fleet_calls_reach_the_superlink_which_asks_for_the_nodes_signature(door: Door) -> None:
    good = context(door.home.certificates.ca, door.certificates / "good")
    for path in gateway.fleet_paths():
        status, body = answer(door.strict, good, "POST", path)
        assert (status, b"SuperNode authentication" in body) == (401, True), path


@pytest.mark.federation
@pytest.mark.parametrize("through", ["strict", "lenient", "local"])
def test_signed_fleet_calls_work(door: Door, through: str) -> None:
    ca = site_gateway.local_authority(door.site) if through == "local" else door.home.certificates.ca
    certificate = door.certificates / "good" if through == "strict" else None
    with ExitStack() as stack:
        client = stack.enter_context(fleet(door, f"localhost:{getattr(door, through)}", ca, certificate))
        activated = client.ActivateNode(ActivateNodeRequest(public_key=own_key(door), heartbeat_interval=30))
        stack.callback(client.DeactivateNode, DeactivateNodeRequest(node_id=activated.node_id))
        node = Node(node_id=activated.node_id)
        assert activated.node_id == door.node_id
        assert not client.PullMessages(PullMessagesRequest(node=node)).messages_list
        # the largest piece of a message arrives at the SuperLink: the answer is its own, to a run that it does not know
        largest = FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE + 100_000
        assert push(client, node, largest) == push(
            stack.enter_context(fleet(door, door.superlink.address, door.home.certificates.ca)), node, largest
        )
        assert push(client, node, 9_000_000)[0] == 413


def push(client: FleetHttpClient, node: Node, size: int) -> tuple[int, str]:
    with pytest.raises(httpx.HTTPStatusError) as refused:
        client.PushObject(PushObjectRequest(node=node, run_id=1, object_id="x", object_content=os.urandom(size)))
    return refused.value.response.status_code, refused.value.response.text


@contextmanager
def node(door: Door, log: Path, host: str, port: int, ca: Path, environment: dict[str, str]) -> Iterator[None]:
    """The hospital's node, from the moment when the coordinator sees it online."""
    command = [sys.executable, "-m", "client.cli", "up", str(door.site.path), "--superlink", f"{host}:{port}"]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*command, "--ca", str(ca)], stdout=stream, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, **environment},
        )  # fmt: skip
    try:
        limit = time.monotonic() + 90
        while next(one.state for one in door.control.nodes() if one.node_id == door.node_id) != "online":
            assert process.poll() is None and time.monotonic() < limit, log.read_text()
            time.sleep(0.1)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            # told so early to end, it may not have said that it leaves, and would count as online for half a minute
            superlink = fleet(door, door.superlink.address, door.home.certificates.ca)
            with superlink as client, suppress(httpx.HTTPStatusError):
                client.DeactivateNode(DeactivateNodeRequest(node_id=door.node_id))


@pytest.mark.federation
def test_the_hospitals_node_comes_online_through_both_gateways_and_no_proxy(door: Door, tmp_path: Path) -> None:
    nowhere = f"http://127.0.0.1:{free_ports(1)[0]}"
    environment = {"HTTPS_PROXY": nowhere, "HTTP_PROXY": nowhere}
    with node(
        door, tmp_path / "node.log", "127.0.0.1", door.local, site_gateway.local_authority(door.site), environment
    ):
        pass


@pytest.mark.federation
def test_without_client_certificates_the_node_comes_online_through_an_http_proxy(door: Door, tmp_path: Path) -> None:
    with proxy(lambda *_: None) as (port, asked):
        # its name is known to the proxy only; NO_PROXY is not set, though node and executor speak over 127.0.0.1
        environment = dict.fromkeys(("HTTPS_PROXY", "HTTP_PROXY"), f"http://127.0.0.1:{port}")
        environment |= {"NO_PROXY": "", "no_proxy": ""}
        with node(
            door, tmp_path / "node.log", "gateway.example.org", door.lenient, door.home.certificates.ca, environment
        ):
            assert set(asked) == {f"CONNECT gateway.example.org:{door.lenient} HTTP/1.1"}


@pytest.mark.federation
@pytest.mark.parametrize(
    ("certificate", "reason"),
    [
        (None, b"NONE"),
        ("foreign", b"FAILED:unable to verify the first certificate"),
        ("expired", b"FAILED:certificate has expired"),
        ("revoked", b"FAILED:certificate revoked"),
    ],
)
def test_whoever_has_no_good_client_certificate_is_refused_whatever_is_asked(
    door: Door, certificate: str | None, reason: bytes
) -> None:
    tls = context(door.home.certificates.ca, None if certificate is None else door.certificates / certificate)
    for target in (PULL, "/v1/control/list-runs", "/"):
        status, body = answer(door.strict, tls, "POST", target)
        assert status == 401 and b"client certificate refused" in body and reason in body


@pytest.mark.federation
def test_where_certificates_are_not_asked_for_a_bad_one_is_still_refused(door: Door) -> None:
    for name in ("foreign", "expired", "revoked"):
        assert (
            answer(door.lenient, context(door.home.certificates.ca, door.certificates / name), "POST", PULL)[0] == 401
        )
    status, body = answer(door.lenient, context(door.home.certificates.ca), "POST", PULL)
    assert status == 401 and b"SuperNode authentication" in body
    assert answer(door.lenient, context(door.home.certificates.ca), "POST", "/v1/control/list-runs")[0] == 403


@pytest.mark.federation
def test_a_server_that_another_authority_signed_is_not_taken_for_the_coordinator(door: Door, tmp_path: Path) -> None:
    """The hospital's gateway verifies whom it speaks to."""
    impostor = Authority.create(tmp_path, "another authority").issue_server(tmp_path, ["localhost"])
    (port, fake) = free_ports(2)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(impostor.certificate, impostor.key)
    site = site_folder(tmp_path / "site")
    join(site, door.home, door.certificates / "good", f"localhost:{fake}")
    site_gateway.write_gateway(site, port=port)
    with socket.create_server(("127.0.0.1", fake)) as listener, nginx(site_gateway.gateway_folder(site), port):
        listener.settimeout(20)

        def serve() -> None:
            raw, _ = listener.accept()
            with raw, suppress(OSError):
                tls.wrap_socket(raw, server_side=True).recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        assert answer(port, context(site_gateway.local_authority(site)), "POST", PULL)[0] == 502
        thread.join()
    assert "certificate verify error" in (site_gateway.gateway_folder(site).path / "error.log").read_text()


def findings(site: SiteFolder) -> dict[str, Finding]:
    """The doctor's checks of the way to the coordinator, and of the own gateway."""
    visit = Visit(site=site, profile=site.profile())
    return {words.name: check(visit) for words, check in (*NETWORK, (GATEWAY, check_gateway))}


@pytest.mark.federation
def test_the_doctor_finds_an_admitted_node_healthy_and_neither_brings_it_online_nor_disturbs_it(door: Door) -> None:
    def state() -> object:
        (own,) = (one for one in door.control.nodes() if one.node_id == door.node_id)
        return own

    before = state()
    assert {name: one.outcome for name, one in findings(door.site).items() if one.outcome != "ok"} == {}
    assert state() == before
    with fleet(door, f"localhost:{door.lenient}", door.home.certificates.ca) as client:
        activated = client.ActivateNode(ActivateNodeRequest(public_key=own_key(door), heartbeat_interval=30))
        online = state()
        assert online != before
        assert findings(door.site)["node-key"].outcome == "ok"
        assert state() == online
        client.DeactivateNode(DeactivateNodeRequest(node_id=activated.node_id))


@pytest.mark.federation
@pytest.mark.parametrize(
    ("certificate", "own_gateway", "words"),
    [
        ("good", True, "not admitted"),
        ("revoked", True, "has revoked"),
        ("foreign", True, "refuses this hospital's"),
        ("good", False, "which a node can't show by itself"),
    ],
)
def test_the_doctor_tells_who_is_not_admitted_from_who_was_revoked(
    door: Door, tmp_path: Path, certificate: str, own_gateway: bool, words: str
) -> None:
    stranger = site_folder(tmp_path / "stranger")
    join(stranger, door.home, door.certificates / certificate, f"localhost:{door.strict}")
    if own_gateway:
        site_gateway.write_gateway(stranger, port=free_ports(1)[0])
    found = findings(stranger)["node-key"]
    assert found.outcome == "fault" and words in found.found


@pytest.mark.federation
def test_old_tls_is_refused_and_no_version_is_told(door: Door) -> None:
    old = context(door.home.certificates.ca, door.certificates / "good")
    old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        answer(door.strict, old, "POST", PULL)
    tls = context(door.home.certificates.ca, door.certificates / "good")
    with httpx.Client(verify=tls) as client:
        refused = client.post(f"https://localhost:{door.strict}/")
    assert refused.headers["server"] == "nginx" and "nginx" not in refused.text


@pytest.mark.federation
def test_a_site_that_is_revoked_while_nginx_runs_is_refused_without_anything_else_being_done(
    door: Door, tmp_path: Path
) -> None:
    serial = issued(tmp_path / "late", door.home.authority())
    tls = context(door.home.certificates.ca, tmp_path / "late")
    assert b"SuperNode" in answer(door.strict, tls, "POST", PULL)[1]
    door.home.registry.put(former_site("late", serial))
    told = CliRunner().invoke(app, ["revoke", str(door.home.path), "late"])
    assert told.exit_code == 0 and "The gateway refuses its client certificates from now on" in told.output
    limit = time.monotonic() + 20
    while b"FAILED:certificate revoked" not in answer(door.strict, tls, "POST", PULL)[1]:
        assert time.monotonic() < limit
        time.sleep(0.1)
    good = context(door.home.certificates.ca, door.certificates / "good")
    assert b"SuperNode" in answer(door.strict, good, "POST", PULL)[1]


@pytest.mark.federation
def test_what_was_refused_is_noted_with_its_certificate_and_what_went_well_is_not(door: Door) -> None:
    revoked = context(door.home.certificates.ca, door.certificates / "revoked")
    answer(door.strict, revoked, "POST", "/v1/fleet/get-fab", b"secret body")
    noted = (gateway.gateway_folder(door.home).path / "refused.log").read_text()
    assert '"certificate":"CN=anna","verified":"FAILED:certificate revoked"' in noted
    assert "secret body" not in noted and '"status":200' not in noted


def test_reloading_where_no_nginx_runs_says_so(tmp_path: Path) -> None:
    folder = GatewayFolder(tmp_path)
    assert not folder.reload()
    folder.process_id.write_text(f"{os.getpid()}\n")  # an old file, and the number is somebody else's by now
    assert not folder.reload()
