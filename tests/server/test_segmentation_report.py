"""A segmentation run's report, questions, comparison and model card: figures of masks, and nothing of classes that was not measured."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from server.comparison import comparison, side_of
from server.documents.model_card import model_card
from server.documents.rendering import markdown
from server.learned import questions_of_run
from server.report.build import build_report
from server.report.page import render
from server.run_folder import RunFolder
from shared.errors import InputError
from tests.server.example_run import SITES, example_study, write_example_run

SEGMENTATION: dict[str, Any] = {
    "task": {
        "kind": "segmentation",
        "classes": {"benign": [], "malignant": []},
        "positive_class": "malignant",
        "unit": "image",
    },
    "preprocessing": {"region": "whole", "size": 64, "channels": 3, "mask": {"from": "annotated"}},
    "model": {"name": "split_attention_unet"},
    "augmentation": {"horizontal_flip": 0.5, "distortion": {"probability": 0.3}},
    "head": None,
    "training": {
        "local_epochs": 2,
        "batch_size": 16,
        "optimiser": "adam",
        "learning_rate": 0.0005,
        "loss": "cross_entropy_dice",
    },
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    path = tmp_path_factory.mktemp("runs") / "masks"
    return write_example_run(path, study=example_study(**SEGMENTATION), external=("hill",))


def words_of(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", re.sub(r"<style.*?</style>", "", page, flags=re.S)))


def test_every_sites_figures_and_the_mean_over_those_that_trained(run: RunFolder) -> None:
    report, final = build_report(run), run.final()
    assert final is not None and report.kind == "segmentation"
    for site in SITES:
        masks, sent = report.sites[site].masks, final.sites[site].masks
        assert masks is not None and sent is not None and report.sites[site].network is None
        assert (masks.iou.value, masks.dice.low) == (sent.iou.value, sent.dice.low)
        assert masks.reaching is not None and masks.reaching[0].share == 1.0
        assert masks.quartiles is not None and masks.dice.value is not None
        assert masks.quartiles[0] < masks.dice.value < masks.quartiles[2]
    pooled = report.pooled.masks
    assert pooled is not None and pooled.sites == ["harbour", "north"] and report.pooled.network is None
    sides = [(final.sites[site].images or 0, report.sites[site].masks) for site in pooled.sites]
    mean = sum(images * one.iou.value for images, one in sides if one and one.iou.value) / pooled.images
    assert pooled.iou.value == pytest.approx(mean)
    assert pooled.gain is not None and pooled.gain["iou"].low > 0


def test_the_page_says_what_was_found_and_speaks_of_no_auc(run: RunFolder) -> None:
    report = build_report(run)
    page, pooled = render(report), report.pooled.masks
    assert pooled is not None and pooled.iou.value is not None
    text = words_of(page)
    assert f"both cover {100 * pooled.iou.value:.0f} (95 % interval" in text
    assert f"mean IoU {pooled.iou.value:.2f}" in text and "External test: at hill, which never trained" in text
    assert "Validation Dice" in text
    assert "The interval lies above 0: the improvement is shown." in text
    for absent in ("AUC", "Confusion", "ROC", "above chance"):
        assert absent not in text.split("The study as it ran")[0], absent
    assert 'href="#masks"' in page and page.count("<svg") > 5


def test_a_dash_in_place_of_a_small_classs_figures_is_explained(run: RunFolder, tmp_path: Path) -> None:
    assert "Not told" not in words_of(render(build_report(run)))
    evaluation = {**run.study().to_data()["evaluation"], "minimum_cell": 2000}
    report = build_report(
        write_example_run(tmp_path / "small", study=example_study(**SEGMENTATION, evaluation=evaluation))
    )
    assert all(one.iou.value is None and one.images for one in report.sites[SITES[0]].masks.classes)  # type: ignore[union-attr]
    why = "tells no figures of a class that fewer than 2000 of its test"
    assert why in words_of(render(report)) and why in markdown(model_card(report))


def test_a_run_without_an_evaluation_has_a_page_too(tmp_path: Path) -> None:
    run = write_example_run(
        tmp_path / "stopped", study=example_study(**SEGMENTATION), finished_rounds=2, state="stopped", reason="by hand"
    )
    text = words_of(render(build_report(run)))
    assert "The final model was not evaluated" in text and 'href="#masks"' not in text


def test_it_is_asked_whether_the_masks_became_better(run: RunFolder) -> None:
    asked = questions_of_run(run)
    assert [one.text.split(":")[0] for one in asked] == ["harbour", "hill", "north", "all hospitals"]
    assert all(one.yes and one.figure.startswith("gain in IoU") for one in asked)


def test_two_runs_of_masks_are_compared_and_none_with_one_of_classes(run: RunFolder, tmp_path: Path) -> None:
    side = side_of(run.path)
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(comparison([side, side]))
    text = console.export_text()
    assert "IoU" in text and "Dice" in text and "balanced accuracy" not in text
    other = side_of(write_example_run(tmp_path / "classes").path)
    with pytest.raises(InputError, match="share no figure to compare"):
        comparison([side, other])


def test_the_model_card_is_a_segmentation_networks(run: RunFolder) -> None:
    text = markdown(model_card(build_report(run)))
    assert "segmentation network: split_attention_unet" in text and "a mask of the lesion" in text
    assert "Masks of the final model, by hospital." in text and "is shown to be better than that of round 0" in text
    assert (
        "AUC" not in text and "confusion" not in text and "horizontal flip 0.5, " in text and "distortion 0.3" in text
    )
