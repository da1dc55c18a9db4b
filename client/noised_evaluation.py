"""What leaves of an evaluation where the study asks for noise: each head's confusion counts, or of masks the patients by IoU, once, and
figures computed from these.

Only heads leave that may: in a private study the network's own (it was trained by DP-SGD) and a linear SVM that is fitted by DP-SGD; the
exact RBF SVM stays, because it knows its training patients. In a plain study the noise protects the test patients alone, and the exact
SVM's counts leave too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from client.data.records import Part
from client.evaluation import network_predictions
from client.features import PartFeatures
from client.masks import PartMasks
from client.private import linear_svm
from client.private.counts import noised_confusion, noised_votes
from shared.exact import as_float
from shared.metrics.classification import Integers, Predictions
from shared.metrics.noised import figures_from_noised
from shared.metrics.noised_masks import figures_from_noised_masks, iou_bins
from shared.results import IOU_BINS, Evaluated, HeadResult, NoisedMasks
from shared.seeds import derived_seed
from shared.study import Study


@dataclass(frozen=True, slots=True)
class NoisedEvaluation:
    """What may leave, and the digest of the private SVM that was fitted for it."""

    evaluated: Evaluated
    svm: str | None


def noised_evaluation(
    parts: Mapping[Part, PartFeatures], study: Study, *, svm: Predictions | None = None, external: bool = False
) -> NoisedEvaluation:
    """Fresh noise at each call. `svm` are the exact SVM's predictions on the test part, for a plain study.

    An `external` test fits no SVM, since it never trains: all of the noise's epsilon is the network's then. Raises PrivacyError.
    """
    release = study.evaluation.release
    if release is None:
        raise ValueError("the study asks for no noise")
    test = _finite(parts["test"])
    heads: dict[str, Integers] = {"network": network_predictions(test, study).predicted}
    fitted: str | None = None
    if study.privacy is not None and study.privacy.svm is not None and not external:
        machine = _private_svm(_finite(parts["train"]), study)
        heads["svm"] = machine.predict(test.features)
        fitted = hashlib.sha256(np.ascontiguousarray(machine.weights).tobytes()).hexdigest()
    elif study.privacy is None and svm is not None:
        heads["svm"] = svm.predicted
    share = Fraction(release.epsilon) / len(heads)
    results = {name: _head(test, predicted, study, share) for name, predicted in heads.items()}
    evaluated = Evaluated(
        patients=None, images=None, train_patients=None, train_images=None,
        network=results["network"], svm=results.get("svm"), seconds={},
    )  # fmt: skip
    return NoisedEvaluation(evaluated, fitted)


def noised_mask_evaluation(test: PartMasks, study: Study) -> Evaluated:
    """What may leave of the masks of the `test` part: fresh noise at each call, the release's whole epsilon on one table."""
    release = study.evaluation.release
    if release is None:
        raise ValueError("the study asks for no noise")
    epsilon = Fraction(release.epsilon)
    counts = noised_votes(iou_bins(test.counts), test.counts.patients, test.keys, size=IOU_BINS, epsilon=epsilon)
    figures = figures_from_noised_masks(counts, epsilon=float(epsilon), confidence=study.evaluation.confidence)
    masks = NoisedMasks.model_validate({**figures, "counts": counts, "noise": str(epsilon)})
    return Evaluated(patients=None, images=None, train_patients=None, train_images=None, noised_masks=masks, seconds={})


def _head(test: PartFeatures, predicted: Integers, study: Study, epsilon: Fraction) -> HeadResult:
    counts = noised_confusion(
        test.labels, predicted, test.patients, test.keys, classes=len(study.task.classes), epsilon=epsilon
    )
    overall, classes = figures_from_noised(
        counts,
        positive=study.task.positive_index,
        epsilon=float(epsilon),
        confidence=study.evaluation.confidence,
    )
    return HeadResult.model_validate({**overall, "confusion": counts, "classes": classes, "noise": str(epsilon)})


def _private_svm(train: PartFeatures, study: Study) -> linear_svm.PrivateLinearSvm:
    privacy = study.privacy
    if privacy is None or privacy.svm is None:
        raise ValueError("the study has no private SVM")
    asked = privacy.svm
    constants = linear_svm.LinearSvmConstants(
        components=asked.components,
        gamma=asked.gamma,
        steps=asked.steps,
        sampling_rate=as_float(privacy.sampling_rate),
        clipping_norm=as_float(asked.clipping_norm),
        noise_multiplier=as_float(asked.noise_multiplier),
        normaliser=as_float(privacy.normaliser),
        learning_rate=asked.learning_rate,
        weight_decay=asked.weight_decay,
        seed=derived_seed("fourier features", study.seed),
    )
    return linear_svm.fit(
        train.features, train.labels, train.patients, classes=len(study.task.classes), constants=constants
    )


def _finite(part: PartFeatures) -> PartFeatures:
    """What is not finite counts as 0: whether it occurs is a matter of single images, and must not decide whether figures leave."""
    return PartFeatures(
        keys=part.keys,
        features=_zeroed(part.features),
        logits=_zeroed(part.logits),
        labels=part.labels,
        patients=part.patients,
    )


def _zeroed(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
