"""Pooled figures are those of all images where counts allow it, with errors that add up as those of independent
hospitals.
"""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from shared.metrics.bootstrap import head_result
from shared.metrics.classification import Predictions
from shared.metrics.pooling import PooledHead, pool
from shared.results import Evaluated

RESAMPLES = 400


def drawn(seed: int, images: int, classes: int = 2, per_patient: int = 1, shift: float = 1.2) -> Predictions:
    rng = np.random.default_rng(seed)
    patients = np.arange(images) // per_patient
    truth = rng.integers(0, classes, patients.max() + 1)[patients]
    logits = rng.normal(size=(patients.max() + 1, classes))[patients] + shift * np.eye(classes)[truth]
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return Predictions(truth, scores.argmax(1), scores, patients, classes - 1)


def evaluated(predictions: Predictions, baseline: Predictions | None = None) -> Evaluated:
    head = head_result(
        predictions, resamples=RESAMPLES, confidence=0.95, bins=100, minimum_cell=5, seed=1, baseline=baseline
    )
    patients = np.unique(predictions.patients).size
    return Evaluated(
        patients=patients,
        images=predictions.images,
        train_patients=1,
        train_images=1,
        network=head,
        seconds={"features": 0, "svm": 0, "metrics": 0, "total": 0},
    )


def pooled(*hospitals: Evaluated, positive: int = 1) -> PooledHead:
    result = pool(hospitals, "network", positive=positive, confidence=0.95, resamples=RESAMPLES)
    assert result is not None
    return result


@pytest.mark.parametrize("classes", [2, 3])
def test_pooled_rates_are_those_of_all_images_together(classes: int) -> None:
    parts = [drawn(seed, images, classes) for seed, images in enumerate((40, 70, 55))]
    result = pooled(*(evaluated(part) for part in parts), positive=classes - 1)
    truth = np.concatenate([part.truth for part in parts])
    said = np.concatenate([part.predicted for part in parts])
    assert result.confusion == sk.confusion_matrix(truth, said).tolist()
    assert result.accuracy.value == pytest.approx(sk.accuracy_score(truth, said))
    assert result.balanced_accuracy.value == pytest.approx(sk.balanced_accuracy_score(truth, said))
    precision, recall, f1, support = sk.precision_recall_fscore_support(truth, said)
    for c, row in enumerate(result.classes):
        assert row.images == support[c]
        assert (row.precision.value, row.recall.value, row.f1.value) == pytest.approx((precision[c], recall[c], f1[c]))
    assert (result.sensitivity, result.f1) == (result.classes[-1].recall, result.classes[-1].f1)
    assert (result.hospitals, result.images, result.patients) == (3, 165, 165)


def test_four_equal_hospitals_halve_the_error_of_one() -> None:
    one = evaluated(drawn(3, 60), drawn(3, 60, shift=0.2))
    alone, four = pooled(one), pooled(one, one, one, one)
    for name in ("accuracy", "auc", "balanced_accuracy", "sensitivity", "f1"):
        single, quadruple = getattr(alone, name), getattr(four, name)
        assert quadruple.value == pytest.approx(single.value)
        assert (
            quadruple.high - quadruple.value == pytest.approx((single.high - single.value) / 2, rel=1e-6)
            or quadruple.high == 1
        )
        assert quadruple.value - quadruple.low == pytest.approx((single.value - single.low) / 2, rel=1e-6)
    assert alone.gain is not None and four.gain is not None
    for gain in ("auc", "balanced_accuracy"):
        assert four.gain[gain].value == pytest.approx(alone.gain[gain].value)
        assert four.gain[gain].standard_error == pytest.approx(alone.gain[gain].standard_error / 2)


def test_the_pooled_interval_agrees_with_a_bootstrap_that_sees_all_patients() -> None:
    parts = [drawn(seed, 120, per_patient=3) for seed in range(3)]
    result = pooled(*(evaluated(part) for part in parts))
    seen = head_result(
        Predictions(
            np.concatenate([part.truth for part in parts]),
            np.concatenate([part.predicted for part in parts]),
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.patients + 1000 * site for site, part in enumerate(parts)]),
            1,
        ),
        resamples=2000,
        confidence=0.95,
        bins=100,
        minimum_cell=5,
        seed=2,
    )
    assert result.histogram_roc is not None
    for ours, reference in (
        (result.accuracy, seen.accuracy),
        (result.balanced_accuracy, seen.balanced_accuracy),
        (result.sensitivity, seen.sensitivity),
        (result.precision, seen.precision),
        (result.auc, seen.auc),
        (result.histogram_roc.auc, seen.auc),
    ):
        assert None not in (ours.low, ours.high, reference.low, reference.high)
        assert ours.high - ours.low == pytest.approx(reference.high - reference.low, rel=0.25)  # type: ignore[operator]
        assert ours.value == pytest.approx(reference.value, abs=0.02)


def test_the_gain_is_the_mean_weighted_by_images_and_a_hospital_without_one_does_not_count() -> None:
    sites = [evaluated(drawn(1, 40), drawn(1, 40, shift=0.1)), evaluated(drawn(2, 120), drawn(2, 120, shift=0.1))]
    gain = pooled(*sites, evaluated(drawn(3, 500))).gain
    assert gain is not None
    first, second = (site.network.gain["auc"] for site in sites if site.network.gain is not None)
    assert gain["auc"].value == pytest.approx(0.25 * first.value + 0.75 * second.value)
    error = np.hypot(0.25 * first.standard_error, 0.75 * second.standard_error)
    assert gain["auc"].standard_error == pytest.approx(error)
    assert gain["auc"].high - gain["auc"].low == pytest.approx(2 * 1.959964 * error)
    assert pooled(evaluated(drawn(3, 500))).gain is None


def test_a_head_that_nobody_reports_has_no_pooled_result() -> None:
    assert pool([evaluated(drawn(1, 40))], "svm", positive=1, confidence=0.95) is None
    assert pool([], "network", positive=1, confidence=0.95) is None


def test_a_hospital_whose_histogram_stays_keeps_the_pooled_curve_from_being_drawn() -> None:
    few = evaluated(drawn(1, 4))
    assert few.network.histogram is None
    result = pooled(few, evaluated(drawn(2, 60)))
    assert result.histogram_roc is None
    assert result.accuracy.value is not None


def test_a_class_that_no_hospital_has_stays_undefined() -> None:
    part = drawn(4, 60, classes=3)
    keep = part.truth != 0
    only = Predictions(part.truth[keep], part.predicted[keep], part.scores[keep], part.patients[keep], 2)
    result = pooled(evaluated(only), evaluated(only), positive=2)
    assert result.classes[0].images == 0
    assert (result.classes[0].recall.value, result.classes[0].auc.value) == (None, None)
    assert result.balanced_accuracy.low is not None


def test_different_classes_at_two_hospitals_are_refused() -> None:
    with pytest.raises(ValueError, match="same classes at every hospital"):
        pooled(evaluated(drawn(1, 40)), evaluated(drawn(1, 40, classes=3)))
