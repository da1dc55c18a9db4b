"""How a hospital joins a coordinator without sharing a secret: a request goes out, an admission comes back, two fingerprints are read out.

Both files can travel by e-mail. What makes them trustworthy is the telephone: each side reads the other the fingerprint of its key.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from client.ledger import settle_rotation
from client.site_folder import Coordinator, SiteFolder
from shared.documents import Admission, JoinRequest, read_admission, write_document
from shared.errors import DocumentError, FingerprintError, InputError
from shared.private_file import write_private
from shared.release import Release
from shared.signing import PublicKey, is_spoken

#: Asked with the coordinator's public key whether a person compared its fingerprint.
Confirm = Callable[[PublicKey], bool]


def write_request(folder: SiteFolder, out: Path) -> JoinRequest:
    """Write the signed join request: public keys, and a certificate request for the gateway.

    Raises InputError where a key is missing or no pair, StorageError.
    """
    profile = folder.profile()
    settle_rotation(folder)
    key = folder.signing_key()
    public = folder.path / "keys" / "signing.pub"
    if _read_text(public).strip() != str(key.public):
        raise InputError(
            f"{public}: not the public key of {public.with_suffix('.key')}; restore both from one backup, or make a new folder with "
            "`consilium-site init`"
        )
    request = JoinRequest(
        site=profile.site,
        title=profile.title,
        node_key=_read_text(folder.path / "keys" / "node.pub").strip(),
        signing_key=str(key.public),
        certificate_request=_certificate_request(folder, profile.site),
        created=_now(),
        release=Release.installed(),
    )
    write_document(out, request, key)
    return request


def read_for(folder: SiteFolder, path: Path) -> Admission:
    """The admission in `path`, which is for this hospital and its keys. Raises DocumentError, InputError.

    That it comes from the right coordinator is not known before its fingerprint was compared.
    """
    admission = read_admission(path)
    own, site = folder.signing_key().public, folder.profile().site
    if admission.site != site:
        raise DocumentError(f"{path}: it admits '{admission.site}', but this is '{site}'")
    if admission.site_key != str(own):
        raise DocumentError(
            f"{path}: it admits {site} with another key than this folder's; was it asked for with an earlier folder? "
            "Write a new request with `consilium-site request`"
        )
    _check_certificates(admission, folder, path)
    return admission


def join(folder: SiteFolder, admission: Admission, *, confirmed: Confirm, replace: bool = False) -> Coordinator:
    """Take on the coordinator of `admission` (from `read_for`). One that was joined before renews its certificates and is not asked about.

    Raises FingerprintError where `confirmed` says no, InputError where another coordinator was joined and `replace` is False, StorageError.
    """
    key = PublicKey.read(admission.coordinator_key)
    earlier = find_coordinator(folder)
    if earlier is not None and earlier.coordinator_key != str(key) and not replace:
        raise InputError(
            f"{folder.path}: has joined '{earlier.federation}' with another key ({PublicKey.read(earlier.coordinator_key).spoken}); "
            "where the coordinator has really exchanged its key, or you change over, add --replace: "
            "what was approved before then asks again"
        )
    if (earlier is None or earlier.coordinator_key != str(key)) and not confirmed(key):
        raise FingerprintError(
            f"the fingerprint that was read out is not that of the admission's key, {key.spoken}; nothing was changed"
        )
    write_private(folder.ca, admission.ca_certificate.encode())
    write_private(folder.tls_certificate, admission.client_certificate.encode())
    made = Coordinator(
        federation=admission.federation,
        address=admission.address,
        coordinator_key=str(key),
        joined=_now(),
        release=admission.release,
    )
    write_private(folder.path / "coordinator.json", made.model_dump_json(indent=2).encode() + b"\n")
    return made


def find_coordinator(folder: SiteFolder) -> Coordinator | None:
    """Whom the hospital has joined, None before `join`. Raises InputError where the file is damaged."""
    return folder.coordinator() if (folder.path / "coordinator.json").exists() else None


def spoken_as(said: str) -> Confirm:
    """Compares with what was read out and typed in."""
    return lambda key: is_spoken(said, key.fingerprint)


def _check_certificates(admission: Admission, folder: SiteFolder, path: Path) -> None:
    try:
        authority = x509.load_pem_x509_certificate(admission.ca_certificate.encode())
        certificate = x509.load_pem_x509_certificate(admission.client_certificate.encode())
        certificate.verify_directly_issued_by(authority)
    except Exception:  # a parser of somebody else's bytes
        raise DocumentError(f"{path}: its certificates can't be read, or are not of one authority") from None
    if certificate.public_key() != _tls_key(folder).public_key():
        raise DocumentError(f"{path}: the client certificate inside is for another key than keys/tls.key")


def _certificate_request(folder: SiteFolder, site: str) -> str:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, site)])
    request = x509.CertificateSigningRequestBuilder(subject).sign(_tls_key(folder), hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def _tls_key(folder: SiteFolder) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(folder.tls_key.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as problem:
        raise InputError(f"{folder.tls_key}: expected an elliptic-curve private key (PEM): {problem}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InputError(f"{folder.tls_key}: expected an elliptic-curve private key, but it is of another kind")
    return key


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as problem:
        raise InputError(f"{path}: can't be read: {problem.strerror or problem}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: expected a public key, but it is no text file") from None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
