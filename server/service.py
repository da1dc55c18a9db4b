"""systemd units of the coordinator: `consilium-server up`, and nginx before it."""

from __future__ import annotations

import sys
from pathlib import Path

from server.gateway import gateway_folder
from server.home import Home
from shared.nginx import find_nginx
from shared.systemd_unit import Unit

COORDINATOR, GATEWAY = "consilium-coordinator.service", "consilium-gateway.service"


def units(home: Home, *, user: str = "consilium") -> dict[str, str]:
    """Unit files by name. The gateway's is there once `consilium-server gateway` has written its configuration.

    Raises InputError where this is no coordinator's folder, NotInstalledError where there is a gateway but no nginx.
    """
    record, folder = home.record(), home.path.absolute()
    made = {
        COORDINATOR: Unit(
            description=f"Consilium coordinator: {record.federation}",
            command=[str(Path(sys.executable).parent / "consilium-server"), "up", str(folder)],
            user=user, folder=folder, restart_s=5, stop_s=90, torch=True,
        ).text()
    }  # fmt: skip
    door = gateway_folder(home)
    if door.configuration.exists():
        nginx = [find_nginx(), "-c", str(door.configuration), "-p", str(door.path)]
        made[GATEWAY] = Unit(
            description=f"Consilium gateway: {record.federation}",
            command=[*nginx, "-g", "daemon off;"], reload_command=[*nginx, "-s", "reload"],
            user=user, folder=folder, restart_s=5, stop_s=30, low_port=True,
        ).text()  # fmt: skip
    return made
