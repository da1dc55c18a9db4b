"""Published figures beside ours: the data is whole, what contradicts itself is found and nothing else, runs stand as they report."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from example_run import example_study, write_example_run
from sklearn.metrics import f1_score, multilabel_confusion_matrix

from benchmarks import paper_tables
from benchmarks.paper_tables import Ours, found_runs, page
from server.report import write_report
from server.report.build import build_report
from server.report.page import render
from server.report.paper import figure_in
from server.report.published import PublishedRow, contradictions, papers, share

PAPERS = papers()


def row(**figures: str) -> PublishedRow:
    return PublishedRow(model="one", head="network", published=figures)


def test_all_five_papers_are_there_and_every_share_is_one() -> None:
    assert list(PAPERS) == ["resnet34", "wa_resnet50", "skinnet", "rcdnet", "dicom_resnet50"]
    for paper in PAPERS.values():
        for one in paper.rows:
            for name, written in one.published.items():
                assert "errors" in name or 0.5 < share(written) < 1, (one.model, name)


def test_what_contradicts_itself_is_marked() -> None:
    marked = {(key, one.model): len(list(contradictions(one))) for key, paper in PAPERS.items() for one in paper.rows}
    assert {key: count for key, count in marked.items() if count} == {
        ("resnet34", "ResNet-34"): 1,
        ("resnet34", "ResNet-34 + SVM"): 3,
        ("resnet34", "ResNet-34 + CBAM + SVM"): 3,
        ("wa_resnet50", "ResNet-50"): 1,
        ("wa_resnet50", "WA-ResNet-50"): 1,
        ("skinnet", "SkinNet v1"): 1,
        ("skinnet", "SkinNet v3"): 1,
        ("skinnet", "SkinNet v4"): 1,
        ("dicom_resnet50", "ResNet-50"): 1,
    }


def test_figures_of_a_real_confusion_matrix_never_contradict_themselves() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        hit, missed, alarm, passed = rng.integers(20, 200, 4)
        total, precision, sensitivity = hit + missed + alarm + passed, hit / (hit + alarm), hit / (hit + missed)
        figures = {
            "accuracy": (hit + passed) / total,
            "sensitivity": sensitivity,
            "specificity": passed / (passed + alarm),
            "precision": precision,
            "f1": 2 * precision * sensitivity / (precision + sensitivity),
        }
        for form in (lambda value: f"{100 * value:.2f}", lambda value: f"{value:.4f}"):
            assert not list(contradictions(row(**{name: form(value) for name, value in figures.items()})))


def test_rounding_is_no_contradiction_but_more_is() -> None:
    assert not list(contradictions(row(accuracy="91.79", sensitivity="92.64", specificity="91.8")))
    (said,) = contradictions(row(accuracy="91.6", sensitivity="92.64", specificity="91.8"))
    assert said == "accuracy 91.6 is below both sensitivity 92.64 and specificity 91.8"
    elsewhere = PublishedRow(
        model="one", head="svm", published={"accuracy": ".96"}, elsewhere={"abstract": {"accuracy": "97"}}
    )
    assert list(contradictions(elsewhere)) == ["accuracy is .96 in the table and 97 in the abstract"]


def test_a_run_stands_under_its_row_as_its_report_has_it(tmp_path: Path) -> None:
    folder = write_example_run(tmp_path / "mine", synthetic=True)
    write_report(folder)
    report = build_report(folder)
    assert [one.name for one in found_runs([folder.path, tmp_path]).values()] == ["mine"]
    text = page(PAPERS["resnet34"], {"cbis_ddsm_resnet34_cbam_svm_small": Ours("mine", report, True)})
    svm = report.pooled.svm
    assert svm is not None
    line = next(line for line in text.splitlines() if line.startswith("|  | ours: mine"))
    assert f"{svm.accuracy.value:.3f} ({svm.accuracy.low:.2f} to {svm.accuracy.high:.2f})" in line
    assert "SYNTHETIC images" in text and "the small study, not the paper's" in text
    assert text.count("ours: not run") == 2


def test_many_classes_are_counted_over_all_and_over_the_rare_ones(tmp_path: Path) -> None:
    classes = ("mel", "nv", "bkl", "df")
    task = {
        "classes": {name: [] for name in classes},
        "positive_class": "mel",
        "unit": "image",
        "rare_classes": ["bkl", "df"],
    }
    folder = write_example_run(tmp_path / "skin", study=example_study(classes=classes, task=task))
    report = build_report(folder)
    text = page(PAPERS["skinnet"], {"skinnet_v1": Ours("skin", report, False)})
    head = report.pooled.network
    assert head is not None
    counts = np.array(head.confusion)
    truth, said = (np.repeat(axis.reshape(-1), counts.reshape(-1)) for axis in np.indices(counts.shape))
    by_class = multilabel_confusion_matrix(truth, said)
    wrong = by_class[:, 0, 1] + by_class[:, 1, 0]
    rare = [index for index, name in enumerate(report.classes) if name in ("bkl", "df")]
    specificity = np.average(by_class[:, 0, 0] / by_class[:, 0].sum(1), weights=counts.sum(1))
    expected = [
        f"{wrong.sum()}", f"{specificity:.3f}", f"{f1_score(truth, said, average='weighted'):.3f}", f"{wrong[rare].sum()}",
    ]  # fmt: skip
    line = next(line for line in text.splitlines() if line.startswith("|  | ours: skin"))
    cells = [cell.strip() for cell in line.split("|")[3:8]]
    assert [cell.split(" ")[0] for cell in cells] == [*expected, "–"]
    assert all(" to " in cell for cell in cells[:4]), "with their intervals"
    assert cells[0].endswith(f", {counts.sum() - np.trace(counts)} wrong images")
    noised = head.model_copy(update={"over_classes": None})
    for name in ("errors", "rare_errors", "weighted_f1", "weighted_specificity"):
        assert figure_in(noised, name) == "–"  # type: ignore[arg-type]


def test_every_published_figure_stands_in_its_papers_page() -> None:
    folder = Path(__file__).parents[2] / "docs" / "studies"
    pages = {
        "resnet34": "cbis_ddsm_resnet34_cbam_svm", "wa_resnet50": "cbis_ddsm_wa_resnet50", "skinnet": "skinnet",
        "rcdnet": "busi_rcdnet", "dicom_resnet50": "dicom_resnet50",
    }  # fmt: skip
    assert sorted(pages.values()) == sorted(path.stem for path in folder.glob("*.md"))
    for key, paper in PAPERS.items():
        numbers = [
            set(re.findall(r"\d*\.\d+|\d+", line)) for line in (folder / f"{pages[key]}.md").read_text().splitlines()
        ]
        every = set().union(*numbers)
        for one in paper.rows:
            assert any(set(one.published.values()) <= line for line in numbers), (key, one.model)
            for place, figures in one.elsewhere.items():
                assert set(figures.values()) <= every, (key, one.model, place)
        for contrast in (paper.contrast or {}).values():
            assert set(contrast.values()) <= every, key


def test_the_report_of_a_papers_study_has_the_papers_table_and_another_has_none(tmp_path: Path) -> None:
    study = example_study().model_copy(update={"name": "cbis_ddsm_resnet34_cbam_svm_small"})
    report = build_report(write_example_run(tmp_path / "mine", study=study))
    text = render(report).split('id="paper"')[1].split("</section>")[0]
    svm = report.pooled.svm
    assert svm is not None
    assert "98.70" in text and f"{svm.accuracy.value:.3f} ({svm.accuracy.low:.2f} to {svm.accuracy.high:.2f})" in text
    assert text.count(">this run<") == 1 and "the small version of the study" in text
    assert "(!) ResNet-34 + CBAM + SVM: accuracy is 98.70 in the table and 97.47 in the abstract" in text
    other = render(build_report(write_example_run(tmp_path / "other")))
    assert 'id="paper"' not in other and "#paper" not in other


def test_the_command_prints_what_is_there_and_refuses_half_a_call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["paper_tables", "all"])
    paper_tables.main()
    assert capsys.readouterr().out.count("## ") == 5
    monkeypatch.setattr(sys, "argv", ["paper_tables", "resnet34", "--small"])
    with pytest.raises(SystemExit, match="2"):
        paper_tables.main()
