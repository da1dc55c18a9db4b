"""RBF support vector machine on the features of the global backbone, fitted at one hospital.

Features are standardised on the rows that the machine is fitted on, inside each fold too. C and gamma are searched by
cross-validation that keeps a patient's images in one fold (StratifiedGroupKFold), and the study's own C and gamma are
always among the candidates. Probabilities are Platt's sigmoid (in: Advances in Large Margin Classifiers, 1999, with
his smoothed targets) on decision values of held-out patients; for more than two classes one sigmoid a class, scaled
to add up to 1. A class is predicted by the machine itself, not by the largest probability. The support vectors are
images' features: they stay here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from shared.errors import DataError
from shared.metrics.classification import area_under_roc, confusion_counts, rates
from shared.study_head import Grid, SvmHead

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Rows = NDArray[np.intp]
ClassWeight = Literal["balanced"] | None

#: Scores closer than this are equal: then the smoother machine is taken.
_TIE = 1e-9
#: Slope of a sigmoid (for decision values of unit spread) whose data show none: near constant, but still in the machine's order.
_FLAT = 1e-3


@dataclass(frozen=True, slots=True)
class FittedSvm:
    """A fitted machine with its scaler and sigmoids (`slopes`, `intercepts`: (K,), NaN for classes never trained on)."""

    scaler: StandardScaler
    machine: SVC
    slopes: Floats
    intercepts: Floats
    C: float
    gamma: float
    cross_validation_score: float | None

    @property
    def support_vectors(self) -> int:
        return int(self.machine.n_support_.sum())

    def predict(self, features: NDArray[Any]) -> tuple[Integers, Floats]:
        """Class indices (N,) by the machine's own decision, and calibrated probabilities (N, K), of features (N, D).

        For two classes the probabilities rank the images exactly as the decision values do. A class that no training
        image belonged to has probability 0.
        """
        scaled = self.scaler.transform(np.asarray(features, dtype=np.float64))
        classes = self.slopes.size
        decisions = _decisions(self.machine, scaled, classes)
        with np.errstate(over="ignore"):
            chances = 1.0 / (1.0 + np.exp(-(decisions * self.slopes + self.intercepts)))
        chances = np.where(np.isfinite(chances), chances, 0.0)
        if classes == 2:
            chances = np.stack([1.0 - chances[:, 1], chances[:, 1]], axis=1)
        else:
            chances = np.maximum(chances, 1e-12 * np.isfinite(self.slopes))
            chances /= chances.sum(axis=1, keepdims=True)
        return self.machine.predict(scaled).astype(np.int64), chances


def fit_svm(
    features: NDArray[Any], labels: Integers, patients: NDArray[Any], head: SvmHead, *, classes: int, seed: int
) -> FittedSvm:
    """Fit on features (N, D), labels (N,) below `classes` and patients (N,).

    Of settings that score the same the one with the smallest C, then the smallest gamma is taken: the smoother
    boundary. Raises DataError where the images are all of one class, or there are too few patients for the study's
    folds.
    """
    rows = np.asarray(features, dtype=np.float64)
    present = np.unique(labels)
    if present.size < 2:
        raise DataError(
            f"the SVM needs training images of at least two classes, but got {labels.size} of {present.size}; "
            "the study's classes or this hospital's split leave the others empty"
        )
    weight: ClassWeight = "balanced" if head.class_weight == "balanced" else None
    choice, score = (head.C, head.gamma), None
    if head.grid is not None:
        folds = _folds(labels, patients, head.grid.folds, seed, "head.grid.folds")
        choice, score = _search(rows, labels, folds, head.grid, choice, weight, classes)
    C, gamma = choice
    folds = _folds(labels, patients, head.calibration_folds, seed + 1, "head.calibration_folds")
    slopes, intercepts = _calibration(_held_out_decisions(rows, labels, folds, C, gamma, weight, classes), labels)
    scaler = StandardScaler().fit(rows)
    machine = SVC(C=C, gamma=gamma, class_weight=weight).fit(scaler.transform(rows), labels)
    return FittedSvm(scaler, machine, slopes, intercepts, C, gamma, score)


def _folds(labels: Integers, patients: NDArray[Any], number: int, seed: int, key: str) -> list[tuple[Rows, Rows]]:
    """(train, test) rows of each fold, grouped by patient; a fold that leaves one class to train on is left out."""
    found = np.unique(patients).size
    most = int(np.bincount(labels).max())
    if found < number or most < number:
        raise DataError(
            f"{key} asks for {number} folds by patient, but the training part has {found} patients and "
            f"{most} images of its largest class; take fewer folds in the study, or train with more patients"
        )
    splitter = StratifiedGroupKFold(n_splits=number, shuffle=True, random_state=seed % 2**32)
    with warnings.catch_warnings():
        # A class with fewer images than folds is in order: it is missing from some folds, which are handled below.
        warnings.filterwarnings("ignore", message="The least populated class")
        pairs = list(splitter.split(labels, labels, groups=patients))
    return [(train, test) for train, test in pairs if test.size and np.unique(labels[train]).size > 1]


def _search(
    rows: Floats,
    labels: Integers,
    folds: Sequence[tuple[Rows, Rows]],
    grid: Grid,
    own: tuple[float, float],
    weight: ClassWeight,
    classes: int,
) -> tuple[tuple[float, float], float | None]:
    """The best (C, gamma) and its score; the study's own and None where no fold can be scored."""
    candidates = sorted({own, *((C, gamma) for C in grid.C for gamma in grid.gamma)})
    said = np.full((len(candidates), labels.size), -1)
    areas: list[list[float]] = [[] for _ in candidates]
    for train, test in folds:
        for index, machine, kernel in _machines(rows, labels, train, test, candidates, weight):
            if grid.score == "auc":
                areas[index].append(_mean_area(_decisions(machine, kernel, classes), labels[test]))
            else:
                said[index, test] = machine.predict(kernel)
    if grid.score == "auc":
        scores = np.array([_mean(values) for values in areas])
    else:
        scores = np.array([_balanced_accuracy(labels, one, classes) for one in said])
    if not np.isfinite(scores).any():
        return own, None
    best = float(np.nanmax(scores))
    first = int(np.flatnonzero(scores >= best - _TIE)[0])
    return candidates[first], float(scores[first])


def _machines(
    rows: Floats,
    labels: Integers,
    train: Rows,
    test: Rows,
    candidates: Sequence[tuple[float, float]],
    weight: ClassWeight,
) -> Iterator[tuple[int, SVC, Floats]]:
    """A machine fitted on `train` for each candidate, with its index and the kernel (test, train) to ask it with.

    Distances are computed once and kernels once a gamma: that is what makes a grid cheap.
    """
    scaler = StandardScaler().fit(rows[train])
    inside, outside = scaler.transform(rows[train]), scaler.transform(rows[test])
    near = euclidean_distances(inside, squared=True)
    far = euclidean_distances(outside, inside, squared=True)
    for gamma in sorted({gamma for _, gamma in candidates}):
        kernel, asked = np.exp(-gamma * near), np.exp(-gamma * far)
        for index, (C, own) in enumerate(candidates):
            if own == gamma:
                machine = SVC(C=C, kernel="precomputed", class_weight=weight)
                yield index, machine.fit(kernel, labels[train]), asked


def _held_out_decisions(
    rows: Floats,
    labels: Integers,
    folds: Sequence[tuple[Rows, Rows]],
    C: float,
    gamma: float,
    weight: ClassWeight,
    classes: int,
) -> Floats:
    """Decision values (N, K) of each image by a machine that has not seen its patient; NaN where there is none."""
    held_out = np.full((labels.size, classes), np.nan)
    for train, test in folds:
        for _, machine, kernel in _machines(rows, labels, train, test, [(C, gamma)], weight):
            held_out[test] = _decisions(machine, kernel, classes)
    return held_out


def _decisions(machine: SVC, asked: Floats, classes: int) -> Floats:
    """Decision values (N, K), larger for likelier classes; NaN for classes that the machine has not seen."""
    values = machine.decision_function(asked)
    if values.ndim == 1:
        values = np.stack([-values, values], axis=1)
    result = np.full((len(values), classes), np.nan)
    result[:, machine.classes_] = values
    return result


def _calibration(decisions: Floats, labels: Integers) -> tuple[Floats, Floats]:
    """Slope and intercept (K,) of each class's sigmoid. The classes of a pair get the same sigmoid mirrored."""
    classes = decisions.shape[1]
    slopes, intercepts = np.full(classes, np.nan), np.full(classes, np.nan)
    for c in np.unique(labels):
        slopes[c], intercepts[c] = _sigmoid(decisions[:, c], labels == c)
    return slopes, intercepts


def _sigmoid(decisions: Floats, is_class: NDArray[np.bool_]) -> tuple[float, float]:
    """Platt's slope and intercept. The slope is kept positive, so that calibration never turns the machine's order
    round:

    held-out values of few patients can, by chance, rank backwards (their folds' machines lean against the class held
    out).
    """
    known = np.isfinite(decisions)
    values, marks = decisions[known], is_class[known]
    positives, negatives = int(marks.sum()), int((~marks).sum())
    high, low = (positives + 1.0) / (positives + 2.0), 1.0 / (negatives + 2.0)
    spread = float(values.std()) if values.size else 0.0
    if positives and negatives and spread > 0:
        targets = np.where(marks, high, low)
        # Soft targets as weighted pairs: the same likelihood as Platt's. Unit spread makes the optimiser's steps
        # sensible.
        model = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(
            np.tile(values / spread, 2)[:, None],
            np.repeat([1, 0], values.size),
            sample_weight=np.concatenate((targets, 1.0 - targets)),
        )
        slope = float(model.coef_[0, 0])
        if slope > _FLAT:
            return slope / spread, float(model.intercept_[0])
    share = (is_class.sum() + 1.0) / (is_class.size + 2.0)
    return _FLAT / (spread or 1.0), float(np.log(share / (1.0 - share)))


def _mean_area(decisions: Floats, labels: Integers) -> float:
    """Mean one-against-rest AUC over the classes that were trained on and are in `labels`; NaN where there is none."""
    seen = [c for c in range(decisions.shape[1]) if np.isfinite(decisions[:, c]).all()]
    return _mean([float(area_under_roc(decisions[:, c], labels == c)[0]) for c in seen])


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if np.isfinite(value)]
    return float(np.mean(defined)) if defined else float("nan")


def _balanced_accuracy(labels: Integers, said: Integers, classes: int) -> float:
    """Over all held-out images together, so that a rare class counts in every fold's stead; NaN with fewer than two
    classes.
    """
    known = said >= 0
    counts = confusion_counts(labels[known], said[known], classes)
    return float(rates(counts, 0)["balanced_accuracy"][0])
