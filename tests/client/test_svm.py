"""The hospital's SVM: finds what is there, is not fooled by a patient's images in two folds, and says when it can't
be fitted.
"""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from client.svm import FittedSvm, _calibration, _sigmoid, fit_svm
from shared.errors import DataError
from shared.study_head import Grid, SvmHead

GRID = Grid(C=[0.1, 1.0, 10.0], gamma=[0.0001, 0.001, 0.01], folds=5)
Data = tuple[np.ndarray, np.ndarray, np.ndarray]


def drawn(seed: int, images: int = 150, classes: int = 2, shift: float = 1.0, dimensions: int = 30) -> Data:
    """Features, labels, patients (two images each); the class moves the first feature by `shift` standard deviations."""
    rng = np.random.default_rng(seed)
    patients = np.arange(images) // 2
    labels = rng.integers(0, classes, patients.max() + 1)[patients]
    features = rng.normal(size=(images, dimensions))
    features[np.arange(images), labels] += shift
    return features.astype(np.float32), labels, np.array([f"p{p}" for p in patients])


def fit(data: Data, head: SvmHead | None = None, classes: int = 2, seed: int = 0) -> FittedSvm:
    return fit_svm(*data, head or SvmHead(grid=GRID), classes=classes, seed=seed)


@pytest.mark.parametrize("classes", [2, 4])
def test_separable_features_are_told_apart(classes: int) -> None:
    fitted = fit(drawn(0, classes=classes, shift=6.0), classes=classes)
    features, labels, _ = drawn(1, classes=classes, shift=6.0)
    predicted, probabilities = fitted.predict(features)
    assert balanced_accuracy_score(labels, predicted) > 0.95
    area = roc_auc_score(labels, probabilities[:, 1] if classes == 2 else probabilities, multi_class="ovr")
    assert area > 0.98
    assert fitted.cross_validation_score is not None and fitted.cross_validation_score > 0.95
    np.testing.assert_allclose(probabilities.sum(1), 1.0)


def test_with_the_settings_given_it_is_scikit_learns_machine() -> None:
    features, labels, patients = drawn(0)
    fitted = fit((features, labels, patients), SvmHead(C=3.0, gamma=0.01))
    reference = make_pipeline(StandardScaler(), SVC(C=3.0, gamma=0.01, class_weight="balanced"))
    reference.fit(features.astype(np.float64), labels)
    other, _, _ = drawn(1)
    np.testing.assert_array_equal(fitted.predict(other)[0], reference.predict(other.astype(np.float64)))
    assert fitted.support_vectors == reference[-1].n_support_.sum()
    assert (fitted.C, fitted.gamma, fitted.cross_validation_score) == (3.0, 0.01, None)


def test_class_weights_reach_the_machine() -> None:
    features, labels, patients = drawn(0, images=200, shift=0.8)
    keep = (labels == 0) | (np.arange(200) % 8 < 2)
    data = (features[keep], labels[keep], patients[keep])
    other, truth, _ = drawn(1, images=400, shift=0.8)
    recall = {}
    for weight in ("balanced", "none"):
        predicted, _ = fit(data, SvmHead(C=1.0, gamma=0.01, class_weight=weight)).predict(other)
        recall[weight] = (predicted[truth == 1] == 1).mean()
    assert recall["balanced"] > recall["none"] + 0.1


def test_the_grids_scores_are_scikit_learns_grid_searchs() -> None:
    features, labels, patients = drawn(3, images=160, shift=0.7)
    grid = Grid(C=[0.1, 1.0, 10.0], gamma=[0.001, 0.01], folds=4, score="auc")
    fitted = fit((features, labels, patients), SvmHead(C=1.0, gamma=0.01, grid=grid))
    search = GridSearchCV(
        make_pipeline(StandardScaler(), SVC(class_weight="balanced")),
        {"svc__C": grid.C, "svc__gamma": grid.gamma},
        scoring="roc_auc",
        cv=StratifiedGroupKFold(4, shuffle=True, random_state=0),
    ).fit(features.astype(np.float64), labels, groups=patients)
    assert fitted.cross_validation_score == pytest.approx(search.best_score_)
    assert {"svc__C": fitted.C, "svc__gamma": fitted.gamma} == search.best_params_


def test_the_sigmoid_is_that_of_scikit_learns_calibration() -> None:
    features, labels, patients = drawn(3, images=160)
    rows = features.astype(np.float64)
    fitted = fit((features, labels, patients), SvmHead(C=1.0, gamma=0.01))
    splits = list(StratifiedGroupKFold(5, shuffle=True, random_state=1).split(rows, labels, patients))
    pipeline = make_pipeline(StandardScaler(), SVC(C=1.0, gamma=0.01, class_weight="balanced"))
    reference = CalibratedClassifierCV(pipeline, method="sigmoid", cv=splits, ensemble=False).fit(rows, labels)
    other = drawn(4)[0].astype(np.float64)
    np.testing.assert_allclose(fitted.predict(other)[1], reference.predict_proba(other), atol=1e-4)


def test_a_patient_never_stands_on_both_sides_of_a_fold() -> None:
    """Each patient is ten near-identical images with a label of chance: only recognising the patient scores above one
    half.
    """
    rng = np.random.default_rng(5)
    patients = np.repeat(np.arange(40), 10)
    labels = rng.permutation(np.arange(40) % 2)[patients]
    features = rng.normal(size=(40, 20))[patients] + 0.01 * rng.normal(size=(400, 20))
    head = SvmHead(grid=Grid(C=[10.0], gamma=[0.1], folds=5))
    grouped = fit((features, labels, patients), head).cross_validation_score
    ungrouped = fit((features, labels, np.arange(400)), head).cross_validation_score
    assert ungrouped is not None and ungrouped > 0.99
    assert grouped is not None and grouped < 0.7


def test_probabilities_of_features_of_chance_stay_near_the_prevalence() -> None:
    fitted = fit(drawn(6, images=200, shift=0.0))
    _, probabilities = fitted.predict(drawn(7, images=200, shift=0.0)[0])
    assert np.abs(probabilities[:, 1] - 0.5).mean() < 0.15


@pytest.mark.parametrize("seed", range(6))
def test_calibration_never_turns_the_machines_order_round(seed: int) -> None:
    features, labels, patients = drawn(seed, images=24, shift=0.0)
    fitted = fit((features, labels, patients), SvmHead(C=10.0, gamma=0.01, calibration_folds=3))
    other, _, _ = drawn(seed + 100)
    decision = fitted.machine.decision_function(fitted.scaler.transform(other.astype(np.float64)))
    probability = fitted.predict(other)[1][:, 1]
    order = np.argsort(decision)
    assert (np.diff(probability[order]) >= 0).all()
    assert np.unique(probability).size == np.unique(decision).size


def test_held_out_values_that_rank_backwards_give_a_flat_sigmoid_at_the_prevalence() -> None:
    marks = np.arange(20) < 5
    slope, intercept = _sigmoid(-1.0 * marks, marks)
    assert 0 < slope < 0.01
    assert 1 / (1 + np.exp(-intercept)) == pytest.approx(6 / 22)
    unknown = _sigmoid(np.full(20, np.nan), marks)
    assert np.isfinite(unknown).all() and unknown[0] > 0


def test_a_pairs_sigmoids_mirror_each_other() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 60)
    values = rng.normal(size=60) + labels
    slopes, intercepts = _calibration(np.stack([-values, values], 1), labels)
    assert slopes[0] == pytest.approx(slopes[1], rel=1e-3)
    assert intercepts[0] == pytest.approx(-intercepts[1], abs=1e-3)


def test_the_studys_own_setting_is_always_a_candidate() -> None:
    head = SvmHead(C=10.0, gamma=0.01, grid=Grid(C=[1e-6], gamma=[1e3]))
    fitted = fit(drawn(0, shift=3.0), head)
    assert (fitted.C, fitted.gamma) == (10.0, 0.01)


def test_of_equal_settings_the_smoothest_is_taken() -> None:
    grid = Grid(C=[100.0, 1.0, 10.0], gamma=[0.1, 0.05])
    fitted = fit(drawn(0, shift=30.0, dimensions=3), SvmHead(C=10.0, gamma=0.1, grid=grid))
    assert fitted.cross_validation_score == 1.0
    assert (fitted.C, fitted.gamma) == (1.0, 0.05)


@pytest.mark.parametrize("score", ["balanced_accuracy", "auc"])
def test_a_class_of_one_patient_is_lived_with(score: str) -> None:
    features, labels, patients = drawn(8, images=90, classes=3, shift=5.0)
    labels = np.where(labels == 2, 1, labels)
    labels[:2] = 2
    features[:2, 2] += 5.0
    grid = Grid(C=[1.0, 10.0], gamma=[0.001, 0.01], score=score)  # type: ignore[arg-type]
    fitted = fit((features, labels, patients), SvmHead(grid=grid), classes=4)
    predicted, probabilities = fitted.predict(features)
    assert (predicted[:2] == 2).all()
    assert np.isfinite(probabilities).all()
    assert (probabilities[:, 3] == 0).all() and (probabilities[:, 2] > 0).all()
    np.testing.assert_allclose(probabilities.sum(1), 1.0)


def test_two_classes_of_which_one_is_a_single_patient_fall_back_on_what_can_be_scored() -> None:
    features, labels, patients = drawn(8, images=40, shift=3.0)
    labels = np.zeros(40, dtype=int)
    labels[:2] = 1
    fitted = fit((features, labels, patients))
    _, probabilities = fitted.predict(features)
    assert np.isfinite(probabilities).all()


def test_the_same_seed_gives_the_same_machine() -> None:
    data = drawn(9, shift=0.5)
    other = drawn(10)[0]
    first, second = fit(data), fit(data)
    np.testing.assert_array_equal(first.predict(other)[1], second.predict(other)[1])
    assert (first.C, first.gamma, first.cross_validation_score) == (
        second.C,
        second.gamma,
        second.cross_validation_score,
    )


def test_one_class_and_too_few_patients_end_in_a_sentence() -> None:
    features, labels, patients = drawn(0, images=40)
    with pytest.raises(DataError, match="at least two classes, but got 40 of 1"):
        fit((features, np.zeros(40, dtype=int), patients))
    few = np.array(["a", "b", "c", "d"])[np.arange(40) // 10]
    with pytest.raises(
        DataError, match=r"head\.grid\.folds asks for 5 folds by patient, but the training part has 4 patients"
    ):
        fit((features, labels, few))
    with pytest.raises(DataError, match=r"head\.calibration_folds asks for 5 folds"):
        fit((features, labels, few), SvmHead())
