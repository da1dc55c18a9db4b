"""What denoising and CLAHE do to a hospital's images: measured on some, the same each time, and shown in a table and on the page."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from client.cli import app
from client.data.contrast import effect_of
from client.data.records import Record
from client.page_contrast import contrast_section
from shared.errors import InputError
from shared.imaging.contrast import contrast_of
from shared.imaging.enhancement import enhanced
from shared.imaging.preprocess import unenhanced
from shared.study_pixels import Preprocessing

RECIPE = Preprocessing.model_validate(
    {"region": "whole", "size": 64, "channels": 1, "clahe": {"tiles": 4}, "denoise": "median"}
)


def holding(folder: Path, count: int = 6, *, masks: bool = True) -> list[Record]:
    """Dull images with a bright speck, the class in the folder's name."""
    records = []
    rng = np.random.default_rng(5)
    for index in range(count):
        label = ("benign", "malignant")[index % 2]
        values = 90 + 20 * np.sin(np.arange(64) / 9)[None, :] + rng.normal(0, 4, (64, 64))
        values[28:32, 28:32] += 40
        mask = np.zeros((64, 64), dtype=np.uint8)
        mask[24:36, 24:36] = 255
        (folder / label).mkdir(parents=True, exist_ok=True)
        (folder / "masks").mkdir(exist_ok=True)
        image, marked = folder / label / f"{index}.png", folder / "masks" / f"{index}.png"
        Image.fromarray(values.astype(np.uint8)).save(image)
        Image.fromarray(mask).save(marked)
        records.append(Record(f"{index}", image, label, f"p{index}", (marked,) if masks else ()))
    return records


def test_means_are_of_the_images_before_and_after(tmp_path: Path) -> None:
    records = holding(tmp_path)
    effect = effect_of(records, RECIPE, most=100, seed=1)
    assert (effect.images, effect.all_images, effect.unreadable) == (6, 6, 0)
    plain = [unenhanced(one.image, one.masks, RECIPE, with_mask=True) for one in records]
    before = [contrast_of(one.levels, one.mask) for one in plain]
    after = [contrast_of(enhanced(one.levels, RECIPE), one.mask) for one in plain]
    for change in effect.changes:
        assert change.images == 6
        assert change.before == pytest.approx(np.mean([getattr(one, change.name) for one in before]))
        assert change.after == pytest.approx(np.mean([getattr(one, change.name) for one in after]))
    found = {change.name: change for change in effect.changes}
    assert found["local_contrast"].after > found["local_contrast"].before
    assert found["visibility"].after > found["visibility"].before > 0


def test_no_more_images_than_asked_for_are_read_and_bad_files_are_counted(tmp_path: Path) -> None:
    records = holding(tmp_path)
    assert effect_of(records, RECIPE, most=3, seed=1).images == 3
    assert effect_of(records, RECIPE, most=3, seed=1) == effect_of(records, RECIPE, most=3, seed=1)
    records[2].image.write_bytes(b"nothing")
    effect = effect_of(records, RECIPE, most=100, seed=1)
    assert (effect.images, effect.unreadable) == (5, 1)


def test_without_masks_there_is_no_visibility(tmp_path: Path) -> None:
    effect = effect_of(holding(tmp_path, masks=False), RECIPE, most=100, seed=1)
    assert [change.name for change in effect.changes] == ["local_contrast", "snr"]


def test_the_section_names_the_steps_and_shows_every_figure(tmp_path: Path) -> None:
    effect = effect_of(holding(tmp_path), RECIPE, most=4, seed=1)
    html = str(contrast_section(effect, RECIPE))
    assert "Median filter, then CLAHE in 4 x 4 tiles with clip limit 0.01" in html and "4 of 6 images" in html
    for change in effect.changes:
        assert f"{change.before:.3f}" in html and f"{change.after:.3f}" in html
    bare = RECIPE.model_copy(update={"denoise": "none"})
    assert "<p>CLAHE in 4 x 4" in str(contrast_section(effect, bare))


def written(tmp_path: Path, preprocessing: dict[str, object]) -> tuple[Path, Path]:
    holding(tmp_path / "data", 20)
    profile = {
        "schema": "consilium/profile/1", "site": "north", "title": "North",
        "data": {"layout": "image_folder", "root": str(tmp_path / "data"), "synthetic": True, "patient_stand_in": "image"},
        "policy": {"minimum_patients": 1},
    }  # fmt: skip
    study = yaml.safe_load((Path(__file__).parents[2] / "configs" / "busi_resnet18.yaml").read_text())
    study["preprocessing"] = {"region": "whole", "size": 64, "channels": 1, **preprocessing}
    study["task"]["classes"] = {"benign": [], "malignant": []}
    study["data"] = {}
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump(profile))
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    return tmp_path / "profile.yaml", tmp_path / "study.yaml"


def test_the_command_prints_the_table(tmp_path: Path) -> None:
    profile, study = written(tmp_path, {"clahe": {"tiles": 4}})
    result = CliRunner().invoke(
        app, ["contrast", str(profile), "--study", str(study), "--images", "5"], catch_exceptions=False
    )
    assert result.exit_code == 0
    assert "5 of 20 images of north" in result.output
    assert re.search(r"mean local contrast .*0\.\d{3}.*0\.\d{3}.*5", result.output)


def test_a_study_that_does_neither_is_refused(tmp_path: Path) -> None:
    profile, study = written(tmp_path, {})
    with pytest.raises(InputError, match="neither clahe nor denoise"):
        CliRunner().invoke(app, ["contrast", str(profile), "--study", str(study)], catch_exceptions=False)
