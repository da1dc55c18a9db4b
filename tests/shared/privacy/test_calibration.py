"""Calibration finds the smallest noise multiplier of its grid, and says so where there is none."""

from __future__ import annotations

import pytest

from shared.errors import CalibrationError
from shared.privacy.calibration import GRID, calibrate
from shared.privacy.mechanisms import SubsampledGaussian
from shared.privacy.pld import pld_epsilon


@pytest.mark.parametrize(
    ("rate", "steps", "delta", "target"), [(1.0, 100, 1e-5, 2.0), (0.01, 10_000, 1e-6, 1.0), (1.0, 1, 1e-6, 0.5)]
)
def test_what_is_found_keeps_the_promise_and_one_step_less_does_not(
    rate: float, steps: int, delta: float, target: float
) -> None:
    asked: list[int] = []
    found = calibrate(sampling_rate=rate, steps=steps, delta=delta, epsilon=target, tell=asked.append)
    sigma = found.noise_multiplier
    assert sigma == round(sigma, 4)
    assert pld_epsilon([SubsampledGaussian(rate, sigma, steps)], delta) == found.pld_epsilon <= target
    assert pld_epsilon([SubsampledGaussian(rate, round(sigma - GRID, 4), steps)], delta) > target
    assert found.rdp_epsilon > found.pld_epsilon
    assert found.pld_evaluations == asked[-1] <= 12
    assert f"{sigma:.4f}" in found.sentence()


@pytest.mark.parametrize(
    ("target", "steps", "sentence"),
    [
        (1e-6, 10_000, "not reachable"),
        (1e5, 3, "even the least noise multiplier"),
        (0.0, 3, "above 0"),
        (float("nan"), 3, "above 0"),
        (1.0, 0, "0 steps cost nothing"),
    ],
)
def test_what_can_not_be_reached_is_told(target: float, steps: int, sentence: str) -> None:
    with pytest.raises(CalibrationError, match=sentence):
        calibrate(sampling_rate=0.5, steps=steps, delta=1e-5, epsilon=target)
