"""The curve of accuracy against added noise: without noise it is the run's own evaluation, and the noise is what it says."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.noise_robustness import Point, curve, picture, pooled, table, with_noise
from client.cohort import OpenCohort
from client.data.batches import Batches
from client.data.cache import ImageStore
from client.data.records import Part
from client.evaluation import evaluate
from client.features import PartFeatures
from client.roll import Roll
from client.training import extract_features
from shared.models import build_network
from shared.seeds import derived_seed
from shared.study import Study

CPU = torch.device("cpu")
PARTS: dict[Part, np.ndarray] = {"train": np.arange(0, 48), "validation": np.arange(48, 52), "test": np.arange(52, 90)}


def study() -> Study:
    return Study.model_validate(
        {
            "schema": "consilium/study/1", "name": "noise", "title": "Noise", "seed": 3,
            "governance": {"purpose": "tests", "ethics": "none", "retention": "none"},
            "task": {"classes": {"benign": [], "malignant": []}, "positive_class": "malignant", "unit": "image"},
            "preprocessing": {"region": "whole", "size": 32, "channels": 3, "normalise": {"mean": [0.5], "std": [0.25]}},
            "model": {"name": "resnet18"}, "head": {"grid": {"C": [1, 10], "gamma": [0.001], "folds": 3}, "calibration_folds": 3},
            "training": {"local_epochs": 1, "batch_size": 8, "optimiser": "adam", "learning_rate": 0.001, "loss": "binary_cross_entropy",
                         "precision": "fp32"},
            "federation": {"rounds": 1, "quorum": 1, "weighting": "counts"}, "evaluation": {"resamples": 100},
        }
    )  # fmt: skip


def cohort() -> OpenCohort:
    """Stripes, upright for one class: an SVM on random features tells them apart, and noise hides them."""
    rng = np.random.default_rng(2)
    labels = np.arange(90) % 2
    wave = 90 + 60 * np.sign(np.sin(np.arange(32) / 1.5))
    images = np.stack([np.broadcast_to(wave if label else wave[:, None], (32, 32)) for label in labels])
    stored = np.clip(images + rng.normal(0, 15, images.shape), 0, 255).astype(np.uint8)[:, None]
    keys = tuple(f"image {index}" for index in range(90))
    readable = np.ones(90, dtype=np.bool_)
    roll = Roll(
        study="digest", images="", keys=keys, files=((),) * 90, labels=labels, descriptors=np.empty((90, 0), np.int64),
        patients=np.arange(90) // 2, tags=keys, pixels=keys,
        readable=readable, metadata=np.empty((90, 0), np.float32), parts=PARTS, left_out=0, unreadable=0,
    )  # fmt: skip
    return OpenCohort(roll, ImageStore(stored, readable, ()))


def test_without_noise_the_figures_are_the_evaluations_and_much_noise_leaves_chance() -> None:
    asked, data = study(), cohort()
    network = build_network(asked)
    points = curve(network, data, asked, run="one", site="north", device=CPU, levels=(0, 200))
    parts: dict[Part, PartFeatures] = {}
    for name, rows in PARTS.items():
        batches = Batches(data.store, data.labels, rows, recipe=asked.preprocessing, batch_size=64)
        features, logits = extract_features(network, batches, device=CPU)
        keys = tuple(data.keys[row] for row in rows)
        parts[name] = PartFeatures(keys, features, logits, data.labels[rows], data.patients[rows])
    seed = derived_seed("evaluation", asked.seed, "north")
    told = evaluate(parts, asked, minimum_cell=5, seed=seed, baseline=None, keep_scores=None)
    assert told.svm is not None
    for head, result in (("network", told.network), ("svm", told.svm)):
        point = next(one for one in points if (one.head, one.level) == (head, 0))
        assert (point.accuracy, point.auc, point.images) == (result.accuracy.value, result.auc.value, 38)
    clean, hidden = (next(one for one in points if (one.head, one.level) == ("svm", level)) for level in (0, 200))
    assert clean.accuracy > 0.9 and hidden.accuracy < clean.accuracy


def test_the_noise_has_its_deviation_and_comes_back_by_seed() -> None:
    grey = np.full((4, 1, 64, 64), 128, np.uint8)
    noisy = with_noise(grey, 20, 5)
    assert noisy.dtype == np.float32 and (noisy * 255).std() == pytest.approx(20, rel=0.03)
    np.testing.assert_array_equal(noisy, with_noise(grey, 20, 5))
    assert not np.array_equal(noisy, with_noise(grey, 20, 6))
    dark = with_noise(np.zeros_like(grey), 20, 5)
    assert dark.min() == 0 and dark.max() <= 1
    half = np.full((2, 1, 8, 8), 0.5, np.float16)
    np.testing.assert_array_equal(with_noise(half, 0, 1), 0.5)


def points() -> list[Point]:
    return [
        Point(run, site, "svm", level, images, accuracy, auc)
        for run in ("plain", "<cbam>")
        for site, images, accuracy, auc in (("a", 10, 0.9, 0.8), ("b", 30, 0.7, None), ("c", 30, 0.5, 0.6))
        for level in (0.0, 40.0)
    ]


def test_all_hospitals_are_pooled_by_images() -> None:
    together = pooled(points())
    assert len(together) == 4 and {one.site for one in together} == {None}
    assert together[0].accuracy == pytest.approx((9 + 21 + 15) / 70)
    assert together[0].auc == pytest.approx((0.8 * 10 + 0.6 * 30) / 40)


def test_the_table_has_every_row_and_the_picture_is_one_valid_file(tmp_path: Path) -> None:
    every = [*points(), *pooled(points())]
    text = table(every)
    assert "| plain | b | SVM | 0.700 | 0.700 |" in text and "| plain | b | SVM | - | - |" in text
    assert text.count("| all |") == 4
    root = ElementTree.fromstring(picture(every, "auc"))
    lines = [one for one in root.iter("{http://www.w3.org/2000/svg}polyline") if len(one.attrib["points"].split()) == 2]
    assert root.tag.endswith("svg") and len(lines) >= 2
    assert any("<cbam>" in (one.text or "") for one in root.iter("{http://www.w3.org/2000/svg}text"))
