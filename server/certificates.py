"""The coordinator's certificate authority: server certificates for its host names, client certificates for admitted hospitals.

The authority outlives what it signs: a server or a hospital renews its certificate without a new trust root.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shared.atomic_file import write_atomic
from shared.errors import DocumentError, InputError
from shared.private_file import write_private

#: How long certificates are valid: the authority's, and those that it issues.
AUTHORITY_DAYS, ISSUED_DAYS = 3650, 398
#: A list of revoked certificates is good for this long; every revocation and renewal writes it anew.
REVOCATION_LIST_DAYS = 3650


@dataclass(frozen=True, slots=True)
class ServerCertificates:
    """Paths of PEM files: the authority's certificate, the server's certificate and its key (mode 0600)."""

    ca: Path
    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority in a folder: `ca.crt`, `ca.key` (mode 0600). ECDSA P-384."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def create(cls, folder: Path, name: str, *, days: int = AUTHORITY_DAYS) -> Authority:
        """Make it; `name` is what people see in the certificate. Raises StorageError."""
        key = ec.generate_private_key(ec.SECP384R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name.encode()[:64].decode(errors="ignore"))])
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        start, end = _period(days)
        certificate = (
            x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number(), start, end)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(identifier, critical=False)
            .add_extension(_usage(sign_certificates=True), critical=True)
            .sign(key, hashes.SHA384())
        )
        write_private(folder / "ca.key", _private_pem(key))
        write_atomic(folder / "ca.crt", certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)
        return cls(certificate, key)

    @classmethod
    def load(cls, folder: Path) -> Authority:
        """Raises InputError where it is missing or damaged."""
        try:
            certificate = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
            key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
        except (OSError, ValueError, TypeError) as problem:
            raise InputError(f"{folder}: the certificate authority can't be read: {problem}") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise InputError(f"{folder}: ca.key is not the key of ca.crt")
        return cls(certificate, key)

    def issue_server(self, folder: Path, hosts: Sequence[str], *, days: int = ISSUED_DAYS) -> ServerCertificates:
        """`server.pem` and `server.key` for host names or addresses, replacing those that are there.

        Raises InputError where one can't be a server's name, StorageError.
        """
        require_hosts(hosts)
        key = ec.generate_private_key(ec.SECP256R1())
        alternatives = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
        builder = self._builder(hosts[0][:64], key.public_key(), days, ExtendedKeyUsageOID.SERVER_AUTH)
        certificate = builder.add_extension(alternatives, critical=False).sign(self.key, hashes.SHA384())
        paths = ServerCertificates(folder / "ca.crt", folder / "server.pem", folder / "server.key")
        write_private(paths.key, _private_pem(key))
        write_atomic(paths.certificate, certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)
        return paths

    def issue_client(self, request_pem: str, site: str, *, days: int = ISSUED_DAYS) -> x509.Certificate:
        """A client certificate whose name is `site`, for the key of a certificate request. Raises DocumentError."""
        try:
            request = x509.load_pem_x509_csr(request_pem.encode())
            valid = request.is_signature_valid
            key = request.public_key()
        except Exception:  # a parser of somebody else's bytes
            raise DocumentError(f"the certificate request of {site} can't be read") from None
        if not valid or not isinstance(key, ec.EllipticCurvePublicKey):
            raise DocumentError(f"the certificate request of {site} is not signed by its own elliptic-curve key")
        return self._builder(site, key, days, ExtendedKeyUsageOID.CLIENT_AUTH).sign(self.key, hashes.SHA384())

    def revocation_list(self, serials: Iterable[int]) -> bytes:
        """PEM of the list of revoked certificates, as nginx reads it (`ssl_crl`)."""
        start, end = _period(REVOCATION_LIST_DAYS)
        builder = x509.CertificateRevocationListBuilder(self.certificate.subject, start, end)
        for serial in sorted(set(serials)):
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder(serial_number=serial, revocation_date=start).build()
            )
        return builder.sign(self.key, hashes.SHA384()).public_bytes(serialization.Encoding.PEM)

    def _builder(
        self, name: str, key: ec.EllipticCurvePublicKey, days: int, purpose: x509.ObjectIdentifier
    ) -> x509.CertificateBuilder:
        start, end = _period(days)
        own = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        return (
            x509.CertificateBuilder(self.certificate.subject, subject, key, x509.random_serial_number(), start, end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(_usage(sign_certificates=False), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        )


def require_hosts(hosts: Iterable[str]) -> None:
    """Raises InputError where one can't be the name or address of a server, in a certificate or in nginx's configuration."""
    for host in hosts:
        plain = host.isascii() and host.isprintable() and not any(sign in host for sign in " ;{}\"'$\\~")
        if not host or not plain or (":" in host and not isinstance(_general_name(host), x509.IPAddress)):
            raise InputError(
                f"'{host}' can't be a name of this server: expected a host name, as in fl.example.org, or an address, without a port"
            )


def write_certificates(folder: Path, hosts: Sequence[str], *, days: int = ISSUED_DAYS) -> ServerCertificates:
    """A new authority in `folder`, and a server certificate of it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return Authority.create(folder, "Consilium coordinator").issue_server(folder, hosts, days=days)


def _period(days: int) -> tuple[datetime, datetime]:
    """From five minutes ago, for clocks that are a little behind; a negative number of days has passed already."""
    now = datetime.now(UTC)
    return now - timedelta(minutes=5) + timedelta(days=min(0, days - 1)), now + timedelta(days=days)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )
