"""How far the coordinator has seen each hospital's ledger: receipts/FINGERPRINT.json, by the key that signs the ledger.

Every instruction names it, so a hospital whose ledger was restored from an older backup notices, and refuses to spend. The hospital shows
the entries after it: so a receipt is kept only when the answer that brought it lies in the run's folder.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from server.run_folder import write_atomic
from shared.errors import InputError, StorageError
from shared.messages import Receipt
from shared.signing import PublicKey


class Receipts:
    """The folder of receipts, made at the first."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def get(self, key: PublicKey) -> Receipt | None:
        """The newest entry seen. Raises InputError where the file is damaged: a lost receipt is not the same as none."""
        path = self._file(key)
        try:
            return Receipt.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValidationError, UnicodeDecodeError) as problem:
            raise InputError(f"{path}: can't be read as a receipt: {problem}") from None

    def keep(self, key: PublicKey, receipt: Receipt) -> None:
        """Unless a newer one is there. Raises InputError, StorageError."""
        known = self.get(key)
        if known is not None and known.seq >= receipt.seq:
            return
        try:
            self.path.mkdir(exist_ok=True, mode=0o700)
        except OSError as problem:
            raise StorageError(f"{self.path}: can't be made: {problem.strerror or problem}") from None
        write_atomic(self._file(key), receipt.model_dump_json(indent=2).encode() + b"\n")

    def _file(self, key: PublicKey) -> Path:
        return self.path / f"{key.fingerprint}.json"
