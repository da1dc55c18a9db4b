"""Descriptors of lesions in the run's report: each hospital's, all together, and who gave none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_run import example_study, write_example_run

from server.report import build_report, render
from server.run_folder import RunFolder
from shared.metrics.descriptors import descriptor_result
from shared.results import DescriptorResult
from shared.study import Study

DESCRIPTORS = {"margin": {"values": {"smooth": [], "spiculated": []}}, "shape": {"values": {"oval": [], "round": []}}}


def study_of(**changes: Any) -> Study:
    values = example_study(rounds=1, **changes).to_data()
    values["task"]["descriptors"] = DESCRIPTORS
    values["training"]["descriptor_weight"] = 1
    return Study.model_validate(values)


def result(right: int, images: int) -> DescriptorResult:
    truth = np.arange(images) % 2
    said = np.where(np.arange(images) < right, truth, 1 - truth)
    found = descriptor_result(
        truth, said, np.arange(images), values=2, resamples=200, confidence=0.95, minimum_cell=5, seed=1
    )
    assert found is not None
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Margin of two hospitals and of one that never trained; the shape of one, with the counts of another study."""
    path = tmp_path_factory.mktemp("run") / "one"
    folder = write_example_run(path, study=study_of(), external=("hill",))
    final = folder.final()
    assert final is not None
    odd = result(20, 20).model_copy(update={"by_value": [5, 5, 10]})
    given: dict[str, dict[str, DescriptorResult]] = {
        "north": {"margin": result(30, 40), "shape": odd, "elsewhere": result(1, 10)}, "harbour": {"margin": result(9, 20)},
        "hill": {"margin": result(10, 10)},
    }  # fmt: skip
    sites = {site: one.model_copy(update={"descriptors": given[site]}) for site, one in final.sites.items()}
    folder.write("evaluation.json", final.model_copy(update={"sites": sites}))
    return folder


def test_each_hospitals_figures_and_those_of_all_that_trained(folder: RunFolder) -> None:
    report = build_report(folder)
    assert list(report.descriptors) == ["margin", "shape"]
    margin, shape = report.descriptors["margin"], report.descriptors["shape"]
    assert {site: (one.accuracy.value, one.images) for site, one in margin.sites.items()} == {
        "harbour": (0.45, 20), "hill": (1.0, 10), "north": (0.75, 40),
    }  # fmt: skip
    assert margin.pooled is not None
    assert (margin.pooled.sites, margin.pooled.images) == (["harbour", "north"], 60)
    assert margin.pooled.accuracy.value == pytest.approx(39 / 60)
    widths = [
        (one.accuracy.high - one.accuracy.low) * one.images for site, one in margin.sites.items() if site != "hill"
    ]  # type: ignore[operator]
    low, high = margin.pooled.accuracy.low, margin.pooled.accuracy.high
    assert low is not None and high is not None
    assert high - low == pytest.approx(np.hypot(*widths) / 60)
    assert (shape.not_reported, shape.sites["north"].by_value) == (["harbour", "hill"], None)


def test_the_page_has_a_section_only_where_there_are_descriptors(folder: RunFolder, tmp_path: Path) -> None:
    page = render(build_report(folder))
    section = page[page.index('<section id="descriptors">') :].split("</section>")[0]
    assert "20 / 20" in section and "elsewhere" not in page
    assert "Without figures: harbour and hill" in section
    plain = render(build_report(write_example_run(tmp_path / "plain", study=example_study(rounds=1))))
    assert 'id="descriptors"' not in plain and "#descriptors" not in plain


def test_where_counts_leave_with_noise_the_page_says_that_descriptors_stay(tmp_path: Path) -> None:
    noised = {"resamples": 100, "baseline": False, "release": {"epsilon": 1}}
    report = build_report(write_example_run(tmp_path / "noised", study=study_of(evaluation=noised)))
    assert report.descriptors == {}
