"""A hospital runs only the code that it installed itself (law 1 of the design).

Flower sends the code of an app along with its first message. Here nothing of it is fetched: the node builds the bundle of its own
installed release, works for a run only where the run names that bundle's hash, and hands its own bytes on. Nothing is unpacked either:
what the executor runs are the installed files, hashed again before each task.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from flwr.app import Message
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.run import Run, RunNotRunningException

from client.door import Door
from client.site_folder import SiteFolder
from shared.errors import UNEXPECTED_CODE, ConsiliumError, InstructionError, ReleaseError
from shared.flower_settings import require_parameters
from shared.own_bundle import app_bundle
from shared.pacing import Pacing
from shared.release import PACKAGES, fresh_code_digest, source_root, versions

log = logging.getLogger("consilium.own_code")

#: Name in the node's configuration under which a task learns of the development override.
ANY_RELEASE = "any-release"

_PULL = (
    "state",
    "object_store",
    "node_config",
    "receive",
    "get_run",
    "get_fab",
    "pull_object",
    "confirm_message_received",
    "trusted_entities",
)


class OwnCode:
    """The bundle of the installed release, and which runs it may serve."""

    def __init__(self, bundle: bytes, *, any_release: bool = False, record: Path | None = None) -> None:
        self.bundle = bundle
        self.digest = hashlib.sha256(bundle).hexdigest()
        self._any_release = any_release
        self._record = record

    @classmethod
    def installed(cls, folder: SiteFolder, *, any_release: bool) -> OwnCode:
        """`any_release` is the development override: it is told here, and at each run that makes use of it."""
        if any_release:
            log.warning(
                "DEVELOPMENT OVERRIDE --any-release: this node works for coordinators with other code than its own. "
                "It runs its own code all the same. Never use it with patients' data"
            )
        return cls(app_bundle(), any_release=any_release, record=folder.path / "runs" / "overrides.jsonl")

    def admitted(self, run: Run) -> Run:
        """The run as this node sees it: with its own code and no configuration from outside.

        Raises ReleaseError where the run was submitted with other code, InstructionError where it is no training run.
        """
        if run.primary_task_type not in ("", TaskType.SERVER_APP):
            raise InstructionError(f"run {run.run_id} is of another kind than training: {run.primary_task_type}")
        if run.fab_hash != self.digest:
            found = (
                f"the coordinator submitted run {run.run_id} with code {run.fab_hash[:16]} of {run.fab_id} {run.fab_version}, "
                f"but installed here is {versions()['consilium']} (flwr {versions()['flwr']}) with code {self.digest[:16]}"
            )
            if not self._any_release:
                raise ReleaseError(f"{found}; install the same release on both sides")
            self._note_override(run, found)
        # Nothing reads the run's configuration here, and a name in it that is not declared would stop the node.
        return replace(
            run,
            fab_hash=self.digest,
            fab_id="consilium/consilium",
            fab_version=versions()["consilium"],
            override_config={},
        )

    def fab(self, digest: str) -> Fab:
        """This site's own bytes, whatever the coordinator holds. Raises ReleaseError where another bundle is asked for."""
        if digest != self.digest:
            raise ReleaseError(f"code {digest[:16]} was asked for, but only {self.digest[:16]} is installed here")
        return Fab(self.digest, self.bundle, {})

    def _note_override(self, run: Run, found: str) -> None:
        log.warning("DEVELOPMENT OVERRIDE --any-release: %s; this node runs its own", found)
        if self._record is None:
            return
        line = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "flower_run": str(run.run_id),
            "their_bundle": run.fab_hash,
            "own_bundle": self.digest,
            "versions": versions(),
        }
        self._record.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._record.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")


def install(internal: ModuleType, own: OwnCode, door: Door) -> None:
    """Let the SuperNode take only runs of this site's own code, and survive what it can't take.

    Raises ProcessError where this Flower's functions have other parameters than expected.
    """
    pull = require_parameters(internal, "_pull_and_store_message", *_PULL)
    insert = require_parameters(internal, "_insert_message", "msg", "state", "store")
    internal._pull_and_store_message = _guarded(pull, insert, own, door)  # type: ignore[attr-defined]


def _guarded(
    pull: Callable[..., Any], insert: Callable[..., Any], own: OwnCode, door: Door
) -> Callable[..., int | None]:
    trouble = Pacing(1.0, 60.0)

    def pull_own(**given: Any) -> int | None:
        """Flower's function, between a message's arrival and its task."""
        came: Message | None = None

        def receive() -> Any:
            nonlocal came
            got = given["receive"]()
            if got is not None:
                came = got[0]
                door.expect(came)
            return got

        def get_run(number: int) -> Run:
            return own.admitted(given["get_run"](number))

        def get_fab(digest: str, number: int) -> Fab:
            del number
            return own.fab(digest)

        try:
            number: int | None = pull(**{**given, "receive": receive, "get_run": get_run, "get_fab": get_fab})
        except ConsiliumError as problem:
            code = problem.code
            log.error("%s: %s", code, problem)
        except Exception:
            code = UNEXPECTED_CODE
            log.exception("%s: a message could not be taken", code)
        else:
            trouble.restart()
            if number is None and came is not None:  # its run ended while its pieces came; Flower leaves it half taken
                door.forget(came)
                given["state"].delete_messages(message_ids=[came.metadata.message_id])
                given["object_store"].delete(came.metadata.message_id)
            return number
        refusal = door.refusal(came, code) if came is not None else None
        if came is None or refusal is None:
            time.sleep(trouble.wait_s())
            return None
        insert(refusal, given["state"], given["object_store"])
        _confirm(given["confirm_message_received"], came)
        return int(came.metadata.run_id)

    return pull_own


def _confirm(confirm: Callable[[int, str], None], message: Message) -> None:
    """So that the coordinator's side drops the message's pieces, which nobody will fetch."""
    try:
        confirm(message.metadata.run_id, message.metadata.message_id)
    except (Exception, RunNotRunningException) as problem:  # the latter is no Exception
        log.warning("the refused message could not be confirmed: %s", problem)


class CodeWatch:
    """Whether what runs is still what was installed when the executor began. Made before anything of the task's code is imported."""

    def __init__(self, unpacked: Path) -> None:
        self._digest = fresh_code_digest()
        self._unpacked = unpacked

    def check(self) -> None:
        """Hash the installed files, and look where the loaded modules came from. Raises ReleaseError.

        Code that somebody unpacked where Flower would look for it is removed: nothing here runs it.
        """
        if self._unpacked.exists():
            log.warning("%s: code lay here that nobody unpacked; it is removed, and was never run", self._unpacked)
            shutil.rmtree(self._unpacked, ignore_errors=True)
        if fresh_code_digest() != self._digest:
            raise ReleaseError(
                f"the installed files under {source_root()} have changed since the node was started; "
                "install the release again, or start the node again if the change was meant"
            )
        if strangers := foreign_modules(sys.modules):
            raise ReleaseError(f"loaded from elsewhere than {source_root()}: {', '.join(strangers)}")


def foreign_modules(loaded: dict[str, ModuleType]) -> Sequence[str]:
    """Names of the three packages' modules whose file does not lie in the installed release."""
    return [
        name
        for name, module in sorted(loaded.items())
        if name.split(".")[0] in PACKAGES and not _is_installed(name, getattr(module, "__file__", None))
    ]


def _is_installed(name: str, file: str | None) -> bool:
    if file is None:
        return False
    place = source_root().joinpath(*name.split("."))
    return Path(file).resolve() in (place.with_suffix(".py"), place / "__init__.py")
