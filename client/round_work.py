"""A site's part in a round of training, in the plain and in the private way."""

from __future__ import annotations

import math
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from client.bench import Bench, show_progress
from client.evaluation import network_predictions
from client.gate import Result, Task
from client.mask_evaluation import validation_of
from client.private.dp_sgd import PrivateConstants, train_private_round
from client.private.sampling import PatientSampler
from client.training import TrainingStopped, train_round
from shared.errors import PolicyError, PrivacyError
from shared.exact import as_float
from shared.metrics.classification import figures
from shared.models.state import travelling_arrays
from shared.results import Trained, Validation
from shared.wire import Flat, flatten


def train(bench: Bench, over: Callable[[], bool]) -> Result:
    """One round of training; `over` is asked between two steps whether the round has lasted as long as the hospital allows."""
    task, study = bench.task, bench.task.study
    training = study.training.in_round(task.instruction.round, study.federation.rounds)
    _hold(bench)
    begun = time.perf_counter()
    validation = _validate(bench)
    validated = time.perf_counter()
    rows = bench.cohort.parts["train"]
    try:
        trained = train_round(
            bench.network,
            bench.targets("train", shuffled_by=bench.seed("batches")),
            training=training,
            class_counts=np.bincount(bench.cohort.labels[rows], minlength=len(task.study.task.classes)).tolist(),
            positive_index=task.study.task.positive_index,
            seed=bench.seed("training"),
            device=bench.device,
            precision=bench.precision,
            memory_format=bench.memory_format,
            optimiser_state=_optimiser_state(bench) if training.optimiser_state == "keep" else None,
            progress=lambda done, total, loss: show_progress(task, "train", done, total, loss),
            stop=over,
            descriptor_sizes=study.task.descriptor_sizes,
        )
    except TrainingStopped:
        raise _too_long(task) from None
    ended = time.perf_counter()
    update, norm = _update_of(bench)
    replied = time.perf_counter()
    body = Trained(
        images=len(rows),
        patients=len(np.unique(bench.cohort.patients[rows])),
        steps=trained.steps,
        epochs=list(trained.epochs),
        validation=validation,
        update_norm=norm,
        seconds={
            "load": bench.seconds_read,
            "validate": validated - begun,
            "train": ended - validated,
            "reply": replied - ended,
            "total": bench.seconds_read + replied - begun,
        },
    )
    return Result(trained=body, update=update, tensors=bench.manifest)


def train_privately(bench: Bench, over: Callable[[], bool]) -> Result:
    """One round of DP-SGD. What is known of it besides the update - who was drawn, how long it took, losses - stays here."""
    task, study, privacy = bench.task, bench.task.study, bench.task.study.privacy
    if privacy is None or privacy.noise_multiplier is None:
        raise PrivacyError("the study has no noise multiplier")
    training = study.training.in_round(task.instruction.round, study.federation.rounds)
    _hold(bench)
    rows = bench.cohort.parts["train"]
    constants = PrivateConstants(
        sampling_rate=as_float(privacy.sampling_rate),
        clipping_norm=as_float(privacy.clipping_norm),
        noise_multiplier=as_float(privacy.noise_multiplier),
        normaliser=as_float(privacy.normaliser),
    )
    # Seeds that nobody knows: which draw of the augmentation or of dropout falls to whom depends on who else was drawn.
    batches = bench.targets("train", shuffled_by=secrets.randbits(63))
    try:
        trained = train_private_round(
            bench.network,
            PatientSampler(rows, bench.cohort.patients[rows], rate=constants.sampling_rate),
            lambda drawn: batches.of_rows(drawn, privacy.augmentations),
            steps=privacy.steps_per_round,
            constants=constants,
            training=training,
            positive_index=study.task.positive_index,
            image_shape=study.input_shape,
            seed=secrets.randbits(63),
            device=bench.device,
            mode=privacy.gradients,
            augmentations=privacy.augmentations,
            optimiser_state=_optimiser_state(bench) if training.optimiser_state == "keep" else None,
            progress=lambda done, total: show_progress(task, "train", done, total),
            stop=over,
            descriptor_sizes=study.task.descriptor_sizes,
        )
    except TrainingStopped:
        raise _too_long(task) from None
    update, norm = _update_of(bench)
    body = Trained(
        images=None, patients=None, steps=trained.steps, epochs=[], validation=None, update_norm=norm, seconds={}
    )
    return Result(trained=body, update=update, tensors=bench.manifest)


def _hold(bench: Bench) -> None:
    """What this round's stage of training leaves as it is."""
    if held := bench.task.study.training.held_in(bench.task.instruction.round):
        bench.network.hold(held)


def _too_long(task: Task) -> PolicyError:
    limit = task.profile.policy.maximum_round_s
    return PolicyError(f"round {task.instruction.round} was ended: policy.maximum_round_s of the profile is {limit:g}")


def _update_of(bench: Bench) -> tuple[Flat, float]:
    """By how much training changed the global model, and the L2 norm of that."""
    update = flatten(travelling_arrays(bench.network), bench.manifest) - bench.task.model
    return update, math.sqrt(float(np.dot(update.astype(np.float64), update.astype(np.float64))))


def _optimiser_state(bench: Bench) -> Path:
    """This round's file, filled from the last earlier round's: a round that must be redone starts where it started before.

    Each stage of training begins with a new optimiser: it has other parameters.
    """
    number = bench.task.instruction.round
    first, _ = bench.task.study.training.stage_of(number)
    path = bench.run_folder / f"optimiser-{number:04d}.pt"
    path.unlink(missing_ok=True)
    earlier = sorted(one for one in bench.run_folder.glob("optimiser-*.pt") if one.name < path.name)
    if earlier and earlier[-1].name >= f"optimiser-{first:04d}.pt":
        shutil.copyfile(earlier[-1], path)
    for old in earlier[:-1]:
        old.unlink()
    return path


def _validate(bench: Bench) -> Validation:
    """The incoming global model on the validation part."""
    rows = bench.cohort.parts["validation"]
    if len(rows) == 0:
        return Validation(loss=None, accuracy=None, auc=None, images=0)
    study = bench.task.study
    if study.task.kind == "segmentation":
        return validation_of(bench.masks("validation"))
    part = bench.features("validation")
    said = network_predictions(part, study)
    found = figures(said)
    chances = said.scores[np.arange(len(rows)), part.labels]
    return Validation(
        loss=float(-np.log(np.clip(chances, 1e-12, 1.0)).mean()),
        accuracy=_defined(found.overall["accuracy"][0]),
        auc=_defined(found.overall["auc"][0]),
        images=len(rows),
    )


def _defined(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
