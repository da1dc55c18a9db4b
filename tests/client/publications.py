"""A hospital's folder, and studies as a coordinator publishes them, for the tests of what a hospital says to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.bare_run import bare_study
from client.site_folder import Coordinator, SiteFolder
from shared.documents import Publication, StartingPoint, write_document
from shared.profile import Policy, Profile
from shared.release import Release
from shared.signing import SigningKey
from shared.study import Study

STARTING_POINT = StartingPoint(manifest_digest="1" * 64, model_digest="2" * 64, frozen_digest="3" * 64)
TODAY, LAST_DAY = "2026-03-01", "2026-04-30"


def profile_of(site: str = "anna", root: str = "/nowhere", **policy: Any) -> Profile:
    return Profile.model_validate(
        {
            "schema": "consilium/profile/1",
            "site": site,
            "title": f"Hospital {site.title()}",
            "data": {"layout": "cbis_ddsm", "root": root, "synthetic": True},
            "device": "cpu",
            "policy": Policy(**policy),
        }
    )


def publication_of(study: Study | None = None, *, key: SigningKey, **changes: Any) -> Publication:
    study = study or bare_study()
    values = {
        "federation": "Three hospitals",
        "coordinator_key": str(key.public),
        "study": study.to_data(),
        "study_digest": study.digest(),
        "starting_point": STARTING_POINT,
        "runs": 2,
        "expires": "2999-12-31",
        "created": "2026-03-01T10:00:00+00:00",
        "release": Release.installed(),
    }
    return Publication.model_validate({**values, **changes})


def joined(folder: SiteFolder, key: SigningKey) -> SiteFolder:
    """As if the folder had joined the coordinator with this key."""
    coordinator = Coordinator(
        federation="Three hospitals", address="fl.example.org:443", coordinator_key=str(key.public), joined=TODAY
    )
    (folder.path / "coordinator.json").write_text(coordinator.model_dump_json())
    return folder


def published(path: Path, key: SigningKey, study: Study | None = None, **changes: Any) -> Path:
    """The signed file of a publication."""
    write_document(path, publication_of(study, key=key, **changes), key)
    return path
