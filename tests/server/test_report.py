"""What report.json says of a run folder, against the folder's own records."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_run import PATIENTS, SITES, SKIN, digest_of, example_study, write_example_run
from rich.console import Console
from sklearn.metrics import f1_score, multilabel_confusion_matrix

from server.comparison import comparison, side_of
from server.report import build_report, write_report
from server.report.build import figure_images
from server.report.document import markdown
from server.report.page import render
from server.report.schema import Report
from server.report.words import summary
from server.run_folder import RunFolder
from shared.errors import RunFolderError, StorageError
from shared.results import METRICS
from shared.run_records import FinalRecord, Miss


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return write_example_run(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture(scope="module")
def report(folder: RunFolder) -> Report:
    return build_report(folder)


def test_every_sites_figures_are_those_it_sent_with_the_images_behind_them(folder: RunFolder, report: Report) -> None:
    final = folder.final()
    assert final is not None
    for site, sent in final.sites.items():
        for key in ("network", "svm", "svm_paper"):
            head, result = getattr(report.sites[site], key), getattr(sent, key)
            assert (head.patients, head.images, head.confusion) == (sent.patients, sent.images, result.confusion)
            for name in METRICS:
                figure, estimate = getattr(head, name), getattr(result, name)
                assert (figure.value, figure.low, figure.high) == (estimate.value, estimate.low, estimate.high)
            assert head.gain == result.gain


def test_images_behind_a_figure_are_its_denominator() -> None:
    confusion = [[30, 5, 1], [4, 20, 2], [3, 6, 9]]
    images = figure_images(confusion, 1)
    counts = np.array(confusion)
    assert images["sensitivity"] == images["recall"] == counts[1].sum()
    assert images["specificity"] == counts[[0, 2]].sum()
    assert images["precision"] == counts[:, 1].sum()
    assert images["f1"] == 20 + (4 + 2) + (5 + 6)
    assert images["accuracy"] == images["auc"] == images["balanced_accuracy"] == counts.sum()


def test_pooled_rates_are_those_of_the_added_counts_and_each_figure_says_how(report: Report) -> None:
    for key in ("network", "svm", "svm_paper"):
        pooled = getattr(report.pooled, key)
        counts = np.sum([getattr(report.sites[site], key).confusion for site in SITES], axis=0)
        assert pooled.confusion == counts.tolist()
        assert pooled.images == counts.sum()
        assert pooled.patients == sum(PATIENTS.values())
        assert pooled.accuracy.value == pytest.approx(np.trace(counts) / counts.sum())
        assert pooled.sensitivity.value == pytest.approx(counts[1, 1] / counts[1].sum())
        assert pooled.precision.value == pytest.approx(counts[1, 1] / counts[:, 1].sum())
        weights = [getattr(report.sites[site], key).images for site in SITES]
        own = [getattr(report.sites[site], key).auc.value for site in SITES]
        assert pooled.auc.value == pytest.approx(np.average(own, weights=weights))
        assert all(len(getattr(pooled, name).how) > 40 for name in METRICS)
        assert "weighted by test images" in pooled.auc.how
        assert pooled.gain is not None and "paired" in pooled.gain["auc"].how


def test_roc_curves_run_from_corner_to_corner_and_never_fall(report: Report) -> None:
    curves = [report.sites[site].svm.roc for site in SITES] + [report.pooled.svm.roc.points]
    for curve in curves:
        points = np.array([(p.false_positive_rate, p.true_positive_rate) for p in curve])
        assert points[0].tolist() == [0, 0] and points[-1].tolist() == [1, 1]
        assert (np.diff(points, axis=0) >= 0).all()


def test_curves_hold_what_each_site_sent_in_the_rounds_it_was_part_of(folder: RunFolder, report: Report) -> None:
    records = {record.round: record for record in folder.rounds()}
    for site in SITES:
        curve = report.sites[site].curve
        assert [point.round for point in curve] == [n for n in range(1, 9) if site in records[n].trained]
        for point in curve:
            trained = records[point.round].trained[site]
            assert point.train_loss == [epoch.loss for epoch in trained.epochs]
            assert point.validation_auc == trained.validation.auc
            assert point.weight == records[point.round].weights[site]
    assert len(report.sites["hill"].curve) == 7  # it misses round 3


def test_phases_of_a_site_add_up_to_the_time_until_the_last_answer(folder: RunFolder, report: Report) -> None:
    records = {record.round: record for record in folder.rounds()}
    for site in SITES:
        for one in report.sites[site].timing:
            last = max(timing.answered_after for timing in records[one.round].sites.values())
            phases = (one.load, one.validate_, one.train, one.reply, one.transfer, one.wait)
            assert sum(phases) == pytest.approx(last)
            assert min(phases) >= 0


def test_who_missed_which_round_and_why(report: Report) -> None:
    assert report.rounds[3].missing == [Miss(site="hill", reason="invalid", code="CONS-250")]
    assert report.rounds[3].answered == ["harbour", "north"]
    assert report.rounds[4].late == ["hill"]


def test_json_on_disk_is_the_report_and_has_the_documented_paths(folder: RunFolder, report: Report) -> None:
    json_path, html_path = write_report(folder)
    data = json.loads(json_path.read_text())
    assert Report.model_validate(data) == report
    assert data["schema"] == "consilium/report/1"
    for site in SITES:
        for head in ("svm", "network"):
            auc = data["sites"][site][head]["auc"]
            assert auc["low"] <= auc["value"] <= auc["high"]
            assert auc["images"] == data["sites"][site][head]["images"]
    assert data["run"]["final_model"] == digest_of("model8")
    assert "validate" in data["sites"]["north"]["timing"][0]
    assert html_path.read_text().startswith("<!doctype html>")


def test_the_same_folder_gives_the_same_bytes(folder: RunFolder) -> None:
    first = [path.read_bytes() for path in write_report(folder)]
    assert [path.read_bytes() for path in write_report(folder)] == first


def test_a_report_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_example_run(tmp_path / "demo", finished_rounds=1, state="stopped", reason="stopped by Ctrl-C")
    before = [path.read_bytes() for path in write_report(folder)]

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        write_report(folder)
    assert [(folder.path / name).read_bytes() for name in ("report.json", "report.html")] == before
    assert not [path.name for path in folder.path.iterdir() if path.name.startswith(".report")]


@pytest.mark.parametrize("rounds", [0, 3])
def test_a_run_without_an_evaluation_has_curves_but_no_test_figures(tmp_path: Path, rounds: int) -> None:
    folder = write_example_run(tmp_path / "demo", finished_rounds=rounds, state="failed", reason="the quorum is 2")
    report = build_report(folder)
    assert not report.evaluated
    assert report.pooled.svm is None and report.pooled.network is None
    assert report.sites["north"].svm is None
    assert report.sites["north"].baseline is not None
    assert len(report.sites["north"].curve) == rounds == report.run.rounds_done
    assert (report.run.state, report.run.reason) == ("failed", "the quorum is 2")


def test_a_run_that_failed_before_round_0_still_names_its_sites(tmp_path: Path) -> None:
    folder = write_example_run(tmp_path / "demo", finished_rounds=0, state="failed", reason="nobody came")
    (folder.round_path(0) / "round.json").unlink()
    report = build_report(folder)
    assert sorted(report.sites) == sorted(SITES)
    assert all(site.data is None for site in report.sites.values())


def test_a_site_that_did_not_evaluate_is_named_and_not_pooled(tmp_path: Path) -> None:
    folder = write_example_run(tmp_path / "demo")
    final = folder.final()
    assert final is not None
    rest = {site: one for site, one in final.sites.items() if site != "hill"}
    missing = [Miss(site="hill", reason="no answer")]
    folder.write("evaluation.json", FinalRecord(model=final.model, sites=rest, missing=missing, timing=final.timing))
    report = build_report(folder)
    assert report.not_evaluated == missing
    assert report.sites["hill"].svm is None
    assert report.pooled.svm is not None and report.pooled.svm.sites == ["harbour", "north"]


def test_synthetic_and_stand_ins_are_as_the_sites_declared(tmp_path: Path) -> None:
    real = build_report(write_example_run(tmp_path / "real", synthetic=False, stand_in="lesion_id", finished_rounds=0))
    assert (real.synthetic, real.synthetic_sites) == (False, [])
    assert real.stand_ins == dict.fromkeys(sorted(SITES), "lesion_id")
    drawn = build_report(write_example_run(tmp_path / "drawn", finished_rounds=0))
    assert (drawn.synthetic, drawn.synthetic_sites, drawn.stand_ins) == (True, sorted(SITES), {})


def test_more_than_two_classes_are_listed_in_the_order_of_the_outputs(tmp_path: Path) -> None:
    report = build_report(write_example_run(tmp_path / "skin", study=example_study(classes=SKIN)))
    assert report.classes == sorted(SKIN)
    head = report.sites["north"].svm
    assert head is not None
    positive = report.classes.index("melanoma")
    assert head.sensitivity.value == head.classes[positive].recall.value
    assert [one.images for one in head.classes] == [sum(row) for row in head.confusion]


def test_figures_over_all_classes_are_those_of_the_counts_that_left_and_rare_ones_are_the_studys(
    tmp_path: Path,
) -> None:
    task = {
        "classes": {name: [] for name in SKIN},
        "positive_class": "melanoma",
        "unit": "image",
        "rare_classes": ["keratosis", "basal_cell"],
    }
    folder = write_example_run(tmp_path / "skin", study=example_study(classes=SKIN, task=task))
    report = build_report(folder)
    pooled = report.pooled.svm
    assert pooled is not None and pooled.over_classes is not None
    counts = np.array(pooled.confusion)
    truth, said = (np.repeat(axis.reshape(-1), counts.reshape(-1)) for axis in np.indices(counts.shape))
    tables = multilabel_confusion_matrix(truth, said)
    wrong = tables[:, 0, 1] + tables[:, 1, 0]
    rare = [report.classes.index(name) for name in ("basal_cell", "keratosis")]
    assert report.study["task"]["rare_classes"] == ["basal_cell", "keratosis"]
    found = pooled.over_classes
    assert found.errors.value == wrong.sum() and found.rare_errors is not None
    assert found.rare_errors.value == wrong[rare].sum()
    assert found.weighted.f1.value == pytest.approx(f1_score(truth, said, average="weighted"))
    assert found.weighted.recall.value == pytest.approx(pooled.accuracy.value)
    sites = [site.svm.over_classes for site in report.sites.values() if site.svm is not None]
    assert sum(one.errors.value for one in sites if one is not None) == found.errors.value
    page = render(report)
    assert f"<b>{found.rare_errors.value}</b>" in page and "basal cell and keratosis (rare)" in page
    console = Console(file=io.StringIO(), width=200)
    console.print(comparison([side_of(folder.path), side_of(folder.path)]))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"{found.errors.value} (" in text and "FP + FN, rare" in text and "weighted F1" in text


def test_a_folder_that_is_no_run_ends_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="the folder of a run"):
        write_report(RunFolder(tmp_path))


def test_the_documentation_of_the_report_is_up_to_date() -> None:
    page = Path(__file__).parents[2] / "docs" / "report.md"
    assert page.read_text() == markdown(), "run: python -m server.report.document > docs/report.md"


def test_the_documentation_names_every_field_of_every_part() -> None:
    page = markdown()
    parts = Report.model_json_schema(by_alias=True)["$defs"]
    assert len(parts) > 15
    for name, part in parts.items():
        assert f"## {name}\n" in page
        section = page.split(f"## {name}\n")[1].split("\n## ")[0]
        assert all(f"| `{field}` |" in section for field in part["properties"])


def test_where_an_id_stands_in_for_the_patient_no_claim_is_made_about_patients(tmp_path: Path) -> None:
    def counted(**options: Any) -> str:
        report = build_report(write_example_run(tmp_path / str(len(options)), **options))
        return next(one.text for one in summary(report) if one.label == "counted")

    assert counted().endswith("none of whom was trained on.")
    assert "where lesion_id stands in for the patient" in counted(synthetic=False, stand_in="lesion_id")
