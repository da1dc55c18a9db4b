"""A whole federation on this machine: one SuperLink with TLS and node authentication, one SuperNode a hospital, each its own process.

The hospitals' side is driven through `consilium-site` alone, as it would be on their own machines: each makes its keys, asks to join,
is admitted, approves the study, and starts its node. Only the telephone is missing. Whatever happens - an error, Ctrl-C, a kill - no
process is left behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from rich.console import Console

from server.admitted_nodes import bring_into_line
from server.ending import deaf, stoppable
from server.home import LOOPBACK, Home
from server.joining import admit, read_applicant
from server.live import SiteProgress, watch
from server.publishing import Published, publish
from server.run_folder import RunFolder, write_atomic
from server.run_lock import is_led
from server.starting_model import LOCK, check_sites, claim_folder, require_empty, write_run
from server.superlink import IN_MEMORY, Control, SuperLink, start_superlink
from shared.audit.trust import COORDINATOR as COORDINATOR_NAME
from shared.audit.trust import trust_lines
from shared.errors import (
    UNEXPECTED_CODE,
    ConsiliumError,
    InputError,
    ProcessError,
    QuorumError,
    RunFolderError,
    StorageError,
    StudyError,
)
from shared.own_bundle import app_bundle
from shared.processes import adopt_orphans, end_descendants, free_ports, is_taken
from shared.profile import load_profile
from shared.run_records import Event
from shared.study import load_study

_COORDINATOR_ENDED = "the coordinator's process ended before the run did; see logs/superlink.log"
#: What a coordinator's run may end in, by the code in run.json; anything else is its process's trouble.
_ENDINGS: dict[str, type[ConsiliumError]] = {
    error.code: error for error in (QuorumError, RunFolderError, StorageError, StudyError)
}
_PORTS_TRIED = 3
#: The coordinator's folder, in the run's.
COORDINATOR = "coordinator"
#: Lines that follow the first one of a hospital's error, and are shown.
_LINES_TOLD = 10


def run_local(
    study_path: Path, profile_paths: list[Path], run_dir: Path, *, console: Console, database: bool = False
) -> RunFolder:
    """Provision, run and stop a federation; returns the finished run's folder.

    `database` keeps the SuperLink's state in a file of the run folder instead of in memory. Raises ConsiliumError with a sentence
    where the run does not finish (run.json then says so too), KeyboardInterrupt after Ctrl-C.
    """
    study = load_study(study_path)
    profiles = _by_site(profile_paths)
    check_sites(study, list(profiles))
    folder = RunFolder(run_dir.resolve())
    with _exclusive(folder.path), stoppable():
        claim_folder(folder.path)
        with _ended_properly(folder):
            federation = _Federation(folder, console, str(folder.path / "state.db") if database else IN_MEMORY)
            federation.start_superlink()
            asked = federation.init_sites(profiles)
            published = federation.publish(study_path)
            federation.join_sites(asked, published)
            write_run(folder, study, list(profiles), published.built)
            federation.conduct(list(profiles))
    return folder


class _Federation:
    """The processes of one local run, and their logs."""

    def __init__(self, folder: RunFolder, console: Console, database: str) -> None:
        self._folder = folder
        self._console = console
        self._database = database
        self._home = Home.create(folder.path / COORDINATOR, "one machine", LOOPBACK, address="127.0.0.1:1")
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        self._keep: list[IO[bytes]] = []

    def start_superlink(self) -> None:
        """Start it on a free port; `conduct` waits until it answers."""
        self._port = free_ports(1)[0]
        self._superlink = start_superlink(
            self._home.certificates, port=self._port, home=self._home.path / "flwr", log=self._log("superlink"),
            database=self._database,
        )  # fmt: skip

    def _answering_superlink(self) -> Control:
        """Its control API, once it answers. A port that another program took in the meantime is no reason to give up."""
        for attempt in range(_PORTS_TRIED):
            if attempt:
                self.start_superlink()
            control = Control(self._superlink)
            try:
                control.wait_until_ready()
                return control
            except ProcessError:
                control.close()
                if not is_taken(self._port):
                    raise
        raise ProcessError(
            f"the SuperLink could not start: {_PORTS_TRIED} times another program took the port of 127.0.0.1 that was to be its own "
            f"(at last {self._port}); run it again"
        )

    def init_sites(self, profiles: Mapping[str, Path]) -> dict[str, Path]:
        """Each hospital makes its folder and asks to join; returns the requests."""
        _side_by_side({site: ("init", self._site(site), "--profile", path) for site, path in profiles.items()})
        requests = {site: self._home.path / f"{site}.request.json" for site in profiles}
        _side_by_side({site: ("request", self._site(site), "--out", path) for site, path in requests.items()})
        return requests

    def publish(self, study_path: Path) -> Published:
        """Sign the study for the hospitals."""
        return publish(self._home, study_path, self._home.path / "study.json")

    def join_sites(self, requests: Mapping[str, Path], published: Published) -> None:
        """Admit each hospital; it joins and approves the study."""
        admissions = {site: self._home.path / f"{site}.admission.json" for site in requests}
        for site, path in requests.items():
            admit(self._home, read_applicant(self._home, path), admissions[site])
        # On one machine, where nobody could have changed the file, no fingerprint is compared.
        _side_by_side({site: ("join", self._site(site), path, "--yes") for site, path in admissions.items()})
        offer = published.files[0]
        _side_by_side(
            {site: ("approve", self._site(site), offer, "--by", "consilium-server local") for site in requests}
        )
        self._write_trust()

    def _write_trust(self) -> None:
        """RUN.trust beside the run's folder: the fingerprints that an auditor would have got by telephone."""
        keys = [(COORDINATOR_NAME, self._home.signing_key().public), *sorted(self._home.registry.keys().items())]
        write_atomic(self._folder.path.with_name(f"{self._folder.path.name}.trust"), trust_lines(keys).encode())

    def conduct(self, sites: list[str]) -> None:
        """Admit the nodes, start them, submit the run, and watch it to its end."""
        control = self._answering_superlink()
        superlink = self._superlink
        try:
            threads = max(1, (os.cpu_count() or 1) // len(sites))
            bring_into_line(self._home, control)
            for site in sites:
                self._nodes[site] = subprocess.Popen(
                    _site_command(
                        "up", self._site(site), "--superlink", superlink.address, "--threads", threads, "--end-with-parent",
                    ),
                    stdout=self._log(f"site-{site}"), stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip
            run_id = control.start_run(app_bundle(), {"home": str(self._home.path), "run-dir": str(self._folder.path)})
            alive = _Heartbeat(control, run_id, superlink, self._nodes, self._folder)
            watch(self._folder, running=alive, site_progress=lambda: self._progress(sites), console=self._console)
        finally:
            control.close()
        self._require_finished(sites)

    def _require_finished(self, sites: list[str]) -> None:
        run = self._folder.run()
        if run.state == "finished":
            return
        if run.state != "failed":  # said before the hospitals' own words are added: these are not for the run's records
            self._folder.end("failed", _COORDINATOR_ENDED, ProcessError.code)
            run = self._folder.run()
        told = "".join(f"\n  {site}: {line}" for site in sites if (line := self._last_error(site)))
        reason = run.reason or _COORDINATOR_ENDED
        error = _ENDINGS.get(run.code or "", ProcessError)
        raise error(reason + (f"\nThe hospitals' own logs say (this text never left them):{told}" if told else ""))

    def _last_error(self, site: str) -> str | None:
        """The last error with a code in the site's log, with the lines that belong to it: on one machine we may look."""
        log = self._folder.path / "logs" / f"site-{site}.log"
        try:
            lines = log.read_text(errors="replace").splitlines()
        except OSError:
            return None
        last = next((number for number in reversed(range(len(lines))) if "CONS-" in lines[number]), None)
        if last is None:
            return None
        told = lines[last][lines[last].index("CONS-") :]
        if UNEXPECTED_CODE in told:
            return f"{told}; see {log}"
        more = itertools.takewhile(lambda line: line.startswith("  "), lines[last + 1 : last + 1 + _LINES_TOLD])
        return "\n  ".join([told, *more])

    def _progress(self, sites: list[str]) -> dict[str, SiteProgress]:
        shown: dict[str, SiteProgress] = {}
        for site in sites:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                values = json.loads((self._site(site) / "progress.json").read_text())
                shown[site] = SiteProgress(values["phase"], values["done"], values["total"], values["loss"])
        return shown

    def _site(self, site: str) -> Path:
        return self._folder.path / "sites" / site

    def _log(self, name: str) -> IO[bytes]:
        stream = (self._folder.path / "logs" / f"{name}.log").open("ab")
        self._keep.append(stream)
        return stream


class _Heartbeat:
    """Whether the run still goes on: asked by the live view a few times a second, it asks Flower every second."""

    def __init__(
        self,
        control: Control,
        run_id: int,
        superlink: SuperLink,
        nodes: Mapping[str, subprocess.Popen[bytes]],
        folder: RunFolder,
    ) -> None:
        self._control, self._run_id, self._superlink, self._folder = control, run_id, superlink, folder
        self._nodes = dict(nodes)
        self._asked = 0.0
        self._going = True
        self._was_led = False

    def __call__(self) -> bool:
        if self._going and time.monotonic() - self._asked > 1.0:
            self._asked = time.monotonic()
            self._going = self._look()
        return self._going

    def _look(self) -> bool:
        for site, process in list(self._nodes.items()):
            if process.poll() is not None:
                del self._nodes[site]
                text = f"its node ended with status {process.returncode}; see logs/site-{site}.log"
                self._folder.note(Event(at=time.time(), kind="site", site=site, text=text))
        if self._superlink.process.poll() is not None:
            return False
        led = is_led(self._folder)  # asked before the state: a leader writes the state first, then ends
        if self._folder.run().state in ("finished", "failed", "stopped") or (self._was_led and not led):
            return False
        self._was_led = led
        try:
            return not self._control.run_status(self._run_id).startswith("finished")
        except Exception:  # a busy SuperLink; its process is looked at above
            return True


def _site_command(verb: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", "client.cli", verb, *(str(argument) for argument in arguments)]


def _side_by_side(commands: Mapping[str, tuple[object, ...]]) -> None:
    """One command of each hospital, all at once. Raises ProcessError with what the first that failed has said."""
    started = {
        site: subprocess.Popen(_site_command(str(verb), *arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for site, (verb, *arguments) in commands.items()
    }
    said = {site: process.communicate()[0].decode(errors="replace").strip() for site, process in started.items()}
    for site, process in started.items():
        if process.returncode != 0:
            raise ProcessError(f"{site}: {said[site]}")


def _by_site(paths: list[Path]) -> dict[str, Path]:
    """Profile paths by site name, in name order. Raises ProfileError, InputError where two have one name or there is none."""
    found: dict[str, Path] = {}
    for path in paths:
        site = load_profile(path).site
        if site in found:
            raise InputError(f"{path}: its site name '{site}' is also that of {found[site]}; site names must differ")
        found[site] = path
    if not found:
        raise InputError("a run needs at least one site profile")
    return dict(sorted(found.items()))


@contextlib.contextmanager
def _ended_properly(folder: RunFolder) -> Iterator[None]:
    """However the block ends, no process is left. Then run.json says why a run ended early; what never was a run leaves no file."""
    adopt_orphans()
    try:
        yield
    except BaseException as problem:
        with deaf():
            end_descendants()  # first: none of them writes into the folder any more
            _record_end(folder, problem)
        raise
    with deaf():
        end_descendants()


def _record_end(folder: RunFolder, problem: BaseException) -> None:
    if not (folder.path / "run.json").exists():
        for leftover in folder.path.iterdir():
            if leftover.name != LOCK:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        return
    if folder.run().state in ("failed", "finished", "stopped"):
        return
    with contextlib.suppress(StorageError):  # a full disk: the reason is told on the terminal at least
        if isinstance(problem, KeyboardInterrupt):
            folder.end("stopped", "stopped by hand; the rounds that were finished are kept")
        elif isinstance(problem, ConsiliumError):
            folder.end("failed", str(problem), problem.code)
        else:
            folder.end("failed", "consilium-server met an unexpected error", UNEXPECTED_CODE)


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Hold the folder's lock. Raises RunFolderError where another process leads a run in it, or it holds something else."""
    try:
        if path.is_dir() and not (path / LOCK).exists():
            require_empty(path)  # before anything is put into somebody's folder
        path.mkdir(parents=True, exist_ok=True)
        stream = (path / LOCK).open("w")
    except OSError as problem:
        raise RunFolderError(f"{path}: can't be made: {problem.strerror or problem}") from None
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunFolderError(f"{path}: another run is going on in this folder") from None
        yield
