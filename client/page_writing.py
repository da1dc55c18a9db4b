"""What the hospital's pages of a run have in common: whose they are, of which study, and how they are written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from client.own_runs import PAGE_NAME
from client.rendering import rendered
from shared.private_file import write_private
from shared.profile import Profile
from shared.study import Study


def about(run: str, profile: Profile, study: Study) -> dict[str, Any]:
    """Values that every page's template reads."""
    return {
        "site": profile.site,
        "site_title": profile.title,
        "synthetic": profile.data.synthetic,
        "external": profile.role == "external_test",
        "artificial": profile.data.part,
        "stand_in": profile.data.patient_stand_in,
        "run": run,
        "study": study,
        "digest": study.digest(),
        "percent": f"{100 * study.evaluation.confidence:g}",
        "resamples": study.evaluation.resamples,
    }


def write(folder: Path, template: str, values: Mapping[str, Any]) -> Path:
    """Write `folder`/evaluation.html, everything in `values` escaped, and return its path. Raises StorageError."""
    path = folder / PAGE_NAME
    write_private(path, rendered(template, **values).encode("utf-8"))
    return path
