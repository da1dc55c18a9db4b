"""Figures over all classes from confusion counts: equal to scikit-learn's, and intervals that cover what they should."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, multilabel_confusion_matrix, precision_recall_fscore_support

from shared.metrics.classification import confusion_counts
from shared.metrics.over_classes import errors, over_classes, weighted_rates


@settings(max_examples=150)
@given(st.integers(2, 6), st.integers(1, 60), st.integers(0, 2**31))
def test_weighted_figures_and_errors_are_scikit_learns(classes: int, images: int, seed: int) -> None:
    """Also where a class has no image or is never said."""
    rng = np.random.default_rng(seed)
    truth, said = rng.integers(0, rng.integers(1, classes + 1), images), rng.integers(0, classes, images)
    counts = confusion_counts(truth, said, classes)[0]
    found = weighted_rates(counts)
    labels = list(range(classes))
    expected = precision_recall_fscore_support(truth, said, labels=labels, average="weighted", zero_division=0)
    assert [float(found[name]) for name in ("precision", "recall", "f1")] == pytest.approx(expected[:3])
    assert found["recall"] == pytest.approx(accuracy_score(truth, said))
    tables = multilabel_confusion_matrix(truth, said, labels=labels)
    wrong = tables[:, 0, 1] + tables[:, 1, 0]
    assert errors(counts) == wrong.sum() == 2 * (truth != said).sum()
    assert errors(counts, [0, classes - 1]) == wrong[[0, classes - 1]].sum()
    if len(set(truth)) > 1:
        there = counts.sum(1) > 0
        specificity = tables[:, 0, 0][there] / tables[:, 0].sum(1)[there]
        assert found["specificity"] == pytest.approx(np.average(specificity, weights=counts.sum(1)[there]))
    else:
        assert np.isnan(found["specificity"])


def test_hospitals_are_added_up_and_the_intervals_are_as_wide_as_their_patients_make_them() -> None:
    table = [[80, 15, 5], [10, 60, 10], [2, 3, 15]]
    few = over_classes([(table, 40)], [2], confidence=0.95, resamples=2000, seed=1)
    many = over_classes([(table, 200)], [2], confidence=0.95, resamples=2000, seed=1)
    assert few == over_classes([(table, 40)], [2], confidence=0.95, resamples=2000, seed=1)
    assert few.errors.value == 2 * 45 and few.rare_errors is not None and few.rare_errors.value == 5 + 15
    # A binomial share of as many draws as there are patients.
    for found, patients in ((few, 40), (many, 200)):
        one = found.weighted["recall"]
        assert one.value is not None and one.low is not None and one.high is not None
        deviation = (one.value * (1 - one.value) / patients) ** 0.5
        assert (one.high - one.low) / (2 * 1.96) == pytest.approx(deviation, rel=0.1)
    twice = over_classes([(table, 40), (table, 40)], [], confidence=0.95, resamples=2000, seed=1)
    assert twice.errors.value == 180 and twice.rare_errors is None
    assert twice.weighted["f1"].value == pytest.approx(few.weighted["f1"].value)


def test_where_no_image_is_wrong_the_interval_is_open_by_the_binomial_bound() -> None:
    found = over_classes([([[30, 0], [0, 10]], 15), ([[8, 0], [0, 2]], 5)], [], confidence=0.95, resamples=300, seed=1)
    for name in ("precision", "recall", "f1"):
        one = found.weighted[name]
        assert (one.value, one.low, one.high) == (1.0, pytest.approx(0.025 ** (1 / 20)), 1.0)
    # As many of the 50 images as that bound allows, each counted twice.
    expected = (0, 0.0, pytest.approx(2 * 50 * (1 - 0.025 ** (1 / 20))))
    assert (found.errors.value, found.errors.low, found.errors.high) == expected


def test_errors_that_are_none_or_all_have_the_exact_binomial_bound_by_patients() -> None:
    """SciPy's Clopper-Pearson interval, times the most that an image can count."""
    right, wrong = [[30, 0, 0], [0, 10, 0], [0, 0, 3]], [[0, 20, 10], [10, 0, 0], [0, 3, 0]]
    for table, successes in ((right, 0), (wrong, 12)):
        share = binomtest(successes, 12).proportion_ci(0.95, method="exact")
        for rare in ([], [2], [1, 2]):
            found = over_classes([(table, 12)], rare, confidence=0.95, resamples=300, seed=1)
            assert (found.errors.low, found.errors.high) == pytest.approx((86 * share.low, 86 * share.high))
            if rare and not successes:
                assert found.rare_errors is not None and found.rare_errors.low == 0
                assert found.rare_errors.high == pytest.approx(43 * len(rare) * share.high)


def test_a_hospital_without_an_image_has_no_interval() -> None:
    found = over_classes([([[0, 0], [0, 0]], 0)], [], confidence=0.95, resamples=50, seed=1)
    assert (found.errors.value, found.errors.low, found.errors.high) == (0, None, None)


def test_one_patient_gives_figures_without_an_interval_and_no_hospital_is_refused() -> None:
    found = over_classes([([[3, 0], [1, 0]], 1)], [], confidence=0.95, resamples=100, seed=0)
    assert found.errors.value == 2 and found.errors.low is None
    assert found.weighted["precision"].value == pytest.approx(0.75 * 0.75) and found.weighted["f1"].low is None
    with pytest.raises(ValueError, match="at least of one hospital"):
        over_classes([], [], confidence=0.95, resamples=100, seed=0)
