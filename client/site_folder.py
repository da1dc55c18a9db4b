"""The hospital's own folder on its own machine: profile, node key, approvals, cache, and what each run left. Nothing of it is sent.

site.json            the profile, as resolved when the folder was made
keys/node.key        ECDSA P-384, OpenSSH form, mode 0600; node.pub beside it is what the coordinator registers
keys/executor.secret between the SuperNode and its executor on this machine
keys/signing.key     Ed25519, signs what the site answers; signing.pub beside it is what the coordinator registers;
                     signing.key.next is there as long as a rotation goes on (`client.key_rotation`)
keys/tls.key         ECDSA P-256; after `join`, tls.pem is its client certificate and ca.crt the coordinator's authority
coordinator.json     after `join`: whose studies and instructions are looked at
publications/        studies as they were received, signed
approvals/, declined/ what this hospital said to them
cache/               prepared images
runs/RUN/            scores of the test images, progress, the hospital's own page
ledger.jsonl         everything that was released (`client.ledger`); ledger.head where it ended, cohorts/ whom it was of
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import Field, ValidationError

from shared.errors import InputError
from shared.profile import Profile
from shared.release import Release
from shared.schema import Strict
from shared.signing import KeyText, SigningKey


class Coordinator(Strict):
    """Whom this hospital has joined. The key was compared by a person."""

    format: Literal["consilium/joined/1"] = "consilium/joined/1"
    federation: str
    address: str = Field(description="HOST:PORT that the node connects to")
    coordinator_key: KeyText
    joined: str
    release: Release | None = Field(default=None, description="the coordinator's, when it wrote the admission")


class Progress(Strict):
    """What the site is doing now: read by `consilium-site status` and, on one machine, by the live view."""

    phase: str
    done: int = Field(ge=0)
    total: int = Field(ge=0)
    loss: float | None = None


@dataclass(frozen=True, slots=True)
class SiteFolder:
    """Typed access to one hospital's folder."""

    path: Path

    @classmethod
    def create(cls, path: Path, profile: Profile) -> SiteFolder:
        """Make the folder with its node key. Raises InputError where it already is a site's folder."""
        if (path / "site.json").exists():
            raise InputError(f"{path}: already is a site's folder; choose another, or remove it first")
        try:
            for name in ("keys", "publications", "approvals", "declined", "runs"):
                (path / name).mkdir(parents=True, exist_ok=True, mode=0o700)
            path.chmod(0o700)
            key = ec.generate_private_key(ec.SECP384R1())
            private = key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
            )
            public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
            _write_private(path / "keys" / "node.key", private)
            (path / "keys" / "node.pub").write_bytes(public + b"\n")
            signing = SigningKey.create(path / "keys" / "signing.key")
            (path / "keys" / "signing.pub").write_text(f"{signing.public}\n")
            _write_private(path / "keys" / "tls.key", _new_tls_key())
            _write_private(path / "keys" / "executor.secret", secrets.token_hex(32).encode())
            _write_private(path / "site.json", profile.model_dump_json(by_alias=True, indent=2).encode())
        except OSError as problem:
            raise InputError(f"{path}: can't be made a site's folder: {problem.strerror or problem}") from None
        return cls(path)

    def profile(self) -> Profile:
        try:
            return Profile.model_validate_json((self.path / "site.json").read_text())
        except FileNotFoundError:
            raise InputError(f"{self.path}: not a site's folder; make one with `consilium-site init`") from None
        except ValueError as problem:
            raise InputError(f"{self.path / 'site.json'}: not as expected: {problem}") from None

    @property
    def node_key(self) -> Path:
        return self.path / "keys" / "node.key"

    @property
    def executor_secret(self) -> Path:
        return self.path / "keys" / "executor.secret"

    def signing_key(self) -> SigningKey:
        """Raises InputError where it is missing or no such key."""
        return SigningKey.load(self.path / "keys" / "signing.key")

    def coordinator(self) -> Coordinator:
        """Raises InputError where the site has not joined yet."""
        path = self.path / "coordinator.json"
        try:
            return Coordinator.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise InputError(
                f"{self.path}: not joined yet; send the coordinator what `consilium-site request` writes, then "
                "`consilium-site join` with the admission that comes back"
            ) from None
        except (OSError, ValidationError) as problem:
            raise InputError(f"{path}: not as expected: {problem}") from None

    @property
    def ca(self) -> Path:
        """Certificate of the coordinator's authority (PEM), after `join`."""
        return self.path / "keys" / "ca.crt"

    @property
    def tls_key(self) -> Path:
        return self.path / "keys" / "tls.key"

    @property
    def tls_certificate(self) -> Path:
        """Client certificate for a gateway that asks for one (PEM), after `join`."""
        return self.path / "keys" / "tls.pem"

    @property
    def cache(self) -> Path:
        configured = self.profile().cache
        return Path(configured) if configured else self.path / "cache"

    @property
    def weights(self) -> Path:
        return self.path / "weights"

    def run_folder(self, run: str) -> Path:
        folder = self.path / "runs" / run
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder

    def show_progress(self, progress: Progress) -> None:
        """Best effort: a full disk must not end a round."""
        target = self.path / "progress.json"
        hidden = target.with_suffix(f".{os.getpid()}")
        try:
            hidden.write_text(progress.model_dump_json())
            hidden.replace(target)
        except OSError:
            with contextlib.suppress(OSError):
                hidden.unlink(missing_ok=True)

    def progress(self) -> Progress | None:
        try:
            return Progress.model_validate(json.loads((self.path / "progress.json").read_text()))
        except (OSError, ValueError):
            return None


def _new_tls_key() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write_private(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
