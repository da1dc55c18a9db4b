"""Model card and privacy statement: every figure is the run's, every release is named, and what only people know is left to them."""

from __future__ import annotations

import html as entities
import re
from pathlib import Path

import pytest
from example_run import SITES as PLAIN_SITES
from example_run import SKIN, example_study, write_example_run
from private_run import SITES, private_study, write_private_run
from typer.testing import CliRunner

from server.cli import app
from server.documents import write_documents
from server.documents.model_card import model_card
from server.documents.parts import Bullets, Document, Facts, Fill, Paragraph, Section, Table
from server.documents.privacy_statement import privacy_statement
from server.documents.rendering import html, markdown
from server.report import build_report
from server.report.words import number
from server.run_folder import RunFolder
from shared.errors import InputError, RunFolderError
from shared.privacy.pld import pld_epsilon
from shared.study_cost import run_epsilon, study_events

HEADINGS = (
    *(
        "Model details",
        "Intended use",
        "Factors",
        "Metrics",
        "Evaluation data",
        "Training data",
        "Quantitative analyses",
    ),
    *("Ethical considerations", "Caveats and recommendations"),
)


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return write_private_run(tmp_path_factory.mktemp("runs") / "private", study=private_study(svm=True))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return write_example_run(tmp_path_factory.mktemp("runs") / "plain")


def card(folder: RunFolder) -> str:
    return markdown(model_card(build_report(folder)))


def statement(folder: RunFolder) -> str:
    return markdown(privacy_statement(build_report(folder), folder.study()))


def words(page: str) -> list[str]:
    """Without markup of either form."""
    body = entities.unescape(
        re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>|<title>.*?</title>", "", page, flags=re.DOTALL))
    )
    return re.findall(r"[A-Za-z0-9./-]+", body)


def test_a_card_has_the_headings_of_the_paper_and_what_only_people_know(private: RunFolder, plain: RunFolder) -> None:
    for said in (card(private), card(plain)):
        titles = re.findall(r"^## (.*)$", said, re.MULTILINE)
        assert titles[: len(HEADINGS)] == list(HEADINGS)
        for asked in ("Licence", "Contact", "Clinical intended use", "Ethics approval beyond that", "Owner"):
            assert re.search(rf"^\| {asked} \| \*\*TO BE FILLED BY: ", said, re.MULTILINE), asked
        assert "None" not in said


def test_a_plain_cards_figures_and_counts_are_the_reports(plain: RunFolder) -> None:
    report, said = build_report(plain), card(plain)
    for site in PLAIN_SITES:
        one = report.sites[site]
        assert one.svm is not None and one.data is not None
        assert f"{number(one.svm.auc.value)} ({one.svm.auc.low:.2f} to {one.svm.auc.high:.2f})" in said
        train = one.data.parts["train"]
        assert f"| {site} | train | {train.patients} | {train.images} |" in said
    assert "All hospitals" in said and "AUC changed by" in said and "there is no bound" in said


def test_a_private_card_tells_no_count(private: RunFolder) -> None:
    said = card(private)
    for site in SITES:
        assert f"| {site} | test | not told | not told |" in said
    assert "| AUC" not in said and "Private linear SVM" in said and "steps of DP-SGD" in said
    assert f"epsilon {run_epsilon(private_study(svm=True))[0]:.3f}" in said


def test_a_statement_names_parameters_constants_and_every_release(private: RunFolder) -> None:
    said = statement(private)
    pld, rdp = run_epsilon(private_study(svm=True))
    for site in SITES:
        assert f"| {site} | {pld:.4f} | 1e-5 | its signed RESERVE entry | none | 7.2500 of 20 at delta 1e-6 |" in said
    for part in (
        *(
            "update of a round",
            "fit of the private SVM",
            "confusion counts of the test patients (network and private SVM)",
        ),
        *("q = 1/20", "sigma = 1.0", "sigma = 4.0", "C = 1.0", "normaliser = 16", "epsilon = 1,", f"{rdp:.4f} (RDP)"),
        *(
            "added or removed",
            "dp-accounting 0",
            "Poisson sampling",
            "Floating point",
            "central",
            "What is not covered",
        ),
    ):
        assert part in said, part
    assert "agree within" in said and "infinite" not in said and "None" not in said


def test_a_round_that_was_begun_again_raises_the_guarantee(tmp_path: Path) -> None:
    said = statement(write_private_run(tmp_path / "r", begun_again=1))
    more = pld_epsilon(study_events(private_study(rounds=3)), 1e-5)
    assert f"differentially private with epsilon {more:.4f}" in said
    assert f"| 1, epsilon {more:.4f} with them |" in said


def test_a_plain_statement_says_that_there_is_no_bound(plain: RunFolder) -> None:
    said = statement(plain)
    assert "> **This run has no differential privacy: there is no bound" in said
    assert "epsilon is infinite" in said and "unbounded: no noise" in said


def test_noise_on_counts_alone_is_no_guarantee(tmp_path: Path) -> None:
    study = example_study(evaluation={"baseline": False, "release": {"epsilon": "1"}})
    said = statement(write_example_run(tmp_path / "r", study=study, finished_rounds=1, state="stopped", reason="x"))
    assert "epsilon is infinite" in said and "It bounds nothing of what updates and model say" in said


def test_a_run_that_has_not_finished_says_so(tmp_path: Path) -> None:
    folder = write_private_run(tmp_path / "r")
    (folder.path / "evaluation.json").unlink()
    folder.update_run(state="failed", reason="nobody came")
    assert "> **The run has not finished." in statement(folder)
    assert "no hospital sent an evaluation" in card(folder) and "None: " in card(folder)


def test_more_classes_have_their_rows(tmp_path: Path) -> None:
    said = card(
        write_example_run(tmp_path / "skin", study=example_study(classes=SKIN), stand_in="lesion_id", synthetic=False)
    )
    assert "| basal cell |" in said and "lesion_id stands in" in said


def test_both_forms_say_the_same(private: RunFolder) -> None:
    report = build_report(private)
    for document in (model_card(report), privacy_statement(report, private.study())):
        page, text = html(document), markdown(document)
        assert "<script" not in page and "http" not in page
        assert page.count('<mark class="fill">') == document.to_fill + 1
        missing = set(words(re.sub(r"[\\*|#>]", " ", text))) - set(words(page)) - {"---", "-"}
        assert not missing


def test_what_would_be_markup_is_none() -> None:
    evil = "<script>x</script> | *b* [l](u) `c`"
    blocks = [
        Paragraph(evil),
        Bullets([evil, Fill(evil, evil)]),
        Facts([(evil, evil)]),
        Table(evil, [evil, "b"], [[evil, evil]]),
    ]
    document = Document("n", evil, evil, [Section(evil, blocks)], evil)
    text = markdown(document)
    assert not re.search(r"(?<!\\)<script", text) and "\\| \\*b\\* \\[l\\](u) \\`c\\`" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows)
    assert "<script" not in html(document)


def test_the_command_writes_four_files_and_none_over_another(private: RunFolder, tmp_path: Path) -> None:
    out = tmp_path / "made" / "documents"
    asked = ["documents", str(private.path), "--out", str(out)]
    assert CliRunner().invoke(app, asked).exit_code == 0
    names = ["model-card.html", "model-card.md", "privacy-statement.html", "privacy-statement.md"]
    assert sorted(path.name for path in out.iterdir()) == names
    (out / "model-card.md").write_text("filled in")
    problem = CliRunner().invoke(app, asked).exception
    assert isinstance(problem, InputError) and "model-card.md" in str(problem)
    assert (out / "model-card.md").read_text() == "filled in"
    assert CliRunner().invoke(app, [*asked, "--overwrite"]).exit_code == 0
    assert (out / "model-card.md").read_text() != "filled in"


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError):
        write_documents(RunFolder(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()
