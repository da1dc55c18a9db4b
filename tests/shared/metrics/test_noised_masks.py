"""Noised counts of patients by IoU give figures without bias, and intervals that hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from shared.errors import MechanismError
from shared.metrics.noised_masks import IOU_EDGES, figures_from_noised_masks, iou_bins, pooled_noised_masks
from shared.metrics.segmentation import JACCARD_THRESHOLD, MaskCounts, mask_figures
from shared.results import NOISED_MASK_METRICS

#: Beta distributions of IoU: good, uneven, nearly perfect, poor.
WORLDS = {"good": (8.0, 2.0), "uneven": (2.0, 2.0), "perfect": (30.0, 1.0), "poor": (1.5, 12.0)}


def counted(iou: NDArray[np.float64], pixels: int = 1_000_000) -> MaskCounts:
    """Images of these IoU, to a millionth."""
    both = np.round(iou * pixels).astype(np.int64)
    nothing = np.zeros_like(both)
    return MaskCounts(both, pixels - both, nothing, nothing, np.arange(len(both)))


def geometric(rng: np.random.Generator, epsilon: float) -> NDArray[np.int64]:
    """An independent sampler: the difference of two one-sided geometrics."""
    chance = 1.0 - np.exp(-epsilon)
    return rng.geometric(chance, 20) - rng.geometric(chance, 20)


def released(rng: np.random.Generator, iou: NDArray[np.float64], epsilon: float) -> list[int]:
    return (np.bincount(iou_bins(counted(iou)), minlength=20) + geometric(rng, epsilon)).tolist()


def true_means(world: tuple[float, float]) -> dict[str, float]:
    iou = np.random.default_rng(5).beta(*world, 400_000)
    return {
        "iou": float(iou.mean()),
        "dice": float((2 * iou / (1 + iou)).mean()),
        "thresholded_iou": float(np.where(iou >= JACCARD_THRESHOLD, iou, 0).mean()),
    }


def test_an_image_is_in_the_bin_of_its_exact_iou() -> None:
    edges = np.array([[k, 20 - k] for k in range(21)])
    counts = MaskCounts(edges[:, 0], edges[:, 1], *np.zeros((2, 21), dtype=np.int64), np.arange(21))
    assert iou_bins(counts).tolist() == [*range(20), 19]
    assert JACCARD_THRESHOLD in IOU_EDGES
    rng = np.random.default_rng(1)
    many = MaskCounts(*rng.integers(0, 2000, (4, 5000)), np.arange(5000))
    iou, cells = mask_figures(many)["iou"], iou_bins(many)
    low, high = np.array(IOU_EDGES)[cells], np.array(IOU_EDGES)[cells + 1]
    assert bool(((low <= iou) & ((iou < high) | (cells == 19))).all())
    none = MaskCounts(*np.zeros((3, 1), dtype=np.int64), np.array([9]), np.array([0]))
    assert iou_bins(none).tolist() == [19]


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_without_noise_the_figures_are_the_exact_ones_but_for_the_bins(world: tuple[float, float]) -> None:
    iou = np.random.default_rng(2).beta(*world, 3000)
    exact = {name: float(values.mean()) for name, values in mask_figures(counted(iou)).items()}
    counts = np.bincount(iou_bins(counted(iou)), minlength=20).tolist()
    found = figures_from_noised_masks(counts, epsilon=90, confidence=0.95)
    for name in NOISED_MASK_METRICS:
        one = found[name]
        assert one.value is not None and one.low is not None and one.high is not None
        assert one.value == pytest.approx(exact[name], abs=0.012)
        assert one.low <= exact[name] <= one.high and one.high - one.low < 0.13


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
@pytest.mark.parametrize(("patients", "epsilon"), [(60, 1.0), (200, 1.0), (120, 0.3), (40, 4.0)])
def test_intervals_hold_the_true_mean(world: tuple[float, float], patients: int, epsilon: float) -> None:
    truth, hits = true_means(world), dict.fromkeys(NOISED_MASK_METRICS, 0)
    for repeat in range(200):
        rng = np.random.default_rng([repeat, patients])
        found = figures_from_noised_masks(
            released(rng, rng.beta(*world, patients), epsilon), epsilon=epsilon, confidence=0.95
        )
        for name in NOISED_MASK_METRICS:
            one = found[name]
            assert one.value is not None and one.low is not None and one.high is not None
            assert 0.0 <= one.low <= one.value <= one.high <= 1.0
            hits[name] += one.low <= truth[name] <= one.high
    assert min(hits.values()) >= 186, hits


@pytest.mark.parametrize("place", ["least", "most"])
def test_intervals_hold_the_true_mean_wherever_in_its_bin_each_image_is(place: str) -> None:
    edges, hits = np.array(IOU_EDGES), 0
    shares = np.random.default_rng(3).dirichlet(np.arange(20.0) + 0.1)
    ends = edges[:-1] if place == "least" else np.nextafter(edges[1:], 0)
    for repeat in range(200):
        rng = np.random.default_rng([repeat, 7])
        counts = rng.multinomial(150, shares) + geometric(rng, 1.0)
        one = figures_from_noised_masks(counts.tolist(), epsilon=1.0, confidence=0.95)["iou"]
        assert one.low is not None and one.high is not None
        hits += one.low <= float(shares @ ends) <= one.high
    assert hits >= 180


def test_the_value_is_not_biased_by_noise_and_the_interval_is_no_wider_than_it_need_be() -> None:
    world, values, widths = WORLDS["perfect"], [], []
    for repeat in range(400):
        rng = np.random.default_rng([repeat, 11])
        one = figures_from_noised_masks(released(rng, rng.beta(*world, 100), 1.0), epsilon=1.0, confidence=0.95)["iou"]
        assert one.value is not None and one.low is not None and one.high is not None
        values.append(one.value)
        widths.append(one.high - one.low)
    assert np.mean(values) == pytest.approx(true_means(world)["iou"], abs=0.01)
    assert np.mean(widths) < 0.16


def test_hospitals_are_pooled_by_adding_up_and_their_noise_adds_up_too() -> None:
    one, other = [0] * 13 + [4, 9, 12, 20, 14, 8, -1], [2] * 13 + [8, 5, 10, 12, 20, 4, 3]
    together = [a + b for a, b in zip(one, other, strict=True)]
    pooled = pooled_noised_masks([(one, 1.0), (other, 1.0)], confidence=0.95)["dice"]
    single = figures_from_noised_masks(together, epsilon=1.0, confidence=0.95)["dice"]
    assert pooled.value == single.value
    assert pooled.low is not None and single.low is not None and pooled.low < single.low
    assert pooled.high is not None and single.high is not None and pooled.high > single.high


def test_counts_that_noise_hides_give_all_or_nothing() -> None:
    nothing = figures_from_noised_masks([-1, 1] * 10, epsilon=1.0, confidence=0.95)
    assert {one.value for one in nothing.values()} == {None}
    little = figures_from_noised_masks([0] * 18 + [1, 2], epsilon=0.1, confidence=0.95)["iou"]
    assert (little.low, little.high) == (0.0, 1.0) and little.value == pytest.approx((0.925 + 2 * 0.975) / 3, abs=1e-6)
    beyond = figures_from_noised_masks([-6] * 10 + [9] * 10, epsilon=0.1, confidence=0.95)["iou"]
    assert beyond.value == 1.0


def test_what_can_not_be_computed_with_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected 20 counts of each hospital, but got \[19\]"):
        figures_from_noised_masks([1] * 19, epsilon=1.0, confidence=0.95)
    with pytest.raises(ValueError, match=r"but got \[\]"):
        pooled_noised_masks([], confidence=0.95)
    with pytest.raises(ValueError, match="expected a confidence between 0 and 1"):
        figures_from_noised_masks([1] * 20, epsilon=1.0, confidence=1.0)
    with pytest.raises(MechanismError, match="epsilon"):
        figures_from_noised_masks([1] * 20, epsilon=1e-9, confidence=0.95)
