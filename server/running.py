"""Launching, stopping and resuming runs, and finding out which have ended without saying so.

A run's folder tells its state. Whether its process still lives is asked of the kernel (`server.run_lock`), because Flower
notices a killed ServerApp only after about a minute.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import time
from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Literal

from httpx import HTTPError

from server.coordinator import control_if_up, control_of
from server.home import Home
from server.publishing import count_launch, launched, study_of, take_back_launch, today, weights_of
from server.run_folder import RunFolder
from server.run_lock import is_led, leader
from server.starting_model import build_starting_model, check_sites, claim_folder, starting_point, write_run
from server.superlink import Control
from shared.documents import Publication
from shared.errors import InputError, ProcessError, ReleaseError, RunFolderError, StorageError
from shared.own_bundle import app_bundle
from shared.release import code_digest, versions
from shared.run_records import Event, RunRecord, State
from shared.schema import Strict
from shared.study import Study

Standing = Literal["starting", "running", "finished", "stopped", "failed", "interrupted"]

INTERRUPTED = (
    "interrupted: its process ended before the run did; `consilium-server resume` goes on from the last finished round"
)
BY_HAND = "stopped by hand; the rounds that were finished are kept"
#: The ServerApp of a run takes a few seconds to begin; after this long it is taken for dead.
BEGIN_WITHIN_S = 90.0
#: How long a run's process may take to end after SIGTERM (Flower's own way out waits for answers), and after SIGKILL. What is on disk
#: is whole at any moment.
END_WITHIN_S, KILLED_WITHIN_S = 3.0, 15.0

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,49}$")
_ENDED: frozenset[State] = frozenset({"finished", "stopped", "failed"})
_FLOWER = "flower.json"


class FlowerRun(Strict):
    """flower.json: under which number Flower knows the run, and since when. A run that is resumed gets another.

    None until it was submitted: a run that is about to be resumed is not taken for one whose process has ended.
    """

    run_id: str | None
    submitted: float


def launch(home: Home, publication: Publication, name: str, sites: Sequence[str] | None = None) -> RunFolder:
    """Make runs/NAME and start the run with the admitted sites, or some of them.

    Raises NotUpError; InputError (name, sites, expired, all runs made), StudyError (quorum, weighting), ReleaseError (published with
    other code), RunFolderError, StorageError.
    """
    if not _NAME.match(name):
        raise InputError(f"--name: expected up to 50 letters, digits, '.', '_' and '-', but got '{name}'")
    study = study_of(publication)
    _require_current(publication)
    with control_of(home) as control:
        chosen = _sites(home, sites)
        check_sites(study, chosen)
        folder = _new_folder(home, name)
        try:
            _fill(home, folder, study, chosen, publication)
            _count(home, publication, name)
            try:
                _submit(home, control, folder)
            except BaseException:
                take_back_launch(home, publication.study_digest, name)
                raise
        except BaseException:
            shutil.rmtree(folder.path, ignore_errors=True)
            raise
    return folder


def resume(home: Home, publication: Publication, name: str, *, other_code: bool = False) -> RunFolder:
    """Go on with a run that was stopped, failed or was interrupted, from its last finished round.

    Raises NotUpError, RunFolderError where it is finished, still led, or its study was changed; ReleaseError where it was begun with
    other code and `other_code` is not set.
    """
    folder = existing_run(home, name)
    with control_of(home) as control:
        state = standing(folder, control)
        if state == "finished":
            raise RunFolderError(f"{name}: this run has finished; launch a new one")
        if state in ("starting", "running"):
            raise RunFolderError(
                f"{name}: this run is going on; watch it with `consilium-server status {home.path} {name}`"
            )
        run = folder.run()
        if folder.study().digest() != run.study_digest:
            raise RunFolderError(f"{folder.path / 'study.json'}: not the study that this run was begun with")
        _require_expiry(publication)
        if run.code_digest != code_digest():
            _accept_code(folder, run, other_code)
        _end_in_flower(folder, control)
        folder.write(_FLOWER, FlowerRun(run_id=None, submitted=time.time()))
        folder.note(Event(at=time.time(), kind="run", phase="waiting", text="resumed"))
        folder.update_run(state="starting", reason=None, code=None, ended=None)
        try:
            _submit(home, control, folder)
        except BaseException:
            folder.end("stopped", INTERRUPTED)
            raise
    return folder


def stop(home: Home, name: str) -> RunRecord:
    """End the run and wait until its process has gone; finished rounds are kept. Raises RunFolderError where it has ended already."""
    folder = existing_run(home, name)
    with control_if_up(home) as control:
        state = standing(folder, control)
        if state not in ("starting", "running", "interrupted"):
            raise RunFolderError(f"{name}: this run is {state} already")
        _end_in_flower(folder, control)
        _end_leader(folder)
    run = folder.run()
    if run.state == "finished" or (run.state == "failed" and run.code not in (None, "CONS-999")):
        return run  # it came to its own end first
    if run.reason != BY_HAND:
        folder.end("stopped", BY_HAND)
    return folder.run()


def standing(folder: RunFolder, control: Control | None) -> Standing:
    """How the run stands, whatever its folder says: `interrupted` is one whose process ended without a word."""
    state = folder.run().state
    if state in _ENDED or is_led(folder):
        return state
    state = folder.run().state  # it may have ended in between
    if state in _ENDED:
        return state
    return "starting" if state == "starting" and _may_still_begin(folder, control) else "interrupted"


def settle_runs(home: Home, control: Control | None) -> list[str]:
    """Note every interrupted run as stopped, so that it can be resumed; returns their names."""
    settled = []
    for folder in runs_of(home):
        with contextlib.suppress(RunFolderError, StorageError):
            if standing(folder, control) == "interrupted":
                if control is not None:
                    _end_in_flower(folder, control)
                folder.end("stopped", INTERRUPTED)
                settled.append(folder.name)
    return settled


def runs_of(home: Home) -> list[RunFolder]:
    """Every run, in the order in which they were begun."""
    folders = [RunFolder(path.parent) for path in (home.path / "runs").glob("*/run.json")]
    begun: list[tuple[str, str, RunFolder]] = []
    for folder in folders:
        with contextlib.suppress(RunFolderError):
            begun.append((folder.run().started, folder.name, folder))
    return [folder for _, _, folder in sorted(begun, key=lambda one: one[:2])]


def unreadable_runs(home: Home) -> dict[str, str]:
    """Runs whose record can't be read, by name, and why: they are in no list, and must not vanish without a word."""
    found: dict[str, str] = {}
    for path in sorted((home.path / "runs").glob("*/run.json")):
        try:
            RunFolder(path.parent).run()
        except RunFolderError as problem:
            found[path.parent.name] = str(problem)
    return found


def existing_run(home: Home, name: str) -> RunFolder:
    """Raises RunFolderError where there is no run of this name, saying which there are."""
    home.record()
    folder = home.run_folder(name)
    if not (folder.path / "run.json").exists():
        known = ", ".join(one.name for one in runs_of(home)) or "none"
        raise RunFolderError(f"{name}: no such run in {home.path}; there are: {known}")
    return folder


def flower_run(folder: RunFolder) -> FlowerRun | None:
    """Under which number Flower knows it; None where it was never submitted."""
    path = folder.path / _FLOWER
    return folder.read(path, FlowerRun) if path.exists() else None


def _sites(home: Home, wanted: Sequence[str] | None) -> list[str]:
    active = list(home.registry.active())
    if not active:
        raise InputError(f"{home.path}: no hospital is admitted; `consilium-server admit` takes a join request")
    if wanted is None:
        return active
    unknown = sorted(set(wanted) - set(active))
    if unknown or not wanted:
        raise InputError(f"--sites: {', '.join(unknown) or 'none'} not among the admitted: {', '.join(active)}")
    return sorted(set(wanted))


def _require_current(publication: Publication) -> None:
    _require_expiry(publication)
    if publication.release.code_digest != code_digest():
        raise ReleaseError(
            f"the study was published with code {_named(publication.release.versions['consilium'], publication.release.code_digest)}, but "
            f"{_named(versions()['consilium'], code_digest())} is installed here; publish it again, and let the hospitals approve it"
        )


def _require_expiry(publication: Publication) -> None:
    if date.fromisoformat(publication.expires) < today():
        raise InputError(
            f"the publication of study {publication.study['name']} expired on {publication.expires}; publish it again with a later day"
        )


def _named(version: str, digest: str) -> str:
    return f"{version} ({digest[:16]}...)"


def _new_folder(home: Home, name: str) -> RunFolder:
    folder = home.run_folder(name)
    folder = RunFolder(folder.path.resolve())
    try:
        folder.path.mkdir(mode=0o700)
    except FileExistsError:
        raise RunFolderError(f"{folder.path}: there is a run of this name already; choose another --name") from None
    except OSError as problem:
        raise StorageError(f"{folder.path}: can't be made: {problem.strerror or problem}") from None
    return claim_folder(folder.path)


def _fill(home: Home, folder: RunFolder, study: Study, sites: list[str], publication: Publication) -> None:
    built = build_starting_model(study, weights_root=weights_of(home, publication.study_digest))
    found = starting_point(built.model, study.federation.wire)
    if found != publication.starting_point:
        raise ReleaseError(
            f"study {study.name}: its starting model comes out differently here than when it was published (PyTorch {versions()['torch']} "
            f"now, {publication.release.versions['torch']} then); publish it again, and let the hospitals approve it"
        )
    write_run(folder, study, sites, built)


def _count(home: Home, publication: Publication, name: str) -> None:
    with home.registry.changing():  # two launches at once must not both be the last
        made = launched(home, publication.study_digest)
        if len(made) >= publication.runs:
            raise InputError(
                f"study {publication.study['name']} was published for {publication.runs} run{'s' if publication.runs > 1 else ''}, and "
                f"launched already: {', '.join(made)}; resume one of these, or publish it again with more --runs"
            )
        count_launch(home, publication.study_digest, name)


def _submit(home: Home, control: Control, folder: RunFolder) -> None:
    run_id = control.start_run(app_bundle(), {"home": str(home.path.resolve()), "run-dir": str(folder.path.resolve())})
    folder.write(_FLOWER, FlowerRun(run_id=str(run_id), submitted=time.time()))


def _accept_code(folder: RunFolder, run: RunRecord, other_code: bool) -> None:
    was, now = (
        _named(run.versions.get("consilium", "?"), run.code_digest),
        _named(versions()["consilium"], code_digest()),
    )
    if not other_code:
        raise ReleaseError(
            f"{folder.name}: this run was begun with code {was}, but {now} is installed here. Install the former to get the same model as "
            "an undisturbed run, or go on with --other-code; the hospitals need this release too, and approve the study again"
        )
    folder.note(Event(at=time.time(), kind="note", text=f"goes on with code {now} in place of {was}"))
    folder.update_run(code_digest=code_digest(), versions={str(name): version for name, version in versions().items()})


def _may_still_begin(folder: RunFolder, control: Control | None) -> bool:
    """Whether a process of this run may still come: Flower has it, and it was submitted not long ago."""
    known = flower_run(folder)
    if known is None or control is None or time.time() - known.submitted > BEGIN_WITHIN_S:
        begun = datetime.fromisoformat(folder.run().started)
        just_made = known is None and (datetime.now(UTC) - begun).total_seconds() < BEGIN_WITHIN_S
        return just_made and control is not None
    if known.run_id is None:
        return True
    try:
        return not control.run_status(int(known.run_id)).startswith("finished")
    except (HTTPError, KeyError):
        return True


def _end_in_flower(folder: RunFolder, control: Control | None) -> None:
    """Flower forgets the run's messages, so that no node works for it any more. It may have ended there before."""
    known = flower_run(folder)
    if control is None or known is None or known.run_id is None:
        return
    with contextlib.suppress(HTTPError):
        if not control.run_status(int(known.run_id)).startswith("finished"):
            control.stop_run(int(known.run_id))


def _end_leader(folder: RunFolder) -> None:
    """Raises ProcessError where the run's process does not end."""
    for number, patience in ((signal.SIGTERM, END_WITHIN_S), (signal.SIGKILL, KILLED_WITHIN_S)):
        pid = leader(folder)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        limit = time.monotonic() + patience
        while is_led(folder):
            if time.monotonic() > limit:
                break
            time.sleep(0.05)
        else:
            return
    raise ProcessError(f"{folder.name}: its process {leader(folder)} does not end; end it by hand")
