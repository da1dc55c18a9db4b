"""This machine: the site's folder and keys, what is installed, disk, device, data, studies that wait, services."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import shutil
import socket
import stat
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from client.data.check import check_profile
from client.doctor.findings import Finding, Visit
from client.doctor.words import Words
from client.gateway import gateway_folder, local_port
from client.publications import publications, state_of
from client.service import unit_names
from shared.errors import ConsiliumError, NotInstalledError
from shared.nginx import INSTALLING, find_nginx
from shared.release import Release, Versions
from shared.systemd_unit import has_systemd

#: Free bytes under which a run is likely to end in the middle, and under which it is worth a thought.
TOO_LITTLE, LITTLE = 1 << 30, 10 << 30

FOLDER = Words("folder", "Folder of this site")
KEYS = Words("keys", "Private keys")
JOINED = Words("joined", "Coordinator")
RELEASE = Words("release", "Release")
DISK = Words("disk", "Disk space")
DEVICE = Words("device", "Device")
DATA = Words("data", "Data")
STUDIES = Words("studies", "Studies")
GATEWAY = Words("gateway", "Own gateway")
SERVICE = Words("service", "System service")
NODE = Words("node", "Node")

_PRIVATE = ("node.key", "signing.key", "tls.key", "executor.secret")


def check_folder(visit: Visit) -> Finding:
    path = visit.site.path
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        return FOLDER.warning(
            f"other accounts of this machine may look into it (mode {mode:04o})", f"chmod 700 {_shown_folder(visit)}"
        )
    if not os.access(path, os.W_OK):
        return FOLDER.fault(
            "this account may not write into it", "Run the command as the account that owns the folder."
        )
    return FOLDER.ok(f"{visit.profile.title} ({visit.profile.site}), mode {mode:04o}")


def check_keys(visit: Visit) -> Finding:
    """Each private key is there, belongs to whoever the folder belongs to, and is for that account only."""
    keys = visit.site.path / "keys"
    missing = [name for name in _PRIVATE if not (keys / name).is_file()]
    if missing:
        return KEYS.fault(
            f"missing: {', '.join(f'keys/{name}' for name in missing)}",
            "Keys can't be made again: make a new folder with `consilium-site init`, and join again.",
        )
    present = [path for path in sorted(keys.iterdir()) if path.suffix in (".key", ".secret")]
    owner = visit.site.path.stat().st_uid
    foreign = [f"keys/{path.name}" for path in present if path.stat().st_uid != owner]
    if foreign:
        return KEYS.fault(
            f"not of the folder's owner: {', '.join(foreign)}",
            f"chown -R --reference={_shown_folder(visit)} {_shown_folder(visit)}",
        )
    readable = [path for path in present if stat.S_IMODE(path.stat().st_mode) & 0o077]
    if readable:
        told = ", ".join(f"keys/{path.name} ({stat.S_IMODE(path.stat().st_mode):04o})" for path in readable)
        return KEYS.fault(
            f"other accounts of this machine may read {told}",
            f"chmod 600 {' '.join(f'keys/{path.name}' for path in readable)} in the site's folder; if somebody may have read them, tell "
            "the coordinator and join again with new keys.",
        )
    return KEYS.ok(
        f"{len(present)} files, mode 0600; fingerprint of the signing key: {visit.site.signing_key().public.spoken}"
    )


def check_joined(visit: Visit) -> Finding:
    try:
        joined = visit.site.coordinator()
    except ConsiliumError:
        if (visit.site.path / "coordinator.json").exists():
            return JOINED.fault(
                "coordinator.json is damaged, so nobody knows whom this site has joined",
                "Put it back from the backup, or remove it and take the admission in again: consilium-site join FOLDER ADMISSION.",
            )
        return JOINED.fault(
            "this site has not joined a coordinator yet",
            "Send the coordinator what consilium-site request writes, then consilium-site join with the admission that comes back.",
        )
    if visit.address is None:
        return JOINED.fault(
            f"its address, '{joined.address}', is not HOST:PORT", "Ask the coordinator for a new admission."
        )
    return JOINED.ok(f"{joined.federation}, at {joined.address}, joined {joined.joined[:10]}")


def check_release(visit: Visit) -> Finding:
    """This installation against the one that the coordinator last told of, in the newest study or else the admission."""
    own, joined = Release.installed(), visit.coordinator
    if joined is None:
        return RELEASE.skipped(f"{_versions(own.versions)}; not joined yet, so there is nothing to compare with")
    offered = publications(visit.site)
    theirs = offered[-1].release if offered else joined.release
    if theirs is None:
        return RELEASE.skipped(f"{_versions(own.versions)}; the coordinator has not told its own yet")
    if theirs.code_digest != own.code_digest:
        here, there = (f"{_versions(one.versions)}, code {one.code_digest[:12]}" for one in (own, theirs))
        return RELEASE.fault(
            f"here {here}; coordinator {there}",
            "Install the coordinator's release here, or let the coordinator install this one: a node runs its own code only.",
        )
    return RELEASE.ok(f"{_versions(own.versions)}, code {own.code_digest[:12]}: the coordinator's")


def _versions(versions: Versions) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))


def check_disk(visit: Visit) -> Finding:
    places = {"the site's folder": visit.site.path, "the cache": visit.site.cache}
    told, least = [], 1 << 62
    for what, wanted in places.items():
        folder = next(path for path in (wanted, *wanted.parents) if path.exists())
        free = shutil.disk_usage(folder).free
        least = min(least, free)
        told.append(f"{free / (1 << 30):.1f} GiB free for {visit.named(wanted, what)}")
    found = "; ".join(told)
    if least < TOO_LITTLE:
        return DISK.fault(found, "Free some space, or name a cache folder on another disk in the profile (cache).")
    if least < LITTLE:
        return DISK.warning(found, "Compare with what `consilium-site check` says that the prepared images take.")
    return DISK.ok(found)


def check_device(visit: Visit) -> Finding:
    import torch  # takes seconds

    from client.device import chosen_device

    setting = visit.profile.device
    built = (
        f"PyTorch {torch.__version__}, {'CUDA ' + str(torch.version.cuda) if torch.version.cuda else 'without CUDA'}"
    )
    try:
        device = chosen_device(setting)
    except ConsiliumError as problem:
        return DEVICE.fault(
            f"{problem}; {built}",
            "Run nvidia-smi: if it fails, install NVIDIA's driver; if it works, install a PyTorch that is built for CUDA.",
        )
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return DEVICE.ok(
            f"{torch.cuda.get_device_name(device)}, {total / (1 << 30):.1f} GiB of memory, {free / (1 << 30):.1f} free; {built}"
        )
    if setting == "auto" and shutil.which("nvidia-smi") is not None:
        return DEVICE.warning(
            f"the CPU, though NVIDIA's tools are here; {built}",
            "Install a PyTorch that is built for CUDA, or set device: cpu.",
        )
    return DEVICE.ok(f"the CPU, {os.cpu_count()} cores; {built}")


def check_data(visit: Visit) -> Finding:
    """Whether the folder can be opened; with `with_data`, whether every image can be read, which takes as long as that takes."""
    root = Path(visit.profile.data.root)
    what = visit.named(root, "the data folder")
    remedy = "Correct data.root in the profile, mount the disk, or let the node's account read it."
    if not root.is_dir() or not os.access(root, os.R_OK | os.X_OK):
        return DATA.fault(f"{what} is not there, or this account may not read it", remedy)
    if not visit.with_data:
        return DATA.ok(f"{what} can be opened; its images were not read (add --data)")
    said = io.StringIO()
    try:
        usable = check_profile(visit.profile, None, Console(file=said, width=200))
    except ConsiliumError as problem:
        return DATA.fault(
            f"{what} can't be used: {problem.code}", "consilium-site check PROFILE says which file and why."
        )
    if not usable:
        return DATA.fault(f"{what} can't be used as it is", "consilium-site check PROFILE says which file and why.")
    return DATA.ok(f"every image in {what} was read; it can be used")


def check_studies(visit: Visit) -> Finding:
    if visit.coordinator is None:
        return STUDIES.skipped("not joined yet")
    own = Release.installed()
    states = [(one, state_of(visit.site, one, own)) for one in publications(visit.site)]
    if not states:
        return STUDIES.ok("none was taken in yet")
    told = "; ".join(f"{one.study['name']} ({one.study_digest[:12]}): {state}" for one, state in states)
    if any(state in ("waiting", "changed") for _, state in states):
        return STUDIES.warning(
            told,
            "Look with consilium-site review, then consilium-site approve or decline; until then the node refuses.",
        )
    return STUDIES.ok(told)


def check_gateway(visit: Visit) -> Finding:
    port = local_port(visit.site)
    if port is None:
        return GATEWAY.skipped("none: the node connects to the coordinator itself, and shows no client certificate")
    try:
        find_nginx()
    except NotInstalledError:
        return GATEWAY.fault("its configuration is there, but nginx is not installed", f"Install nginx; {INSTALLING}.")
    with socket.socket() as one:
        one.settimeout(visit.timeout_s)
        if one.connect_ex(("127.0.0.1", port)) != 0:
            return GATEWAY.fault(
                f"nothing listens on 127.0.0.1:{port}",
                f"Start it: systemctl start {unit_names(visit.profile.site)[1]}, and read gateway/error.log in the site's folder.",
            )
    log = gateway_folder(visit.site).path / "error.log"
    lines = 0
    with contextlib.suppress(OSError):
        lines = len(log.read_bytes().splitlines())
    return GATEWAY.ok(f"nginx listens on 127.0.0.1:{port}; {lines} lines in gateway/error.log")


def check_service(visit: Visit) -> Finding:
    """Whether a unit is installed that starts the node of this very folder."""
    write = "consilium-site service FOLDER writes it and says how to install it."
    if not has_systemd():
        return SERVICE.warning(
            "systemd does not run this machine", "Let the machine's own service manager start consilium-site up."
        )
    wanted, needed = str(visit.site.path.resolve()), unit_names(visit.profile.site)[: 1 + visit.uses_gateway]
    missing = [name for name in needed if not any(_mentions(folder / name, wanted) for folder in visit.unit_folders)]
    if missing:
        return SERVICE.warning(
            f"not installed for this folder: {', '.join(missing)}; the node does not come back by itself", write
        )
    return SERVICE.ok(f"installed: {', '.join(needed)}")


def check_node(visit: Visit) -> Finding:
    if visit.coordinator is None:
        return NODE.skipped("not joined yet")
    from client.connection import NodeStatus
    from client.node import STATUS, is_up

    status: NodeStatus | None = None
    with contextlib.suppress(OSError, ValueError):
        status = NodeStatus.model_validate_json((visit.site.path / STATUS).read_bytes())
    if not is_up(visit.site):
        last = f"; it last said: {status.said}" if status is not None and status.said else ""
        return NODE.warning(f"not running{last}", "Start it: consilium-site up, or its system service.")
    if status is None or status.state in ("connecting", "online"):
        return NODE.ok(f"running{f', {status.state} since {status.since}' if status is not None else ''}")
    return NODE.warning(
        f"running, {status.state} since {status.since}: {status.said}", "See the checks of the network above."
    )


def _mentions(unit: Path, folder: str) -> bool:
    try:
        return folder.replace("%", "%%") in unit.read_text(encoding="utf-8")
    except OSError:
        return False


def _shown_folder(visit: Visit) -> str:
    return shlex.quote(str(visit.site.path)) if visit.with_paths else "FOLDER"


#: Before and after the way to the coordinator.
PLACE: tuple[tuple[Words, Callable[[Visit], Finding]], ...] = (
    (FOLDER, check_folder),
    (KEYS, check_keys),
    (JOINED, check_joined),
)
MACHINE: tuple[tuple[Words, Callable[[Visit], Finding]], ...] = (
    (RELEASE, check_release),
    (STUDIES, check_studies),
    (DISK, check_disk),
    (DEVICE, check_device),
    (DATA, check_data),
    (GATEWAY, check_gateway),
    (SERVICE, check_service),
    (NODE, check_node),
)
