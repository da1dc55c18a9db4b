"""docs/results.md is made by benchmarks/results.py from reports, and by nothing else."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from example_run import example_study, write_example_run

from benchmarks import results, results_of_a_run
from server.report import write_report

ROOT = Path(__file__).parents[2]
COMMAND = "python -m benchmarks.results runs/example --out docs/results.md"


def _run(path: Path, **options: object) -> Path:
    write_report(write_example_run(path, **options))  # type: ignore[arg-type]
    return path


@pytest.fixture
def together(tmp_path: Path) -> Path:
    return _run(tmp_path / "example", stand_in="lesion_id", synthetic=False)


def _page(*folders: Path) -> str:
    return results.page([results_of_a_run.read_run(folder) for folder in folders], command=COMMAND)


def test_every_hospitals_figures_stand_on_the_page_as_in_the_report(together: Path) -> None:
    report = json.loads((together / "report.json").read_text())
    lines = _page(together).splitlines()
    for site, told in report["sites"].items():
        for key, words in results_of_a_run.HEADS:
            auc = told[key]["auc"]
            cell = f"{auc['value']:.3f} ({auc['low']:.2f} to {auc['high']:.2f})"
            assert any(line.startswith(f"| {site} | {words} | {cell} |") for line in lines)


def test_the_page_says_what_made_it_and_which_study(together: Path) -> None:
    text = _page(together)
    assert COMMAND in text
    assert json.loads((together / "report.json").read_text())["run"]["study_digest"][:16] in text
    assert "lesion_id stands in for the patient" in text


def test_what_was_not_done_is_said(together: Path) -> None:
    text = _page(together)
    assert "Not done for this run" in text
    assert "Not run: harbour, hill, north alone" in text


def test_a_run_of_one_site_stands_beside_the_run_of_all(together: Path, tmp_path: Path) -> None:
    alone = _run(tmp_path / "alone", sites=("hill",), stand_in="lesion_id", synthetic=False)
    text = _page(together, alone)
    assert "AUC, alone" in text
    assert "Not run: harbour, north alone" in text
    shown = json.loads((alone / "report.json").read_text())["sites"]["hill"]["svm"]["auc"]["value"]
    row = next(line for line in text.split("apart")[1].splitlines() if line.startswith("| hill | SVM, C and gamma s"))
    assert f"{shown:.3f}" in row.split("|")[4]


def test_all_images_at_one_site_stand_beside_the_run_of_several_and_a_lone_run_has_its_own_chapter(
    together: Path, tmp_path: Path
) -> None:
    pooled = _run(tmp_path / "pooled", sites=("everywhere",), stand_in="lesion_id", synthetic=False)
    text = _page(together, pooled)
    assert "| one site (everywhere) | network |" in text and text.count("### What was run") == 1
    assert "Not run: training on all" not in text
    lone = _page(pooled)
    assert lone.count("### What was run") == 1 and "All hospitals together" not in lone and "at one site" not in lone


def test_a_papers_table_stands_beside_ours_where_a_run_is_of_it(tmp_path: Path) -> None:
    study = example_study().model_copy(update={"name": "busi_rcdnet"})
    text = _page(_run(tmp_path / "rcd", study=study))
    table = text.split("## Papers' tables beside ours")[1]
    assert "| RcdNet | the paper | .9351 |" in table and "ours: rcd" in table


def test_a_run_of_another_study_is_no_comparison(together: Path, tmp_path: Path) -> None:
    alone = _run(tmp_path / "alone", sites=("hill",), study=example_study(rounds=9))
    assert "AUC, alone" not in _page(together, alone)


def test_a_hospital_with_few_positive_images_is_named_and_left_out_once(
    together: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {
        site: told["data"]["parts"]["test"]["by_class"][1]
        for site, told in json.loads((together / "report.json").read_text())["sites"].items()
    }
    fewest = min(counts, key=lambda site: counts[site])
    assert "without" not in _page(together).split("All hospitals together")[1].split("What training gained")[0]
    monkeypatch.setattr(results_of_a_run, "FEW", counts[fewest] + 1)
    text = _page(together)
    assert f"| without {fewest} |" in text
    assert f"{fewest} has {counts[fewest]} malignant test images" in text


def test_a_disagreement_of_the_recomputation_is_told(together: Path) -> None:
    told = {
        "counts": 5,
        "figures": 7,
        "largest_difference": 0.2,
        "tolerance": 0.001,
        "interval_ends": 2,
        "disagreeing": 3,
    }
    (together / "recomputed.json").write_text(json.dumps(told))
    assert "**3 disagree**" in _page(together)


def test_the_command_writes_the_page_and_names_no_folder_of_the_machine(
    together: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "results.md"
    monkeypatch.setattr(sys, "argv", ["results", str(together), "--machine", "two cores", "--out", str(out)])
    results.main()
    text = out.read_text()
    assert "python -m benchmarks.results runs/example --machine 'two cores' --out docs/results.md" in text
    assert str(tmp_path) not in text


def test_a_folder_without_a_report_ends_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["results", str(tmp_path)])
    with pytest.raises(SystemExit, match="a report can't be read"):
        results.main()


def test_the_page_in_the_documentation_says_which_command_made_it() -> None:
    page = ROOT / "docs" / "results.md"
    text = page.read_text(encoding="utf-8")
    assert "python -m benchmarks.results runs/" in text
    assert text.count("### What was run") >= 1
    assert "synthetic" not in text
