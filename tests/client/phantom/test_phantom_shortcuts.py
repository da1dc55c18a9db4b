"""The label is in morphology and distribution, and nowhere else."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray

from client.phantom import SCANNERS
from client.phantom.calcifications import calcify
from client.phantom.cases import plan_cases
from client.phantom.lexicon import Distribution, Morphology
from client.phantom.mammogram import draw_mammograms

_SCRIPT = Path(__file__).parents[3] / "benchmarks" / "phantom_shortcuts.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("phantom_shortcuts", _SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Drawn:
    crops: list[NDArray[np.float64]]
    regions: list[NDArray[np.bool_]]
    spread: NDArray[np.float64]
    malignant: NDArray[np.bool_]
    patients: list[str]


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    crops, regions, spread, malignant, patients = [], [], [], [], []
    for number, scanner in enumerate(SCANNERS.values()):
        sequence = np.random.SeedSequence([2024, number])
        for case in plan_cases(patients=40, prevalence=scanner.prevalence, sequence=sequence):
            for mammogram in draw_mammograms(case, scanner):
                pixels = mammogram.pixels / 4095
                bright = 1 - pixels if mammogram.inverted else pixels
                for finding in mammogram.findings:
                    top, left, bottom, right = finding.box
                    crops.append(bright[top:bottom, left:right])
                    regions.append(finding.region[top:bottom, left:right])
                    places = np.argwhere(finding.overlay > 0)
                    spread.append(np.linalg.norm(places.std(axis=0)) / np.sqrt(finding.region.sum()))
                    malignant.append(finding.finding.malignant)
                    patients.append(f"{scanner.name}/{case.patient_id}")
    return Drawn(crops, regions, np.array(spread)[:, None], np.array(malignant), patients)


def test_intensity_alone_does_not_tell_the_label(benchmark: ModuleType, drawn: Drawn) -> None:
    features = np.array([benchmark.intensity_statistics(crop) for crop in drawn.crops])
    for name, classifier in benchmark.classifiers().items():
        assert benchmark.grouped_auc(classifier, features, drawn.malignant, drawn.patients) < 0.7, name


def test_size_and_shape_of_the_region_do_not_tell_the_label(benchmark: ModuleType, drawn: Drawn) -> None:
    features = np.array([benchmark.geometry_statistics(region) for region in drawn.regions])
    for name, classifier in benchmark.classifiers().items():
        assert benchmark.grouped_auc(classifier, features, drawn.malignant, drawn.patients) < 0.7, name


def test_the_measurement_would_see_a_shortcut(benchmark: ModuleType, drawn: Drawn) -> None:
    brighter = [crop * (1.25 if label else 1) for crop, label in zip(drawn.crops, drawn.malignant, strict=True)]
    features = np.array([benchmark.intensity_statistics(crop) for crop in brighter])
    classifier = benchmark.classifiers()["logistic regression"]
    assert benchmark.grouped_auc(classifier, features, drawn.malignant, drawn.patients) > 0.7


def test_the_distribution_of_calcifications_does_tell_the_label_but_not_perfectly(
    benchmark: ModuleType, drawn: Drawn
) -> None:
    classifier = benchmark.classifiers()["logistic regression"]
    assert 0.7 < benchmark.grouped_auc(classifier, drawn.spread, drawn.malignant, drawn.patients) < 0.97


@pytest.mark.parametrize("distribution", list(Distribution))
@pytest.mark.parametrize("morphology", list(Morphology))
def test_every_descriptor_gives_one_overlay_histogram_inside_the_region(
    morphology: Morphology, distribution: Distribution
) -> None:
    yy, xx = np.mgrid[-45:46, -45:46]
    region = np.hypot(xx, yy) <= 40
    rng = np.random.default_rng(1)
    overlay = calcify(
        morphology, distribution, region=region, radius=40, load=0.09, contrast=0.25, axis=0.3, blur=0.8, rng=rng
    )
    count = round(0.09 * region.sum())
    expected = 0.25 * (1 - np.arange(count) / count) ** 0.8
    assert not overlay[~region].any()
    np.testing.assert_allclose(np.sort(overlay[overlay > 0])[::-1], expected, rtol=1e-5)


def test_calcifications_lie_in_their_masks_and_masks_in_the_image() -> None:
    scanner = SCANNERS["cassette"]
    for case in plan_cases(patients=6, prevalence=0.5, sequence=np.random.SeedSequence(4)):
        for mammogram in draw_mammograms(case, scanner):
            for finding in mammogram.findings:
                top, left, bottom, right = finding.box
                assert finding.region.shape == mammogram.pixels.shape == (scanner.rows, scanner.columns)
                assert 45 <= min(bottom - top, right - left) <= max(bottom - top, right - left) <= 175
                assert not finding.overlay[~finding.region].any()
                assert finding.overlay[finding.region].max() == pytest.approx(finding.finding.contrast)
