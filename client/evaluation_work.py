"""A site's evaluation of a global model: what leaves, and what is kept for the hospital's own page."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from client.bench import Bench, show_progress
from client.cohort import selected
from client.data.contrast import effect_of
from client.data.records import Part
from client.data.removal import removal_of
from client.data.splits import PARTS
from client.evaluation import evaluate
from client.features import PartFeatures
from client.gate import Result
from client.kept_scores import load_scores
from client.lesion_heat import HeatMaps
from client.mask_evaluation import evaluate_masks
from client.masks import PartMasks, mask_of
from client.noised_evaluation import noised_evaluation, noised_mask_evaluation
from client.outlines import shown
from client.own_runs import keep_figures
from client.page import write_page
from client.page_contrast import contrast_section
from client.page_descriptors import descriptors_section
from client.page_masks import write_mask_page
from client.page_removal import removal_section
from shared.errors import ConsiliumError, DataError
from shared.imaging.enhancement import is_enhanced
from shared.results import Evaluated
from shared.seeds import derived_seed

log = logging.getLogger("consilium.site")

#: Images whose contrast is measured for the page: each is decoded once more.
_CONTRAST_IMAGES = 100


def evaluate_model(bench: Bench) -> Result:
    begun = time.perf_counter()
    task, study = bench.task, bench.task.study
    show_progress(task, "evaluate", 0, 0)
    if study.task.kind == "segmentation":
        return Result(evaluated=_evaluate_masks(bench, begun))
    parts = {part: bench.features(part) for part in PARTS}
    external = task.profile.role == "external_test"
    noise = noised_evaluation(parts, study, external=external) if study.privacy is not None else None
    try:
        evaluated = evaluated_classes(bench, parts, begun)
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


def _evaluate_masks(bench: Bench, begun: float) -> Evaluated:
    masks, study = bench.masks("test"), bench.task.study
    noised = noised_mask_evaluation(masks, study) if study.evaluation.release is not None else None
    try:
        exact = evaluated_masks(bench, masks, begun)
        _keep_masks(bench, masks, exact)
    except DataError as problem:
        if noised is None:
            raise
        # Whether this hospital has a test image is private too.
        log.warning("no page of exact figures: %s", problem)
        return noised
    return exact if noised is None else noised


def evaluated_classes(bench: Bench, parts: dict[Part, PartFeatures], begun: float) -> Evaluated:
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


def _keep(bench: Bench, parts: dict[Part, PartFeatures], evaluated: Evaluated) -> None:
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


def _keep_own(bench: Bench, evaluated: Evaluated) -> None:
    task = bench.task
    keep_figures(bench.run_folder, task.instruction.round, evaluated)
    if task.instruction.round == task.study.federation.rounds:  # no round follows that would go on from it
        for path in bench.run_folder.glob("optimiser-*.pt"):
            path.unlink(missing_ok=True)


def _descriptors(test: PartFeatures, bench: Bench, evaluated: Evaluated) -> list[Markup]:
    if test.described is None:
        return []
    study, site = bench.task.study, bench.task.profile.site
    seed = derived_seed("descriptors", study.seed, site)
    return [descriptors_section(test, study, evaluated.descriptors or {}, seed=seed)]


def _sections(bench: Bench) -> list[Markup]:
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


def _scores(bench: Bench, model_digest: str) -> Path:
    return bench.run_folder / f"scores-{model_digest[:16]}.npz"


def _pictures(bench: Bench) -> Callable[[int], np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    """Prepared pixels (C, H, W) in [0, 1] of the i-th test image, for the hospital's own page; a mask as an outline upon them."""
    rows, recipe = bench.cohort.parts["test"], bench.task.study.preprocessing

    def picture(index: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return shown(bench.cohort.store.images[rows[index]], recipe)

    return picture


def _heat(bench: Bench) -> HeatMaps | None:
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


def evaluated_masks(bench: Bench, test: PartMasks, begun: float) -> Evaluated:
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


def _keep_masks(bench: Bench, test: PartMasks, evaluated: Evaluated) -> None:
    """The figures of a segmentation study, and the hospital's own page of them."""
    task, rows = bench.task, bench.cohort.parts["test"]
    _keep_own(bench, evaluated)
    batches, pixels = bench.targets("test"), task.study.preprocessing.model_copy(update={"mask": None})

    def masks(index: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        image, truth = batches.of_rows(rows[index : index + 1])
        return (truth[0, 0] > 0.5).cpu().numpy(), mask_of(bench.network, image, precision=bench.precision)

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


def _masks_file(bench: Bench, model_digest: str) -> Path:
    return bench.run_folder / f"masks-{model_digest[:16]}.npz"
