"""systemd units of a hospital: its node, and its own gateway where there is one."""

from __future__ import annotations

import sys
from pathlib import Path

from client.gateway import gateway_folder, local_authority, local_port
from client.site_folder import SiteFolder
from shared.nginx import find_nginx
from shared.systemd_unit import Unit

#: Above the time after which a node that was killed counts as offline: two heartbeats of 15 s. Until then its key is refused.
RESTART_S = 45


def unit_names(site: str) -> tuple[str, str]:
    """Of the node, and of the gateway."""
    return f"consilium-site-{site}.service", f"consilium-site-{site}-gateway.service"


def units(site: SiteFolder, *, user: str = "consilium") -> dict[str, str]:
    """Unit files by name. Raises InputError where this is no site's folder, NotInstalledError where there is a gateway but no nginx."""
    profile, folder = site.profile(), site.path.absolute()
    node, gateway = unit_names(profile.site)
    port = local_port(site)
    command = [str(Path(sys.executable).parent / "consilium-site"), "up", str(folder)]
    if port is not None:
        command += ["--superlink", f"127.0.0.1:{port}", "--ca", str(local_authority(site).absolute())]
    made = {
        node: Unit(
            description=f"Consilium node: {profile.title}", command=command, user=user, folder=folder,
            writable=[Path(profile.cache)] if profile.cache is not None else [],
            readable=[Path(profile.data.root)],
            after=[gateway] if port is not None else [],
            restart_s=RESTART_S,
            why_restart_s="Above the 30 s for which the coordinator counts a node that was killed as online.",
            stop_s=60, gpu=profile.device != "cpu", torch=True,
        ).text()
    }  # fmt: skip
    if port is not None:
        door = gateway_folder(site)
        nginx = [find_nginx(), "-c", str(door.configuration), "-p", str(door.path)]
        made[gateway] = Unit(
            description=f"Consilium gateway: {profile.title}",
            command=[*nginx, "-g", "daemon off;"], reload_command=[*nginx, "-s", "reload"],
            user=user, folder=folder, restart_s=5, stop_s=30, low_port=port < 1024,
        ).text()  # fmt: skip
    return made
