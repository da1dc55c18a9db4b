"""A private run that finds masks: its report, questions, comparison, documents and audit know the noised counts by IoU and nothing else."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from private_run import BY_IOU, SITES, private_study, write_private_run
from rich.console import Console
from test_audit_of_a_private_run import found, unproven
from test_segmentation_report import SEGMENTATION
from typer.testing import CliRunner

from benchmarks.ledgered_run import LedgeredFederation
from benchmarks.ledgered_run import private_study as ledgered_study
from client.gate import Result, Task
from server.cli import app
from server.comparison import comparison, side_of
from server.documents.model_card import model_card
from server.documents.privacy_statement import privacy_statement
from server.documents.rendering import markdown
from server.report import build_report, render
from server.report.noised_mask_words import headlines, summary
from server.report.words import number
from server.run_folder import RunFolder
from shared.audit.ledger import FIGURES
from shared.audit.private_record import EXACT, NOISED
from shared.metrics.noised_masks import pooled_noised_masks
from shared.results import Estimate
from tests.server.example_run import example_study, write_example_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return write_private_run(tmp_path_factory.mktemp("runs") / "masks", study=private_study(masks=True))


@pytest.fixture(scope="module")
def page(run: RunFolder) -> str:
    return render(build_report(run))


def text_of(page: str) -> str:
    return " ".join(
        re.sub(r"<[^>]+>", " ", re.sub(r"<style.*?</style>", "", page.split("<pre>")[0], flags=re.S)).split()
    )


def section(page: str, name: str) -> str:
    one = re.search(rf'<section id="{name}".*?</section>', page, re.DOTALL)
    assert one is not None, name
    return text_of(one[0])


def test_pooled_figures_are_those_of_the_noised_counts_added_up(run: RunFolder) -> None:
    report = build_report(run)
    expected = pooled_noised_masks([(BY_IOU[site], 1.0) for site in SITES], confidence=0.95)
    pooled = report.pooled.masks
    assert pooled is not None and (pooled.patients, pooled.images, pooled.classes, pooled.gain) == (
        None,
        None,
        [],
        None,
    )
    assert pooled.counts == [sum(cell) for cell in zip(*BY_IOU.values(), strict=True)]
    for name, figure in expected.items():
        one = getattr(pooled, name)
        assert (one.value, one.low, one.high, one.images) == (figure.value, figure.low, figure.high, sum(pooled.counts))
        assert "noise" in one.how and "bootstrap" not in one.how
    assert pooled.pixel_accuracy.value is pooled.sensitivity.value is pooled.specificity.value is None
    for site in SITES:
        masks = report.sites[site].masks
        assert masks is not None and (masks.noise, masks.counts, masks.patients) == ("1", BY_IOU[site], None)


def test_the_page_speaks_of_noise_and_of_nothing_that_did_not_leave(run: RunFolder, page: str) -> None:
    report, text = build_report(run), text_of(page)
    said = summary(report)
    assert [one.label for one in said] == ["the run", "privacy", "counted", "not measured"]
    assert (
        "they add up to about 181 test patients at 2 hospitals" in said[2].text and "width of the bins" in said[2].text
    )
    assert all("noise included" in one.interval for one in headlines(report))
    assert "None" not in text and "nan" not in text.lower().split()
    masks = section(page, "masks")
    assert "0.65 to 0.70 12 18 30" in masks and "0.95 to 1.00 1 0 1" in masks
    assert report.pooled.masks is not None and number(report.pooled.masks.thresholded_iou.value) in masks
    for gone in ("Pixel", "By class", "What training changed", "Test images"):
        assert gone not in masks, gone
    assert "Test patients by IoU carry" not in text and "The counts of test patients by IoU carry two-sided" in section(
        page, "privacy"
    )
    assert "test patients by IoU (network)" in section(page, "privacy")
    assert "“Shown” means" not in text, "nothing is shown of a run without a comparison"
    assert "within its bin of 0.05" in section(page, "glossary") and "Epsilon, delta" in section(page, "glossary")
    assert set(re.findall(r'href="#([a-z]+)"', page)) <= set(re.findall(r'id="([a-z]+)"', page))


def test_an_external_test_counts_with_noise_too_and_is_in_no_pooled_figure(tmp_path: Path) -> None:
    report = build_report(write_private_run(tmp_path / "r", study=private_study(masks=True), external=("north",)))
    assert report.pooled.masks is not None and report.pooled.masks.counts == BY_IOU["harbour"]
    said = next(one for one in summary(report) if one.label == "external test")
    assert "north, which never trained" in said.text and said.text.endswith("on counts with noise.")
    assert "external test" in section(render(report), "masks")


def test_a_run_without_an_evaluation_says_so(tmp_path: Path) -> None:
    folder = write_private_run(tmp_path / "r", study=private_study(masks=True))
    (folder.path / "evaluation.json").unlink()
    report = build_report(folder)
    assert report.pooled.masks is None
    assert "no test figures" in text_of(render(report)) or "not evaluated" in text_of(render(report))
    assert [one.label for one in summary(report)][:2] == ["the run", "privacy"]


def test_what_it_learned_can_not_be_said_and_is_not(run: RunFolder) -> None:
    said = CliRunner().invoke(app, ["learned", str(run.path)])
    assert said.exit_code == 1
    first, answer = " ".join(said.output.split()).split(". ", 1)
    assert "Counts of test patients by IoU left once, with noise" in first
    assert (
        answer.startswith("no all hospitals: the final model's masks are better") and "not known; mean IoU 0." in answer
    )


def test_it_stands_beside_a_plain_run_of_masks(run: RunFolder, tmp_path: Path) -> None:
    plain = write_example_run(tmp_path / "plain", study=example_study(**SEGMENTATION))
    stream = io.StringIO()
    Console(file=stream, width=160).print(comparison([side_of(run.path), side_of(plain.path)]))
    row = next(line for line in stream.getvalue().splitlines() if "all" in line and "IoU" in line)
    pooled, other = build_report(run).pooled.masks, build_report(plain).pooled.masks
    assert pooled is not None and other is not None
    assert f"{pooled.iou.value:.2f} (" in row and f"{other.iou.value:.2f} (" in row


def test_card_and_statement_say_how_the_figures_left(run: RunFolder) -> None:
    report = build_report(run)
    card = " ".join(markdown(model_card(report)).split())
    assert "counts of test patients by IoU, in 20 bins and with two-sided geometric noise" in card
    assert "Masks of the final model, by hospital." in card and ", by class." not in card and "Pixel" not in card
    assert "there is no evaluation of round 0" in card and "None" not in card
    statement = " ".join(markdown(privacy_statement(report, run.study())).split())
    assert "test patients by IoU (network)" in statement and "one patient changes one cell by one" in statement


# -- the audit, of real gates and ledgers ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> LedgeredFederation:
    federation = LedgeredFederation.make(tmp_path_factory.mktemp("audit"), ledgered_study(masks=True, rounds=1))
    federation.conduct()
    return federation


def test_all_is_proven_of_a_private_run_of_masks(federation: LedgeredFederation) -> None:
    checks = found(federation.folder.path)
    assert unproven(checks) == {}
    assert checks[NOISED].why.startswith("3 tables of counts") and {EXACT, FIGURES} <= set(checks)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"iou": {"value": 0.9, "low": 0.8, "high": 0.95}}, "clara, masks: iou is 0.9, its counts give 0."),
        ({"noise": "2"}, "clara, masks: noise of epsilon 2, the study allows 1"),
    ],
)
def test_a_figure_that_the_counts_do_not_give_is_named(
    federation: LedgeredFederation, change: dict[str, object], words: str
) -> None:
    path = federation.folder.path / "evaluation.json"
    before = path.read_bytes()
    body = json.loads(before)
    body["sites"]["clara"]["noised_masks"].update(change)
    path.write_text(json.dumps(body))
    try:
        checks = found(federation.folder.path)
    finally:
        path.write_bytes(before)
    assert checks[NOISED].outcome == checks[EXACT].outcome == checks[FIGURES].outcome == "violated"
    assert words in checks[NOISED].why


def test_figures_that_the_counts_do_not_give_pass_neither_gate_nor_coordinator(tmp_path: Path) -> None:
    federation = LedgeredFederation.make(tmp_path, ledgered_study(masks=True, rounds=1))
    bold = federation.hospitals["anna"]
    work = bold.work

    def improved(task: Task) -> Result:
        result = work(task)
        if result.evaluated is None or result.evaluated.noised_masks is None:
            return result
        masks = result.evaluated.noised_masks.model_copy(update={"iou": Estimate(value=0.9, low=0.8, high=0.95)})
        evaluated = result.evaluated.model_copy(update={"noised_masks": masks})
        return Result(evaluated=evaluated, svm=result.svm, patients=result.patients)

    bold.work = improved  # type: ignore[method-assign]
    federation.conduct()
    final = federation.folder.final()
    assert final is not None and sorted(final.sites) == ["berta", "clara"]
    assert [(one.site, one.code) for one in final.missing] == [("anna", "CONS-220")]
