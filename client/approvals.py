"""A hospital's consent to studies. Without one a node opens no data.

approvals/DIGEST.json   what was approved: study, code, libraries, starting model, coordinator, runs, rounds, last day
approvals/DIGEST.runs   the runs that were made under it, one id a line, on disk before the run's first image is opened
declined/DIGEST.json    a study that was declined; the reason stays here

Whatever is not as it was when a person looked at it asks that person again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from client.site_folder import SiteFolder
from shared.canonical import file_digest
from shared.documents import Publication, StartingPoint
from shared.errors import (
    ApprovalChangedError,
    ApprovalEndedError,
    DeclinedError,
    DocumentError,
    InputError,
    InstructionError,
    NotApprovedError,
    StorageError,
    WeightsError,
)
from shared.private_file import write_private
from shared.release import Release
from shared.schema import Sha256, Strict
from shared.signing import KeyText
from shared.study import Study, study_from_data
from shared.study_model import WeightsFile

_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}")


class Approval(Strict):
    """A hospital's consent to one study, and all that it was given for."""

    format: Literal["consilium/approval/1"] = "consilium/approval/1"
    study_digest: Sha256
    study_name: str
    code_digest: Sha256
    lock_digest: Sha256 = Field(description="of the libraries installed at this hospital when it approved")
    starting_point: StartingPoint
    weights: dict[str, Sha256] = Field(
        default_factory=dict, description="starting weights: file below weights/, SHA-256"
    )
    coordinator_key: KeyText
    runs: int = Field(ge=1)
    rounds: int = Field(ge=0)
    expires: date = Field(description="last day, UTC")
    approved_at: str
    approved_by: str


class Declined(Strict):
    """A hospital's no to one study."""

    format: Literal["consilium/declined/1"] = "consilium/declined/1"
    study_digest: Sha256
    study_name: str
    declined_at: str
    declined_by: str
    reason: str = ""


def approve(
    folder: SiteFolder,
    publication: Publication,
    *,
    by: str,
    runs: int | None = None,
    expires: str | None = None,
    weights_folder: Path,
    release: Release | None = None,
    today: date | None = None,
) -> Approval:
    """Write the approval of a published study, with a count of runs that starts anew; a decline of it is taken back.

    `runs` and `expires` (YYYY-MM-DD) may be fewer and earlier than published, never more. Starting weights that the study names are copied
    from below `weights_folder`. Raises DocumentError (the publication contradicts itself), ApprovalEndedError (it has expired),
    ApprovalChangedError (it was made with another release than this), InputError, WeightsError, StorageError.
    """
    own, now = release or Release.installed(), today or _today()
    study = published_study(publication)
    require_current(publication, own, now)
    approval = Approval(
        study_digest=publication.study_digest,
        study_name=study.name,
        code_digest=own.code_digest,
        lock_digest=own.lock_digest,
        starting_point=publication.starting_point,
        weights=bring_weights(study, weights_folder, folder.weights),
        coordinator_key=publication.coordinator_key,
        runs=_allowed_runs(runs, publication),
        rounds=study.federation.rounds,
        expires=_allowed_day(expires, publication, now),
        approved_at=_now(),
        approved_by=by,
    )
    _make(folder.path / "approvals")
    _note_runs(folder, approval.study_digest, lambda _known: ())
    write_private(approval_path(folder, approval.study_digest), approval.model_dump_json(indent=2).encode() + b"\n")
    _declined_path(folder, approval.study_digest).unlink(missing_ok=True)
    return approval


def decline(folder: SiteFolder, publication: Publication, *, by: str, reason: str = "") -> Declined:
    """Decline a study; an approval of it ends. Raises StorageError."""
    made = Declined(
        study_digest=publication.study_digest,
        study_name=published_study(publication).name,
        declined_at=_now(),
        declined_by=by,
        reason=reason,
    )
    _make(folder.path / "declined")
    write_private(_declined_path(folder, made.study_digest), made.model_dump_json(indent=2).encode() + b"\n")
    approval_path(folder, made.study_digest).unlink(missing_ok=True)
    return made


def require_approval(
    folder: SiteFolder, study: Study, *, coordinator_key: str, run: str, release: Release, today: date | None = None
) -> Approval:
    """The approval of exactly this study, from this coordinator, with this release; the run counts as made when this returns.

    Raises DeclinedError, NotApprovedError, ApprovalEndedError (its last day is over, or its runs are used up), ApprovalChangedError (code,
    libraries, coordinator or weights are others), StorageError (the run can't be noted). That the model is the starting model
    in round 0 is for the caller to compare with `starting_point`.
    """
    if not _RUN.fullmatch(run):
        raise InstructionError("the run's id is none")
    digest = study.digest()
    approval = find_approval(folder, digest)
    if (no := find_declined(folder, digest)) is not None:
        raise DeclinedError(
            f"study {study.name} ({digest[:12]}) was declined here by {no.declined_by} at {no.declined_at}"
        )
    if approval is None:
        raise NotApprovedError(
            f"study {study.name} with digest {digest} is not approved here; read it with `consilium-site review`, "
            "then `consilium-site approve`"
        )
    _require_unchanged(folder, approval, coordinator_key, release)
    if (today or _today()) > approval.expires:
        raise ApprovalEndedError(f"the approval of {study.name} ended with {approval.expires} (UTC)")
    if study.federation.rounds > approval.rounds:
        raise ApprovalEndedError(
            f"{study.name} was approved for {approval.rounds} rounds, but has {study.federation.rounds}"
        )

    def with_this(known: tuple[str, ...]) -> tuple[str, ...]:
        if run in known:
            return known
        if len(known) >= approval.runs:
            raise ApprovalEndedError(
                f"{study.name} was approved for {approval.runs} run(s), and all were made: {', '.join(known)}"
            )
        return (*known, run)

    _note_runs(folder, digest, with_this)
    return approval


def find_approval(folder: SiteFolder, digest: str) -> Approval | None:
    """The approval of the study with this digest, None where there is none that can be read as one."""
    try:
        approval = Approval.model_validate_json(approval_path(folder, digest).read_bytes())
    except (OSError, ValidationError):
        return None
    return approval if approval.study_digest == digest else None


def find_declined(folder: SiteFolder, digest: str) -> Declined | None:
    """What was written when the study was declined. A damaged file is a decline too: it is never read as consent."""
    path = _declined_path(folder, digest)
    try:
        return Declined.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        return Declined(study_digest=digest, study_name="", declined_at="a time unknown", declined_by="somebody")


def runs_made(folder: SiteFolder, digest: str) -> tuple[str, ...]:
    """Ids of the runs that were made under the approval, in the order of their beginning."""
    try:
        return tuple(_runs_path(folder, digest).read_text(encoding="utf-8").split())
    except FileNotFoundError:
        return ()


def approval_path(folder: SiteFolder, digest: str) -> Path:
    return folder.path / "approvals" / f"{digest}.json"


def published_study(publication: Publication) -> Study:
    """The study inside, validated. Raises DocumentError where its digest is not the one that the publication names; StudyError."""
    study = study_from_data(publication.study)
    if study.digest() != publication.study_digest:
        raise DocumentError(
            f"the publication names study {publication.study_digest[:12]}, but holds {study.digest()[:12]}; "
            "coordinator and hospital need the same release, or the file was made by hand"
        )
    return study


def require_current(publication: Publication, own: Release, today: date | None = None) -> None:
    """Raises ApprovalEndedError where the publication's last day is over, ApprovalChangedError where it was made with another release."""
    if (today or _today()) > last_day(publication):
        raise ApprovalEndedError(
            f"the offer of study {publication.study_digest[:12]} ended with {publication.expires} (UTC); ask for a new one"
        )
    if publication.release.code_digest != own.code_digest:
        theirs, ours = publication.release.versions["consilium"], own.versions["consilium"]
        raise ApprovalChangedError(
            f"the study was published with consilium {theirs} (code {publication.release.code_digest[:12]}), but installed here is "
            f"{ours} (code {own.code_digest[:12]}); install the same release on both sides"
        )


def last_day(publication: Publication) -> date:
    """Raises DocumentError where it is no day of the calendar."""
    try:
        return date.fromisoformat(publication.expires)
    except ValueError:
        raise DocumentError(f"the publication's last day, {publication.expires}, is no date") from None


def bring_weights(study: Study, source_folder: Path, target_folder: Path) -> dict[str, str]:
    """Copy the files of weights that the study names, if any, to the same names below `target_folder`; file names and their SHA-256.

    Raises WeightsError where one is missing, has another SHA-256, or would lie outside; StorageError.
    """
    return {
        weights.file: _bring(key, weights, source_folder, target_folder) for key, weights in study.weight_files.items()
    }


def _bring(key: str, weights: WeightsFile, source_folder: Path, target_folder: Path) -> str:
    source, target = source_folder / weights.file, target_folder / weights.file
    if not target.resolve().is_relative_to(target_folder.resolve()):  # it could overwrite an approval
        raise WeightsError(f"{key}: expected a file beside the study or below it, but got '{weights.file}'")
    if not source.is_file():
        raise WeightsError(f"{source}: no such file, but the study names it in {key} ({weights.source})")
    found = file_digest(source)
    if found != weights.sha256:
        raise WeightsError(f"{source}: the study names SHA-256 {weights.sha256}, but the file has {found}")
    if source.resolve() == target.resolve() or (target.is_file() and file_digest(target) == found):
        return found
    hidden = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        shutil.copyfile(source, hidden)
        hidden.replace(target)
    except OSError as problem:
        with contextlib.suppress(OSError):
            hidden.unlink(missing_ok=True)
        raise StorageError(f"{target}: can't be written: {problem.strerror or problem}") from None
    return found


def _require_unchanged(folder: SiteFolder, approval: Approval, coordinator_key: str, release: Release) -> None:
    changed = [
        what
        for what, approved, found in (
            ("the coordinator's key", approval.coordinator_key, coordinator_key),
            ("the installed code", approval.code_digest, release.code_digest),
            ("the installed libraries", approval.lock_digest, release.lock_digest),
        )
        if approved != found
    ]
    for name, sha256 in approval.weights.items():
        path = folder.weights / name
        if not path.is_file() or file_digest(path) != sha256:
            changed.append(f"the weights {name}")
    if changed:
        raise ApprovalChangedError(
            f"{approval.study_name} was approved at {approval.approved_at}, but since then other: {', '.join(changed)}; "
            "look again with `consilium-site review`, then `consilium-site approve`"
        )


def _allowed_runs(wanted: int | None, publication: Publication) -> int:
    if wanted is None:
        return publication.runs
    if not 1 <= wanted <= publication.runs:
        raise InputError(
            f"--runs: expected 1 to {publication.runs}, as often as the coordinator asks for, but got {wanted}"
        )
    return wanted


def _allowed_day(wanted: str | None, publication: Publication, today: date) -> date:
    latest = last_day(publication)
    if wanted is None:
        return latest
    try:
        day = date.fromisoformat(wanted)
    except ValueError:
        raise InputError(f"--until: expected a day as YYYY-MM-DD, but got '{wanted}'") from None
    if not today <= day <= latest:
        raise InputError(f"--until: expected a day from {today} to {latest}, where the offer ends, but got {day}")
    return day


def _note_runs(folder: SiteFolder, digest: str, change: Callable[[tuple[str, ...]], Sequence[str]]) -> None:
    """Put `change` of the noted runs in their place: one process at a time, and on disk before this returns."""
    path = _runs_path(folder, digest)
    try:
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)  # the kernel lets go when the holder dies
            known = runs_made(folder, digest)
            wanted = tuple(change(known))
            if wanted != known:
                write_private(path, "".join(f"{run}\n" for run in wanted).encode())
                os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as problem:
        raise StorageError(f"{path}: can't be written: {problem.strerror or problem}") from None


def _runs_path(folder: SiteFolder, digest: str) -> Path:
    return folder.path / "approvals" / f"{digest}.runs"


def _declined_path(folder: SiteFolder, digest: str) -> Path:
    return folder.path / "declined" / f"{digest}.json"


def _make(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True, mode=0o700)
    except OSError as problem:
        raise StorageError(f"{folder}: can't be made: {problem.strerror or problem}") from None


def _today() -> date:
    return datetime.now(UTC).date()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
