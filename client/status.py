"""What a site is, does and has done, from its own folder alone: nobody is asked, nothing is opened but the folder's records."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from client.node import STATUS, is_up
from client.own_runs import PAGE_NAME, OwnFigures, OwnRun, Step, own_runs
from client.page_words import sentence_part
from client.publications import Standing, standings
from client.site_folder import Progress, SiteFolder
from client.withdrawn import withdrawn
from shared.errors import InputError
from shared.release import Release
from shared.results import DESCRIPTOR_METRICS, MASK_METRICS, METRICS
from shared.schema import Strict


class NodeNow(Strict):
    """The node's process. `state` is what it last said of its connection; only of an `up` node does that still hold."""

    up: bool
    pid: int | None = None
    state: str | None = None
    since: str | None = None
    said: str | None = None


class WorkNow(Strict):
    """The instruction that is being carried out."""

    run: str
    study: str
    kind: str
    round: int
    rounds: int
    begun: str
    progress: Progress | None


class RunLine(Strict):
    """One run that this site has taken part in."""

    run: str
    study: str
    study_digest: str
    begun: str
    rounds: int
    last_round: int | None
    last: Step | None
    page: str | None


class Disk(Strict):
    """Bytes."""

    free: int
    cache: int
    runs: int


class SiteStatus(Strict):
    """All that `consilium-site status` shows."""

    site: str
    title: str
    federation: str | None
    address: str | None
    joined: str | None
    node: NodeNow
    now: WorkNow | None
    runs: list[RunLine]
    studies: list[Standing]
    withdrawn: int
    not_cleaned: int
    disk: Disk


class ResultLine(Strict):
    """A run with this hospital's own figures, where a model was evaluated."""

    run: str
    study: str
    begun: str
    last_round: int | None
    figures: OwnFigures | None
    page: str | None


def status(folder: SiteFolder) -> SiteStatus:
    """Raises InputError where this is no site's folder."""
    profile = folder.profile()
    joined = folder.coordinator() if (folder.path / "coordinator.json").exists() else None
    runs = own_runs(folder)
    node = _node(folder)
    gone = withdrawn(folder)
    return SiteStatus(
        site=profile.site,
        title=profile.title,
        federation=joined.federation if joined is not None else None,
        address=joined.address if joined is not None else None,
        joined=joined.joined if joined is not None else None,
        node=node,
        now=_now(folder, runs) if node.up else None,
        runs=[_line(run) for run in runs],
        studies=standings(folder, Release.installed()) if joined is not None else [],
        withdrawn=len(gone),
        not_cleaned=sum(not one.purged for one in gone),
        disk=Disk(
            free=shutil.disk_usage(folder.path).free, cache=_size(folder.cache), runs=_size(folder.path / "runs")
        ),
    )


def results(folder: SiteFolder, run: str | None = None) -> list[ResultLine]:
    """The runs, the latest first, or only the one that is called so. Raises InputError where there is none of that name."""
    folder.profile()
    found = own_runs(folder)
    if run is not None:
        known = ", ".join(one.note.run for one in found) or "none"
        found = [one for one in found if one.note.run == run]
        if not found:
            raise InputError(f"no run '{run}' here; runs: {known}")
    return [
        ResultLine(
            run=one.note.run,
            study=one.note.study_name,
            begun=one.note.begun,
            last_round=max(one.begun_rounds, default=None),
            figures=one.figures(),
            page=_page(one),
        )
        for one in found
    ]


def metric_lines(figures: OwnFigures) -> list[str]:
    """One line a metric: name, then value and interval of the network and, where there is one, of the SVM; then one a descriptor."""
    if (masks := figures.evaluated.masks) is not None:
        return [f"{name.replace('_', ' ')}: {sentence_part(getattr(masks, name))}" for name in MASK_METRICS]
    heads = [("network", figures.evaluated.network), ("SVM", figures.evaluated.svm)]
    lines = []
    for name in METRICS:
        told = [f"{title} {sentence_part(getattr(head, name))}" for title, head in heads if head is not None]
        lines.append(f"{name.replace('_', ' ')}: {', '.join(told)}")
    for name, found in (figures.evaluated.descriptors or {}).items():
        told = [f"{figure.replace('_', ' ')} {sentence_part(getattr(found, figure))}" for figure in DESCRIPTOR_METRICS]
        lines.append(f"descriptor {name}, {found.images} images: {', '.join(told)}")
    return lines


def _node(folder: SiteFolder) -> NodeNow:
    up = is_up(folder)
    try:
        values = json.loads((folder.path / STATUS).read_text(encoding="utf-8"))
        said = {name: values.get(name) for name in ("pid", "state", "since", "said")}
        return NodeNow(up=up, **said)
    except (OSError, ValueError, AttributeError):
        return NodeNow(up=up)


def _now(folder: SiteFolder, runs: list[OwnRun]) -> WorkNow | None:
    for run in runs:
        step = run.now
        if step is not None:
            return WorkNow(
                run=run.note.run,
                study=run.note.study_name,
                kind=step.kind,
                round=step.round,
                rounds=run.note.rounds,
                begun=step.at,
                progress=folder.progress(),
            )
    return None


def _line(run: OwnRun) -> RunLine:
    return RunLine(
        run=run.note.run,
        study=run.note.study_name,
        study_digest=run.note.study_digest,
        begun=run.note.begun,
        rounds=run.note.rounds,
        last_round=max(run.begun_rounds, default=None),
        last=run.last,
        page=_page(run),
    )


def _page(run: OwnRun) -> str | None:
    path = run.folder / PAGE_NAME
    return str(path) if path.exists() else None


def _size(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(place) / name).lstat().st_size
            except OSError:  # removed meanwhile
                continue
    return total
