"""Intervals are drawn by patient, cover what they should, and say nothing where nothing can be said."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from shared.metrics.bootstrap import head_result, interval, paired_difference, patient_weights
from shared.metrics.classification import Predictions
from shared.results import HeadResult


def binary(truth: np.ndarray, scores: np.ndarray, patients: np.ndarray | None = None) -> Predictions:
    patients = np.arange(truth.size) if patients is None else patients
    return Predictions(truth, (scores >= 0.5).astype(int), np.stack([1 - scores, scores], 1), patients, 1)


def result(
    predictions: Predictions, baseline: Predictions | None = None, seed: int = 3, resamples: int = 500
) -> HeadResult:
    return head_result(
        predictions, resamples=resamples, confidence=0.95, bins=100, minimum_cell=5, seed=seed, baseline=baseline
    )


def noisy(rng: np.random.Generator, images: int, shift: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    truth = rng.integers(0, 2, images)
    return truth, 1 / (1 + np.exp(-(rng.normal(size=images) + shift * (truth - 0.5))))


def test_all_images_of_a_patient_are_drawn_together_and_as_many_patients_as_there_are() -> None:
    patients = np.array(["b", "a", "b", "c", "a", "a"])
    weights = np.concatenate(list(patient_weights(patients, 200, seed=1)))
    assert weights.shape == (200, 6)
    for name in "abc":
        columns = weights[:, patients == name]
        assert (columns == columns[:, :1]).all()
    assert (weights[:, [1, 0, 3]].sum(1) == 3).all()
    np.testing.assert_allclose(weights.mean(0), 1.0, atol=0.2)


def test_many_resamples_come_in_blocks_that_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.metrics.bootstrap._BLOCK", 70)
    blocks = list(patient_weights(np.arange(10), 25, seed=1))
    assert [len(block) for block in blocks] == [7, 7, 7, 4]


def test_the_interval_of_accuracy_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    covered = 0
    for seed in range(150):
        right = rng.random(80) < 0.8
        truth = rng.integers(0, 2, 80)
        scores = np.where(right, truth, 1 - truth).astype(float)
        estimate = result(binary(truth, scores), seed=seed, resamples=200).accuracy
        assert estimate.low is not None and estimate.high is not None
        covered += estimate.low <= 0.8 <= estimate.high
    assert 0.87 * 150 <= covered <= 0.99 * 150


def test_repeating_every_patients_image_does_not_narrow_the_interval() -> None:
    truth, scores = noisy(np.random.default_rng(0), 60)
    once = result(binary(truth, scores))
    nine = result(binary(np.tile(truth, 9), np.tile(scores, 9), np.tile(np.arange(60), 9)))
    for name in ("accuracy", "auc", "sensitivity", "f1"):
        assert getattr(nine, name) == getattr(once, name)


def test_the_same_seed_gives_the_same_result() -> None:
    truth, scores = noisy(np.random.default_rng(0), 60)
    assert result(binary(truth, scores)) == result(binary(truth, scores))
    assert result(binary(truth, scores), seed=4) != result(binary(truth, scores), seed=5)


def test_scores_of_chance_get_an_interval_around_one_half() -> None:
    rng = np.random.default_rng(11)
    auc = result(binary(rng.integers(0, 2, 100), rng.random(100))).auc
    assert auc.low is not None and auc.high is not None
    assert auc.low < 0.5 < auc.high


def test_undefined_figures_are_none_and_not_zero() -> None:
    truth = np.zeros(20, dtype=int)
    one_class = result(binary(truth, np.linspace(0, 0.4, 20)))
    for name in ("sensitivity", "precision", "f1", "auc", "balanced_accuracy"):
        assert getattr(one_class, name).value is None
        assert getattr(one_class, name).low is None
    assert one_class.accuracy.value == 1.0
    assert one_class.classes[1].images == 0
    assert one_class.confusion == [[20, 0], [0, 0]]


def test_a_class_that_many_resamples_miss_gets_a_figure_without_an_interval() -> None:
    truth = np.array([1, *[0] * 20])  # one patient of 21: about 36 % of the resamples miss it
    estimate = result(binary(truth, np.linspace(0.9, 0.1, 21))).sensitivity
    assert (estimate.value, estimate.low, estimate.high) == (1.0, None, None)


def test_one_patient_has_no_interval() -> None:
    truth = np.array([0, 1, 0, 1])
    estimate = result(binary(truth, np.array([0.1, 0.9, 0.8, 0.7]), np.zeros(4))).accuracy
    assert (estimate.value, estimate.low, estimate.high) == (0.75, None, None)


def test_without_an_error_the_open_side_is_the_exact_binomial_bound_of_the_patients() -> None:
    truth = np.array([0, 1] * 20)
    patients = np.repeat(np.arange(20), 2)  # each patient has both classes
    good = result(binary(truth, truth.astype(float), patients))
    exact = binomtest(20, 20).proportion_ci(0.95, method="exact")
    for name in ("accuracy", "auc", "balanced_accuracy", "sensitivity", "specificity", "precision", "f1"):
        estimate = getattr(good, name)
        assert estimate.value == estimate.high == 1.0
        assert estimate.low == pytest.approx(exact.low)
    bad = result(binary(truth, 1.0 - truth, patients)).accuracy
    assert (bad.value, bad.low) == (0.0, 0.0)
    assert bad.high == pytest.approx(1 - exact.low)


def test_a_figure_that_is_constant_by_construction_keeps_its_point() -> None:
    truth = np.array([0, 1] * 20)
    auc = result(binary(truth, np.full(40, 0.3))).auc
    assert (auc.value, auc.low, auc.high) == (0.5, 0.5, 0.5)


def test_the_gain_over_a_baseline_is_paired() -> None:
    rng = np.random.default_rng(5)
    truth, before = noisy(rng, 120, shift=0.6)
    logit = np.log(before / (1 - before)) + 1.5 * (truth - 0.5)
    after = 1 / (1 + np.exp(-logit))
    final, baseline = binary(truth, after), binary(truth, before)
    gain = result(final, baseline).gain
    assert gain is not None
    auc = gain["auc"]
    alone, other = result(final).auc, result(baseline).auc
    assert alone.value is not None and other.value is not None
    assert auc.value == pytest.approx(alone.value - other.value)
    assert 0 < auc.low < auc.value < auc.high
    assert alone.high is not None and alone.low is not None and other.high is not None and other.low is not None
    unpaired = np.hypot(alone.high - alone.low, other.high - other.low)
    assert auc.high - auc.low < 0.8 * unpaired


def test_no_change_is_a_gain_of_exactly_zero() -> None:
    truth, scores = noisy(np.random.default_rng(5), 50)
    gain = result(binary(truth, scores), binary(truth, scores)).gain
    assert gain is not None
    assert gain["auc"].model_dump() == {"value": 0.0, "low": 0.0, "high": 0.0, "standard_error": 0.0}


def test_a_baseline_of_other_images_is_refused() -> None:
    truth, scores = noisy(np.random.default_rng(5), 50)
    with pytest.raises(ValueError, match="of the same images"):
        result(binary(truth, scores), binary(1 - truth, scores))
    with pytest.raises(ValueError, match="of the same images"):
        result(binary(truth, scores), binary(truth, scores, np.arange(50) + 1))


def test_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        result(binary(np.zeros(0, dtype=int), np.zeros(0)))


def test_the_standard_error_is_that_of_the_draws_and_an_undefined_difference_is_none() -> None:
    rng = np.random.default_rng(2)
    final, baseline = rng.random(300), rng.random(300)
    difference = paired_difference(final, baseline, 0.1, confidence=0.9)
    assert difference is not None
    assert difference.standard_error == pytest.approx(np.std(final - baseline, ddof=1))
    assert difference.low == pytest.approx(np.quantile(final - baseline, 0.05))
    assert paired_difference(final, baseline, float("nan"), confidence=0.9) is None
    assert paired_difference(np.full(300, np.nan), baseline, 0.1, confidence=0.9) is None


def test_the_interval_is_the_percentiles_of_the_draws_that_define_the_figure() -> None:
    draws = np.concatenate((np.linspace(0, 1, 951), np.full(49, np.nan)))
    estimate = interval(0.5, draws, confidence=0.9, patients=10)
    assert (estimate.low, estimate.high) == (pytest.approx(0.05), pytest.approx(0.95))
