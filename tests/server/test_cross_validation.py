"""Folds as studies, and their runs put together: every patient once, figures against scikit-learn on the added counts."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from example_run import SKIN, example_study, write_example_run
from private_run import private_study, write_private_run
from sklearn.metrics import f1_score
from test_report_descriptors import result
from typer.testing import CliRunner

from server import fold_studies
from server.cli import app
from server.cross_validation import cross_validation
from server.fold_studies import write_folds
from server.report.build import build_report
from server.run_folder import RunFolder
from shared.errors import InputError, StorageError, StudyError
from shared.results import DESCRIPTOR_METRICS, DescriptorResult
from shared.study import Study, load_study, study_from_data

TASK = {
    "classes": {name: [] for name in SKIN},
    "positive_class": "melanoma",
    "unit": "image",
    "rare_classes": ["keratosis"],
}


def folds_of(of: int, test: int) -> dict[str, Any]:
    return {"split": {"folds": {"of": of, "test": test}}}


def fold_run(folder: Path, test: int, *, of: int = 3, **changes: Any) -> Path:
    study = example_study(rounds=1, classes=SKIN, task=TASK, data=folds_of(of, test), **changes)
    path = folder / f"fold{test + 1}"
    write_example_run(path, study=study, separation=0.9 + 0.1 * test)
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("folds")
    return [fold_run(folder, test) for test in range(3)]


def test_each_fold_is_a_study_that_differs_in_the_tested_fold_and_its_name_only(tmp_path: Path) -> None:
    path = tmp_path / "whole.yaml"
    path.write_text(
        yaml.safe_dump(example_study(data={"split": {"train": 0.8, "validation": 0.1, "test": 0.1}}).to_data())
    )
    out = tmp_path / "folds"
    written = CliRunner().invoke(app, ["folds", str(path), "--of", "3", "--out", str(out)])
    assert written.exit_code == 0, written.output
    studies = [load_study(out / f"example-fold{number}.yaml") for number in (1, 2, 3)]
    whole = load_study(path).to_data()
    for test, study in enumerate(studies):
        assert study.digest() in written.output
        data = study.to_data()
        assert data["data"]["split"].pop("folds") == {"of": 3, "test": test}
        whole["data"]["split"].pop("folds", None)
        assert {**data, "name": "example"} == whole
    with pytest.raises(InputError, match="already there"):
        write_folds(path, of=3, out=out)
    with pytest.raises(InputError, match="is there already"):
        write_folds(out / "example-fold1.yaml", of=3, out=tmp_path / "again")
    with pytest.raises(StorageError, match="can't be made"):
        write_folds(path, of=3, out=path / "below-a-file")


def test_a_fold_that_is_refused_leaves_nothing_of_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "whole.yaml"
    path.write_text(yaml.safe_dump(example_study().to_data()))
    write = fold_studies.write_study

    def refuses_the_last(fold: Path, data: dict[str, Any]) -> Study:
        return write(fold, {**data, "seed": -1 if data["name"] == "example-fold3" else data["seed"]})

    monkeypatch.setattr(fold_studies, "write_study", refuses_the_last)
    with pytest.raises(StudyError, match=r"folds/example-fold3\.yaml.*seed"):
        write_folds(path, of=3, out=tmp_path / "folds")
    assert not list((tmp_path / "folds").iterdir())


def test_weights_stay_where_their_study_finds_them(tmp_path: Path) -> None:
    weights = {"file": "w.safetensors", "sha256": "0" * 64, "source": "tests"}
    path = tmp_path / "whole.yaml"
    path.write_text(yaml.safe_dump(example_study(model={"name": "resnet18", "weights": weights}).to_data()))
    with pytest.raises(InputError, match="relative to itself"):
        write_folds(path, of=2, out=tmp_path / "elsewhere")
    assert len(write_folds(path, of=2, out=tmp_path)) == 2


def test_figures_are_means_of_the_folds_and_those_of_all_their_counts_together(runs: list[Path]) -> None:
    found = cross_validation([runs[2], runs[0], runs[1]])
    reports = [build_report(RunFolder(path)) for path in runs]
    assert found.runs == {1: "fold1", 2: "fold2", 3: "fold3"} and not any("NOT" in note for note in found.notes)
    head = found.heads["svm"]
    pooled = [report.pooled.svm for report in reports]
    values = [one.accuracy.value for one in pooled if one is not None and one.accuracy.value is not None]
    assert head.figures["accuracy"].by_fold == values
    assert head.figures["accuracy"].mean == pytest.approx(np.mean(values))
    assert head.figures["accuracy"].standard_deviation == pytest.approx(np.std(values, ddof=1))
    counts = np.sum([one.confusion for one in pooled if one is not None], axis=0)
    assert head.together.confusion == counts.tolist()
    truth, said = (np.repeat(axis.reshape(-1), counts.reshape(-1)) for axis in np.indices(counts.shape))
    over = head.together.over_classes
    assert over is not None and over.rare_errors is not None and head.figures["rare_errors"].mean is not None
    assert over.weighted.f1.value == pytest.approx(f1_score(truth, said, average="weighted"))
    assert over.rare_errors.value == pytest.approx(3 * head.figures["rare_errors"].mean)
    one = pooled[0]
    assert one is not None and over.weighted.f1.low is not None and one.over_classes is not None
    assert one.over_classes.weighted.f1.low is not None and one.over_classes.weighted.f1.value is not None
    # Three times the patients: intervals of all together are narrower by about the square root of 3.
    whole, part = over.weighted.f1, one.over_classes.weighted.f1
    assert whole.value - whole.low < 0.75 * (part.value - part.low)  # type: ignore[operator]


def test_the_command_prints_both_and_json(runs: list[Path]) -> None:
    names = [str(path) for path in runs]
    printed = CliRunner().invoke(app, ["cross-validated", *names], env={"COLUMNS": "200"})
    assert printed.exit_code == 0, printed.output
    for word in ("fold 3", "all together", "weighted F1", "FP + FN, rare", "keratosis", "no standard error"):
        assert word in printed.output
    found = json.loads(CliRunner().invoke(app, ["cross-validated", *names, "--json"]).output)
    assert found["schema"] == "consilium/cross-validation/1"
    figure = found["heads"]["network"]["figures"]["auc"]
    assert figure["mean"] == pytest.approx(statistics.fmean(figure["by_fold"]))


def test_masks_of_folds_are_put_together(tmp_path: Path) -> None:
    masks = {
        "task": {"kind": "segmentation", "classes": TASK["classes"], "positive_class": "melanoma", "unit": "image"},
        "preprocessing": {"region": "whole", "size": 64, "channels": 3, "mask": {"from": "annotated"}},
        "model": {"name": "split_attention_unet"},
        "head": None,
        "training": {"local_epochs": 1, "batch_size": 8, "optimiser": "sgd", "learning_rate": 0.1, "loss": "cross_entropy_dice"},
    }  # fmt: skip
    paths = []
    for test in range(2):
        study = example_study(rounds=1, classes=SKIN, data=folds_of(2, test), **masks)
        paths.append(write_example_run(tmp_path / f"fold{test + 1}", study=study).path)
    found = cross_validation(paths)
    pooled = [build_report(RunFolder(path)).pooled.masks for path in paths]
    values = [one.iou.value for one in pooled if one is not None]
    assert found.masks is not None and not found.heads and not any("NOT" in note for note in found.notes)
    assert found.masks.figures["iou"].by_fold == values
    assert found.masks.together.images == sum(one.images for one in pooled if one is not None)
    printed = CliRunner().invoke(app, ["cross-validated", *map(str, paths)], env={"COLUMNS": "200"}).output
    for word in ("thresholded IoU", "pixel accuracy", "Masks of each class's images", "melanoma"):
        assert word in printed


def test_descriptors_of_lesions_are_put_together(tmp_path: Path) -> None:
    """Figures of hospitals and folds have as much weight as they have images; who gave none is named."""

    def written(test: int, given: dict[str, dict[str, DescriptorResult]]) -> Path:
        study = example_study(rounds=1, data=folds_of(2, test)).to_data()
        study["task"]["descriptors"] = {name: {"values": {"yes": [], "no": []}} for name in ("margin", "shape")}
        study["training"]["descriptor_weight"] = 1
        folder = write_example_run(tmp_path / f"fold{test + 1}", study=Study.model_validate(study))
        final = folder.final()
        assert final is not None
        sites = {site: one.model_copy(update={"descriptors": given.get(site, {})}) for site, one in final.sites.items()}
        folder.write("evaluation.json", final.model_copy(update={"sites": sites}))
        return folder.path

    both = {"north": {"margin": result(30, 40)}, "harbour": {"margin": result(9, 20)}}
    one = {"north": {"margin": result(20, 40), "shape": result(7, 10)}}
    paths = [written(0, both), written(1, one)]
    found = cross_validation(paths)
    assert list(found.descriptors) == ["margin"], "no fold but the second has the shape"
    margin = found.descriptors["margin"]
    assert margin.figures["accuracy"].by_fold == pytest.approx([39 / 60, 20 / 40])
    assert margin.figures["accuracy"].mean == pytest.approx((39 / 60 + 20 / 40) / 2)
    assert margin.together.images == 100 and margin.together.accuracy.value == pytest.approx(59 / 100)
    assert list(margin.figures) == list(DESCRIPTOR_METRICS)
    assert "NOT WHOLE: hill gave no figures of margin in fold 1." in found.notes
    assert "NOT WHOLE: harbour, hill gave no figures of margin in fold 2." in found.notes
    printed = CliRunner().invoke(app, ["cross-validated", *map(str, paths)], env={"COLUMNS": "200"}).output
    for word in ("Descriptors of lesions", "margin", "macro F1", "0.590"):
        assert word in printed


def test_what_is_not_whole_is_said_and_what_does_not_belong_together_is_refused(
    runs: list[Path], tmp_path: Path
) -> None:
    assert any("fold 2 is missing" in note for note in cross_validation([runs[0], runs[2]]).notes)
    with pytest.raises(InputError, match="give each fold once"):
        cross_validation([runs[0], runs[0]])
    with pytest.raises(InputError, match="more than the fold: seed"):
        cross_validation([runs[0], fold_run(tmp_path, 1, seed=8)])
    with pytest.raises(InputError, match=r"no data\.split\.folds"):
        cross_validation([write_example_run(tmp_path / "plain").path])


def test_a_hospital_whose_data_changed_between_the_folds_is_named(runs: list[Path], tmp_path: Path) -> None:
    other = RunFolder(fold_run(tmp_path, 1))
    record = other.rounds()[0]
    prepared = record.prepared["hill"]
    train = prepared.parts["train"]
    parts = {**prepared.parts, "train": train.model_copy(update={"patients": train.patients + 1})}
    changed = {**record.prepared, "hill": prepared.model_copy(update={"parts": parts})}
    other.write("rounds/0000/round.json", record.model_copy(update={"prepared": changed}))
    (said,) = [note for note in cross_validation([runs[0], other.path]).notes if "NOT ONE DIVISION" in note]
    assert "hill had" in said


def test_folds_whose_counts_carry_noise_are_added_up_with_it(tmp_path: Path) -> None:
    evaluated = write_private_run(tmp_path / "private").final()
    assert evaluated is not None
    release = {"baseline": False, "release": {"epsilon": "1"}}
    paths = []
    for test in range(2):
        study = example_study(rounds=1, evaluation=release, data=folds_of(2, test))
        folder = write_example_run(tmp_path / f"fold{test}", study=study)
        folder.write("evaluation.json", evaluated)
        paths.append(folder.path)
    found = cross_validation(paths)
    head = found.heads["network"]
    assert head.together.over_classes is None and "errors" not in head.figures
    assert head.figures["accuracy"].mean is not None and head.figures["auc"].mean is None
    sent = [np.array(one.network.confusion) for one in evaluated.sites.values()]
    assert np.array_equal(head.together.confusion, 2 * np.sum(sent, axis=0))
    assert any("about the noise" in note for note in found.notes)


def test_folds_whose_masks_left_with_noise_are_added_up_with_it(tmp_path: Path) -> None:
    private = write_private_run(tmp_path / "private", study=private_study(masks=True))
    evaluated, paths = private.final(), []
    assert evaluated is not None
    for test in range(2):
        study = private.study().to_data() | {"name": f"fold{test}"}
        study["data"]["split"] |= {"folds": {"of": 2, "test": test}}
        folder = write_private_run(tmp_path / f"fold{test}", study=study_from_data(study))
        paths.append(folder.path)
    found = cross_validation(paths)
    assert found.masks is not None and list(found.masks.figures) == ["iou", "dice", "thresholded_iou"]
    sent = [np.array(one.noised_masks.counts) for one in evaluated.sites.values() if one.noised_masks is not None]
    assert found.masks.together.counts == (2 * np.sum(sent, axis=0)).tolist()
    printed = CliRunner().invoke(app, ["cross-validated", *map(str, paths)], env={"COLUMNS": "200"}).output
    assert "thresholded IoU" in printed and "about the noise" in printed
    assert "each class's images" not in printed and "pixel accuracy" not in printed
