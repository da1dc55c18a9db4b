"""What a check of the doctor ends in, and what the checks know of the place they look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import Field

from client.gateway import local_port, split_address
from client.proxies import Proxy, proxy_for
from client.site_folder import Coordinator, SiteFolder
from shared.errors import ConsiliumError
from shared.profile import Profile
from shared.schema import Strict

Outcome = Literal["ok", "warning", "fault", "skipped"]


class Finding(Strict):
    """One check. Sentences name no path outside the site's folder unless that was asked for."""

    name: str
    title: str
    outcome: Outcome
    found: str
    remedy: str = Field(default="", description="what to do, in one sentence; empty where there is nothing to do")


@dataclass(slots=True)
class Visit:
    """The place that is looked at. A check that others depend on notes here that it failed."""

    site: SiteFolder
    profile: Profile
    with_paths: bool = False
    with_data: bool = False
    #: Of the process that runs the doctor: proxies.
    environment: Mapping[str, str] = field(default_factory=dict)
    #: Where unit files of system services lie.
    unit_folders: tuple[Path, ...] = ()
    timeout_s: float = 10.0
    #: Titles of checks that failed, on which later ones depend.
    failed: list[str] = field(default_factory=list)
    #: Seconds by which this machine's clock is ahead of the coordinator's; None until an answer came.
    ahead_s: float | None = None

    @property
    def coordinator(self) -> Coordinator | None:
        """None before `join`."""
        try:
            return self.site.coordinator()
        except ConsiliumError:
            return None

    @property
    def address(self) -> tuple[str, int] | None:
        """The coordinator's host and port."""
        joined = self.coordinator
        try:
            return None if joined is None else split_address(joined.address)
        except ConsiliumError:
            return None

    @property
    def uses_gateway(self) -> bool:
        """Whether the node goes through nginx on this machine, which uses no proxy."""
        return local_port(self.site) is not None

    @property
    def proxy(self) -> Proxy | None:
        """The proxy through which the coordinator is reached."""
        if self.address is None or self.uses_gateway:
            return None
        return proxy_for(self.address[0], self.environment)

    def named(self, path: Path, what: str) -> str:
        """A path, where paths were asked for; otherwise what it is."""
        return f"{what} ({path})" if self.with_paths else what
