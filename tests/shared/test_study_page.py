"""docs/studies.md says what the schemas say."""

from __future__ import annotations

from pathlib import Path

from shared.study_page import markdown

PAGE = Path(__file__).resolve().parents[2] / "docs" / "studies.md"


def test_the_page_is_made_from_the_schemas() -> None:
    assert PAGE.read_text(encoding="utf-8") == markdown(), "run: python -m shared.study_page > docs/studies.md"


def test_every_key_of_a_study_stands_on_the_page() -> None:
    page = markdown()
    for key in ("positive_class", "local_epochs", "quorum", "minimum_cell", "patient_stand_in", "`schema`"):
        assert key in page
