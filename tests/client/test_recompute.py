"""The independent script agrees with the run's own code where both are right, and says so where a figure was changed."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.recompute import TOLERANCE, Row, Said, bootstrap, figures, prepared, summary
from shared.imaging.preprocess import prepare
from shared.metrics.bootstrap import head_result
from shared.metrics.classification import Predictions
from shared.results import METRICS
from shared.study import Study, load_study

STUDY = load_study(Path(__file__).parents[2] / "configs" / "ham10000_resnet34_cbam_svm.yaml")


def _with(region: str, size: int) -> Study:
    recipe = STUDY.preprocessing.model_copy(update={"region": region, "size": size})
    return STUDY.model_copy(update={"preprocessing": recipe})


@pytest.mark.parametrize("region", ["whole", "finding"])
@pytest.mark.parametrize("shape", [(150, 200), (200, 150), (90, 91), (40, 120)])
def test_images_are_prepared_alike_by_both(region: str, shape: tuple[int, int], tmp_path: Path) -> None:
    rng = np.random.default_rng(sum(shape))
    Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(tmp_path / "image.png")
    mask = np.zeros(shape, dtype=np.uint8)
    mask[3:31, 8:20] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    study = _with(region, 32)
    mine = prepared(tmp_path / "image.png", [tmp_path / "mask.png"], study)
    theirs = prepare(tmp_path / "image.png", [tmp_path / "mask.png"], study.preprocessing)
    np.testing.assert_array_equal(mine, theirs)


def _said(seed: int, images: int = 240) -> tuple[Said, Predictions]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, images)
    score = np.clip(0.35 + 0.3 * truth + rng.normal(0, 0.25, images), 0, 1).round(2)
    predicted, lesions = (score >= 0.5).astype(int), rng.integers(0, images // 2, images)
    scores = np.stack([1 - score, score], axis=1)
    return Said(truth, predicted, score, lesions), Predictions(truth, predicted, scores, lesions, 1)


def test_figures_and_intervals_agree_with_the_runs_own() -> None:
    mine, theirs = _said(3)
    reported = head_result(theirs, resamples=1000, confidence=0.95, bins=20, minimum_cell=1, seed=5)
    found = figures(mine, 1, 2)
    assert set(found) == set(METRICS)
    for name, value in found.items():
        assert value == pytest.approx(getattr(reported, name).value, abs=1e-12)
    for name, (low, high) in bootstrap(mine, 1, confidence=0.95).items():
        estimate = getattr(reported, name)
        allowed = 0.15 * (estimate.high - estimate.low)
        assert low == pytest.approx(estimate.low, abs=allowed)
        assert high == pytest.approx(estimate.high, abs=allowed)


def test_a_figure_without_its_denominator_is_undefined() -> None:
    said = Said(np.array([0, 0, 1]), np.array([0, 0, 0]), None, np.arange(3))
    found = figures(said, 1, 2)
    assert found["precision"] is None
    assert found["f1"] == 0.0
    assert "auc" not in found


def test_one_image_on_the_other_side_is_an_error() -> None:
    mine, _ = _said(4, images=477)
    before = figures(mine, 1, 2)
    mine.predicted[0] = 1 - mine.predicted[0]
    after = figures(mine, 1, 2)
    assert not Row("hill", "svm", "accuracy", before["accuracy"], after["accuracy"], TOLERANCE).agrees


def test_a_figure_that_only_one_of_both_has_is_an_error() -> None:
    row = Row("hill", "svm", "precision", None, 0.5, TOLERANCE)
    assert row.difference == math.inf
    assert not row.agrees
    assert Row("hill", "svm", "precision", None, None, TOLERANCE).agrees
    assert summary([row])["disagreeing"] == 1
