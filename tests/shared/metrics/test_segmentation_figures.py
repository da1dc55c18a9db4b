"""Figures of masks: each image's against scikit-learn's of its pixels, means by a bootstrap written out, and nothing small leaves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, jaccard_score, recall_score

from shared.metrics.mask_pooling import pool_masks, quantiles, shares_reaching
from shared.metrics.mask_result import dice_histogram, mask_result, withheld_classes
from shared.metrics.segmentation import MaskCounts, counted, mask_figures, means_of_defined
from shared.results import DiceHistogram, Estimate, Evaluated, MaskResult


def counts_of(truth: np.ndarray, found: np.ndarray, patients: np.ndarray | None = None) -> MaskCounts:
    pixels = counted(truth, found)
    return MaskCounts(*pixels.T, np.arange(len(truth)) if patients is None else patients)  # type: ignore[call-arg]


def masks(images: int, seed: int, *, apart: float = 0.2, side: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.random((images, side, side)) < rng.random((images, 1, 1))
    return truth, truth ^ (rng.random(truth.shape) < apart * rng.random((images, 1, 1)))


def result(counts: MaskCounts, labels: np.ndarray | None = None, baseline: MaskCounts | None = None) -> MaskResult:
    labels = np.zeros(counts.images, dtype=np.int64) if labels is None else labels
    return mask_result(
        counts, labels, classes=2, resamples=200, confidence=0.9, bins=100, minimum_cell=5, seed=3, baseline=baseline
    )


@settings(max_examples=40)
@given(seed=st.integers(0, 2**31 - 1), lesion=st.sampled_from([0.0, 0.3, 1.0]), said=st.sampled_from([0.0, 0.3, 1.0]))
def test_each_images_figures_are_scikit_learns_of_its_pixels(seed: int, lesion: float, said: float) -> None:
    rng = np.random.default_rng(seed)
    truth, found = rng.random((2, 5, 6)) < lesion, rng.random((2, 5, 6)) < said
    figures = mask_figures(counts_of(truth, found))
    for place, (one, other) in enumerate(zip(truth, found, strict=True)):
        pixels = one.ravel(), other.ravel()
        jaccard = jaccard_score(*pixels, zero_division=1.0)
        expected = {
            "iou": jaccard,
            "dice": f1_score(*pixels, zero_division=1.0),
            "thresholded_iou": jaccard if jaccard >= 0.65 else 0.0,
            "pixel_accuracy": accuracy_score(*pixels),
            "sensitivity": recall_score(*pixels, zero_division=np.nan),
            "specificity": recall_score(*pixels, pos_label=0, zero_division=np.nan),
        }
        for name, value in expected.items():
            np.testing.assert_allclose(figures[name][place], value, rtol=1e-12, err_msg=name)  # type: ignore[index]


def test_intervals_are_those_of_patients_drawn_with_all_their_images() -> None:
    truth, found = masks(40, 1)
    truth[:4], found[:3] = False, False  # no lesion: sensitivity is undefined there, and three of them are found so
    patients = np.repeat(np.arange(16), [1, 4] * 8)
    counts = counts_of(truth, found, patients)
    given, figures = result(counts), mask_figures(counts)
    rng = np.random.default_rng(3)
    draws = [rng.multinomial(16, np.full(16, 1 / 16)) for _ in range(200)]
    for name in ("iou", "dice", "sensitivity", "thresholded_iou"):
        values = figures[name]  # type: ignore[index]
        means = [
            np.nanmean(np.concatenate([np.repeat(values[patients == p], n) for p, n in enumerate(draw)]))
            for draw in draws
        ]
        estimate = getattr(given, name)
        assert estimate.value == pytest.approx(np.nanmean(values))
        assert (estimate.low, estimate.high) == pytest.approx(tuple(np.quantile(means, (0.05, 0.95))))


def test_the_gain_is_paired_and_of_the_same_masks_only() -> None:
    truth, found = masks(60, 2)
    before, after = counts_of(truth, masks(60, 3)[1]), counts_of(truth, found)
    gain = result(after, baseline=before).gain
    assert gain is not None and set(gain) == {"iou", "dice"}
    iou = [mask_figures(one)["iou"] for one in (after, before)]
    assert gain["iou"].value == pytest.approx(float((iou[0] - iou[1]).mean()))
    alone = result(after).iou
    assert alone.low is not None and alone.high is not None and gain["iou"].low > 0
    with pytest.raises(ValueError, match="to be of the same images"):
        result(after, baseline=counts_of(~truth, found))


def test_figures_by_class_are_of_its_images_and_a_class_without_any_has_none() -> None:
    counts = counts_of(*masks(30, 4))
    labels = np.zeros(30, dtype=np.int64)
    rows = result(counts, labels).classes
    assert (rows[0].images, rows[1].images) == (30, 0)
    assert rows[0].iou == result(counts).iou and rows[1].iou.value is None


def test_figures_of_a_small_class_do_not_leave_nor_can_they_be_reckoned_from_the_others() -> None:
    counts = counts_of(*masks(30, 4))
    labels = np.repeat([0, 1, 2, 3], [20, 1, 9, 0])

    def told(minimum_cell: int) -> MaskResult:
        return mask_result(
            counts, labels, classes=4, resamples=100, confidence=0.9, bins=100, minimum_cell=minimum_cell, seed=3
        )

    whole, left = told(1), told(5)
    assert [row.withheld for row in whole.classes] == [False] * 4 and whole.classes[1].iou.value is not None
    assert [row.withheld for row in left.classes] == [False, True, True, False]
    assert [row.images for row in left.classes] == [20, 1, 9, 0]
    assert left.classes[0] == whole.classes[0] and left.classes[1].dice == left.classes[2].iou == Estimate(value=None)
    assert (left.iou, left.dice) == (whole.iou, whole.dice)
    with pytest.raises(ValueError, match="figures of a class with fewer than 5 images"):
        MaskResult.model_validate({**whole.model_dump(), "minimum_cell": 5})
    only = [left.classes[0], left.classes[1], whole.classes[2], left.classes[3]]
    with pytest.raises(ValueError, match="1 images together, fewer than 5"):
        MaskResult.model_validate({**left.model_dump(), "classes": [row.model_dump() for row in only]})


def test_as_few_classes_are_withheld_as_hide_the_small_ones() -> None:
    assert withheld_classes([20, 30], 5) == withheld_classes([0, 5], 5) == set()
    assert withheld_classes([4, 30], 5) == {0, 1} and withheld_classes([3, 2, 30], 5) == {0, 1}
    assert withheld_classes([2, 0], 5) == {0} and withheld_classes([40, 6, 1], 5) == {1, 2}


@settings(max_examples=40)
@given(seed=st.integers(0, 2**31 - 1), images=st.integers(1, 60))
def test_no_cell_of_the_histogram_is_small_and_its_shares_are_exact(seed: int, images: int) -> None:
    dice = np.random.default_rng(seed).beta(4, 1, images)
    histogram = dice_histogram(dice, bins=100, minimum_cell=5)
    if images < 5:
        assert histogram is None
        return
    assert histogram is not None and sum(histogram.images) == images
    assert all(count == 0 or count >= 5 for count in histogram.images)
    edges, shares = shares_reaching(histogram)
    np.testing.assert_allclose(shares[:-1], [(dice >= edge).mean() for edge in edges[:-1]], atol=1e-12)
    low, middle, high = quantiles(histogram, (0.25, 0.5, 0.75))
    assert 0 <= low <= middle <= high <= 1


def test_a_histogram_with_a_small_cell_is_not_one_that_may_leave() -> None:
    with pytest.raises(ValueError, match="fewer than 5 images but not none"):
        DiceHistogram(edges=[0.0, 0.5, 1.0], images=[3, 9], minimum_cell=5)


def test_pooled_figures_are_the_means_over_all_images_of_all_hospitals() -> None:
    sides = [masks(images, images) for images in (20, 35)]
    sites = [
        Evaluated(
            patients=len(truth), images=len(truth), train_patients=1, train_images=1, seconds={}, masks=result(counts_of(truth, found))
        )
        for truth, found in sides
    ]  # fmt: skip
    pooled = pool_masks(sites, confidence=0.9)
    assert pooled is not None and (pooled.images, pooled.hospitals) == (55, 2)
    every = mask_figures(counts_of(*(np.concatenate(parts) for parts in zip(*sides, strict=True))))
    for name in ("iou", "dice", "pixel_accuracy"):
        estimate = pooled.figures[name]
        assert estimate.value == pytest.approx(float(means_of_defined(every[name][:, None])[0, 0]))
        widths = [getattr(site.masks, name) for site in sites]
        error = np.hypot(*(n / 55 * (one.high - one.low) / 2 for n, one in zip((20, 35), widths, strict=True)))
        assert estimate.high is not None and estimate.high - estimate.value == pytest.approx(
            min(error, 1 - estimate.value)
        )
    assert pool_masks([], confidence=0.9) is None


def test_an_evaluation_is_of_classes_or_of_masks() -> None:
    facts = {"patients": 1, "images": 1, "train_patients": 1, "train_images": 1, "seconds": {}}
    with pytest.raises(ValueError, match="one of the three must be given"):
        Evaluated.model_validate(facts)
