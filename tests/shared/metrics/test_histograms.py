"""No small cell leaves; ROC and AUC from histograms agree with the exact ones as far as the cells allow."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score

from shared.metrics.histograms import histogram_roc, score_histogram
from shared.results import ScoreHistogram

Scored = tuple[np.ndarray, np.ndarray]


@st.composite
def scored(draw: st.DrawFn, bins: int = 12) -> Scored:
    images = draw(st.integers(0, 60))
    steps = st.integers(0, 4 * bins)
    scores = np.array(draw(st.lists(steps, min_size=images, max_size=images)), dtype=float) / (4 * bins)
    return scores, np.array(draw(st.lists(st.booleans(), min_size=images, max_size=images)), dtype=bool)


def exact(histograms: list[Scored]) -> float:
    scores, marks = (np.concatenate(part) for part in zip(*histograms, strict=True))
    return float(roc_auc_score(marks, scores))


@given(scored(), st.integers(1, 8))
def test_every_cell_is_empty_or_large_enough_and_every_image_is_counted_in_its_cell(data: Scored, least: int) -> None:
    scores, marks = data
    histogram = score_histogram(scores, marks, bins=12, minimum_cell=least)
    too_few = any(0 < number < least for number in (marks.sum(), (~marks).sum()))
    assert (histogram is None) == too_few
    if histogram is None:
        return
    assert all(count == 0 or count >= least for count in (*histogram.positive, *histogram.negative))
    assert set(np.array(histogram.edges)) <= set(np.arange(13) / 12)
    assert (histogram.edges[0], histogram.edges[-1]) == (0.0, 1.0)
    assert histogram.positive == np.histogram(scores[marks], histogram.edges)[0].tolist()
    assert histogram.negative == np.histogram(scores[~marks], histogram.edges)[0].tolist()


@given(scored(bins=6), st.integers(1, 5))
def test_no_other_merging_has_fewer_tied_pairs(data: Scored, least: int) -> None:
    scores, marks = data
    histogram = score_histogram(scores, marks, bins=6, minimum_cell=least)
    ties = []
    for size in range(6):
        for inner in combinations(range(1, 6), size):
            edges = np.array([0, *inner, 6]) / 6
            up, down = (np.histogram(scores[part], edges)[0] for part in (marks, ~marks))
            if all(count == 0 or count >= least for count in (*up, *down)):
                ties.append(int(up @ down))
    if histogram is None:
        assert not ties
    else:
        assert np.dot(histogram.positive, histogram.negative) == min(ties)


@given(st.lists(scored(), min_size=1, max_size=4), st.integers(1, 5))
def test_the_pooled_auc_is_bounded_and_a_single_histograms_counts_ties_as_half(data: list[Scored], least: int) -> None:
    found = [score_histogram(*part, bins=12, minimum_cell=least) for part in data]
    histograms = [one for one in found if one is not None]
    kept = [part for part, one in zip(data, found, strict=True) if one is not None]
    marks = np.concatenate([part[1] for part in kept]) if kept else np.zeros(0, dtype=bool)
    roc = histogram_roc(histograms)
    assert (roc is None) == (marks.all() or not marks.any())
    if roc is None:
        return
    assert roc.auc_least - 1e-9 <= exact(kept) <= roc.auc_most + 1e-9
    assert roc.auc_least <= roc.auc <= roc.auc_most
    assert np.trapezoid(roc.true_positive_rate, roc.false_positive_rate) == pytest.approx(roc.auc)
    assert (np.diff(roc.true_positive_rate) >= 0).all() and (np.diff(roc.false_positive_rate) >= 0).all()
    if len(histograms) == 1:
        one = histograms[0]
        cells = np.arange(len(one.positive))
        truth = np.repeat([1, 0], [sum(one.positive), sum(one.negative)])
        tied = np.concatenate((np.repeat(cells, one.positive), np.repeat(cells, one.negative)))
        assert roc.auc == pytest.approx(roc_auc_score(truth, tied))


def test_hospitals_with_different_edges_pool_close_to_the_exact_auc() -> None:
    rng = np.random.default_rng(1)
    data = []
    for prevalence, shift in ((0.5, 1.2), (0.3, 1.6), (0.6, 0.9)):
        marks = rng.random(60) < prevalence
        data.append((1 / (1 + np.exp(-(rng.normal(size=60) + shift * (marks - 0.5)))), marks))
    found = [score_histogram(*part, bins=100, minimum_cell=5) for part in data]
    histograms = [one for one in found if one is not None]
    assert len({tuple(one.edges) for one in histograms}) == 3
    roc = histogram_roc(histograms)
    assert roc is not None
    assert roc.auc == pytest.approx(exact(data), abs=0.03)


def test_no_histogram_has_no_curve() -> None:
    assert histogram_roc([]) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positive": [5, 4]}, "fewer than 5"),
        ({"negative": [1, 9]}, "fewer than 5"),
        ({"edges": [0.0, 1.0]}, "need one positive and one negative count"),
        ({"edges": [0.0, 0.5, 0.5]}, "ascend"),
    ],
)
def test_the_contract_itself_refuses_a_small_cell(change: dict[str, list[float]], message: str) -> None:
    good = {"edges": [0.0, 0.5, 1.0], "positive": [5, 0], "negative": [0, 9], "minimum_cell": 5}
    ScoreHistogram.model_validate(good)
    with pytest.raises(ValidationError, match=message):
        ScoreHistogram.model_validate({**good, **change})


def test_bounds_that_meet_do_not_cross_by_rounding() -> None:
    """18 of 22 pairs are won for certain and 4 lost: 1 - 4/22 is the next double below 18/22."""
    scores = np.array([0.05] * 7 + [0.2] + [0.4] * 4 + [0.9])
    found = score_histogram(scores, np.array([False] * 7 + [True] + [False] * 4 + [True]), bins=12, minimum_cell=1)
    assert found is not None
    roc = histogram_roc([found])
    assert roc is not None and roc.auc_least == roc.auc == roc.auc_most == 18 / 22


def test_no_rate_steps_down_by_rounding() -> None:
    """Cells of several hospitals are spread over all edges in fractions, whose sums in two orders differ in the last bits."""
    rng = np.random.default_rng(3)
    for _ in range(300):
        marks = [rng.random(40) < 0.5 for _ in range(3)]
        parts = [(0.4 * mark + 0.6 * rng.random(40) ** 3, mark) for mark in marks]
        found = [score_histogram(*part, bins=12, minimum_cell=3) for part in parts]
        roc = histogram_roc([one for one in found if one is not None])
        assert roc is not None and roc.true_positive_rate[-1] == roc.false_positive_rate[-1] == 1.0
        assert (np.diff(roc.true_positive_rate) >= 0).all() and (np.diff(roc.false_positive_rate) >= 0).all()
