"""A hospital's evaluation of one global model: both heads on its own test images.

The SVM is fitted on the training part alone, the same images that the network has seen: it takes the place of the
network's last layer, and the validation part stays untouched by any fit. What is returned holds counts and metrics
only; the exact test scores go into a file of the hospital (mode 0600), so that the final model can be compared with
the round-0 model on the same patients.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.data.records import Part
from client.descriptors import descriptor_results
from client.features import PartFeatures
from client.kept_scores import KeptScores, load_scores, save_scores
from client.svm import FittedSvm, fit_svm
from shared.errors import DataError, NonFiniteUpdateError
from shared.metrics.bootstrap import head_result
from shared.metrics.classification import Floats, Integers, Predictions
from shared.results import DescriptorResult, Evaluated, HeadResult, SvmChoice
from shared.study import Study
from shared.study_head import SvmHead

_log = logging.getLogger(__name__)


def evaluate(
    parts: Mapping[Part, PartFeatures],
    study: Study,
    *,
    minimum_cell: int,
    seed: int,
    baseline: Path | None,
    keep_scores: Path | None,
    features_seconds: float = 0.0,
    external: bool = False,
) -> Evaluated:
    """Fit and test the heads on the `train` and `test` parts. An `external` test has no train part, so the network's head only.

    `minimum_cell` is the hospital's own; the larger of it and the study's counts. `baseline` is the scores file of
    the round-0 model: where it is missing or of other test images there is no gain. `keep_scores` is where this
    model's scores go. `seed` fixes folds and resamples; the same seed for both models pairs them. `features_seconds`
    is what the features took. Raises DataError (no test image, one class, too few patients for the folds),
    NonFiniteUpdateError (the model gives NaN or infinite features or logits) and StorageError (the scores can't be
    written).
    """
    start = time.perf_counter()
    train, test = parts["train"], parts["test"]
    if test.images == 0:
        raise DataError("the test part holds no image, so there is nothing to evaluate on; change the study's split")
    for name in ("train", "test"):
        if not _is_finite(parts[name]):
            raise NonFiniteUpdateError(
                f"the global model gives features or logits of the {name} part that are not finite"
            )

    heads = {"network": network_predictions(test, study)}
    choice: SvmChoice | None = None
    if study.head is not None and not external:
        fitted = _fitted(train, study, study.head, seed)
        choice = SvmChoice(
            C=fitted.C,
            gamma=fitted.gamma,
            cross_validation_score=fitted.cross_validation_score,
            support_vectors=fitted.support_vectors,
        )
        heads["svm"] = _svm_predictions(fitted, test, study)
        if study.head.grid is not None:
            if (fitted.C, fitted.gamma) != (study.head.C, study.head.gamma):
                fitted = _fitted(train, study, study.head.model_copy(update={"grid": None}), seed)
            heads["svm_paper"] = _svm_predictions(fitted, test, study)
    fitted_at = time.perf_counter()

    scores = KeptScores(test.keys, heads)
    before = _baseline(baseline, scores)
    results = {name: _result(head, study, minimum_cell, seed, before.get(name)) for name, head in heads.items()}
    if keep_scores is not None:
        save_scores(keep_scores, scores)
    end = time.perf_counter()
    return Evaluated(
        patients=test.patient_count,
        images=test.images,
        train_patients=train.patient_count,
        train_images=train.images,
        network=results["network"],
        svm=results.get("svm"),
        svm_paper=results.get("svm_paper"),
        svm_choice=choice,
        descriptors=_descriptors(test, study, minimum_cell, seed),
        seconds={
            "features": features_seconds,
            "svm": fitted_at - start,
            "metrics": end - fitted_at,
            "total": features_seconds + end - start,
        },
    )


def _is_finite(part: PartFeatures) -> bool:
    described = part.described
    values = [part.features, part.logits, *([described.logits] if described is not None else [])]
    return all(bool(np.isfinite(one).all()) for one in values)


def _descriptors(test: PartFeatures, study: Study, minimum_cell: int, seed: int) -> dict[str, DescriptorResult] | None:
    if test.described is None:
        return None
    return descriptor_results(test.described, test.patients, study, minimum_cell=minimum_cell, seed=seed)


def network_predictions(part: PartFeatures, study: Study) -> Predictions:
    """The network's own head: sigmoid and threshold 0.5 for one output, softmax and the largest for more."""
    logits = part.logits.astype(np.float64)
    positive = study.task.positive_index
    if logits.shape[1] != study.outputs:
        raise ValueError(f"Expected logits (N, {study.outputs}) for this study, but got {logits.shape}")
    if study.outputs == 1:
        chance = np.exp(-np.logaddexp(0.0, -logits[:, 0]))
        probabilities = np.empty((len(logits), 2))
        probabilities[:, positive], probabilities[:, 1 - positive] = chance, 1.0 - chance
        predicted = np.where(logits[:, 0] >= 0, positive, 1 - positive)
    else:
        raised = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = raised / raised.sum(axis=1, keepdims=True)
        predicted = logits.argmax(axis=1)
    return _predictions(part, predicted, probabilities, study)


def _fitted(train: PartFeatures, study: Study, head: SvmHead, seed: int) -> FittedSvm:
    classes = len(study.task.classes)
    return fit_svm(train.features, train.labels, train.patients, head, classes=classes, seed=seed)


def _svm_predictions(fitted: FittedSvm, test: PartFeatures, study: Study) -> Predictions:
    predicted, probabilities = fitted.predict(test.features)
    return _predictions(test, predicted, probabilities, study)


def _predictions(part: PartFeatures, predicted: NDArray[np.integer], scores: Floats, study: Study) -> Predictions:
    said: Integers = predicted.astype(np.int64)
    # Text, as the scores file holds them: both models' resamples must draw the patients in one order.
    patients = part.patients.astype(np.str_)
    return Predictions(part.labels.astype(np.int64), said, scores, patients, study.task.positive_index)


def _result(head: Predictions, study: Study, minimum_cell: int, seed: int, baseline: Predictions | None) -> HeadResult:
    settings = study.evaluation
    return head_result(
        head,
        resamples=settings.resamples,
        confidence=settings.confidence,
        bins=settings.histogram_bins,
        minimum_cell=max(minimum_cell, settings.minimum_cell),
        seed=seed,
        baseline=baseline,
    )


def _baseline(path: Path | None, final: KeptScores) -> Mapping[str, Predictions]:
    """Heads of the round-0 model on the same test images; none where they can't be compared."""
    if path is None:
        return {}
    try:
        before = load_scores(path)
    except DataError as problem:
        _log.warning("no gain over round 0 is reported: %s", problem)
        return {}
    if before.digest() != final.digest():
        _log.warning("no gain over round 0 is reported: %s is of other test images than the final model's", path)
        return {}
    return before.heads
