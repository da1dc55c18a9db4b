"""What a site does for each kind of instruction, once the gate has let it in: prepare, train, evaluate."""

from __future__ import annotations

import logging
import math
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from markupsafe import Markup
from numpy.typing import NDArray

from client import run_on_ledger
from client.cohort import OpenCohort, open_cohort, selected
from client.data.batches import Batches
from client.data.contrast import effect_of
from client.data.mask_targets import MaskTargets
from client.data.records import Part
from client.data.removal import removal_of
from client.data.splits import PARTS
from client.descriptors import described
from client.device import chosen_device, device_name, limit_memory
from client.duplicate_tags import tags_for
from client.evaluation import evaluate, network_predictions
from client.features import PartFeatures
from client.gate import Result, Task
from client.kept_scores import load_scores
from client.lesion_heat import HeatMaps
from client.losses import image_losses
from client.mask_evaluation import evaluate_masks, validation_of
from client.mask_outline import shown
from client.masks import PartMasks, found_masks, mask_of
from client.noised_evaluation import noised_evaluation
from client.own_runs import keep_figures, on_record
from client.page import write_page
from client.page_contrast import contrast_section
from client.page_descriptors import descriptors_section
from client.page_masks import write_mask_page
from client.page_removal import removal_section
from client.policy import time_is_up
from client.private.dp_sgd import PrivateConstants, train_private_round
from client.private.sampling import PatientSampler
from client.site_folder import Progress
from client.training import MemoryFormat, Precision, TrainingStopped, extract_features, resolve_auto, train_round
from client.withdrawal import settle
from shared.errors import ConsiliumError, DataError, PolicyError, PrivacyError, WireError
from shared.exact import as_float
from shared.imaging.enhancement import is_enhanced
from shared.metrics.classification import figures
from shared.models import build_network
from shared.models.network import FederatedNetwork, Network
from shared.models.state import frozen_digest, load_travelling, travelling, travelling_arrays
from shared.results import Evaluated, Prepared, Trained, Validation
from shared.seeds import derived_seed
from shared.signing import PublicKey
from shared.wire import Flat, Manifest, flatten, unflatten

log = logging.getLogger("consilium.site")

EVALUATION_BATCH = 64
#: Images whose contrast is measured for the page: each is decoded once more.
_CONTRAST_IMAGES = 100


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
    bench = _Bench.open(task)
    try:
        if kind == "prepare":
            result = Result(prepared=_prepare(bench))
        elif kind == "train":
            result = _train_privately(bench, over) if task.study.privacy is not None else _train(bench, over)
        else:
            result = _evaluate(bench)
        return replace(result, patients=bench.cohort.roll.known())
    finally:  # patients who withdrew meanwhile
        settle(task.folder, bench.run_folder, bench.cohort.roll)


@dataclass(frozen=True, slots=True)
class _Bench:
    """All that the three kinds of work share: the run's data, the network with the global weights, and where it computes."""

    task: Task
    run_folder: Path
    cohort: OpenCohort
    network: FederatedNetwork
    manifest: Manifest
    device: torch.device
    precision: Precision
    memory_format: MemoryFormat
    seconds_read: float

    @classmethod
    def open(cls, task: Task) -> _Bench:
        begun = time.perf_counter()
        run_folder = task.folder.run_folder(task.instruction.run)
        _show(task, "prepare", 0, 0)
        cohort = open_cohort(
            task.study,
            task.folder,
            run_folder,
            progress=lambda done, total: _show(task, "prepare", done, total),
            before_images=lambda patients: run_on_ledger.before_images(task.on_ledger, patients),
        )
        read = time.perf_counter() - begun
        network = build_network(task.study, weights_root=task.folder.weights)
        manifest = Manifest.of(dict(travelling(network)))
        if manifest.digest() != task.instruction.manifest_digest:
            raise WireError("the coordinator's tensors have other names or shapes than this site's network")
        load_travelling(network, unflatten(task.model, manifest))
        device = chosen_device(task.profile.device)
        limit_memory(device, task.profile.policy.maximum_device_memory_gb)
        precision, memory_format = resolve_auto(task.study.training, device, network)
        if task.study.privacy is not None:
            precision, memory_format = "fp32", "contiguous"
        network.to(device)
        return cls(task, run_folder, cohort, network, manifest, device, precision, memory_format, read)

    def seed(self, purpose: str) -> int:
        """A seed of this site, this round and this purpose, fixed by the study."""
        instruction = self.task.instruction
        return derived_seed(purpose, self.task.study.seed, self.task.profile.site, instruction.round)

    def batches(self, part: Part, *, shuffled_by: int | None = None) -> Batches:
        """The part's images in order; with a seed in random order and augmented, for training."""
        study = self.task.study
        training = shuffled_by is not None
        return Batches(
            self.cohort.store,
            self.cohort.targets,
            self.cohort.parts[part],
            recipe=study.preprocessing,
            batch_size=(study.training.batch_size if training else None) or EVALUATION_BATCH,
            device=self.device,
            generator=torch.Generator().manual_seed(shuffled_by) if shuffled_by is not None else None,
            augmentation=study.augmentation if training else None,
            metadata=self.cohort.roll.metadata,
            memory_format=torch.channels_last if self.memory_format == "channels_last" else torch.contiguous_format,
        )

    def targets(self, part: Part, *, shuffled_by: int | None = None) -> Batches | MaskTargets:
        """As `batches`; of a segmentation study with the masks in place of the labels."""
        batches = self.batches(part, shuffled_by=shuffled_by)
        return MaskTargets(batches) if self.task.study.task.kind == "segmentation" else batches

    @property
    def classifier(self) -> Network:
        """The network of a study that is not of segmentation: it has features and a head."""
        assert isinstance(self.network, Network)
        return self.network

    def features(self, part: Part) -> PartFeatures:
        """Features and logits of the part from the network as it is now."""
        rows = self.cohort.parts[part]
        features, logits = extract_features(
            self.classifier, self.batches(part), device=self.device, precision=self.precision
        )
        return PartFeatures(
            keys=tuple(self.cohort.keys[row] for row in rows),
            features=features,
            logits=logits,
            labels=self.cohort.labels[rows],
            patients=self.cohort.patients[rows],
            described=described(self.classifier, features, self.cohort.roll.descriptors[rows], device=self.device),
        )

    def masks(self, part: Part) -> PartMasks:
        """What the network as it is now finds on the part of a segmentation study."""
        rows, study = self.cohort.parts[part], self.task.study
        return found_masks(
            self.network,
            MaskTargets(self.batches(part)),
            keys=tuple(self.cohort.keys[row] for row in rows),
            labels=self.cohort.labels[rows],
            patients=self.cohort.patients[rows],
            losses=image_losses(study.training, positive_index=study.task.positive_index, class_counts=None),
            device=self.device,
            precision=self.precision,
        )


def _prepare(bench: _Bench) -> Prepared:
    begun = time.perf_counter()
    task = bench.task
    private = task.study.privacy is not None
    baseline: Evaluated | None = None
    if task.study.evaluation.baseline:
        _show(task, "evaluate", 0, 0)
        if task.study.task.kind == "segmentation":
            baseline = _evaluated_masks(bench, bench.masks("test"), begun)
        else:
            baseline = _evaluated(bench, {part: bench.features(part) for part in PARTS}, begun)
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


def _tags(bench: _Bench) -> dict[str, str]:
    """Of the images that take part. Whose keys they were made for stands in the hospital's log: people can compare the fingerprints."""
    task, roll = bench.task, bench.cohort.roll
    for peer, key in sorted(task.instruction.peers.items()):
        log.info("tags of images for %s, whose key the coordinator gives as %s", peer, PublicKey.read(key).spoken)
    rows = np.concatenate([roll.parts[part] for part in PARTS])
    return tags_for(
        (roll.hashes[row] for row in rows), task.instruction.peers, site=task.profile.site, key=task.folder.signing_key(),
        run=task.instruction.run, study=task.study.digest(),
    )  # fmt: skip


def _train(bench: _Bench, over: Callable[[], bool]) -> Result:
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
            progress=lambda done, total, loss: _show(task, "train", done, total, loss),
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
    return Result(trained=body, update=update)


def _train_privately(bench: _Bench, over: Callable[[], bool]) -> Result:
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
    batches = bench.batches("train", shuffled_by=secrets.randbits(63))
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
            progress=lambda done, total: _show(task, "train", done, total),
            stop=over,
            descriptor_sizes=study.task.descriptor_sizes,
        )
    except TrainingStopped:
        raise _too_long(task) from None
    update, norm = _update_of(bench)
    body = Trained(
        images=None, patients=None, steps=trained.steps, epochs=[], validation=None, update_norm=norm, seconds={}
    )
    return Result(trained=body, update=update)


def _hold(bench: _Bench) -> None:
    """What this round's stage of training leaves as it is."""
    _, stage = bench.task.study.training.stage_of(bench.task.instruction.round)
    if stage is not None:
        bench.network.hold(stage.freeze)


def _too_long(task: Task) -> PolicyError:
    limit = task.profile.policy.maximum_round_s
    return PolicyError(f"round {task.instruction.round} was ended: policy.maximum_round_s of the profile is {limit:g}")


def _update_of(bench: _Bench) -> tuple[Flat, float]:
    """By how much training changed the global model, and the L2 norm of that."""
    update = flatten(travelling_arrays(bench.network), bench.manifest) - bench.task.model
    return update, math.sqrt(float(np.dot(update.astype(np.float64), update.astype(np.float64))))


def _optimiser_state(bench: _Bench) -> Path:
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


def _validate(bench: _Bench) -> Validation:
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


def _evaluate(bench: _Bench) -> Result:
    begun = time.perf_counter()
    task, study = bench.task, bench.task.study
    _show(task, "evaluate", 0, 0)
    if study.task.kind == "segmentation":
        masks = bench.masks("test")
        found = _evaluated_masks(bench, masks, begun)
        _keep_masks(bench, masks, found)
        return Result(evaluated=found)
    parts = {part: bench.features(part) for part in PARTS}
    external = task.profile.role == "external_test"
    noise = noised_evaluation(parts, study, external=external) if study.privacy is not None else None
    try:
        evaluated = _evaluated(bench, parts, begun)
        _keep(bench, parts, evaluated)
    except DataError as problem:
        if noise is None:
            raise
        # Whether this hospital has enough of each class for exact figures is private too.
        log.warning("no page of exact figures: %s", problem)
        return Result(evaluated=noise.evaluated, svm=noise.svm)
    if noise is None and study.evaluation.release is not None:
        heads = load_scores(_scores(bench, task.instruction.model_digest)).heads
        noise = noised_evaluation(parts, study, svm=heads.get("svm"))
    if noise is not None:
        return Result(evaluated=noise.evaluated, svm=noise.svm)
    return Result(evaluated=evaluated)


def _keep(bench: _Bench, parts: dict[Part, PartFeatures], evaluated: Evaluated) -> None:
    """The exact figures, and the hospital's own page of them."""
    task = bench.task
    _keep_own(bench, evaluated)
    write_page(
        bench.run_folder,
        run=task.instruction.run,
        profile=task.profile,
        study=task.study,
        evaluated=evaluated,
        parts=parts,
        scores=load_scores(_scores(bench, task.instruction.model_digest)),
        seed=derived_seed("page", task.study.seed, task.profile.site),
        image_of=_pictures(bench),
        heat=_heat(bench),
        sections=[*_descriptors(parts["test"], bench, evaluated), *_sections(bench)],
    )


def _descriptors(test: PartFeatures, bench: _Bench, evaluated: Evaluated) -> list[Markup]:
    if test.described is None:
        return []
    study, site = bench.task.study, bench.task.profile.site
    seed = derived_seed("descriptors", study.seed, site)
    return [descriptors_section(test, study, evaluated.descriptors or {}, seed=seed)]


def _keep_own(bench: _Bench, evaluated: Evaluated) -> None:
    task = bench.task
    keep_figures(bench.run_folder, task.instruction.round, evaluated)
    if task.instruction.round == task.study.federation.rounds:  # no round follows that would go on from it
        for path in bench.run_folder.glob("optimiser-*.pt"):
            path.unlink(missing_ok=True)


def _evaluated_masks(bench: _Bench, test: PartMasks, begun: float) -> Evaluated:
    task, rows = bench.task, bench.cohort.parts["train"]
    earlier = task.instruction.compare_with
    return evaluate_masks(
        test,
        task.study,
        train_patients=len(np.unique(bench.cohort.patients[rows])),
        train_images=len(rows),
        minimum_cell=task.profile.policy.minimum_cell,
        seed=derived_seed("evaluation", task.study.seed, task.profile.site),
        baseline=_masks_file(bench, earlier) if earlier is not None else None,
        keep=_masks_file(bench, task.instruction.model_digest),
        masks_seconds=time.perf_counter() - begun,
    )


def _keep_masks(bench: _Bench, test: PartMasks, evaluated: Evaluated) -> None:
    """The figures of a segmentation study, and the hospital's own page of them."""
    task, rows = bench.task, bench.cohort.parts["test"]
    _keep_own(bench, evaluated)
    batches, pixels = MaskTargets(bench.batches("test")), task.study.preprocessing.model_copy(update={"mask": None})

    def masks(index: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        image, truth = batches.of_rows(rows[index : index + 1])
        return (truth[0, 0] > 0.5).cpu().numpy(), mask_of(bench.network, image)

    write_mask_page(
        bench.run_folder,
        run=task.instruction.run,
        profile=task.profile,
        study=task.study,
        evaluated=evaluated,
        test=test,
        parts=bench.cohort.counts(len(task.study.task.classes)),
        image_of=lambda index: shown(bench.cohort.store.images[rows[index]][:-1], pixels),
        masks_of=masks,
    )


def _masks_file(bench: _Bench, model_digest: str) -> Path:
    return bench.run_folder / f"masks-{model_digest[:16]}.npz"


def _sections(bench: _Bench) -> list[Markup]:
    """What only some studies have in the page. It is worth no run: where the data can't be opened any more it is left out."""
    task, recipe = bench.task, bench.task.study.preprocessing
    if not is_enhanced(recipe) and not recipe.remove:
        return []
    try:
        records = selected(task.study, task.folder).records
    except ConsiliumError as problem:
        log.warning("the page does not say what was done to the images: %s", problem)
        return []
    seed, most = derived_seed("contrast", task.study.seed, task.profile.site), _CONTRAST_IMAGES
    made: list[Markup] = []
    if recipe.remove:
        made.append(removal_section(removal_of(records, recipe, most=most, seed=seed), recipe))
    if is_enhanced(recipe):
        made.append(contrast_section(effect_of(records, recipe, most=most, seed=seed), recipe))
    return made


def _evaluated(bench: _Bench, parts: dict[Part, PartFeatures], begun: float) -> Evaluated:
    task = bench.task
    earlier = task.instruction.compare_with
    return evaluate(
        parts,
        task.study,
        minimum_cell=task.profile.policy.minimum_cell,
        # Not of the round: both models of a comparison must draw the same folds and resamples.
        seed=derived_seed("evaluation", task.study.seed, task.profile.site),
        baseline=_scores(bench, earlier) if earlier is not None else None,
        keep_scores=_scores(bench, task.instruction.model_digest),
        features_seconds=time.perf_counter() - begun,
        external=task.profile.role == "external_test",
    )


def _scores(bench: _Bench, model_digest: str) -> Path:
    return bench.run_folder / f"scores-{model_digest[:16]}.npz"


def _pictures(bench: _Bench) -> Callable[[int], np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    """Prepared pixels (C, H, W) in [0, 1] of the i-th test image, for the hospital's own page; a mask as an outline upon them."""
    rows, recipe = bench.cohort.parts["test"], bench.task.study.preprocessing

    def picture(index: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return shown(bench.cohort.store.images[rows[index]], recipe)

    return picture


def _heat(bench: _Bench) -> HeatMaps | None:
    """Where the network as it is now looks, for the hospital's own page; None where it has no feature map."""
    rows, study = bench.cohort.parts["test"], bench.task.study
    batches = bench.batches("test")
    return HeatMaps.of(
        bench.classifier,
        lambda some: batches.of_rows(rows[np.asarray(some, dtype=np.int64)])[0],
        files=[bench.cohort.roll.files[row] for row in rows],
        recipe=study.preprocessing,
        positive_index=study.task.positive_index,
    )


def _defined(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _show(task: Task, phase: str, done: int, total: int, loss: float | None = None) -> None:
    shown = loss if loss is not None and math.isfinite(loss) else None
    task.folder.show_progress(Progress(phase=phase, done=done, total=total, loss=shown))
