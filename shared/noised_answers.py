"""What a hospital's answer may hold where a study asks for noise: nothing that one patient changes and no noise covers (laws 3 and 4)."""

from __future__ import annotations

from fractions import Fraction

from shared.errors import MechanismError
from shared.exact import as_float
from shared.metrics.noised_masks import figures_from_noised_masks
from shared.results import NOISED_MASK_METRICS, Evaluated, HeadResult, NoisedMasks, Prepared, Trained
from shared.study import Study


def exact_in_preparation(prepared: Prepared) -> list[str]:
    """Names of what a private run's preparation may not hold."""
    held = {
        "parts": prepared.parts,
        "left_out": prepared.left_out is not None,
        "unreadable": prepared.unreadable is not None,
        "copies": prepared.copies is not None,
        "tags": prepared.tags,
        "baseline": prepared.baseline,
        "seconds": prepared.seconds,
    }
    return [name for name, value in held.items() if value]


def exact_in_training(trained: Trained) -> list[str]:
    """Names of what a private round's answer may not hold."""
    held = {
        "images": trained.images is not None,
        "patients": trained.patients is not None,
        "epochs": trained.epochs,
        "validation": trained.validation is not None,
        "seconds": trained.seconds,
    }
    return [name for name, value in held.items() if value]


def exact_in_evaluation(evaluated: Evaluated, study: Study) -> list[str]:
    """Names of what the figures of a study with `evaluation.release` may not hold."""
    names = ("patients", "images", "train_patients", "train_images")
    exact = [name for name in names if getattr(evaluated, name) is not None]
    exact += ["seconds"] if evaluated.seconds else []
    exact += ["svm_choice"] if evaluated.svm_choice is not None else []
    exact += ["descriptors"] if evaluated.descriptors is not None else []
    exact += ["masks"] if evaluated.masks is not None else []
    exact += ["svm_paper"] if evaluated.svm_paper is not None else []
    if evaluated.noised_masks is not None and differing_masks(evaluated.noised_masks, study) is not None:
        exact.append("noised_masks")
    if study.privacy is not None and study.privacy.svm is None and evaluated.svm is not None:
        exact.append("svm")
    for name in ("network", "svm"):
        head: HeadResult | None = getattr(evaluated, name)
        if head is not None and (head.noise is None or head.histogram is not None or head.auc.value is not None):
            exact.append(name)
    return exact


def differing_masks(masks: NoisedMasks, study: Study) -> str | None:
    """What of `masks` does not follow from their noised counts, or goes beyond the study's epsilon, in words; None where nothing does."""
    release = study.evaluation.release
    if release is None or Fraction(masks.noise) > Fraction(release.epsilon):
        allowed = "allows none" if release is None else f"allows {release.epsilon}"
        return f"noise of epsilon {masks.noise}, the study {allowed}"
    try:
        figures = figures_from_noised_masks(
            masks.counts, epsilon=as_float(masks.noise), confidence=study.evaluation.confidence
        )
    except (ValueError, MechanismError) as problem:
        return f"its counts give no figures: {problem}"
    for name in NOISED_MASK_METRICS:
        if getattr(masks, name) != figures[name]:
            return f"{name} is {getattr(masks, name).value}, its counts give {figures[name].value}"
    return None
