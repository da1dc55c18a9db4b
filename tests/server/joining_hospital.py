"""A hospital's side of joining, as far as the coordinator's tests need it: made with cryptography and the shared documents alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from shared.documents import JoinRequest, write_document
from shared.release import Release
from shared.signing import SigningKey

VERSIONS = {"consilium": "0.1.0", "flwr": "1.41.0", "torch": "2.6.0", "python": "3.11.0"}
RELEASE = Release(versions=VERSIONS, code_digest="c" * 64, lock_digest="d" * 64)


@dataclass
class Hospital:
    """Its keys."""

    site: str
    folder: Path
    signing: SigningKey
    node: ec.EllipticCurvePrivateKey
    tls: ec.EllipticCurvePrivateKey

    @classmethod
    def create(cls, folder: Path, site: str, curve: ec.EllipticCurve | None = None) -> Hospital:
        folder.mkdir(parents=True)
        return cls(
            site, folder, SigningKey.create(folder / "signing.key"),
            ec.generate_private_key(curve or ec.SECP384R1()), ec.generate_private_key(ec.SECP256R1()),
        )  # fmt: skip

    @property
    def node_public(self) -> str:
        return (
            self.node.public_key()
            .public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
            .decode()
        )

    def write_node_key(self) -> Path:
        """The private node key as Flower's SuperNode reads it."""
        path = self.folder / "node.key"
        path.write_bytes(
            self.node.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
            )
        )
        return path

    def request(self, **changes: object) -> Path:
        """A join request in a file; `changes` are made before it is signed."""
        certificate_request = (
            x509.CertificateSigningRequestBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.site)]))
            .sign(self.tls, hashes.SHA256())
        )
        request = JoinRequest(
            site=self.site, title=f"Hospital {self.site}", node_key=f"{self.node_public} somebody@{self.site}",
            signing_key=str(self.signing.public),
            certificate_request=certificate_request.public_bytes(serialization.Encoding.PEM).decode(),
            created="2025-03-01T08:00:00+00:00", release=RELEASE,
        )  # fmt: skip
        path = self.folder / f"{self.site}.request.json"
        write_document(path, request.model_copy(update=changes), self.signing)
        return path
