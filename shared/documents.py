"""The files that coordinator and hospital give each other before a run; all can travel by e-mail, none holds a secret.

join request   the hospital's public keys, signed with its own key; its fingerprint is compared over the telephone
admission      the coordinator's answer: its address, its authority's certificate, its key; signed
publication    a study that the coordinator offers, with all that an approval binds; signed

Each is a DSSE envelope (`shared.signing`) around one of the schemas below.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError

from shared.atomic_file import write_atomic
from shared.errors import DocumentError, SignatureError
from shared.release import Release
from shared.schema import Name, Sha256, Strict
from shared.signing import KeyText, PublicKey, SigningKey, seal, unseal, unseal_self_signed

Document = TypeVar("Document", bound=Strict)

#: A larger file is none of these.
LARGEST_BYTES = 4 << 20


class JoinRequest(Strict):
    """What a hospital asks to be admitted with."""

    format: Literal["consilium/join-request/1"] = "consilium/join-request/1"
    site: Name
    title: str = Field(max_length=200)
    node_key: str = Field(
        max_length=1000, description="ECDSA P-384 public key, OpenSSH form: Flower knows the node by it"
    )
    signing_key: KeyText = Field(
        description="signs the hospital's answers; the fingerprint that is read out is its own"
    )
    certificate_request: str = Field(max_length=4000, description="PEM: for a client certificate at the gateway")
    created: str
    release: Release


class Admission(Strict):
    """What an admitted hospital needs to connect and to know its coordinator again."""

    format: Literal["consilium/admission/1"] = "consilium/admission/1"
    federation: str = Field(max_length=200)
    site: Name
    site_key: KeyText = Field(description="the hospital's signing key, from its request")
    address: str = Field(max_length=300, description="HOST:PORT that the hospital connects to")
    ca_certificate: str = Field(max_length=8000, description="PEM of the coordinator's authority")
    client_certificate: str = Field(max_length=8000, description="PEM, for a gateway that asks for one")
    coordinator_key: KeyText
    created: str
    release: Release


class StartingPoint(Strict):
    """The model that every site must hold before round 1."""

    manifest_digest: Sha256
    model_digest: Sha256 = Field(description="of the flat array of the starting model, as it travels")
    frozen_digest: Sha256


class Publication(Strict):
    """A study as the coordinator offers it. Its digest is the study's."""

    format: Literal["consilium/publication/1"] = "consilium/publication/1"
    federation: str = Field(max_length=200)
    coordinator_key: KeyText
    study: dict[str, Any]
    study_digest: Sha256
    starting_point: StartingPoint
    runs: int = Field(ge=1, le=1000, description="how often the coordinator means to run it")
    expires: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$", description="last day, UTC")
    created: str
    release: Release


_KINDS: dict[type[Strict], str] = {JoinRequest: "join-request", Admission: "admission", Publication: "publication"}


def write_document(path: Path, document: Strict, key: SigningKey) -> None:
    """Sign and write it, atomically. Raises StorageError."""
    text = seal(_KINDS[type(document)], document.model_dump(mode="json"), key) + "\n"
    write_atomic(path, text.encode(), mode=0o644)


def read_document(path: Path, schema: type[Document], key: PublicKey) -> Document:
    """A document that `key` signed. Raises DocumentError, with SignatureError's sentence where it was changed."""
    return _parsed(path, schema, lambda text: unseal(text, _KINDS[schema], key))


def read_join_request(path: Path) -> JoinRequest:
    """A hospital's request, signed with the key inside: compare its fingerprint before trusting it. Raises DocumentError."""
    return _parsed(
        path, JoinRequest, lambda text: unseal_self_signed(text, "join-request", lambda body: body["signing_key"])
    )


def read_admission(path: Path) -> Admission:
    """A coordinator's admission, signed with the key inside: compare its fingerprint before trusting it. Raises DocumentError."""
    return _parsed(
        path, Admission, lambda text: unseal_self_signed(text, "admission", lambda body: body["coordinator_key"])
    )


def _parsed(path: Path, schema: type[Document], opened: Callable[[str], bytes]) -> Document:
    kind = _KINDS[schema]
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise DocumentError(f"{path}: larger than any {kind}; is it another file?")
        text = path.read_text(encoding="utf-8")
    except OSError as problem:
        raise DocumentError(f"{path}: can't be read: {problem.strerror or problem}") from None
    except UnicodeDecodeError:
        raise DocumentError(f"{path}: expected a {kind}, but it is no text file") from None
    try:
        return schema.model_validate_json(opened(text))
    except SignatureError as problem:
        raise DocumentError(f"{path}: {problem}; it was damaged or changed on its way, or is another file") from None
    except ValidationError as problem:
        first = problem.errors()[0]
        place = ".".join(str(step) for step in first["loc"])
        raise DocumentError(
            f"{path}: signed, but not a {kind} of this release: {place or 'it'}: {first['msg']} "
            f"({problem.error_count()} mistakes); both sides need the same release"
        ) from None
