"""A SuperLink and SuperNodes on this machine for benchmarks and tests: ours through the product's own code, or plain Flower's commands."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from client.approvals import approve
from client.site_folder import Coordinator, SiteFolder
from server.certificates import ServerCertificates
from server.checkpoint import read_starting_model
from server.home import Home
from server.registry import SiteRecord
from server.run_folder import RunFolder
from server.starting_model import starting_point
from server.superlink import Control, SuperLink, start_superlink
from shared.documents import Publication
from shared.flower_settings import QUIET_FLOWER
from shared.own_bundle import app_bundle
from shared.processes import adopt_orphans, descendants, end_descendants, free_ports
from shared.profile import Profile
from shared.release import Release

ROOT = Path(__file__).resolve().parent.parent

#: `flower-superlink`, but that a request waits longer for the database: with its own 5 s the 218 tensors of three plain nodes end in
#: "database is locked" on a busy machine, and with it the nodes.
PLAIN_SUPERLINK = """
import sys
from flwr.supercore import sql_mixin
sql_mixin.SQLITE_PRAGMAS = tuple({**dict(sql_mixin.SQLITE_PRAGMAS), "busy_timeout": "60000"}.items())
from flwr.superlink.cli.flower_superlink import flower_superlink
sys.argv[0] = "flower-superlink"
flower_superlink()
"""


@dataclass
class Federation:
    """A SuperLink with registered nodes. `folder` holds the coordinator's folder, the sites' folders and logs."""

    folder: Path
    home: Home
    superlink: SuperLink
    control: Control
    nodes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def log(self, name: str) -> IO[bytes]:
        (self.folder / "logs").mkdir(exist_ok=True)
        return (self.folder / "logs" / f"{name}.log").open("ab")

    def site(self, name: str) -> SiteFolder:
        """The site's folder, made where it is not there yet."""
        path = self.folder / "sites" / name
        if not path.exists():
            profile = {
                "schema": "consilium/profile/1", "site": name, "title": name, "device": "cpu",
                "data": {"layout": "cbis_ddsm", "root": str(path), "synthetic": True},
                "policy": {"minimum_cell": 1},
            }  # fmt: skip
            made = SiteFolder.create(path, Profile.model_validate(profile))
            joined = Coordinator(
                federation="benchmark", address=self.superlink.address, joined="now",
                coordinator_key=str(self.home.signing_key().public),
            )  # fmt: skip
            (path / "coordinator.json").write_text(joined.model_dump_json())
            made.ca.write_bytes(self.home.certificates.ca.read_bytes())
        return SiteFolder(path)

    def admit(self, name: str) -> None:
        """Put the site into Flower and into the registry."""
        site = self.site(name)
        node = self.control.register(name, site.path / "keys" / "node.pub")
        self.home.registry.put(
            SiteRecord(
                site=name, title=name, node_key=(site.path / "keys" / "node.pub").read_text(), node_id=str(node),
                signing_key=str(site.signing_key().public), release=Release.installed(), admitted="now",
            )
        )  # fmt: skip

    def start_node(self, name: str, *, register: bool = True, options: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """`consilium-site up`, with trivial work in the place of training."""
        site = self.site(name)
        if register:
            self.admit(name)
        paths = [str(ROOT / "benchmarks" / "trivial_work"), str(ROOT), os.environ.get("PYTHONPATH", "")]
        command = [
            *(sys.executable, "-m", "client.cli", "up", str(site.path)),
            *("--superlink", self.superlink.address, "--ca", str(site.ca), "--end-with-parent"),
            *options,
        ]
        process = self._started(name, command, {"PYTHONPATH": os.pathsep.join(filter(None, paths))})
        if not register:
            del self.nodes[name]  # it is expected to end
        return process

    def start_plain_node(self, name: str) -> subprocess.Popen[bytes]:
        """`flower-supernode` as Flower's documentation says, with subprocess isolation."""
        site = self.site(name)
        self.control.register(name, site.path / "keys" / "node.pub")
        command = [
            *(flower("supernode"), "--root-certificates", str(self.home.certificates.ca)),
            *("--superlink", self.superlink.address, "--auth-supernode-private-key", str(site.node_key)),
            *("--host", "127.0.0.1", "--port", str(free_ports(1)[0])),
        ]
        return self._started(name, command, plain_environment(site.path / "flwr"))

    def _started(self, name: str, command: list[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        with self.log(f"site-{name}") as log:
            process = subprocess.Popen(
                command, env={**os.environ, **environment}, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT,
                start_new_session=True,
            )  # fmt: skip
        self.nodes[name] = process
        return process

    def run_ours(self, run: RunFolder, deadline_s: float, *, bundle: bytes | None = None) -> None:
        """Lead the run in `run` to its end, submitted with the installed code or another `bundle`. Raises TimeoutError, RuntimeError."""
        number = self.control.start_run(bundle or app_bundle(), {"home": str(self.home.path), "run-dir": str(run.path)})
        self.wait(lambda: run.run().state in ("finished", "failed", "stopped"), number, deadline_s)
        if run.run().state != "finished":
            raise RuntimeError(f"the run {run.run().state}: {run.run().reason}")

    def wait(self, done: Callable[[], bool], number: int, deadline_s: float) -> None:
        limit = time.monotonic() + deadline_s
        while not done():
            if time.monotonic() > limit:
                raise TimeoutError(f"the run did not end within {deadline_s:g} s; logs are in {self.folder / 'logs'}")
            if ended := [name for name, node in self.nodes.items() if node.poll() is not None]:
                raise RuntimeError(f"nodes have ended: {', '.join(ended)}; logs are in {self.folder / 'logs'}")
            with contextlib.suppress(Exception):  # a busy SuperLink answers with status 500
                over = self.control.run_status(number).startswith("finished")
                if over and not done():
                    break
            time.sleep(0.5)
        else:
            return
        raise RuntimeError(f"Flower ended the run early; logs are in {self.folder / 'logs'}")


def flower(name: str) -> str:
    """Flower's command of this Python's environment."""
    return str(Path(sys.executable).parent / f"flower-{name}")


def plain_environment(home: Path) -> dict[str, str]:
    home.mkdir(parents=True, exist_ok=True)
    bin_folder = str(Path(sys.executable).parent)
    path = bin_folder + os.pathsep + os.environ.get("PATH", "")
    return {**QUIET_FLOWER, "FLWR_HOME": str(home), "PATH": path, "NO_PROXY": "127.0.0.1,localhost"}


@contextlib.contextmanager
def federation(folder: Path, *, database: Path | None = None, plain: bool = False) -> Iterator[Federation]:
    """A SuperLink with TLS and node authentication; every process has ended when the block ends."""
    adopt_orphans()
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that the block's processes end with it
    folder.mkdir(parents=True, exist_ok=True)
    coordinator = Home.create(folder / "coordinator", "benchmark", ["127.0.0.1"], address="127.0.0.1:1")
    certificates, port, home = coordinator.certificates, free_ports(1)[0], coordinator.path / "flwr"
    try:
        with (folder / "superlink.log").open("ab") as log:
            if plain:
                superlink = _plain_superlink(certificates, port, home, log, database)
            elif database is not None:
                superlink = start_superlink(certificates, port=port, home=home, log=log, database=str(database))
            else:
                superlink = start_superlink(certificates, port=port, home=home, log=log)
        control = Control(superlink)
        try:
            control.wait_until_ready()
            yield Federation(folder, coordinator, superlink, control)
        finally:
            control.close()
    finally:
        end_descendants()
        signal.signal(signal.SIGTERM, before)


def _plain_superlink(
    certificates: ServerCertificates, port: int, home: Path, log: IO[bytes], database: Path | None
) -> SuperLink:
    command = [
        *(sys.executable, "-c", PLAIN_SUPERLINK, "--ssl-ca-certfile", str(certificates.ca)),
        *("--ssl-certfile", str(certificates.certificate), "--ssl-keyfile", str(certificates.key)),
        *("--enable-supernode-auth", "--host", "127.0.0.1", "--port", str(port)),
        *("--disable-runtime-dependency-installation",),
        *(("--database", str(database)) if database is not None else ()),
    ]
    environment = {**os.environ, **plain_environment(home)}
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    return SuperLink(process, f"127.0.0.1:{port}", certificates)


class CpuClock:
    """CPU seconds used by all descendants of this process, living and ended, noted twice a second (Linux).

    On a machine that others use too, CPU seconds say more of the work than wall time does.
    """

    def __init__(self) -> None:
        self._notes: list[tuple[float, float]] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> CpuClock:
        self._thread.start()
        return self

    def __exit__(self, *_problem: object) -> None:
        self._end.set()
        self._thread.join()

    def between(self, begin: float, end: float) -> float:
        """CPU seconds between two Unix times."""
        times, used = zip(*self._notes, strict=True)
        return float(np.interp(end, times, used) - np.interp(begin, times, used))

    def _watch(self) -> None:
        while not self._end.wait(0.5):
            ended = os.times()
            total = ended.children_user + ended.children_system
            for pid in descendants():
                with contextlib.suppress(OSError):
                    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
                    total += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
            self._notes.append((time.time(), total))


def approve_everywhere(running: Federation, sites: list[str], run: RunFolder) -> None:
    """Each of `sites` approves the study of `run`, with its starting model."""
    study = run.study()
    publication = Publication(
        federation="benchmark", coordinator_key=str(running.home.signing_key().public), study=study.to_data(),
        study_digest=study.digest(), starting_point=starting_point(read_starting_model(run), study.federation.wire),
        runs=1, expires="2999-12-31", created="now", release=Release.installed(),
    )  # fmt: skip
    for name in sites:
        approve(running.site(name), publication, by="the benchmark", weights_folder=running.folder)
