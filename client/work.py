"""What a site does for each kind of instruction, once the gate has let it in: prepare, train, evaluate."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

import numpy as np
import torch

from client.bench import Bench, show_progress
from client.data.splits import PARTS
from client.device import device_name
from client.duplicate_tags import tags_for
from client.evaluation_work import evaluate_model, evaluated_classes, evaluated_masks
from client.gate import Result, Task
from client.own_runs import on_record
from client.policy import time_is_up
from client.round_work import train, train_privately
from client.withdrawal import settle
from shared.errors import PolicyError
from shared.models.state import frozen_digest
from shared.results import Evaluated, Prepared
from shared.signing import PublicKey

log = logging.getLogger("consilium.site")


def do(task: Task) -> Result:
    """Carry out one instruction, on record. Raises ConsiliumError; the gate turns it into a code."""
    run_folder = task.folder.run_folder(task.instruction.run)
    try:
        with on_record(run_folder, task.instruction, task.study):
            return _done(task)
    except torch.OutOfMemoryError as problem:
        limit = task.profile.policy.maximum_device_memory_gb
        if limit is None:
            raise
        raise PolicyError(
            f"policy.maximum_device_memory_gb of the profile is {limit:g}, and more was needed: {problem}"
        ) from None


def _done(task: Task) -> Result:
    kind = task.instruction.kind
    over = time_is_up(task.profile.policy, begun=time.monotonic())
    bench = Bench.open(task)
    try:
        if kind == "prepare":
            result = Result(prepared=_prepare(bench))
        elif kind == "train":
            result = train_privately(bench, over) if task.study.privacy is not None else train(bench, over)
        else:
            result = evaluate_model(bench)
        return replace(result, patients=bench.cohort.roll.known())
    finally:  # patients who withdrew meanwhile
        settle(task.folder, bench.run_folder, bench.cohort.roll)


def _prepare(bench: Bench) -> Prepared:
    begun = time.perf_counter()
    task = bench.task
    private = task.study.privacy is not None
    baseline: Evaluated | None = None
    if task.study.evaluation.baseline:
        show_progress(task, "evaluate", 0, 0)
        if task.study.task.kind == "segmentation":
            baseline = evaluated_masks(bench, bench.masks("test"), begun)
        else:
            baseline = evaluated_classes(bench, {part: bench.features(part) for part in PARTS}, begun)
    ended = time.perf_counter()
    return Prepared(
        parts={} if private else dict(bench.cohort.counts(len(task.study.task.classes))),
        left_out=None if private else bench.cohort.roll.left_out,
        unreadable=None if private else bench.cohort.roll.unreadable,
        copies=None if private else bench.cohort.roll.copies,
        tags=_tags(bench) if task.study.counts_shared_images else {},
        synthetic=task.profile.data.synthetic,
        patient_stand_in=task.profile.data.patient_stand_in,
        external=task.profile.role == "external_test",
        artificial_part=task.profile.data.part,
        device=device_name(bench.device),
        precision=bench.precision,
        memory_format=bench.memory_format,
        frozen_digest=frozen_digest(bench.network),
        baseline=baseline,
        seconds={}
        if private
        else {
            "read": bench.seconds_read,
            "baseline": ended - begun,
            "total": bench.seconds_read + ended - begun,
        },
    )


def _tags(bench: Bench) -> dict[str, str]:
    """Of the images that take part. Whose keys they were made for stands in the hospital's log: people can compare the fingerprints."""
    task, roll = bench.task, bench.cohort.roll
    for peer, key in sorted(task.instruction.peers.items()):
        log.info("tags of images for %s, whose key the coordinator gives as %s", peer, PublicKey.read(key).spoken)
    rows = np.concatenate([roll.parts[part] for part in PARTS])
    return tags_for(
        (roll.hashes[row] for row in rows), task.instruction.peers, site=task.profile.site, key=task.folder.signing_key(),
        run=task.instruction.run, study=task.study.digest(),
    )  # fmt: skip
