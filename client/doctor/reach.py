"""Connections to the coordinator, step by step, so that it can be said which step fails: TCP (or a proxy's CONNECT), then TLS."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID

from client.proxies import Proxy


class ProxyRefusal(OSError):
    """The proxy answered CONNECT with something else than 200; the text is its status line."""


def connect(host: str, port: int, proxy: Proxy | None, timeout_s: float) -> socket.socket:
    """A TCP connection that ends at `host`. Raises OSError, ProxyRefusal."""
    if proxy is None:
        return socket.create_connection((host, port), timeout_s)
    made = socket.create_connection((proxy.host, proxy.port), timeout_s)
    try:
        name = f"[{host}]" if ":" in host else host
        lines = [f"CONNECT {name}:{port} HTTP/1.1", f"Host: {name}:{port}"]
        if proxy.authorisation is not None:
            lines.append(f"Proxy-Authorization: {proxy.authorisation}")
        made.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        head = b""
        while not head.endswith(b"\r\n\r\n") and len(head) < 65536 and (piece := made.recv(1)):
            head += piece
        status = head.split(b"\r\n", 1)[0].decode("latin-1")
        if len(words := status.split(" ", 2)) < 2 or words[1] != "200":
            raise ProxyRefusal(status or "no answer")
        return made
    except BaseException:
        made.close()
        raise


def context(ca: Path, certificate: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    """TLS as Flower's node does it: the coordinator's authority and no other. Raises OSError (ssl.SSLError) where a file is none."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.load_verify_locations(cafile=str(ca))
    if certificate is not None:
        made.load_cert_chain(*certificate)
    return made


@dataclass(frozen=True, slots=True)
class Shown:
    """A certificate as people talk of it."""

    subject: str
    issuer: str
    names: tuple[str, ...]
    begins: datetime
    ends: datetime

    @classmethod
    def of(cls, certificate: x509.Certificate) -> Shown:
        try:
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            shown = tuple(str(one.value) for one in names)
        except x509.ExtensionNotFound:
            shown = ()
        return cls(
            _name(certificate.subject), _name(certificate.issuer), shown,
            certificate.not_valid_before_utc, certificate.not_valid_after_utc,
        )  # fmt: skip

    @property
    def days_left(self) -> int:
        """Whole days; negative once it has ended."""
        return (self.ends - datetime.now(UTC)).days


def presented(host: str, port: int, proxy: Proxy | None, timeout_s: float) -> Shown | None:
    """The certificate that is shown there, believed or not; nothing is sent. None where it can't be had."""
    blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
    try:
        with connect(host, port, proxy, timeout_s) as raw, blind.wrap_socket(raw, server_hostname=host) as wrapped:
            found = wrapped.getpeercert(binary_form=True)
        return None if found is None else Shown.of(x509.load_der_x509_certificate(found))
    except (OSError, ValueError):
        return None


def _name(name: x509.Name) -> str:
    common = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(common[0].value) if common else name.rfc4514_string()
