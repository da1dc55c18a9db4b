"""docs/studies.md says what the schemas say."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from shared.study import load_study
from shared.study_page import EXAMPLE, markdown
from shared.study_privacy import obstacles

PAGE = Path(__file__).resolve().parents[2] / "docs" / "studies.md"


def test_the_page_is_made_from_the_schemas() -> None:
    assert PAGE.read_text(encoding="utf-8") == markdown(), "run: python -m shared.study_page > docs/studies.md"


def test_every_key_of_a_study_stands_on_the_page() -> None:
    page = markdown()
    for key in ("positive_class", "local_epochs", "quorum", "minimum_cell", "patient_stand_in", "`schema`"):
        assert key in page


def test_the_private_study_of_the_page_is_one(tmp_path: Path) -> None:
    assert f"```yaml\n{EXAMPLE}```" in markdown()
    (tmp_path / "private.yaml").write_text(EXAMPLE, encoding="utf-8")
    study = load_study(tmp_path / "private.yaml")
    assert study.privacy is not None and study.privacy.noise_multiplier == "1.1739"  # as in docs/coordinating.md
    assert list(obstacles(study)) == []


def test_the_page_names_every_key_that_keeps_a_study_from_being_private() -> None:
    chapter = markdown().split("# A private study")[1].split("# A study, key by key")[0]
    told = re.findall(r'yield f?"([a-z_.{}]+):', inspect.getsource(obstacles))
    several = {
        "training.{key}": ("training.local_epochs", "training.batch_size"),
        "{key}.origin": ("model.weights.origin", "preprocessing.mask.weights.origin"),
    }
    keys = {key for one in told for key in several.get(one, (one,))}
    assert len(keys) == 18
    assert not {key for key in keys if f"`{key}`" not in chapter}
