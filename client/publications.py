"""Studies as this hospital received them: publications/DIGEST.json, signed, and what was said to each.

A study that lies here was looked at by nobody yet, or was; only `client.approvals` lets a node work for it.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Literal

from client.approvals import bring_weights, find_approval, find_declined, last_day, published_study, runs_made
from client.site_folder import SiteFolder
from shared.documents import Publication, read_document
from shared.errors import DocumentError, InputError, StorageError
from shared.private_file import write_private
from shared.release import Release
from shared.schema import Sha256, Strict
from shared.signing import PublicKey

#: Fewest digits of a digest that may stand for all of it.
SHORTEST_PREFIX = 8

#: waiting: nobody has said anything; used up: all approved runs were made; changed: code, libraries or coordinator are others since.
State = Literal["waiting", "approved", "declined", "expired", "used up", "changed"]


class Standing(Strict):
    """One received study, and how it stands here."""

    study: str
    digest: Sha256
    state: State
    runs_made: int
    runs: int
    until: date


def receive(folder: SiteFolder, path: Path) -> Publication:
    """Take in the publication in `path`, with the weights files that its study names from beside it. It is not approved by that.

    Raises DocumentError where the joined coordinator did not sign exactly this, InputError (not joined), WeightsError, StorageError.
    """
    publication = _read(folder, path)
    study = published_study(publication)
    last_day(publication)
    try:
        kept = folder.path / "publications"
        kept.mkdir(exist_ok=True, mode=0o700)
        text = path.read_bytes()
    except OSError as problem:
        raise StorageError(f"{path}: can't be taken in: {problem.strerror or problem}") from None
    if study.weight_files:
        own = weights_folder(folder, publication.study_digest)
        beside = all((path.parent / one.file).is_file() for one in study.weight_files.values())
        bring_weights(study, path.parent if beside or not own.exists() else own, own)
    target = kept / f"{publication.study_digest}.json"
    if not (target.exists() and target.samefile(path)):
        write_private(target, text)
    return publication


def publications(folder: SiteFolder) -> list[Publication]:
    """All that were received from the coordinator that is joined now, in the order of their making."""
    found = []
    for path in sorted((folder.path / "publications").glob("*.json")):
        try:
            found.append(_read(folder, path))
        except DocumentError:  # of a coordinator that was left
            continue
    return sorted(found, key=lambda one: one.created)


def find_publication(folder: SiteFolder, prefix: str) -> Publication:
    """The received publication whose study's digest begins so. Raises InputError."""
    digits = prefix.lower()
    if not re.fullmatch(rf"[0-9a-f]{{{SHORTEST_PREFIX},64}}", digits):
        raise InputError(
            f"'{prefix}': no such file, and no digest: expected the file from the coordinator, or at least the first {SHORTEST_PREFIX} "
            "digits of a study's digest"
        )
    known = publications(folder)
    found = [one for one in known if one.study_digest.startswith(digits)]
    if len(found) != 1:
        told = ", ".join(f"{one.study_digest[:12]} ({one.study['name']})" for one in found or known) or "none"
        raise InputError(
            f"'{prefix}' is the start of {len(found)} received studies; received: {told}. "
            "Take one in with `consilium-site review FOLDER FILE`"
        )
    return found[0]


def weights_folder(folder: SiteFolder, digest: str) -> Path:
    """Where the weights files that came with the study lie until it is approved."""
    return folder.path / "publications" / f"{digest}.weights"


def state_of(folder: SiteFolder, publication: Publication, own: Release, today: date | None = None) -> State:
    """What the hospital has said to it, as it holds now."""
    day = today or datetime.now(UTC).date()
    digest = publication.study_digest
    if find_declined(folder, digest) is not None:
        return "declined"
    approval = find_approval(folder, digest)
    if approval is None:
        return "expired" if day > last_day(publication) else "waiting"
    if (approval.code_digest, approval.lock_digest) != (own.code_digest, own.lock_digest):
        return "changed"
    if approval.coordinator_key != publication.coordinator_key:
        return "changed"
    if day > approval.expires:
        return "expired"
    return "used up" if len(runs_made(folder, digest)) >= approval.runs else "approved"


def standings(folder: SiteFolder, own: Release, today: date | None = None) -> list[Standing]:
    """Every received study, in the order of their making. `runs` and `until` are the approval's, or else the offer's."""
    found = []
    for one in publications(folder):
        approval = find_approval(folder, one.study_digest)
        found.append(
            Standing(
                study=str(one.study.get("name")),
                digest=one.study_digest,
                state=state_of(folder, one, own, today),
                runs_made=len(runs_made(folder, one.study_digest)),
                runs=approval.runs if approval is not None else one.runs,
                until=approval.expires if approval is not None else last_day(one),
            )
        )
    return found


def _read(folder: SiteFolder, path: Path) -> Publication:
    key = PublicKey.read(folder.coordinator().coordinator_key)
    publication = read_document(path, Publication, key)
    if publication.coordinator_key != str(key):
        raise DocumentError(f"{path}: signed by the coordinator, but it names another key")
    return publication
