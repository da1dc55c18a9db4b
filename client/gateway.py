"""The hospital's side of a door that asks for client certificates: an nginx on this machine that shows the hospital's.

Flower's node can't present a client certificate. So it speaks to this nginx, on 127.0.0.1 and with a certificate that only this machine
trusts; nginx speaks to the coordinator's gateway, whose certificate it verifies, and shows the one that came with the admission.
nginx does not use an HTTP proxy: a hospital that reaches the coordinator only through one needs a coordinator without client certificates.
"""

from __future__ import annotations

import ipaddress
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from client.site_folder import SiteFolder
from shared.errors import InputError
from shared.nginx import BODIES, TLS, GatewayFolder, quoted, whole_file
from shared.private_file import write_private

#: The local certificate lasts as long as a machine does: nothing outside this machine trusts it.
LOCAL_DAYS = 3650


def gateway_folder(site: SiteFolder) -> GatewayFolder:
    return GatewayFolder(site.path.absolute() / "gateway")


def local_authority(site: SiteFolder) -> Path:
    """The certificate by which the node knows its own gateway: what `consilium-site up --ca` takes."""
    return site.path / "keys" / "gateway-ca.crt"


def local_port(site: SiteFolder) -> int | None:
    """The port of 127.0.0.1 that the hospital's gateway is written for, None where there is none."""
    try:
        found = re.search(
            r"listen 127\.0\.0\.1:(\d+) ssl;", gateway_folder(site).configuration.read_text(encoding="utf-8")
        )
    except OSError:
        return None
    return int(found.group(1)) if found else None


def write_gateway(site: SiteFolder, *, port: int = 9443) -> Path:
    """Write `gateway/nginx.conf` and the local certificate; returns the configuration's path.

    Raises InputError where the hospital has not joined yet or has no client certificate, StorageError.
    """
    keys = site.path / "keys"
    coordinator = site.coordinator()
    for name, what in (
        ("tls.pem", "client certificate"),
        ("tls.key", "key of the client certificate"),
        ("ca.crt", "CA certificate"),
    ):
        if not (keys / name).is_file():
            raise InputError(f"{keys / name}: the {what} is missing; it comes with `consilium-site join`")
    folder = gateway_folder(site)
    text = _http_block(site, folder, coordinator.address, port)
    folder.make()
    if not _has_local_certificate(keys):
        _write_local_certificate(keys)
    write_private(
        folder.configuration, whole_file(folder, text, heading="# Written by `consilium-site gateway`.").encode()
    )
    return folder.configuration


def split_address(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT or [IPV6]:PORT. Raises InputError."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or any(sign in host for sign in " ;{}\"'$\\\n\r/") or not (port.isascii() and port.isdigit()):
        raise InputError(
            f"the coordinator's address is '{address}', but it should be HOST:PORT; ask for a new admission"
        )
    return host, int(port)


def _http_block(site: SiteFolder, folder: GatewayFolder, address: str, port: int) -> str:
    host, coordinators_port = split_address(address)
    keys = site.path / "keys"
    return f"""
map $status $consilium_noted {{
    ~^2 0;
    default 1;
}}
log_format consilium_refused escape=json
    '{{"time":"$time_iso8601","path":"$uri","status":$status,"from_coordinator":"$upstream_status","seconds":$request_time}}';

upstream consilium_coordinator {{
    server {_bracketed(host)}:{coordinators_port};  # looked up when nginx starts: start it again when the address changes
    keepalive 8;
    keepalive_timeout 60s;
}}

server {{
    listen 127.0.0.1:{port} ssl;
    server_tokens off;
    access_log {quoted(folder.path / "refused.log")} consilium_refused if=$consilium_noted;

    ssl_certificate {quoted(keys / "gateway.pem")};
    ssl_certificate_key {quoted(keys / "gateway.key")};
    {TLS.replace(chr(10), chr(10) + "    ")}

    {BODIES.replace(chr(10), chr(10) + "    ")}
    client_body_timeout 60s;
    send_timeout 60s;
    keepalive_requests 10000;
    merge_slashes off;

    location / {{
        proxy_pass https://consilium_coordinator;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header Host {_bracketed(host)};
        proxy_connect_timeout 10s;
        proxy_send_timeout 60s;
        proxy_read_timeout 150s;
        proxy_ssl_certificate {quoted(keys / "tls.pem")};
        proxy_ssl_certificate_key {quoted(keys / "tls.key")};
        proxy_ssl_trusted_certificate {quoted(keys / "ca.crt")};
        proxy_ssl_verify on;
        proxy_ssl_verify_depth 1;
        proxy_ssl_server_name on;
        proxy_ssl_name {_name_in_certificate(host)};
        proxy_ssl_protocols TLSv1.2 TLSv1.3;
        proxy_ssl_session_reuse off;
    }}
}}
"""


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _name_in_certificate(host: str) -> str:
    """nginx compares names only, never addresses. Each certificate of a coordinator is for `localhost` too, and its authority issues
    server certificates to the coordinator alone: where the address is a number, that name says the same."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host
    return "localhost"


def _has_local_certificate(keys: Path) -> bool:
    """Whether there is one for another month. It is kept then: a node that is running knows its gateway by it."""
    try:
        leaf = x509.load_pem_x509_certificate((keys / "gateway.pem").read_bytes())
        root = x509.load_pem_x509_certificate((keys / "gateway-ca.crt").read_bytes())
        key = serialization.load_pem_private_key((keys / "gateway.key").read_bytes(), password=None)
        leaf.verify_directly_issued_by(root)
    except (OSError, ValueError, TypeError, InvalidSignature):
        return False
    return key.public_key() == leaf.public_key() and leaf.not_valid_after_utc > datetime.now(UTC) + timedelta(days=30)


def _write_local_certificate(keys: Path) -> None:
    """gateway-ca.crt, gateway.pem, gateway.key: an authority whose key is thrown away at once, and one certificate of it."""
    start, end = datetime.now(UTC) - timedelta(minutes=5), datetime.now(UTC) + timedelta(days=LOCAL_DAYS)
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Consilium gateway of this machine")])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")])
    own = x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key())
    root = (
        x509.CertificateBuilder(
            authority, authority, authority_key.public_key(), x509.random_serial_number(), start, end
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(own, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    leaf = (
        x509.CertificateBuilder(authority, subject, key.public_key(), x509.random_serial_number(), start, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(names, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_private(keys / "gateway.key", private)
    write_private(keys / "gateway.pem", leaf.public_bytes(serialization.Encoding.PEM))
    write_private(keys / "gateway-ca.crt", root.public_bytes(serialization.Encoding.PEM))
