"""What a study of an ensemble may not ask for, since it trains nothing: a key that did nothing would be part of what is approved."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from shared.study_augmentation import Augmentation
from shared.study_federation import Federation
from shared.study_training import Training

if TYPE_CHECKING:
    from shared.study import Study

#: What of `training` says something of an ensemble too: how many outputs there are, and how it is computed.
_OF_USE = ("loss", "precision", "memory_format")
#: What of `federation` is about updates and weights that travel.
_OF_ROUNDS = ("optimiser", "round_deadline_s", "wire", "keep_updates")


def of_no_use(study: Study) -> Iterator[str]:
    """Keys of `study` that would do nothing, or ask for training, a sentence each."""
    if study.task.kind != "classification":
        yield f"task.kind: it averages probabilities of classes; {study.task.kind} needs a network of its own"
    if study.task.descriptors:
        yield "task.descriptors: it averages what the members say of the classes alone; leave them out"
    if study.federation.rounds != 0:
        yield "federation.rounds must be 0"
    if study.federation.weighting != "uniform":
        yield "federation.weighting: there is no update to weigh; set it to uniform"
    for key in _OF_ROUNDS:
        if getattr(study.federation, key) != Federation.model_fields[key].default:
            yield f"federation.{key}: no update travels; leave it out"
    if study.federation.keep_models is not None:
        yield "federation.keep_models: there is no round to keep a model of; leave it out"
    if study.evaluation.baseline:
        yield "evaluation.baseline: the model of round 0 is the one that is evaluated; set it to false"
    if study.augmentation != Augmentation():
        yield "augmentation: it changes images for training; leave it out"
    if study.training.loss == "focal":
        yield "training.loss: it only says how many outputs the members have; use cross_entropy"
        return
    bare = Training(**{key: getattr(study.training, key) for key in _OF_USE})
    if odd := [
        f"training.{key}" for key in Training.model_fields if getattr(study.training, key) != getattr(bare, key)
    ]:
        yield f"{', '.join(odd)}: leave it out" if len(odd) == 1 else f"{', '.join(odd)}: leave them out"
