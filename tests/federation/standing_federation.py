"""A coordinator and two hospitals in folders and processes of their own, set up and driven by nothing but the commands.

Commands that stay up have processes of their own; those that end are run in this one.
One federation serves many runs: each test launches its own run, disturbs it, and compares it with one that was left alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer
from small_federation import (
    Command,
    Finished,
    alive,
    command,
    start,
    wait_until,
    write_profile,
    write_study,
)

from client.cli import app as site_app
from server.cli import app as server_app
from server.home import Home
from server.run_folder import RunFolder
from server.sites import list_sites
from shared.canonical import file_digest
from shared.nginx import GatewayFolder
from shared.processes import free_ports, is_taken
from tests.in_this_process import ended

SITES = ("anna", "bertha")


@dataclass
class Standing:
    """The folders of a federation and its processes under way."""

    base: Path
    port: int
    address: int
    coordinator: Command | None = None
    nodes: dict[str, Command] = field(default_factory=dict)
    gateways: dict[str, Command] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.base / "coordinator"

    def site(self, name: str) -> Path:
        return self.base / name

    def run_folder(self, name: str) -> RunFolder:
        return RunFolder(self.home / "runs" / name)

    # -- commands ------------------------------------------------------------------------------------------------------

    def server(self, verb: str, *arguments: object, code: int | None = 0) -> Finished:
        """`consilium-server VERB HOME ...`; `code` is what it must end with."""
        return self._ended(server_app, verb, self.home, arguments, code)

    def hospital(self, site: str, verb: str, *arguments: object, code: int | None = 0) -> Finished:
        """`consilium-site VERB FOLDER ...`."""
        return self._ended(site_app, verb, self.site(site), arguments, code)

    def _ended(
        self, app: typer.Typer, verb: str, folder: Path, arguments: tuple[object, ...], code: int | None
    ) -> Finished:
        status, said = ended(app, [verb, str(folder), *map(str, arguments)], cwd=self.base)
        finished = Finished(status, said, mark="")
        assert code is None or status == code, f"{verb} of {app.info.name} ended with {status}: {said}"
        assert "Traceback" not in finished.output, finished.output
        return finished

    # -- setting up ----------------------------------------------------------------------------------------------------

    def init(self) -> None:
        self.server(
            "init", "--federation", "Test network", "--host", "127.0.0.1",
            "--address", f"127.0.0.1:{self.address}", "--port", self.port,
        )  # fmt: skip

    def join(self, site: str, profile: Path) -> None:
        """A hospital makes its folder, asks, is admitted, and joins; both fingerprints are compared as over the telephone."""
        self.hospital(site, "init", "--profile", profile)
        asked = self.hospital(site, "request", "--out", self.base / f"{site}.request.json")
        self.server("admit", self.base / f"{site}.request.json", "--fingerprint", spoken_in(asked.output),
                    "--out", self.base / f"{site}.admission.json")  # fmt: skip
        coordinator = (self.home / "fingerprint").read_text()
        self.hospital(site, "join", self.base / f"{site}.admission.json", "--fingerprint", coordinator)

    def publish(self, study: Path, *, runs: int = 1, approve: tuple[str, ...] = SITES) -> str:
        """Publish `study`, let the hospitals approve it; returns its digest."""
        offer = study.with_suffix(".study.json")
        told = self.server("publish", study, "--runs", runs, "--out", offer)
        for site in approve:
            self.hospital(site, "approve", offer)
        found = re.search(r"\b[0-9a-f]{64}\b", told.output)
        assert found is not None, told.output
        return found.group()

    # -- processes -----------------------------------------------------------------------------------------------------

    def up(self) -> None:
        """Start the coordinator and wait until hospitals can connect."""
        self.coordinator = start(command("consilium-server", "up", self.home), cwd=self.base)
        wait_until(
            lambda: (self.home / "superlink.json").exists() or self._down(self.coordinator), "coordinator up", 90
        )
        assert not self._down(self.coordinator), self.coordinator.wait(5).output

    def start_node(self, site: str, *arguments: object, environment: Mapping[str, str] | None = None) -> Command:
        node = start(
            command("consilium-site", "up", self.site(site), *arguments), cwd=self.base, environment=environment
        )
        self.nodes[site] = node
        return node

    def start_gateway(self, folder: Path, port: int) -> None:
        """nginx with the configuration that a command has written into the folder."""
        place = GatewayFolder(folder / "gateway")
        self.gateways[folder.name] = start(place.command(), cwd=self.base)
        wait_until(lambda: is_taken(port), f"nginx of {folder.name}", 30)

    def wait_online(self, *sites: str, limit_s: float = 120) -> None:

        def online() -> bool:
            for node in self.nodes.values():
                assert not self._down(node), node.wait(5).output
            return set(sites) <= {row.site for row in list_sites(Home(self.home))[0] if row.state == "online"}

        wait_until(online, f"{sites} online", limit_s, every_s=0.3)

    @staticmethod
    def _down(process: Command | None) -> bool:
        return process is not None and process.process.poll() is not None

    def kill_node(self, site: str) -> None:
        """As a power cut would: the node, its executor and the fork that trains, all at once."""
        kill_all(self.nodes.pop(site))

    @contextlib.contextmanager
    def asleep(self, site: str) -> Iterator[None]:
        """Nothing that a site was asked is carried out meanwhile, while its node stays online."""
        pids = [pid for pid, line in alive(self.nodes[site].mark).items() if "client.executor" in line]
        assert pids, f"{site} has no executor"
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def kill_coordinator(self) -> None:
        assert self.coordinator is not None
        kill_all(self.coordinator)
        self.coordinator = None

    def end(self) -> None:
        coordinator = [self.coordinator] if self.coordinator else []
        for process in [*self.nodes.values(), *coordinator]:
            kill_all(process)
        for gateway in (
            self.gateways.values()
        ):  # nginx overwrites its environment, so that the mark is gone; its workers end with it
            gateway.signal(signal.SIGTERM)
            gateway.wait(30)
        self.nodes.clear()
        self.gateways.clear()
        self.coordinator = None

    # -- runs ----------------------------------------------------------------------------------------------------------

    def launch(self, digest: str, name: str, *, code: int | None = 0) -> Finished:
        return self.server("launch", digest[:12], "--name", name, "--detach", code=code)

    def wait_state(self, name: str, *states: str, limit_s: float = 240) -> str:
        folder, limit = self.run_folder(name), time.monotonic() + limit_s
        while folder.run().state not in states:
            assert time.monotonic() < limit, (
                f"not within {limit_s:g} s: {name} {' or '.join(states)}, now {folder.run()}"
            )
            time.sleep(0.1)
        return folder.run().state

    def weights(self, name: str) -> str:
        """Digest of the last round's file of weights."""
        folder = self.run_folder(name)
        return file_digest(folder.round_path(folder.rounds()[-1].round) / "model.safetensors")


def kill_all(started: Command) -> None:
    """SIGKILL to a command and everything that it started."""
    for pid in alive(started.mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    started.process.wait()
    if started.process.stdout is not None:
        started.process.stdout.close()


def spoken_in(output: str) -> str:
    """The fingerprint that a command shows: ten groups of four."""
    found = re.search(r"(?:[0-9a-f]{4} ){9}[0-9a-f]{4}", output)
    assert found is not None, output
    return found.group()


@contextlib.contextmanager
def standing(base: Path, profiles: Mapping[str, Path], *, behind_gateway: bool = False) -> Iterator[Standing]:
    """A federation whose hospitals have joined; no process runs yet, and none is left. Its address is the SuperLink's, or a gateway's."""
    port, gateway = free_ports(2)
    made = Standing(base, port, gateway if behind_gateway else port)
    try:
        made.init()
        (made.home / "fingerprint").write_text(fingerprint_of(made.home))
        for site, profile in profiles.items():
            made.join(site, profile)
        yield made
    finally:
        made.end()


def fingerprint_of(home: Path) -> str:
    """What the coordinator reads out over the telephone."""
    return Home(home).signing_key().public.spoken


def write_profiles(folder: Path, hospitals: Mapping[str, Path], **changes: Any) -> dict[str, Path]:
    """Profiles of the two hospitals, one of which has an image that can't be read."""
    skip = {"data": {"unreadable": "skip"}, **changes}
    return {site: write_profile(folder / site, site, hospitals[site], skip) for site in SITES}


def study_file(folder: Path, name: str, changes: Mapping[str, Any]) -> Path:
    return write_study(folder / f"{name}.yaml", {"name": name, **changes})


class Cable:
    """A TCP forwarder on this machine that can be cut."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._pairs: set[socket.socket] = set()
        self._cut = threading.Event()
        self._end = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Drop every connection, and every new one."""
        self._cut.set()
        for one in list(self._pairs):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._cut.clear()

    def close(self) -> None:
        self._end.set()
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        while not self._end.is_set():
            try:
                here, _ = self._listener.accept()
            except OSError:
                return
            if self._cut.is_set():
                here.close()
                continue
            threading.Thread(target=self._forward, args=(here,), daemon=True).start()

    def _forward(self, here: socket.socket) -> None:
        with contextlib.suppress(OSError), here, socket.create_connection(("127.0.0.1", self._target)) as there:
            self._pairs |= {here, there}
            other = {here: there, there: here}
            while not self._end.is_set():
                readable, _, _ = select.select([here, there], [], [], 1.0)
                for one in readable:
                    data = one.recv(1 << 16)
                    if not data:
                        return
                    other[one].sendall(data)
