"""A hospital's images as one study sees them: opened in full at the first message of a run, and in a moment at all later ones.

Reading tables, telling masks from crops, hashing files and decoding images is done once. What the later messages need - labels, patients,
parts, and where the prepared images lie - is kept in the run's own folder (mode 0600), so the data of a run is fixed at its round 0,
but for patients who withdraw: they are in no part from the next message on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.chained_models import require_not_taught, taught_here, tested_patients, used_models
from client.data.cache import ImageStore, prepare_store
from client.data.copies import find_copies
from client.data.metadata import encoded
from client.data.perceptual_hash import coarse
from client.data.records import Part
from client.data.registry import open_holding
from client.data.selection import Cohort, choose
from client.data.splits import PARTS
from client.roll import Roll, load_roll, save_roll
from client.site_folder import SiteFolder
from client.withdrawn import Tags, withdrawn_tags
from shared.errors import DataError, PolicyError
from shared.imaging.preprocess import Segmenter
from shared.profile import Profile
from shared.results import CopiesLeftOut, PartCounts
from shared.study import Study
from shared.study_mask import PredictedMask

log = logging.getLogger("consilium.site")

_UNREADABLE_NAMED = 10


@dataclass(frozen=True, slots=True)
class OpenCohort:
    """The run's roll, and its N prepared images."""

    roll: Roll
    store: ImageStore

    @property
    def keys(self) -> tuple[str, ...]:
        return self.roll.keys

    @property
    def labels(self) -> NDArray[np.int64]:
        return self.roll.labels

    @property
    def targets(self) -> NDArray[np.int64]:
        """What is learnt of each image: class indices (N,), or (N, 1 + descriptors) where the study has descriptors."""
        described = self.roll.descriptors
        return np.column_stack((self.labels, described)) if described.shape[1] else self.labels

    @property
    def patients(self) -> NDArray[np.int64]:
        return self.roll.patients

    @property
    def parts(self) -> Mapping[Part, NDArray[np.int64]]:
        return self.roll.parts

    def counts(self, classes: int) -> dict[Part, PartCounts]:
        """Patients and images of each part, images by class."""
        return {
            part: PartCounts(
                patients=len(np.unique(self.patients[rows])),
                images=len(rows),
                by_class=np.bincount(self.labels[rows], minlength=classes).tolist(),
            )
            for part, rows in self.parts.items()
        }


def open_cohort(
    study: Study,
    folder: SiteFolder,
    run_folder: Path,
    progress: Callable[[int, int], None] | None = None,
    *,
    before_images: Callable[[Mapping[str, frozenset[str]]], None] | None = None,
) -> OpenCohort:
    """The run's cohort: from its file where this run has opened it before, else from the hospital's data.

    `before_images` is called with the patients' tags when the tables were read and no image was; what it raises goes through.

    Raises DataError, UnreadableImageError, SplitLeakError, PolicyError, StorageError, WeightsError (of the network that predicts
    masks), InputError (who has withdrawn can't be known); ChainLeakError where a model that the study uses has learned from patients of
    its test part.
    """
    profile = folder.profile()
    opened = _kept(run_folder, study)
    if opened is None:
        opened = _opened(study, profile, folder, progress, before_images)
        save_roll(run_folder, opened.roll.without(withdrawn_tags(folder)))
    roll = opened.roll.without(withdrawn_tags(folder))
    if roll.withdrawn or roll.copies is not None:
        _require_patients(roll, profile)
    if study.privacy is None:
        _require_classes(roll, profile)
    return OpenCohort(roll, replace(opened.store, readable=roll.readable))


def selected(study: Study, folder: SiteFolder) -> Cohort:
    """The records that the study works on here, by tables alone: no image is read.

    Raises DataError, SplitLeakError, PolicyError, ProfileError, InputError.
    """
    profile = folder.profile()
    tags, gone = Tags.of(folder), withdrawn_tags(folder)
    return choose(
        study,
        open_holding(profile, unit=study.task.unit),
        minimum_patients=profile.policy.minimum_patients,
        withdrawn=lambda patient: tags.tag(patient) in gone,
        place=lambda patient: tags.place(study.split_seed, patient),
        external=profile.role == "external_test",
    )


def _opened(
    study: Study,
    profile: Profile,
    folder: SiteFolder,
    progress: Callable[[int, int], None] | None,
    before_images: Callable[[Mapping[str, frozenset[str]]], None] | None,
) -> OpenCohort:
    cohort = selected(study, folder)
    metadata = encoded(cohort.records, study.metadata, required=study.privacy is None)
    tags = Tags.of(folder)
    taught = taught_here(used_models(study, folder.weights), study, folder)
    for one in taught:
        log.info("%s", one)
    require_not_taught(tested_patients(cohort, tags), taught, folder)
    if before_images is not None:
        before_images({tags.tag(record.patient): frozenset() for record in cohort.records})
    duplicates = study.data.duplicates
    store = prepare_store(
        cohort.records,
        study.preprocessing,
        folder.cache,
        unreadable=profile.data.unreadable,
        hashes=duplicates is not None,
        progress=progress,
        segmenter=lambda: _segmenter(study, profile, folder),
    )
    for problem in (*cohort.problems, *store.problems)[:_UNREADABLE_NAMED]:
        log.warning("left out: %s", problem)
    staying, copies = store.readable, None
    if duplicates is not None and duplicates.distance is not None:
        staying, copies = _without_copies(cohort, store, duplicates.distance)
    roll = Roll(
        study=study.digest(),
        images=str(getattr(store.images, "filename", "")),
        keys=tuple(record.key for record in cohort.records),
        files=tuple((record.image, *record.masks) for record in cohort.records),
        labels=cohort.labels,
        descriptors=cohort.descriptors,
        patients=cohort.patients,
        tags=tuple(tags.tag(record.patient) for record in cohort.records),
        pixels=tuple(tags.image(pixels) if pixels else "" for pixels in store.pixels),
        readable=store.readable,
        metadata=metadata,
        parts={part: rows[staying[rows]] for part, rows in cohort.parts.items()},
        left_out=cohort.left_out,
        unreadable=len(cohort.problems) + len(store.problems),
        copies=copies,
        hashes=tuple(coarse(one) for one in store.hashes) if study.counts_shared_images else (),
    )
    require_not_taught(roll.known("test"), taught, folder)
    return OpenCohort(roll, store)


def _segmenter(study: Study, profile: Profile, folder: SiteFolder) -> Segmenter | None:
    """What predicts the study's masks, on the site's device; None where no mask is predicted."""
    if not isinstance(study.preprocessing.mask, PredictedMask):
        return None
    from client.device import chosen_device, limit_memory
    from shared.models.segmenter import segmenter_of

    device = chosen_device(profile.device)
    limit_memory(device, profile.policy.maximum_device_memory_gb)
    return segmenter_of(study.preprocessing, root=folder.weights, device=device)


def _without_copies(cohort: Cohort, store: ImageStore, distance: int) -> tuple[NDArray[np.bool_], CopiesLeftOut]:
    """Which rows stay, and what goes. Copies whose classes differ are named in the hospital's log, each group of them."""
    staying = store.readable.copy()
    groups = find_copies([record.image for record in cohort.records], cohort.labels, store.hashes, distance)
    copies = contradicting = 0
    for group in groups:
        staying[list(group.left_out)] = False
        if group.kept:
            copies += len(group.left_out)
        else:
            contradicting += len(group.left_out)
            named = ", ".join(f"{cohort.records[row].key} ({cohort.records[row].label})" for row in group.left_out)
            log.warning("left out: copies of one image have labels of different classes: %s", named)
    if groups:
        log.warning(
            "left out: %s copies of images that take part, and %s images whose copies contradict each other (data.duplicates)",
            copies, contradicting,
        )  # fmt: skip
    return staying, CopiesLeftOut(copies=copies, contradicting=contradicting)


def _kept(run_folder: Path, study: Study) -> OpenCohort | None:
    """None where there is none, it is another study's, or its images are gone from the cache."""
    roll = load_roll(run_folder)
    if roll is None or roll.study != study.digest():
        return None
    try:
        images = np.load(roll.images, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return OpenCohort(roll, ImageStore(images, roll.readable, ()))


def _require_patients(roll: Roll, profile: Profile) -> None:
    """Patients who withdraw in the middle of a run, and copies that are left out, may leave too few."""
    rows = np.concatenate([roll.parts[part] for part in PARTS])
    reached, least = len(np.unique(roll.patients[rows])), profile.policy.minimum_patients
    if reached < least:
        raise PolicyError(
            f"{'patients have withdrawn' if roll.withdrawn else 'copies were left out (data.duplicates)'}: {reached} patients are left, "
            f"but policy.minimum_patients of the profile is {least}"
        )


def _require_classes(roll: Roll, profile: Profile) -> None:
    """Images that can't be read, or patients who withdrew, or copies that were left out, may have been a class's last ones."""
    parts: tuple[Part, ...] = ("train", "test") if profile.role == "trains" else ("test",)
    for part in parts:
        rows = roll.parts[part]
        classes = len(np.unique(roll.labels[rows]))
        if classes < 2:
            raise DataError(f"the {part} part has {len(rows)} readable images of {classes} class(es)")
