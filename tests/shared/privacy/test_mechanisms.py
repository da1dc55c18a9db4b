"""Events hold numbers that mean something, or say which event and which number does not."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from shared.errors import MechanismError
from shared.privacy.mechanisms import Geometric, SubsampledGaussian, sampling_rate


@pytest.mark.parametrize(
    ("changed", "value"),
    [
        ("sampling_rate", 0.0),
        ("sampling_rate", 1.0001),
        ("sampling_rate", math.nan),
        ("noise_multiplier", 0.0),
        ("noise_multiplier", -1.0),
        ("noise_multiplier", math.inf),
        ("noise_multiplier", True),
        ("steps", -1),
        ("steps", 1.5),
        ("steps", True),
    ],
)
def test_a_number_out_of_range_is_named_with_its_event(changed: str, value: Any) -> None:
    numbers: dict[str, Any] = {"sampling_rate": 0.1, "noise_multiplier": 1.0, "steps": 10} | {changed: value}
    with pytest.raises(MechanismError, match=rf"SubsampledGaussian\(.*\): expected {changed} to be .*, but got"):
        SubsampledGaussian(**numbers)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan, math.inf])
def test_a_pure_release_needs_an_epsilon(epsilon: float) -> None:
    with pytest.raises(MechanismError, match=r"Geometric\(.*\): expected epsilon"):
        Geometric(epsilon)


def test_what_happened_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        SubsampledGaussian(0.1, 1.0, 10).steps = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "rate"), [("32/350", 32 / 350), ("0.0914286", 0.0914286), ("1", 1.0), (" 1 / 4 ", 0.25), ("1e-3", 1e-3)]
)
def test_a_rate_is_a_number_or_a_fraction(text: str, rate: float) -> None:
    assert sampling_rate(text) == rate


@pytest.mark.parametrize("text", ["", "a", "1/0", "1//2", "nan", "32 of 350"])
def test_another_text_is_no_rate(text: str) -> None:
    with pytest.raises(MechanismError, match="fraction such as 32/350"):
        sampling_rate(text)
