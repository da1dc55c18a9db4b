"""The order of the doctor's checks, and what all of them say together."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from client.doctor.findings import Finding, Outcome, Visit
from client.doctor.machine import MACHINE, PLACE
from client.doctor.network import NETWORK
from client.site_folder import SiteFolder
from shared.release import Versions, versions
from shared.schema import Strict

EXAMINATIONS = (*PLACE, *NETWORK, *MACHINE)

#: Where units lie that an administrator installed, or a package.
UNIT_FOLDERS = (
    Path("/etc/systemd/system"),
    Path("/run/systemd/system"),
    Path("/usr/lib/systemd/system"),
    Path("/lib/systemd/system"),
)


class Examination(Strict):
    """What `consilium-site doctor` found. It names no patient and no key, and paths only where they were asked for."""

    format: Literal["consilium/doctor/1"] = "consilium/doctor/1"
    site: str
    title: str
    federation: str | None
    coordinator: str | None
    made: str
    versions: Versions
    findings: list[Finding]

    def count(self, outcome: Outcome) -> int:
        return sum(one.outcome == outcome for one in self.findings)

    @property
    def healthy(self) -> bool:
        """No fault; warnings don't count."""
        return self.count("fault") == 0


def examine(
    site: SiteFolder,
    *,
    with_data: bool = False,
    with_paths: bool = False,
    environment: Mapping[str, str] | None = None,
    unit_folders: tuple[Path, ...] = UNIT_FOLDERS,
    timeout_s: float = 10.0,
    begins: Callable[[str], None] = lambda title: None,
    ends: Callable[[Finding], None] = lambda finding: None,
) -> Examination:
    """Make every check, in order; `begins` and `ends` are told of each. Raises InputError where this is no site's folder.

    A check that fails in an unforeseen way is a fault of its own, and the others go on.
    """
    profile = site.profile()
    visit = Visit(
        site=SiteFolder(site.path.absolute()), profile=profile, with_paths=with_paths, with_data=with_data,
        environment=os.environ if environment is None else environment, unit_folders=unit_folders, timeout_s=timeout_s,
    )  # fmt: skip
    findings = []
    for words, check in EXAMINATIONS:
        begins(words.title)
        try:
            finding = check(visit)
        except Exception as problem:
            # The text could name a file: the kind of the mistake alone is shown
            finding = words.fault(
                f"the check itself failed ({type(problem).__name__})",
                "Report it, with the output of consilium-site doctor --with-paths.",
            )
        findings.append(finding)
        ends(finding)
    joined = visit.coordinator
    return Examination(
        site=profile.site,
        title=profile.title,
        federation=joined.federation if joined is not None else None,
        coordinator=joined.address if joined is not None else None,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=versions(),
        findings=findings,
    )
