"""The coordinator's own folder: keys, admitted hospitals, published studies, runs, and Flower's state.

coordinator.json    HomeRecord: the federation's name, the address that hospitals connect to, the loopback port of the SuperLink
keys/               ca.crt, ca.key, server.pem, server.key, crl.pem; signing.key (Ed25519) signs studies and instructions; all keys 0600
sites/SITE.json     the registry
receipts/           how far each hospital's ledger was seen
studies/DIGEST.json published studies, signed
runs/NAME/          run folders
flwr/, state.db     Flower's
logs/
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from server.certificates import Authority, ServerCertificates, require_hosts
from server.receipts import Receipts
from server.registry import Registry
from server.run_folder import RunFolder, write_atomic
from shared.errors import InputError, StorageError
from shared.schema import Strict
from shared.signing import SigningKey

#: Names under which the gateway and this machine reach the SuperLink.
LOOPBACK = ("localhost", "127.0.0.1")


class HomeRecord(Strict):
    """coordinator.json"""

    format: Literal["consilium/coordinator/1"] = "consilium/coordinator/1"
    federation: str = Field(min_length=1, max_length=200)
    hosts: list[str] = Field(description="names and addresses in the server certificate")
    address: str = Field(description="HOST:PORT that hospitals connect to: the gateway's")
    port: int | None = Field(
        default=None, ge=1, le=65535, description="of the SuperLink on 127.0.0.1; None takes a free one at each start"
    )
    created: str


class Home:
    """Typed access to a coordinator's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keys = path / "keys"
        self.registry = Registry(path / "sites")
        self.receipts = Receipts(path / "receipts")
        self.certificates = ServerCertificates(self.keys / "ca.crt", self.keys / "server.pem", self.keys / "server.key")

    @classmethod
    def create(
        cls, path: Path, federation: str, hosts: Sequence[str], *, address: str, port: int | None = None
    ) -> Home:
        """Make the folder with its authority, server certificate and signing key.

        Raises InputError where it already is one, or the federation or a host can't be called so, StorageError where it can't be written.
        """
        home = cls(path)
        if (path / "coordinator.json").exists():
            raise InputError(f"{path}: already is a coordinator's folder; choose another, or remove it first")
        if not federation.strip() or len(federation) > 200:
            raise InputError(
                f"--federation: expected a name of 1 to 200 characters, but got {len(federation.strip())} characters"
            )
        names = list(dict.fromkeys([*hosts, *LOOPBACK]))
        require_hosts(names)
        try:
            for name in ("keys", "sites", "studies", "runs", "flwr", "logs"):
                (path / name).mkdir(parents=True, exist_ok=True, mode=0o700)
            path.chmod(0o700)
        except OSError as problem:
            raise StorageError(f"{path}: can't be made a coordinator's folder: {problem.strerror or problem}") from None
        authority = Authority.create(home.keys, f"Consilium: {federation}")
        authority.issue_server(home.keys, names)
        SigningKey.create(home.keys / "signing.key")
        record = HomeRecord(
            federation=federation, hosts=names, address=address, port=port,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )  # fmt: skip
        write_atomic(path / "coordinator.json", record.model_dump_json(indent=2).encode() + b"\n")
        return home

    def record(self) -> HomeRecord:
        """Raises InputError where this is no coordinator's folder."""
        path = self.path / "coordinator.json"
        try:
            return HomeRecord.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(
                f"{self.path}: not a coordinator's folder; make one with `consilium-server init`"
            ) from None
        except (OSError, ValidationError, UnicodeDecodeError) as problem:
            raise InputError(f"{path}: not as expected: {problem}") from None

    def signing_key(self) -> SigningKey:
        return SigningKey.load(self.keys / "signing.key")

    def authority(self) -> Authority:
        return Authority.load(self.keys)

    def run_folder(self, name: str) -> RunFolder:
        """The folder of the run `name`; it need not be there yet. Raises InputError where the name would lead elsewhere."""
        if not name or name != Path(name).name or name.startswith("."):
            raise InputError(f"'{name}' can't be the name of a run: use letters, digits, '.', '_' and '-'")
        return RunFolder(self.path / "runs" / name)
