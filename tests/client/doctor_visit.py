"""A doctor's visit at a hospital whose coordinator is well, or ill in a known way."""

from __future__ import annotations

import json
import shutil
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from flwr.supercore.error import ApiErrorCode
from publications import profile_of

from client.doctor import EXAMINATIONS, Examination, Finding, examine
from client.doctor import machine as machine_checks
from client.site_folder import Coordinator, SiteFolder
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
def device_without_torch(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
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


def everything(site: SiteFolder, authority: Authority, **options: Any) -> Examination:
    with coordinator(authority.issue("localhost"), UNKNOWN) as port:
        return examine(join(site, f"localhost:{port}", authority.ca), environment={}, unit_folders=(), **options)
