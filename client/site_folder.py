"""The hospital's own folder on its own machine: profile, node key, approvals, cache, and what each run left. Nothing of it is sent.

site.json            the profile, as resolved when the folder was made
keys/node.key        ECDSA P-384, OpenSSH form, mode 0600; node.pub beside it is what the coordinator registers
keys/executor.secret between the SuperNode and its executor on this machine
approvals/DIGEST.json
cache/               prepared images
runs/RUN/            scores of the test images, progress, the hospital's own page
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import Field

from shared.canonical import file_digest
from shared.errors import InputError, NotApprovedError, WeightsError
from shared.profile import Profile
from shared.study import Sha256, Strict, Study, WeightsFile


class Approval(Strict):
    """A hospital's consent to one study, by digest."""

    study_digest: Sha256
    study_name: str
    approved_at: str
    approved_by: str


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
            for name in ("keys", "approvals", "runs"):
                (path / name).mkdir(parents=True, exist_ok=True, mode=0o700)
            path.chmod(0o700)
            key = ec.generate_private_key(ec.SECP384R1())
            private = key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
            )
            public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
            _write_private(path / "keys" / "node.key", private)
            (path / "keys" / "node.pub").write_bytes(public + b"\n")
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

    @property
    def cache(self) -> Path:
        configured = self.profile().cache
        return Path(configured) if configured else self.path / "cache"

    @property
    def weights(self) -> Path:
        return self.path / "weights"

    def approve(self, study: Study, by: str, *, study_folder: Path) -> Approval:
        """Write an approval of this study's digest; starting weights that it names are copied from beside the study.

        Raises WeightsError where they are missing or have another SHA-256.
        """
        if isinstance(study.model.weights, WeightsFile):
            self._bring_weights(study.model.weights, study_folder)
        approval = Approval(
            study_digest=study.digest(),
            study_name=study.name,
            approved_at=datetime.now(UTC).isoformat(timespec="seconds"),
            approved_by=by,
        )
        (self.path / "approvals").mkdir(exist_ok=True, mode=0o700)
        target = self.path / "approvals" / f"{approval.study_digest}.json"
        target.write_text(approval.model_dump_json(indent=2) + "\n")
        return approval

    def _bring_weights(self, weights: WeightsFile, study_folder: Path) -> None:
        source = study_folder / weights.file
        if not source.is_file():
            raise WeightsError(f"{source}: no such file, but the study starts from it ({weights.source})")
        found = file_digest(source)
        if found != weights.sha256:
            raise WeightsError(f"{source}: the study names SHA-256 {weights.sha256}, but the file has {found}")
        target = self.weights / weights.file
        if source.resolve() == target.resolve():
            return
        if not target.resolve().is_relative_to(self.weights.resolve()):  # it could overwrite an approval
            raise WeightsError(f"model.weights: expected a file beside the study or below it, but got '{weights.file}'")
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        shutil.copyfile(source, target)

    def require_approval(self, study: Study) -> Approval:
        """The approval of exactly this study. Raises NotApprovedError."""
        digest = study.digest()
        path = self.path / "approvals" / f"{digest}.json"
        try:
            approval = Approval.model_validate_json(path.read_text())
        except (OSError, ValueError):
            raise NotApprovedError(
                f"study {study.name} with digest {digest} is not approved here; read it, then `consilium-site approve`"
            ) from None
        if approval.study_digest != digest:
            raise NotApprovedError(f"{path}: the approval inside is of another digest")
        return approval

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
            hidden.unlink(missing_ok=True)

    def progress(self) -> Progress | None:
        try:
            return Progress.model_validate(json.loads((self.path / "progress.json").read_text()))
        except (OSError, ValueError):
            return None


def _write_private(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
