"""The coordinator's certificates: what OpenSSL's own verification accepts, and nothing more."""

from __future__ import annotations

import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from server.certificates import ISSUED_DAYS, ServerCertificates, write_certificates

HOSTS = ["127.0.0.1", "fl.example.org", "::1"]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> ServerCertificates:
    return write_certificates(tmp_path_factory.mktemp("run") / "certificates", HOSTS)


def handshake(server: ServerCertificates, authority: Path, name: str) -> None:
    """A TLS handshake over a socket pair. Raises ssl.SSLError where the client does not trust the server."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(server.certificate, server.key)
    trusting = ssl.create_default_context(cafile=str(authority))
    trusting.verify_flags |= ssl.VERIFY_X509_STRICT
    here, there = socket.socketpair()

    def serve() -> None:
        try:
            serving.wrap_socket(there, server_side=True).close()
        except OSError:
            there.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        trusting.wrap_socket(here, server_hostname=name).close()
    finally:
        here.close()
        thread.join()


@pytest.mark.parametrize("name", HOSTS)
def test_a_client_that_trusts_the_authority_accepts_the_server_by_each_name(
    certificates: ServerCertificates, name: str
) -> None:
    handshake(certificates, certificates.ca, name)


@pytest.mark.parametrize("name", ["127.0.0.2", "example.org", "evil.fl.example.org"])
def test_another_name_is_refused(certificates: ServerCertificates, name: str) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(certificates, certificates.ca, name)


def test_another_runs_authority_is_not_trusted(certificates: ServerCertificates, tmp_path: Path) -> None:
    other = write_certificates(tmp_path / "other", HOSTS)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(certificates, other.ca, HOSTS[0])
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(other, certificates.ca, HOSTS[0])


def test_the_servers_certificate_signs_no_others(certificates: ServerCertificates) -> None:
    server = x509.load_pem_x509_certificate(certificates.certificate.read_bytes())
    authority = x509.load_pem_x509_certificate(certificates.ca.read_bytes())
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(True, 0)
    server.verify_directly_issued_by(authority)


def test_only_the_owner_reads_the_keys(certificates: ServerCertificates) -> None:
    folder = certificates.key.parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    private = {path for path in folder.iterdir() if b"PRIVATE KEY" in path.read_bytes()}
    assert private == {certificates.key, folder / "ca.key"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}
    key = load_pem_private_key(certificates.key.read_bytes(), None)
    server = x509.load_pem_x509_certificate(certificates.certificate.read_bytes())
    assert key.public_key() == server.public_key()


def test_certificates_end(certificates: ServerCertificates, tmp_path: Path) -> None:
    server = x509.load_pem_x509_certificate(certificates.certificate.read_bytes())
    assert (server.not_valid_after_utc - server.not_valid_before_utc).days == ISSUED_DAYS
    short = write_certificates(tmp_path / "short", HOSTS, days=-1)
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        handshake(short, short.ca, HOSTS[0])
