"""Uniform and Gaussian values from AES, and what the sampler does with rows; how they are distributed is in test_conformance.py."""

import numpy as np
import pytest
import torch
from scipy import stats

from client.private.noise import standard_normals, uniforms
from client.private.sampling import PatientSampler
from shared.errors import PrivacyError


def test_uniforms_are_multiples_of_two_to_the_minus_53_spread_evenly() -> None:
    drawn = uniforms(200_000)
    assert drawn.min() >= 0.0 and drawn.max() < 1.0
    assert np.array_equal(drawn * 2.0**53, np.floor(drawn * 2.0**53))
    # Not the top bits only: the lowest is set half the time.
    odd = int(((drawn * 2.0**53).astype(np.uint64) & np.uint64(1)).sum())
    assert stats.binomtest(odd, len(drawn), 0.5).pvalue > 1e-7
    assert stats.kstest(drawn, "uniform").pvalue > 1e-7


@pytest.mark.parametrize("count", [0, 1, 2, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normals_come_in_any_number(count: int, dtype: torch.dtype) -> None:
    drawn = standard_normals(count, dtype)
    assert drawn.shape == (count,) and drawn.dtype == dtype
    assert bool((drawn != 0).all())


def test_normals_are_normal_across_the_borders_of_chunks() -> None:
    drawn = standard_normals((1 << 20) + 12_345, torch.float32).numpy()
    assert stats.kstest(drawn, "norm").pvalue > 1e-7
    assert stats.kstest(drawn[1 << 20 :], "norm").pvalue > 1e-7
    assert len(np.unique(drawn[:100_000])) > 99_000


def test_no_seed_gives_the_same_values_twice() -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        drawn.append((uniforms(8), standard_normals(8)))
    assert not np.array_equal(drawn[0][0], drawn[1][0])
    assert not torch.equal(drawn[0][1], drawn[1][1])


def test_a_certain_draw_gives_every_patient_once_with_an_image_of_their_own() -> None:
    rows, patients = [40, 7, 9, 3, 11], [2, 1, 2, 5, 2]
    owner = dict(zip(rows, patients, strict=True))
    sampler = PatientSampler(rows, patients, rate=1.0)
    seen = set()
    for _ in range(400):
        drawn = sampler.draw().tolist()
        assert sorted(owner[row] for row in drawn) == [1, 2, 5]
        seen.update(drawn)
    assert seen == set(rows)  # (2/3) ** 400 is nothing


def test_an_empty_draw_and_an_empty_hospital_are_draws_like_any_other() -> None:
    sampler = PatientSampler([0, 1], [0, 1], rate=0.01)
    assert any(len(sampler.draw()) == 0 for _ in range(50))
    assert len(PatientSampler([], [], rate=0.5).draw()) == 0


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, float("nan")])
def test_a_rate_that_is_no_probability_is_refused(rate: float) -> None:
    with pytest.raises(PrivacyError, match="sampling rate"):
        PatientSampler([0], [0], rate=rate)


def test_rows_and_patients_must_belong_together() -> None:
    with pytest.raises(ValueError, match="one patient for each row"):
        PatientSampler([0, 1], [0], rate=0.5)
    with pytest.raises(ValueError, match="each row once"):
        PatientSampler([1, 1], [0, 1], rate=0.5)
