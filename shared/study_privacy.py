"""The `privacy` section of a study: patient-level differential privacy, by public constants alone (law 4 of the design).

What a private study may not ask for, because one patient would change something about others that no noise covers, is in `obstacles`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from shared.exact import WrittenExact, WrittenShare
from shared.schema import Strict

if TYPE_CHECKING:
    from shared.study import Study


class PrivateSvm(Strict):
    """A linear SVM on random Fourier features of an RBF kernel, fitted by DP-SGD: the only SVM of a private study whose figures leave.

    The features of the global backbone are scaled to length 1, image by image. Sampling rate and normaliser are the study's.
    """

    components: int = Field(default=256, ge=1, le=8192, description="frequencies; each gives a cosine and a sine")
    gamma: float = Field(default=1.0, gt=0, description="of the RBF kernel, on features of length 1")
    steps: int = Field(ge=1, le=100_000)
    clipping_norm: WrittenExact = Field(default="1.0", description="of one patient's gradient (L2)")
    noise_multiplier: WrittenExact = Field(description="standard deviation of the noise / clipping norm")
    learning_rate: float = Field(default=1.0, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)


class Privacy(Strict):
    """DP-SGD by patient at every hospital. Adding or removing one patient, with all of the patient's images, is what is hidden.

    `noise_multiplier` may be left out where `epsilon` is given: the smallest that keeps the promise is then solved for when the study is
    read, and is part of its digest.
    """

    sampling_rate: WrittenShare = Field(
        description="q: each patient's chance to be in a step, of its own; a number or a fraction such as 32/350"
    )
    steps_per_round: int = Field(ge=1, le=100_000)
    clipping_norm: WrittenExact = Field(description="C, of one patient's gradient (L2)")
    normaliser: WrittenExact = Field(
        description="what a step's noised sum is divided by; usually q times a public number of patients, never a count of a hospital's"
    )
    noise_multiplier: WrittenExact | None = Field(
        default=None, description="sigma: standard deviation of the noise / clipping norm"
    )
    epsilon: WrittenExact | None = Field(
        default=None,
        description="what a whole run may cost a patient at one hospital, all releases together (PLD)",
    )
    delta: WrittenShare = Field(description="of the guarantee; well below 1 / patients")
    gradients: Literal["hooks", "ghost"] = Field(
        default="hooks", description="how Opacus gets each patient's gradient; ghost needs less memory and more time"
    )
    augmentations: int = Field(
        default=1,
        ge=1,
        le=64,
        description="augmented copies of each drawn image, whose gradients are averaged before clipping",
    )
    svm: PrivateSvm | None = Field(default=None, description="None: only the network's own head is released")

    @model_validator(mode="after")
    def _check(self) -> Privacy:
        if self.noise_multiplier is None and self.epsilon is None:
            raise ValueError("noise_multiplier or epsilon must be given")
        return self


def obstacles(study: Study) -> Iterator[str]:
    """Why `study` can't be private as it is, a sentence each: laws 3 and 4 of the design."""
    if study.model.norm != "group":
        yield "model.norm: batch norm mixes the patients of a batch; a private study needs norm: group"
    if study.data.balanced is not None:
        yield "data.balanced: who is drawn depends on how many others there are; a private study takes everybody"
    if study.data.scarce_classes != "refuse":
        yield "data.scarce_classes: leave_out lets one patient decide about a whole class; a private study keeps all classes"
    if study.data.duplicates is not None:
        yield "data.duplicates: whether an image takes part depends on other patients' images; a private study takes all; leave it out"
    if study.data.split.division != "by_patient":
        yield "data.split.division: official parts are not a function of each patient's id alone; use by_patient"
    if study.augmentation.validation:
        yield "augmentation.validation: nothing is validated in a private study; take it out"
    training = study.training
    if training.class_weights != "none":
        yield "training.class_weights: balanced takes its weights from private class counts, which no noise covers; use none"
    if training.focal is not None and training.focal.alpha == "balanced":
        yield "training.focal.alpha: balanced takes its weights from private class counts; use none, or public weights by class"
    if training.precision == "bf16":
        yield "training.precision: in bf16 clipping and noise are too coarse; use fp32"
    for key in ("local_epochs", "batch_size"):
        if getattr(training, key) is not None:
            yield f"training.{key}: privacy.steps_per_round and privacy.sampling_rate take its place; take it out"
    federation = study.federation
    if federation.rounds < 1:
        yield "federation.rounds: a private study needs at least 1"
    if federation.weighting == "counts":
        yield "federation.weighting: counts are private; use uniform, or public weights by site name"
    if federation.keep_updates is False:
        yield "federation.keep_updates: an auditor needs the updates of a private run; take it out or set it to true"
    if study.evaluation.baseline:
        yield "evaluation.baseline: the starting model's figures would be another release; set it to false"
    if study.evaluation.release is None:
        yield "evaluation.release: exact counts of test patients can't leave a private run; give an epsilon"
    for key, weights in study.weight_files.items():
        if weights.origin != "public":
            yield f"{key}.origin: weights trained on a federation's patients would be an unrecorded release; they must be public"
