"""A private run's report: epsilons by the hospitals' signed entries, noise that the page speaks of, and nothing that has not left."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from example_run import example_study, write_example_run
from private_run import COUNTS, SITES, private_study, write_private_run

from server.report import build_report, render
from server.report.noised_words import above_chance, headlines, noised, summary
from server.report.schema import Report
from server.report.words import number
from server.site_ledgers import ledgers_of
from shared.metrics.noised import pooled_noised
from shared.privacy.pld import pld_epsilon
from shared.study_cost import run_epsilon, study_events


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return build_report(write_private_run(tmp_path_factory.mktemp("runs") / "private"))


@pytest.fixture(scope="module")
def page(report: Report) -> str:
    return render(report)


def section(page: str, name: str) -> str:
    found = re.search(rf'<section id="{name}".*?</section>', page, re.DOTALL)
    assert found is not None, name
    return " ".join(re.sub(r"<[^>]+>", " ", found[0]).split())


def test_epsilons_are_what_the_hospitals_signed(report: Report) -> None:
    found = report.privacy
    assert found is not None and sorted(found.sites) == sorted(SITES)
    pld, rdp = run_epsilon(private_study())
    assert (found.epsilon_pld, found.epsilon_rdp, found.delta) == (pld, rdp, "1e-5")
    for one in found.sites.values():
        assert (one.source, one.epsilon, one.delta, one.updates) == ("ledger", pld, "1e-5", 2)
        assert (one.charged, one.lifetime_epsilon, one.lifetime_delta, one.begun_again) == (7.25, "20", "1e-6", 0)


def test_without_signed_entries_the_study_says(tmp_path: Path) -> None:
    report = build_report(write_private_run(tmp_path / "r", signed=False))
    assert report.privacy is not None
    assert {one.source for one in report.privacy.sites.values()} == {"study"}
    assert {one.epsilon for one in report.privacy.sites.values()} == {run_epsilon(private_study())[0]}
    assert "no signed entry is here" in section(render(report), "privacy")


def test_entries_under_another_key_count_for_nothing(tmp_path: Path) -> None:
    folder = write_private_run(tmp_path / "r")
    run = folder.run()
    swapped = dict(zip(run.site_keys, reversed(run.site_keys.values()), strict=True))
    folder.update_run(site_keys=swapped)
    assert ledgers_of(folder) == {}


def test_a_round_that_was_begun_again_is_another_release(tmp_path: Path) -> None:
    report = build_report(write_private_run(tmp_path / "r", begun_again=1))
    assert report.privacy is not None
    one = report.privacy.sites["harbour"]
    study = private_study(rounds=3)
    assert one.begun_again == 1 and one.epsilon_begun_again is not None
    assert (one.charged, report.privacy.sites["north"].charged) == (8.5, 7.25)
    assert one.epsilon_begun_again == pytest.approx(pld_epsilon(study_events(study), 1e-5))
    assert one.epsilon_begun_again > one.epsilon
    assert f"{one.epsilon_begun_again:.3f} in all" in section(render(report), "privacy")
    assert f"epsilon {one.epsilon_begun_again:.2f} " in summary(report)[1].text


def test_nothing_that_did_not_leave_is_spoken_of(page: str) -> None:
    text = " ".join(re.sub(r"<[^>]+>", " ", page.split("<pre>")[0]).split())
    assert "None" not in text and "nan" not in text.lower().split()
    for name in ("gain", "roc"):
        assert f'id="{name}"' not in page and f'href="#{name}"' not in page
    assert "Training loss" not in page and "records left out" not in page
    assert "left out, because the counts carry noise" in section(page, "classes")
    assert "FP + FN" not in page
    assert "AUC" not in section(page, "figures").replace("AUC: not known", "")
    assert ">AUC<" not in page


def test_every_link_leads_somewhere(page: str) -> None:
    ids = re.findall(r'<section id="([a-z]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([a-z]+)"', page)) <= set(ids)


def test_pooled_figures_are_those_of_the_noised_counts(report: Report, page: str) -> None:
    overall, _ = pooled_noised([(COUNTS[site], 1.0) for site in SITES], positive=1, confidence=0.95)
    pooled = report.pooled.network
    assert pooled is not None and pooled.patients is None
    assert (pooled.sensitivity.value, pooled.sensitivity.low) == (
        overall["sensitivity"].value,
        overall["sensitivity"].low,
    )
    assert "noise" in pooled.sensitivity.how and "bootstrap" not in pooled.sensitivity.how
    assert number(pooled.balanced_accuracy.value) in section(page, "figures")


def test_the_summary_speaks_of_noise_and_of_balanced_accuracy(report: Report) -> None:
    said = summary(report)
    assert noised(report)
    assert [one.label for one in said] == ["the run", "privacy", "counted", "", "", "not measured"]
    assert "intervals account for the noise" in said[2].text and "about 67 malignant and 96 other" in said[2].text
    assert said[3].proof == "shown" and "chance would be 50" in said[3].text
    assert report.pooled.network is not None and above_chance(report, report.pooled.network) == "shown"
    assert all("noise included" in one.interval for one in headlines(report))


def test_the_privacy_section_names_every_release_and_the_noise(page: str, report: Report) -> None:
    text = section(page, "privacy")
    for part in ("q = 1/20", "sigma = 1.0", "C = 1.0", "normaliser = 16", "epsilon = 1,", "standard deviation of 1.36"):
        assert part in text, part
    assert "Not covered" in text and "7.25 of 20 at delta 1e-6" in text
    assert "91" in section(page, "curves") and "92" in section(page, "curves")


def test_a_private_svm_is_called_one(tmp_path: Path) -> None:
    report = build_report(write_private_run(tmp_path / "r", study=private_study(svm=True)))
    page = render(report)
    assert "Private linear SVM" in section(page, "figures")
    assert "fit of the private SVM" in section(page, "privacy") and "sigma = 4.0" in section(page, "privacy")
    assert "Fourier" in section(page, "glossary")


def test_a_private_run_without_an_evaluation_has_a_page(tmp_path: Path) -> None:
    folder = write_private_run(tmp_path / "r")
    (folder.path / "evaluation.json").unlink()
    folder.update_run(state="failed", reason="nobody came")
    page = render(build_report(folder))
    assert "11" not in section(page, "words").split() and "epsilon" in section(page, "words")
    assert "None" not in page.split("<pre>")[0]


def test_a_plain_run_says_that_there_is_no_bound(tmp_path: Path) -> None:
    report = build_report(write_example_run(tmp_path / "plain", finished_rounds=1))
    assert report.privacy is None and not noised(report)
    assert "No formal guarantee" in section(render(report), "privacy")


def test_noised_counts_of_a_plain_run_have_a_page_without_a_guarantee(tmp_path: Path) -> None:
    study = example_study(evaluation={"baseline": False, "release": {"epsilon": "1"}})
    folder = write_example_run(tmp_path / "plain", study=study, sites=SITES)
    evaluated = write_private_run(tmp_path / "private").final()
    assert evaluated is not None
    folder.write("evaluation.json", evaluated)
    report = build_report(folder)
    page = render(report)
    assert noised(report) and report.privacy is None
    assert "No formal guarantee" in section(page, "privacy") and "standard deviation of 1.36" in section(
        page, "privacy"
    )
    assert "Training loss" in section(page, "curves") and "Patients and findings by part" in section(page, "data")
    assert "None" not in page.split("<pre>")[0] and 'id="roc"' not in page
    assert [one.label for one in summary(report)][:2] == ["the run", "counted"]


def test_a_private_run_before_its_first_round_has_a_page(tmp_path: Path) -> None:
    folder = write_private_run(tmp_path / "r", signed=False)
    (folder.path / "evaluation.json").unlink()
    for finished in (1, 2):
        (folder.round_path(finished) / "round.json").unlink()
    folder.update_run(state="failed", reason="nobody came")
    page = render(build_report(folder))
    ids = re.findall(r'<section id="([a-z]+)"', page)
    assert set(re.findall(r'href="#([a-z]+)"', page)) <= set(ids) and "curves" not in ids
