"""What differs between a study that is offered and the one that was approved last, key by key."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from client.approvals import Approval, find_approval
from client.publications import publications
from client.site_folder import SiteFolder
from shared.documents import Publication
from shared.release import Release
from shared.schema import Strict

_ABSENT = "(not there)"


class Change(Strict):
    """One key, as it was approved and as it is offered; values as JSON text."""

    key: str
    approved: str
    offered: str


def last_approved(folder: SiteFolder, offered: Publication) -> tuple[Approval, Publication] | None:
    """The approval to compare with: of this very study, else the latest of a study of this name, else the latest of any."""
    pairs = [
        (approval, one)
        for one in publications(folder)
        if (approval := find_approval(folder, one.study_digest)) is not None
    ]
    if not pairs:
        return None
    name = offered.study.get("name")
    return max(
        pairs,
        key=lambda pair: (
            pair[1].study_digest == offered.study_digest,
            pair[1].study.get("name") == name,
            pair[0].approved_at,
        ),
    )


def changes(approval: Approval, approved: Publication, offered: Publication, own: Release) -> list[Change]:
    """Every difference of the studies, then of code, libraries, starting model and coordinator."""
    found = study_changes(approved.study, offered.study)
    for key, before, after in (
        ("installed code", approval.code_digest, own.code_digest),
        ("installed libraries", approval.lock_digest, own.lock_digest),
        ("starting model", approval.starting_point.model_digest, offered.starting_point.model_digest),
        ("tensors that travel", approval.starting_point.manifest_digest, offered.starting_point.manifest_digest),
        ("frozen layers", approval.starting_point.frozen_digest, offered.starting_point.frozen_digest),
        ("coordinator's key", approval.coordinator_key, offered.coordinator_key),
        ("runs", str(approval.runs), str(offered.runs)),
        ("last day", str(approval.expires), offered.expires),
    ):
        if before != after:
            found.append(Change(key=key, approved=before, offered=after))
    return found


def study_changes(approved: Mapping[str, Any], offered: Mapping[str, Any]) -> list[Change]:
    """Keys of the two studies' values that differ, as `federation.rounds`; a list counts as one value."""
    before, after = dict(_leaves(approved)), dict(_leaves(offered))
    return [
        Change(key=key, approved=before.get(key, _ABSENT), offered=after.get(key, _ABSENT))
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
    ]


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{place}.{key}" if place else str(key))
    else:
        yield place, json.dumps(value, ensure_ascii=False, sort_keys=True)
