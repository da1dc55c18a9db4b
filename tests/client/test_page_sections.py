"""The contrast section reaches the hospital's own page where the study enhances images, and costs no run where the data is gone."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from test_contrast import written
from test_page import Written

from client import evaluation_work
from client.page import write_page
from client.site_folder import SiteFolder
from shared.profile import load_profile
from shared.study import load_study


def bench_of(tmp_path: Path, preprocessing: dict[str, object]) -> Any:
    """What `_sections` looks at: a joined hospital's folder, and the study."""
    profile, study = written(tmp_path, preprocessing)
    folder = SiteFolder.create(tmp_path / "site", load_profile(profile))
    return SimpleNamespace(task=SimpleNamespace(study=load_study(study), folder=folder, profile=folder.profile()))


def test_a_study_with_clahe_has_the_section_and_another_has_none(tmp_path: Path) -> None:
    (section,) = evaluation_work._sections(cast(Any, bench_of(tmp_path / "with", {"clahe": {"tiles": 4}})))
    assert "20 of 20 images" in section and "mean local contrast" in section
    assert evaluation_work._sections(cast(Any, bench_of(tmp_path / "without", {}))) == []


def test_where_the_data_is_gone_the_page_goes_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bench = bench_of(tmp_path, {"denoise": "median"})
    shutil.rmtree(tmp_path / "data")
    assert evaluation_work._sections(cast(Any, bench)) == []
    assert "does not say what was done to the images" in caplog.text


def test_the_section_stands_in_the_page_as_markup(tmp_path: Path) -> None:
    sections = evaluation_work._sections(cast(Any, bench_of(tmp_path / "hospital", {"clahe": {}, "size": 32})))
    made = Written(tmp_path)
    path = write_page(
        tmp_path, run="run-1", profile=made.profile, study=made.study, evaluated=made.evaluated, parts=made.parts, scores=made.scores,
        seed=4, sections=sections,
    )  # fmt: skip
    text = path.read_text(encoding="utf-8")
    assert "<h2>What denoising and CLAHE did to the images</h2>" in text
    assert "What denoising and CLAHE did" not in made.text
