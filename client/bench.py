"""What the three kinds of a site's work share: the run's data, the network with the global weights, and where it computes."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from client import run_on_ledger
from client.cohort import OpenCohort, open_cohort
from client.data.batches import Batches
from client.data.mask_targets import MaskTargets
from client.data.records import Part
from client.descriptors import described
from client.device import chosen_device, limit_memory
from client.features import PartFeatures
from client.gate import Task
from client.losses import image_losses
from client.masks import PartMasks, found_masks
from client.site_folder import Progress
from client.training import MemoryFormat, Precision, extract_features, resolve_auto
from shared.errors import WireError
from shared.models import build_network
from shared.models.network import FederatedNetwork, Network
from shared.models.state import load_travelling, travelling
from shared.seeds import derived_seed
from shared.wire import Manifest, unflatten

#: Images of a batch where nothing is trained.
_EVALUATION_BATCH = 64


@dataclass(frozen=True, slots=True)
class Bench:
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
    def open(cls, task: Task) -> Bench:
        begun = time.perf_counter()
        run_folder = task.folder.run_folder(task.instruction.run)
        show_progress(task, "prepare", 0, 0)
        cohort = open_cohort(
            task.study,
            task.folder,
            run_folder,
            progress=lambda done, total: show_progress(task, "prepare", done, total),
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
        training, seed = shuffled_by is not None, shuffled_by
        if seed is None and part == "validation" and study.augmentation.validation:
            # Not of the round: the same draws, so that rounds can be compared.
            seed = derived_seed("validation", study.seed, self.task.profile.site)
        return Batches(
            self.cohort.store,
            self.cohort.targets,
            self.cohort.parts[part],
            recipe=study.preprocessing,
            batch_size=(study.training.batch_size if training else None) or _EVALUATION_BATCH,
            device=self.device,
            generator=torch.Generator().manual_seed(seed) if seed is not None else None,
            shuffle=training,
            augmentation=study.augmentation if seed is not None else None,
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
        """What the network as it is now finds on the part of a segmentation study.

        Where the test part's counts leave with noise, whether a logit is finite is a matter of single images, and must not decide that.
        """
        rows, study = self.cohort.parts[part], self.task.study
        return found_masks(
            self.network,
            self.targets(part),
            keys=tuple(self.cohort.keys[row] for row in rows),
            labels=self.cohort.labels[rows],
            patients=self.cohort.patients[rows],
            losses=image_losses(study.training, positive_index=study.task.positive_index, class_counts=None),
            device=self.device,
            precision=self.precision,
            finite=part != "test" or study.evaluation.release is None,
        )


def show_progress(task: Task, phase: str, done: int, total: int, loss: float | None = None) -> None:
    shown = loss if loss is not None and math.isfinite(loss) else None
    task.folder.show_progress(Progress(phase=phase, done=done, total=total, loss=shown))
