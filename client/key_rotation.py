"""The hospital's signing key is exchanged on its ledger: ROTATE, signed by the old key, passes on to the new one; REVOKE ends a former key.

The old private key is destroyed by that: whoever gets hold of the folder later can't write a history anew with it from before ROTATE.
Backups still hold it. The order of the steps is such that a crash between two of them leaves either key whole (`client.ledger`).
"""

from __future__ import annotations

from client.data.cache_files import sync_folder
from client.ledger import open_ledger, read_ledger, settle_rotation, waiting_key
from client.node import is_up, only_node
from client.own_runs import own_runs
from client.site_folder import SiteFolder
from shared.errors import InputError, ProcessError, StorageError
from shared.ledger.entries import Revoke, Rotate
from shared.signing import PublicKey, SigningKey, is_spoken

#: No run's name.
_NO_RUN = ""


def rotate(folder: SiteFolder) -> tuple[PublicKey, PublicKey]:
    """The old and the new public key. A rotation that was cut off is ended, and is this one.

    Raises ProcessError where the node is up or an instruction is being carried out, LedgerError, StorageError, InputError.
    """
    old = folder.signing_key().public
    if is_up(folder):
        raise ProcessError(
            f"{folder.path}: its node is up and signs with the old key; stop it first, and start it when the new is admitted"
        )
    with only_node(folder):
        require_idle(folder)
        if settle_rotation(folder):
            return old, folder.signing_key().public
        with open_ledger(folder, _NO_RUN) as ledger:
            path = waiting_key(folder)
            new = SigningKey.create(path)
            try:
                sync_folder(path.parent)  # before the entry that can't do without it
            except OSError as problem:
                raise StorageError(f"{path.parent}: can't be written: {problem.strerror or problem}") from None
            ledger.add(Rotate(**ledger.place(), key=str(new.public)))
            ledger.write()
        settle_rotation(folder)
    return old, new.public


def revoke(folder: SiteFolder, said: str, reason: str) -> PublicKey:
    """REVOKE a former key by its fingerprint, as read out or in full. Raises InputError where there is no such former key, LedgerError."""
    found = read_ledger(folder)
    if found is None:
        raise InputError(f"{folder.path}: the ledger is empty, so no key was signed with")
    chain = found[0]
    present = chain.key
    former = {link.signer for link in chain.links if present is None or link.signer.raw != present.raw}
    if present is not None and is_spoken(said, present.fingerprint):
        raise InputError(
            f"{present.spoken}: this is the key that signs now, and nothing could follow its revocation; "
            f"first make a new one: consilium-site rotate-key {folder.path}"
        )
    key = next((one for one in former if is_spoken(said, one.fingerprint)), None)
    if key is None:
        known = "; ".join(sorted(one.spoken for one in former)) or "none, the key was never rotated"
        raise InputError(
            f"'{said}': no former key of this ledger has that fingerprint (all ten groups); former keys: {known}"
        )
    if key.raw in chain.revoked:
        raise InputError(f"{key.spoken}: is revoked already")
    with open_ledger(folder, _NO_RUN) as ledger:
        ledger.add(Revoke(**ledger.place(), key=str(key), reason=reason))
        ledger.write()
    return key


def require_idle(folder: SiteFolder, run: str | None = None) -> None:
    """Raises ProcessError where an instruction is being carried out, of that run or of any."""
    for one in own_runs(folder):
        if one.now is not None and run in (None, one.note.run):
            raise ProcessError(
                f"run {one.note.run} is carrying out an instruction now ({one.now.kind}, round {one.now.round}); wait until it has ended"
            )
