"""The private machine learns what a linear one on the features can't, and nothing but noised sums of clipped shares reaches it."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, fields
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.kernel_approximation import RBFSampler
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC, LinearSVC

from client.private import linear_svm
from client.private.linear_svm import (
    LinearSvmConstants,
    PrivateLinearSvm,
    clipped_sum,
    fit,
    frequencies_of,
    mapped,
    released,
)
from shared.errors import MechanismError, PrivacyError
from shared.privacy.mechanisms import SubsampledGaussian


def constants(**changes: Any) -> LinearSvmConstants:
    values: dict[str, Any] = {
        "components": 200, "gamma": 3.0, "steps": 300, "sampling_rate": 0.2, "clipping_norm": 1.0, "noise_multiplier": 0.05,
        "normaliser": 100.0, "learning_rate": 3.0, "weight_decay": 1e-3, "seed": 5,
    }  # fmt: skip
    return LinearSvmConstants(**(values | changes))


def sectors(people: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 2) at any distance from the origin; each class has two opposite sectors, so that no line tells it from the rest."""
    rng = np.random.default_rng(seed)
    angles = rng.uniform(0, 2 * np.pi, people)
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * rng.uniform(0.1, 50.0, (people, 1))
    return points.astype(np.float32), (angles / np.pi * classes).astype(np.int64) % classes


def unit(points: np.ndarray) -> np.ndarray:
    return points / np.linalg.norm(points, axis=1, keepdims=True)


@pytest.mark.parametrize("classes", [2, 3])
def test_with_little_noise_it_is_as_good_as_scikit_learn_where_a_line_is_not(classes: int) -> None:
    (x, y), (asked, truth) = sectors(500, classes, 1), sectors(1000, classes, 2)
    public = constants(clipping_norm=math.sqrt(classes), gamma=5.0 if classes == 3 else 3.0)
    found = fit(x, y, np.arange(len(x)), classes=classes, constants=public)
    accuracy = np.mean(found.predict(asked) == truth)
    exact = SVC(gamma=public.gamma).fit(unit(x), y).score(unit(asked), truth)
    sampled = make_pipeline(RBFSampler(gamma=public.gamma, n_components=400, random_state=0), LinearSVC())
    reference = min(exact, sampled.fit(unit(x), y).score(unit(asked), truth))
    assert LinearSVC().fit(unit(x), y).score(unit(asked), truth) < 0.7
    assert accuracy > reference - 0.03


def test_with_real_noise_it_still_learns() -> None:
    (x, y), (asked, truth) = sectors(2000, 2, 1), sectors(1000, 2, 2)
    public = constants(noise_multiplier=2.0, normaliser=400.0, steps=100, learning_rate=2.0)
    found = fit(x, y, np.arange(len(x)), classes=2, constants=public)
    assert np.mean(found.predict(asked) == truth) > 0.85


def test_without_noise_and_with_all_patients_it_is_averaged_subgradient_descent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(linear_svm, "standard_normals", silent)
    x, y = sectors(40, 3, 1)
    public = constants(sampling_rate=1.0, steps=7, clipping_norm=1.2, components=30)
    found = fit(x, y, np.arange(40), classes=3, constants=public)
    z = torch.from_numpy(mapped(x, frequencies_of(2, public)))
    signs = torch.from_numpy(np.where(y[:, None] == np.arange(3), 1.0, -1.0))
    weights, kept = torch.zeros((3, 60), dtype=torch.float64), []
    for _ in range(7):
        total = torch.zeros_like(weights)
        for row, sign in zip(z, signs, strict=True):
            one = weights.clone().requires_grad_(True)
            torch.relu(1.0 - sign * (one @ row)).sum().backward()
            total += one.grad * min(1.0, 1.2 / max(float(one.grad.norm()), 1e-12))
        weights = weights * (1 - 3.0 * 1e-3) - 3.0 * total / 100.0
        kept.append(weights)
    expected = torch.stack(kept[3:]).mean(0).numpy()
    np.testing.assert_allclose(found.weights, expected, rtol=0, atol=1e-12)


def silent(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.float64)


def test_mapped_images_have_length_1_and_the_kernel_for_inner_product() -> None:
    x = np.random.default_rng(0).normal(size=(20, 6))
    rows = mapped(x, frequencies_of(6, constants(components=20_000, gamma=0.7)))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, rtol=0, atol=1e-12)
    assert np.abs(rows @ rows.T - rbf_kernel(unit(x), gamma=0.7)).max() < 0.05


ODD = np.array(
    [[0.0, 0.0], [np.nan, 1.0], [np.inf, -np.inf], [1e300, -1e300], [1e-310, 1e-310], [5e-324, 0.0], [3.0, 4.0]]
)


def test_odd_rows_are_mapped_by_themselves_to_length_1() -> None:
    waves = frequencies_of(2, constants())
    with np.errstate(all="raise", under="ignore"):
        rows = mapped(ODD, waves)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(rows[1], rows[0])
    np.testing.assert_allclose(rows[3], mapped(np.array([[1.0, -1.0]]), waves)[0], atol=1e-12)
    for index in range(len(ODD)):
        np.testing.assert_allclose(mapped(ODD[index : index + 1], waves)[0], rows[index], rtol=0, atol=1e-12)


@pytest.mark.parametrize("clipping_norm", [0.01, 1.0, math.sqrt(5)])
@pytest.mark.parametrize("outputs", [1, 5])
def test_no_patient_adds_more_than_c(clipping_norm: float, outputs: int) -> None:
    rng = np.random.default_rng(0)
    rows = np.concatenate((mapped(ODD, frequencies_of(2, constants())), rng.normal(size=(5, 400)) * 1e6))
    signs = rng.choice([-1.0, 1.0], (len(rows), outputs))
    for weights in (np.zeros((outputs, 400)), rng.normal(size=(outputs, 400)) * 1e9):
        for one in range(len(rows)):
            share = clipped_sum(rows[[one]], signs[[one]], weights, clipping_norm)
            assert np.linalg.norm(share) <= clipping_norm
    full = clipped_sum(rows[[0]], signs[[0]], np.zeros((outputs, 400)), clipping_norm)
    assert np.linalg.norm(full) == pytest.approx(min(clipping_norm, math.sqrt(outputs)))


def test_an_empty_step_is_noise_of_the_right_size() -> None:
    public = constants(noise_multiplier=1.5, clipping_norm=2.0, normaliser=10.0)
    found = released(np.empty((0, 20_000)), np.empty((0, 3)), np.zeros((3, 20_000)), public)
    assert (found != 0).all()
    assert found.std() == pytest.approx(1.5 * 2.0 / 10.0, rel=0.02) and abs(found.mean()) < 0.01


def test_a_hospital_without_patients_gives_a_machine_of_noise() -> None:
    nobody = np.empty(0, dtype=np.int64)
    found = fit(np.empty((0, 2)), nobody, nobody, classes=3, constants=constants(steps=5))
    assert found.weights.shape == (3, 400) and (found.weights != 0).all()
    assert found.predict(np.ones((4, 2))).shape == (4,)


def test_one_patient_more_changes_a_release_by_at_most_c_over_the_same_normaliser(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(linear_svm, "standard_normals", silent)
    public = constants(clipping_norm=0.5, normaliser=8.0)
    x, y = sectors(41, 2, 1)
    rows, signs = mapped(x, frequencies_of(2, public)), np.where(y == 1, 1.0, -1.0)[:, None]
    weights = np.zeros((1, 400))
    more, fewer = (released(rows[:n], signs[:n], weights, public) for n in (41, 40))
    np.testing.assert_allclose((more - fewer) * 8.0, clipped_sum(rows[40:], signs[40:], weights, 0.5), atol=1e-12)
    assert np.linalg.norm(more - fewer) == pytest.approx(0.5 / 8.0)


def test_a_step_takes_one_image_of_each_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = linear_svm.released

    def counting(rows: np.ndarray, *others: Any) -> np.ndarray:
        seen.append(len(rows))
        return original(rows, *others)

    monkeypatch.setattr(linear_svm, "released", counting)
    x, y = sectors(60, 2, 1)
    patients = np.array([f"p{row // 3}" for row in range(60)])
    fit(x, y, patients, classes=2, constants=constants(sampling_rate=1.0, steps=4))
    assert seen == [20] * 4
    seen.clear()
    fit(x, y, patients, classes=2, constants=constants(sampling_rate=0.5, steps=400))
    assert np.mean(seen) == pytest.approx(10.0, abs=1.0) and len(set(seen)) > 3


def test_two_fits_share_the_public_frequencies_and_no_noise_whatever_the_seeds() -> None:
    x, y = sectors(20, 2, 1)
    found = []
    for _ in range(2):
        np.random.seed(0)
        torch.manual_seed(0)
        found.append(fit(x, y, np.arange(20), classes=2, constants=constants(steps=3, sampling_rate=1.0)))
    np.testing.assert_array_equal(found[0].frequencies, found[1].frequencies)
    assert (found[0].weights != found[1].weights).all()
    other = frequencies_of(2, constants(seed=6))
    assert (found[0].frequencies != other).all()


def test_decisions_and_predictions_agree() -> None:
    waves = frequencies_of(2, constants())
    x = sectors(30, 2, 3)[0]
    for outputs, classes in ((1, 2), (4, 4)):
        one = PrivateLinearSvm(waves, np.random.default_rng(1).normal(size=(outputs, 400)))
        values = one.decision(x)
        assert values.shape == (30, classes) and one.predict(x).dtype == np.int64
        np.testing.assert_array_equal(one.predict(x), values.argmax(1))
    two = PrivateLinearSvm(waves, np.ones((1, 400))).decision(x)
    np.testing.assert_array_equal(two[:, 0], -two[:, 1])


def test_constants_are_frozen_and_say_what_they_cost() -> None:
    public = constants(noise_multiplier=1.5)
    assert public.event == SubsampledGaussian(0.2, 1.5, 300)
    with pytest.raises(FrozenInstanceError):
        public.steps = 3  # type: ignore[misc]
    with pytest.raises(MechanismError, match="noise_multiplier"):
        _ = constants(noise_multiplier=1e-3).event


@pytest.mark.parametrize("name", [field.name for field in fields(LinearSvmConstants)])
@pytest.mark.parametrize("value", [-1, -0.5, float("nan"), float("inf"), True])
def test_a_constant_out_of_its_range_is_named(name: str, value: Any) -> None:
    with pytest.raises(PrivacyError, match=f"^{name}: expected"):
        constants(**{name: value})


def test_other_constants_that_make_no_sense_are_refused() -> None:
    for name in ("components", "gamma", "steps", "sampling_rate", "normaliser", "clipping_norm", "learning_rate"):
        with pytest.raises(PrivacyError, match=f"^{name}: expected"):
            constants(**{name: 0})
    with pytest.raises(PrivacyError, match=r"^sampling_rate: expected at most 1"):
        constants(sampling_rate=1.5)
    with pytest.raises(PrivacyError, match=r"^weight_decay: expected less than 1 / learning_rate"):
        constants(learning_rate=2.0, weight_decay=0.5)
    assert constants(weight_decay=0.0, seed=0).weight_decay == 0.0


def test_arguments_that_do_not_fit_together_are_refused() -> None:
    x, y = sectors(5, 3, 1)
    with pytest.raises(ValueError, match=r"expected features \(N, F\)"):
        fit(x, y[1:], np.arange(5), classes=3, constants=constants())
    with pytest.raises(ValueError, match=r"labels below their number, 2"):
        fit(x, np.full(5, 2), np.arange(5), classes=2, constants=constants())
