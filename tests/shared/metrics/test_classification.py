"""Figures agree with scikit-learn's, and a weighted figure is that of the images repeated."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from shared.metrics.classification import Predictions, area_under_roc, figures, roc_curve


@st.composite
def predictions(draw: st.DrawFn) -> Predictions:
    classes = draw(st.integers(2, 4))
    images = draw(st.integers(1, 40))
    index = st.integers(0, classes - 1)
    truth = np.array(draw(st.lists(index, min_size=images, max_size=images)))
    predicted = np.array(draw(st.lists(index, min_size=images, max_size=images)))
    steps = draw(st.integers(1, 6))  # few steps: many ties
    scores = np.array(draw(st.lists(st.integers(0, steps), min_size=images * classes, max_size=images * classes)))
    patients = np.array(draw(st.lists(st.integers(0, 9), min_size=images, max_size=images)))
    return Predictions(truth, predicted, scores.reshape(images, classes) / steps, patients, draw(index))


def same(ours: float, reference: float | None) -> bool:
    return bool(np.isnan(ours)) if reference is None else bool(np.isclose(ours, reference, atol=1e-12))


def reference_auc(truth: np.ndarray, scores: np.ndarray) -> float | None:
    return None if len(set(truth.tolist())) < 2 else float(sk.roc_auc_score(truth, scores))


@given(predictions())
def test_every_rate_is_scikit_learns_and_undefined_where_its_denominator_is_empty(p: Predictions) -> None:
    ours = figures(p)
    precision, recall, f1, _ = sk.precision_recall_fscore_support(
        p.truth, p.predicted, labels=range(p.classes), zero_division=np.nan
    )
    for c in range(p.classes):
        of_class, said = (p.truth == c).any(), (p.predicted == c).any()
        assert same(ours.by_class["precision"][0, c], precision[c] if said else None)
        assert same(ours.by_class["recall"][0, c], recall[c] if of_class else None)
        assert same(ours.by_class["f1"][0, c], f1[c] if of_class or said else None)
        rest = p.truth != c
        specificity = sk.recall_score(rest, p.predicted != c) if rest.any() else None
        assert same(ours.by_class["specificity"][0, c], specificity)
    assert same(ours.overall["accuracy"][0], sk.accuracy_score(p.truth, p.predicted))
    present = len(set(p.truth.tolist()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes predicted but absent
        balanced = sk.balanced_accuracy_score(p.truth, p.predicted)
    assert same(ours.overall["balanced_accuracy"][0], balanced if present > 1 else None)
    for ours_name, class_name in (("sensitivity", "recall"), ("specificity",) * 2, ("precision",) * 2, ("f1",) * 2):
        np.testing.assert_array_equal(ours.overall[ours_name], ours.by_class[class_name][:, p.positive])


@given(predictions())
def test_auc_with_ties_is_scikit_learns(p: Predictions) -> None:
    ours = figures(p)
    references = [reference_auc(p.truth == c, p.scores[:, c]) for c in range(p.classes)]
    for c, reference in enumerate(references):
        assert same(ours.by_class["auc"][0, c], reference)
    defined = [value for value in references if value is not None]
    if p.classes > 2:
        assert same(ours.overall["auc"][0], float(np.mean(defined)) if defined else None)
    else:
        assert same(ours.overall["auc"][0], references[p.positive])


@given(predictions(), st.integers(0, 2**32 - 1))
def test_a_weighting_counts_each_image_as_often_as_its_weight(p: Predictions, seed: int) -> None:
    weights = np.random.default_rng(seed).integers(0, 4, size=(3, p.images))
    weights[:, 0] += 1
    together = figures(p, weights.astype(np.float64))
    for row, weight in enumerate(weights):
        often = np.repeat(np.arange(p.images), weight)
        repeated = figures(
            Predictions(p.truth[often], p.predicted[often], p.scores[often], p.patients[often], p.positive)
        )
        for name, value in repeated.overall.items():
            np.testing.assert_allclose(together.overall[name][row], value[0], atol=1e-12)
        for name, value in repeated.by_class.items():
            np.testing.assert_allclose(together.by_class[name][row], value[0], atol=1e-12)


@given(predictions())
def test_the_roc_curve_encloses_the_auc(p: Predictions) -> None:
    is_positive = p.truth == p.positive
    scores = p.scores[:, p.positive]
    if is_positive.all() or not is_positive.any():
        with pytest.raises(ValueError, match="both kinds"):
            roc_curve(scores, is_positive)
        return
    false_rate, true_rate = roc_curve(scores, is_positive)
    reference = sk.roc_curve(is_positive, scores, drop_intermediate=False)
    np.testing.assert_allclose(false_rate, reference[0])
    np.testing.assert_allclose(true_rate, reference[1])
    assert np.isclose(np.trapezoid(true_rate, false_rate), area_under_roc(scores, is_positive)[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"truth": np.array([0, 2])}, "`truth` to hold class indices from 0 to 1, but got 0 to 2"),
        ({"predicted": np.array([0])}, r"`predicted` to be \(2,\)"),
        ({"scores": np.array([[0.5, np.nan], [0, 1]])}, r"`scores` to be finite and in \[0, 1\]"),
        ({"scores": np.array([[0.5, 1.5], [0, 1]])}, r"`scores` to be finite and in \[0, 1\]"),
        ({"positive": 2}, "`positive` to be below 2, but got 2"),
    ],
)
def test_predictions_that_do_not_fit_together_are_refused(change: dict[str, object], message: str) -> None:
    good: dict[str, object] = {
        "truth": np.array([0, 1]),
        "predicted": np.array([0, 1]),
        "scores": np.array([[0.5, 0.5], [0.0, 1.0]]),
        "patients": np.array(["a", "b"]),
        "positive": 1,
    }
    Predictions(**good)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        Predictions(**{**good, **change})  # type: ignore[arg-type]
