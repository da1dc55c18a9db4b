"""The geometric noise has the distribution it is said to have, and one patient is one vote in one cell."""

from __future__ import annotations

import hashlib
import math
import random
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from client.private import counts
from client.private.counts import noised_confusion, noised_votes, one_vote, two_sided_geometric
from shared.errors import MechanismError

HALF = Fraction(1, 2)


def chances(epsilon: float, reach: int) -> np.ndarray:
    """Probability of -reach or less, -reach + 1, ..., reach or more."""
    ratio = math.exp(-epsilon)
    values = (1 - ratio) / (1 + ratio) * ratio ** np.abs(np.arange(-reach, reach + 1.0))
    values[[0, -1]] = ratio**reach / (1 + ratio)
    return values


@pytest.mark.parametrize("epsilon", [HALF, Fraction(1), Fraction(2), Fraction(7, 3), Fraction(1, 10)])
def test_noise_is_two_sided_geometric(epsilon: Fraction) -> None:
    number = 20_000
    reach = max(1, int(3 / epsilon))
    drawn = np.clip([two_sided_geometric(epsilon) for _ in range(number)], -reach, reach)
    expected = chances(float(epsilon), reach) * number
    assert stats.chisquare(np.bincount(drawn + reach, minlength=2 * reach + 1), expected).pvalue > 1e-7


@pytest.mark.parametrize(("epsilon", "mean"), [(Fraction(1, 1000), 1000.0), (Fraction(1, 1_000_000), 1e6)])
def test_a_small_epsilon_costs_no_time_and_gives_much_noise(epsilon: Fraction, mean: float) -> None:
    sizes = [abs(two_sided_geometric(epsilon)) for _ in range(4000)]
    assert np.mean(sizes) == pytest.approx(mean, rel=6 / math.sqrt(4000))


def test_a_large_epsilon_gives_next_to_none() -> None:
    assert {two_sided_geometric(Fraction(60)) for _ in range(200)} == {0}


def test_the_sampler_touches_no_floating_point_and_decides_as_the_paper_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """All paths of bounded length enumerated with exact probabilities, for epsilon = 3/2."""

    def law(numerator: int, denominator: int) -> Fraction:
        x, total = Fraction(numerator, denominator), Fraction(0)
        for k in range(1, 40, 2):
            total += x ** (k - 1) / math.factorial(k - 1) - x**k / math.factorial(k)
        return total

    assert float(law(1, 2)) == pytest.approx(math.exp(-0.5), rel=1e-15)
    low = [law(u, 2) for u in range(2)]
    found = [Fraction(0)] * 8
    for u in range(2):
        for v in range(30):
            value = (u + 2 * v) // 3
            if value < len(found):
                found[value] += low[u] / sum(low) * law(1, 1) ** v * (1 - law(1, 1))
    assert [float(one) for one in found] == pytest.approx(
        [(1 - math.exp(-1.5)) * math.exp(-1.5 * k) for k in range(8)], rel=1e-12
    )
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(counts, "_happens", lambda n, d: (seen.append((n, d)), len(seen) < 4)[1])
    monkeypatch.setattr("secrets.randbelow", lambda bound: bound - 1)
    assert counts._geometric(Fraction(3, 2)) == (1 + 2 * 2) // 3
    assert seen == [(1, 2), (1, 1), (1, 1), (1, 1)]


@pytest.mark.parametrize(("numerator", "denominator"), [(0, 5), (1, 1), (1, 3), (5, 6)])
def test_a_chance_of_exp_minus_x(numerator: int, denominator: int) -> None:
    number = 20_000
    hits = sum(counts._happens(numerator, denominator) for _ in range(number))
    assert stats.binomtest(hits, number, math.exp(-numerator / denominator)).pvalue > 1e-7


def test_no_seed_gives_the_same_noise_twice() -> None:
    drawn = []
    for _ in range(2):
        random.seed(0)
        np.random.seed(0)
        drawn.append([two_sided_geometric(Fraction(1, 100)) for _ in range(20)])
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("epsilon", [Fraction(0), Fraction(-1), Fraction(1, 10**9), Fraction(101)])
def test_an_epsilon_that_can_not_be_accounted_for_is_refused(epsilon: Fraction) -> None:
    with pytest.raises(MechanismError, match="epsilon"):
        noised_confusion(*cohort(3), classes=3, epsilon=epsilon)


def cohort(people: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Patient p has p % 4 + 1 images of differing labels and predictions."""
    patients = np.repeat(np.arange(people), np.arange(people) % 4 + 1)
    rows = np.arange(len(patients))
    return rows % 3, (rows // 2) % 3, patients, [f"{p}/{row}" for row, p in enumerate(patients)]


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "two_sided_geometric", lambda epsilon: 0)


@pytest.mark.usefixtures("silent")
def test_one_patient_more_or_less_is_one_vote_in_one_cell() -> None:
    truth, predicted, patients, keys = cohort(17)
    table = np.array(noised_confusion(truth, predicted, patients, keys, classes=3, epsilon=HALF))
    assert table.sum() == 17
    for gone in range(17):
        kept = np.flatnonzero(patients != gone)
        some = [keys[row] for row in kept]
        without = noised_confusion(truth[kept], predicted[kept], patients[kept], some, classes=3, epsilon=HALF)
        change = table - np.array(without)
        assert change.sum() == 1 and change.min() == 0


@pytest.mark.usefixtures("silent")
def test_votes_are_counted_cell_by_cell_and_a_confusion_is_their_table() -> None:
    truth, predicted, patients, keys = cohort(17)
    votes = noised_votes(truth * 3 + predicted, patients, keys, size=9, epsilon=HALF)
    table = noised_confusion(truth, predicted, patients, keys, classes=3, epsilon=HALF)
    assert [count for row in table for count in row] == votes and sum(votes) == 17
    rows = one_vote(patients, keys)
    assert votes == [int(((truth * 3 + predicted)[rows] == cell).sum()) for cell in range(9)]
    assert noised_votes(truth, patients, keys, size=20, epsilon=HALF)[3:] == [0] * 17
    with pytest.raises(ValueError, match="`cells` to hold indices from 0 to 1"):
        noised_votes(truth, patients, keys, size=2, epsilon=HALF)


@pytest.mark.usefixtures("silent")
def test_the_order_of_the_images_plays_no_part() -> None:
    truth, predicted, patients, keys = cohort(17)
    order = np.random.default_rng(1).permutation(len(keys))
    shuffled = truth[order], predicted[order], patients[order], [keys[row] for row in order]
    assert noised_confusion(*shuffled, classes=3, epsilon=HALF) == noised_confusion(
        truth, predicted, patients, keys, classes=3, epsilon=HALF
    )


def test_the_vote_is_the_image_with_the_smallest_digest() -> None:
    patients, keys = np.array(["b", "a", "b", "b"]), ["one", "two", "three", "four"]
    expected = min((0, 2, 3), key=lambda row: hashlib.sha256(keys[row].encode()).hexdigest())
    assert one_vote(patients, keys).tolist() == sorted([1, expected])


def test_each_cell_gets_noise_of_its_own_also_without_any_image() -> None:
    nobody = np.empty(0, dtype=np.int64)
    tables = np.array(
        [noised_confusion(nobody, nobody, nobody, [], classes=3, epsilon=Fraction(1, 50)) for _ in range(200)]
    )
    cells = tables.reshape(200, 9)
    assert (cells != 0).any(axis=0).all() and cells.min() < 0
    assert np.abs(np.corrcoef(cells.T) - np.eye(9)).max() < 0.5


def test_what_does_not_fit_together_is_refused() -> None:
    truth, predicted, patients, keys = cohort(5)
    with pytest.raises(ValueError, match="one patient for each key"):
        noised_confusion(truth, predicted, patients, keys[1:], classes=3, epsilon=HALF)
    with pytest.raises(ValueError, match="each record key once"):
        noised_confusion(truth, predicted, patients, [keys[0]] * len(keys), classes=3, epsilon=HALF)
    with pytest.raises(ValueError, match="`predicted` to have shape"):
        noised_confusion(truth, predicted[1:], patients, keys, classes=3, epsilon=HALF)
    with pytest.raises(ValueError, match="from 0 to 1"):
        noised_confusion(truth, predicted, patients, keys, classes=2, epsilon=HALF)
