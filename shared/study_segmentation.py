"""What belongs to a segmentation study and what does not: its network answers with a mask, so nothing of it can be about classes alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from shared.study_mask import AnnotatedMask

if TYPE_CHECKING:
    from shared.study import Study


def contradictions(study: Study) -> Iterator[str]:
    """Keys of `study` that its `task.kind` leaves nothing to do for, or asks for, a sentence each."""
    mask_loss = study.training.loss == "cross_entropy_dice"
    if study.task.kind == "classification":
        if mask_loss:
            yield "training.loss: cross_entropy_dice compares masks; it needs task.kind: segmentation"
        return
    if not isinstance(study.preprocessing.mask, AnnotatedMask):
        yield "preprocessing.mask: the network learns the hospitals' own masks; set it to {from: annotated}"
    if not mask_loss:
        yield f"training.loss: {study.training.loss} is about classes; use cross_entropy_dice"
    if study.training.class_weights != "none":
        yield "training.class_weights: the loss is about pixels, not classes; take it out"
    for key in ("rare_classes", "descriptors"):
        if getattr(study.task, key):
            yield f"task.{key}: the network says no class and describes nothing but the mask; take it out"
    if study.head is not None:
        yield "head: an SVM needs one vector of features an image, which a network for masks has not; take it out"
    if study.privacy is not None and study.privacy.svm is not None:
        yield "privacy.svm: an SVM needs one vector of features an image, which a network for masks has not; take it out"


def released_counts(study: Study) -> str:
    """What `evaluation.release` lets leave, in words."""
    return "counts of test patients by IoU" if study.task.kind == "segmentation" else "confusion counts"
