"""Intervals of noised counts hold the truth as often as they say, and everybody computes the same ones."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from shared.errors import MechanismError
from shared.metrics import noised
from shared.metrics.classification import rates, rates_by_class
from shared.metrics.noised import _Posterior, figures_from_noised, pooled_noised
from shared.results import METRICS, Estimate

RATES = METRICS[:-1]
#: Probability of each cell: even and middling, one patient in seven positive, nearly no error.
WORLDS = {
    "even": [[0.40, 0.10], [0.12, 0.38]],
    "rare": [[0.75, 0.10], [0.04, 0.11]],
    "good": [[0.49, 0.01], [0.02, 0.48]],
    "three": [[0.40, 0.05, 0.05], [0.04, 0.20, 0.04], [0.03, 0.04, 0.15]],
}
SEVEN = (np.diag([0.5, 0.15, 0.1, 0.1, 0.05, 0.05, 0.05]) * 0.7 + 0.3 / 7 / 7).tolist()


def geometric(rng: np.random.Generator, epsilon: float, shape: tuple[int, ...]) -> np.ndarray:
    """An independent sampler: the difference of two one-sided geometrics."""
    chance = 1.0 - np.exp(-epsilon)
    return rng.geometric(chance, shape) - rng.geometric(chance, shape)


def released(rng: np.random.Generator, world: list[list[float]], patients: int, epsilon: float) -> list[list[int]]:
    shares = np.array(world) / np.sum(world)
    counts = rng.multinomial(patients, shares.ravel()).reshape(shares.shape)
    return (counts + geometric(rng, epsilon, shares.shape)).tolist()


@pytest.fixture
def fewer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends of intervals are a little less exact, and found in a quarter of the time."""
    monkeypatch.setattr(noised, "_DRAWS", 500)


def covered(
    world: list[list[float]], sites: list[tuple[int, float]], repeats: int, confidence: float = 0.95
) -> dict[str, float]:
    """How often the interval of each figure that is defined holds the world's own figure."""
    shares = np.array(world) / np.sum(world)
    truth = {name: float(value) for name, value in rates(shares, len(world) - 1).items()}
    hits: dict[str, list[bool]] = {name: [] for name in RATES}
    for repeat in range(repeats):
        rng = np.random.default_rng([repeat, *(int(1000 * share) for share in shares.ravel())])
        tables = [(released(rng, world, number, epsilon), epsilon) for number, epsilon in sites]
        found, _ = pooled_noised(tables, positive=len(world) - 1, confidence=confidence)
        for name in RATES:
            one = found[name]
            if one.value is not None:
                assert one.low is not None and one.high is not None
                hits[name].append(one.low <= truth[name] <= one.high)
    return {name: float(np.mean(one)) for name, one in hits.items()}


@pytest.mark.usefixtures("fewer_draws")
@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("patients", [50, 200])
def test_intervals_of_95_per_cent_hold_the_truth_93_times_in_100(patients: int, epsilon: float) -> None:
    """All worlds together; of a single world and figure, 80 repeats can be short by chance."""
    found = [covered(world, [(patients, epsilon)], 80) for world in WORLDS.values()]
    for name in RATES:
        assert np.mean([one[name] for one in found]) >= 0.93, name
    assert min(min(one.values()) for one in found) >= 0.85


@pytest.mark.usefixtures("fewer_draws")
def test_also_with_seven_classes_of_which_the_noise_hides_most() -> None:
    found = covered(SEVEN, [(50, 0.5)], 60)
    assert min(found.values()) >= 0.93


@pytest.mark.usefixtures("fewer_draws")
def test_also_for_hospitals_together_with_noise_of_different_size() -> None:
    found = covered(WORLDS["rare"], [(40, 0.5), (60, 2.0), (100, 1.0)], 150)
    assert min(found.values()) >= 0.9 and np.mean(list(found.values())) >= 0.93


@pytest.mark.usefixtures("fewer_draws")
def test_a_lower_confidence_gives_shorter_intervals_that_miss_more_often() -> None:
    found = covered(WORLDS["even"], [(200, 1.0)], 100, confidence=0.5)
    assert 0.4 < np.mean(list(found.values())) < 0.62


TABLE = [[120, 14], [9, 57]]


def width(one: Estimate) -> float:
    assert one.low is not None and one.high is not None
    return one.high - one.low


def test_next_to_no_noise_gives_jeffreys_interval_and_the_plain_figures() -> None:
    overall, rows = figures_from_noised(TABLE, positive=1, epsilon=50.0, confidence=0.95)
    counts = np.array(TABLE, dtype=np.float64)
    for name, value in rates(counts, 1).items():
        assert overall[name].value == pytest.approx(float(value), abs=1e-6)
    by_class = rates_by_class(counts)
    for c, row in enumerate(rows):
        assert row.images == sum(TABLE[c])
        for name in ("precision", "recall", "specificity", "f1"):
            assert getattr(row, name).value == pytest.approx(float(by_class[name][c]), abs=1e-6)
    low, high = stats.beta(57.5, 9.5).ppf([0.025, 0.975])
    assert overall["sensitivity"].low == pytest.approx(low, abs=1e-3)
    assert overall["sensitivity"].high == pytest.approx(high, abs=1e-3)
    assert (overall["sensitivity"], overall["f1"]) == (rows[1].recall, rows[1].f1)
    assert list(overall) == list(METRICS)
    assert overall["auc"] == rows[0].auc == Estimate(value=None)


def test_more_noise_gives_longer_intervals_down_to_knowing_nothing() -> None:
    widths = [
        width(figures_from_noised(TABLE, positive=1, epsilon=epsilon, confidence=0.95)[0]["sensitivity"])
        for epsilon in (50.0, 1.0, 0.3, 0.1, 0.01, 1e-4, 1e-6)
    ]
    assert widths == sorted(widths) and widths[-1] > 0.99


def test_hospitals_together_know_more_than_each_and_less_than_without_noise() -> None:
    alone = figures_from_noised(TABLE, positive=1, epsilon=0.5, confidence=0.95)[0]
    four = pooled_noised([(TABLE, 0.5)] * 4, positive=1, confidence=0.95)[0]
    plain = pooled_noised([(TABLE, 50.0)] * 4, positive=1, confidence=0.95)[0]
    for name in RATES:
        assert four[name].value == pytest.approx(alone[name].value, abs=1e-6)
        assert width(four[name]) == pytest.approx(width(alone[name]) / 2, rel=0.1)
        assert width(plain[name]) < width(four[name])


@pytest.mark.parametrize(("epsilons", "cells"), [([1.0], 1), ([0.5], 4), ([0.5, 2.0, 1.0], 6), ([0.02], 2)])
def test_the_noise_of_a_sum_is_that_of_independent_geometrics(epsilons: list[float], cells: int) -> None:
    noise = _Posterior(epsilons, np.random.default_rng(0))._noise_of(cells)
    reach = len(noise) // 2
    expected = np.ones(1)
    for epsilon in epsilons * cells:
        offsets = np.arange(-reach, reach + 1)
        one = np.tanh(epsilon / 2) * np.exp(-epsilon * np.abs(offsets))
        expected = np.convolve(expected, one)
        middle = len(expected) // 2
        expected = expected[max(0, middle - reach) : middle + reach + 1]
    assert np.abs(noise - expected).max() < 1e-12
    assert noise.sum() == pytest.approx(1.0, abs=1e-12)


def test_what_is_undefined_is_none() -> None:
    overall, rows = figures_from_noised([[40, 3], [-2, 1]], positive=1, epsilon=1.0, confidence=0.95)
    assert overall["sensitivity"] == rows[1].recall == Estimate(value=None)
    assert overall["balanced_accuracy"] == Estimate(value=None)
    assert rows[1].images == 0 and overall["specificity"].value is not None
    overall, rows = figures_from_noised([[-3, -1], [0, -2]], positive=1, epsilon=1.0, confidence=0.95)
    assert all(one == Estimate(value=None) for one in overall.values()) and [row.images for row in rows] == [0, 0]


@pytest.mark.parametrize("table", [[[5, -4], [-3, 4]], [[-1000, 1001], [3, 50]], [[10**9, 5], [-7, 10**8]]])
@pytest.mark.parametrize("epsilon", [1e-6, 1.0, 100.0])
def test_odd_counts_give_figures_in_0_to_1_with_their_interval_around_them(
    table: list[list[int]], epsilon: float
) -> None:
    overall, rows = figures_from_noised(table, positive=0, epsilon=epsilon, confidence=0.95)
    every = [*overall.values(), *(getattr(row, name) for row in rows for name in ("precision", "recall", "f1"))]
    for one in every:
        if one.value is not None:
            assert one.low is not None and one.high is not None
            assert 0.0 <= one.low <= one.value <= one.high <= 1.0


def test_another_process_computes_the_very_same_figures_whatever_the_seed() -> None:
    np.random.seed(3)
    here = pooled_noised([(TABLE, 0.5), ([[30, 4], [3, 8]], 1.0)], positive=1, confidence=0.95)
    text = subprocess.run(
        [sys.executable, "-c",
         "from shared.metrics.noised import pooled_noised\n"
         f"print(pooled_noised([({TABLE}, 0.5), ([[30, 4], [3, 8]], 1.0)], positive=1, confidence=0.95))\n"
         "import sys; assert 'torch' not in sys.modules"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert text.stdout.strip() == str(here)


def test_arguments_that_make_no_sense_are_refused() -> None:
    for tables in ([], [[[1]]], [[[1, 2], [3, 4], [5, 6]]], [TABLE, np.eye(3, dtype=int).tolist()]):
        with pytest.raises(ValueError, match="square tables of one size"):
            pooled_noised([(table, 1.0) for table in tables], positive=0, confidence=0.95)
    with pytest.raises(ValueError, match="positive class below 2"):
        figures_from_noised(TABLE, positive=2, epsilon=1.0, confidence=0.95)
    with pytest.raises(ValueError, match="confidence"):
        figures_from_noised(TABLE, positive=1, epsilon=1.0, confidence=1.0)
    with pytest.raises(MechanismError, match="epsilon"):
        figures_from_noised(TABLE, positive=1, epsilon=0.0, confidence=0.95)
