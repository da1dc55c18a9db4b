"""Signatures over what the three people give each other: Ed25519 in DSSE envelopes, and fingerprints that can be read over the telephone.

DSSE (Dead Simple Signing Envelope, protocol v1) signs the payload's bytes together with their type, so that a signed study can't be
passed off as a signed instruction. A key is trusted because a person compared its fingerprint, never because an envelope names it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import Field, ValidationError

from shared.canonical import canonical_json
from shared.errors import InputError, SignatureError
from shared.private_file import write_private
from shared.schema import Strict

#: How a public signing key is written in documents: the algorithm, and the 32 bytes in base64.
KeyText = Annotated[str, Field(pattern=r"^ed25519:[A-Za-z0-9+/]{43}=$")]

_TYPE = "application/vnd.consilium.{}+json"


@dataclass(frozen=True, slots=True)
class PublicKey:
    """An Ed25519 public key."""

    raw: bytes

    @classmethod
    def read(cls, text: str) -> PublicKey:
        """From its `KeyText`. Raises SignatureError where it is none."""
        algorithm, _, body = text.partition(":")
        try:
            raw = base64.b64decode(body, validate=True)
        except binascii.Error:
            raw = b""
        if algorithm != "ed25519" or len(raw) != 32:
            raise SignatureError(f"expected a public key as ed25519:BASE64, but got '{text[:80]}'")
        return cls(raw)

    def __str__(self) -> str:
        return "ed25519:" + base64.b64encode(self.raw).decode()

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the 32 bytes."""
        return hashlib.sha256(self.raw).hexdigest()

    @property
    def spoken(self) -> str:
        """The first 160 bits of the fingerprint in ten groups, as two people read it to each other."""
        return spoken(self.fingerprint)


def spoken(fingerprint: str) -> str:
    """The first 40 hex digits of a fingerprint in ten groups of four."""
    return " ".join(fingerprint[start : start + 4] for start in range(0, 40, 4))


def is_spoken(said: str, fingerprint: str) -> bool:
    """Whether what was read out is this fingerprint: spaces, colons, dashes and case don't matter, at least 40 digits do."""
    digits = "".join(sign for sign in said.lower() if sign not in " \t:-")
    return len(digits) >= 40 and fingerprint.lower().startswith(digits)


@dataclass(frozen=True, slots=True)
class SigningKey:
    """An Ed25519 private key. It stays in its file, mode 0600."""

    private: Ed25519PrivateKey

    @classmethod
    def create(cls, path: Path) -> SigningKey:
        """Make a key and write it (PKCS8 PEM, mode 0600). Raises InputError where a key is there already, StorageError."""
        if path.exists():
            raise InputError(f"{path}: a key is there already; it is never overwritten")
        private = Ed25519PrivateKey.generate()
        write_private(
            path,
            private.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )
        return cls(private)

    @classmethod
    def load(cls, path: Path) -> SigningKey:
        """Raises InputError where the file is missing or no such key."""
        try:
            private = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except (OSError, ValueError, TypeError) as problem:
            raise InputError(f"{path}: expected an Ed25519 private key (PEM): {problem}") from None
        if not isinstance(private, Ed25519PrivateKey):
            raise InputError(f"{path}: expected an Ed25519 private key, but it is of another kind")
        return cls(private)

    @property
    def public(self) -> PublicKey:
        return PublicKey(
            self.private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        )


class Signature(Strict):
    """One signature; `keyid` is the key's fingerprint, a hint for people and never a reason to trust it."""

    keyid: str
    sig: str


class Envelope(Strict):
    """DSSE: https://github.com/secure-systems-lab/dsse/blob/master/envelope.md"""

    payloadType: str
    payload: str
    signatures: list[Signature] = Field(min_length=1, max_length=4)


def seal(kind: str, body: Any, key: SigningKey) -> str:
    """The envelope (JSON text) of a JSON-like `body`, whose bytes are its RFC 8785 form; `kind` as in `join-request`."""
    payload, payload_type = canonical_json(body), _TYPE.format(kind)
    signature = key.private.sign(_to_sign(payload_type, payload))
    envelope = Envelope(
        payloadType=payload_type,
        payload=base64.b64encode(payload).decode(),
        signatures=[Signature(keyid=key.public.fingerprint, sig=base64.b64encode(signature).decode())],
    )
    return envelope.model_dump_json()


def unseal(text: str, kind: str, key: PublicKey) -> bytes:
    """The payload of an envelope that `key` signed. Raises SignatureError otherwise; nothing inside is looked at before."""
    envelope, payload = _read(text, kind)
    for signature in envelope.signatures:
        try:
            sig = base64.b64decode(signature.sig, validate=True)
            Ed25519PublicKey.from_public_bytes(key.raw).verify(sig, _to_sign(envelope.payloadType, payload))
        except (InvalidSignature, binascii.Error):
            continue
        return payload
    raise SignatureError(f"the {kind} is not signed by the key {key.spoken}")


def unseal_self_signed(text: str, kind: str, key_of: Callable[[Any], str]) -> bytes:
    """The payload of an envelope whose key stands in the payload itself: it proves possession of the key and nothing else.

    `key_of` finds the key's text in the parsed payload. Raises SignatureError.
    """
    _, payload = _read(text, kind)
    try:
        named = key_of(json.loads(payload))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise SignatureError(f"the {kind} names no key of its own") from None
    return unseal(text, kind, PublicKey.read(str(named)))


def payload_digest(payload: bytes) -> str:
    """SHA-256 (hex) of an envelope's payload: what an answer names as what it answers."""
    return hashlib.sha256(payload).hexdigest()


def _read(text: str, kind: str) -> tuple[Envelope, bytes]:
    try:
        envelope = Envelope.model_validate_json(text)
        payload = base64.b64decode(envelope.payload, validate=True)
    except (ValidationError, binascii.Error):
        raise SignatureError(f"expected a signed {kind}, but got something else") from None
    if envelope.payloadType != _TYPE.format(kind):
        raise SignatureError(f"expected a signed {kind}, but its type is '{envelope.payloadType[:80]}'")
    return envelope, payload


def _to_sign(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding."""
    name = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(name), name, len(payload), payload)
