"""The page: self-contained, escaped, readable, and saying what the figures say."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from example_run import SITES, SKIN, example_study, write_example_run

from server.report import build_report, render
from server.report.schema import HeadReport, PooledDifference, Report
from server.report.words import (
    above_chance,
    headlines,
    improvement,
    joined,
    moment,
    number,
    signed_number,
    summary,
)
from shared.results import Difference
from shared.run_records import FinalRecord, Miss

VOID = {"meta", "br", "hr", "img", "input", "link"}
CSS = (Path(__file__).parents[2] / "server" / "report" / "report.css").read_text()


class Page(HTMLParser):
    """Tags, attributes and text by section; fails on tags that don't close."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.sections: dict[str, str] = {}
        self._section = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "section":
            self._section = dict(attrs)["id"] or ""
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"
        if tag in ("td", "th"):
            self.handle_data(" ")
        if tag == "section":
            self._section = ""

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)
            self.sections[self._section] = self.sections.get(self._section, "") + data

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return build_report(write_example_run(tmp_path_factory.mktemp("runs") / "demo"))


@pytest.fixture(scope="module")
def html(report: Report) -> str:
    return render(report)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def edited(report: Report, path: str, value: Any) -> Report:
    """The report with one value of its JSON changed, as `pooled.svm.auc.low`."""
    data = report.model_dump(by_alias=True)
    *parents, last = path.split(".")
    place = data
    for key in parents:
        place = place[key]
    place[last] = value
    return Report.model_validate(data)


def test_the_page_needs_nothing_else_and_runs_nothing(html: str, page: Page) -> None:
    assert not {"script", "link", "iframe", "object", "img"} & set(page.tags)
    assert "@import" not in html
    assert set(re.findall(r"url\(([^)]*)\)", html)) <= {f"#h{index}" for index in range(6)}
    assert all(value.startswith("#") for value in page.values("href") + page.values("src"))
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]


def test_anchors_lead_somewhere_and_ids_are_unique(page: Page) -> None:
    ids = Counter(page.values("id"))
    assert max(ids.values()) == 1
    assert {value.removeprefix("#") for value in page.values("href")} <= set(ids)


def test_every_chart_tells_a_screen_reader_what_it_is(page: Page) -> None:
    drawings = page.tags["svg"]
    labels = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]
    hidden = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-hidden")]
    assert len(labels) + len(hidden) == drawings
    assert len(labels) == len(set(labels)) == 11


def test_what_comes_from_the_run_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script> & <b>bold</b>"
    study = example_study(
        title=evil, description=evil, governance={"purpose": evil, "ethics": "none", "retention": "none"}
    )
    folder = write_example_run(
        tmp_path / "x", study=study, state="failed", finished_rounds=1, reason=evil, stand_in=evil
    )
    html = render(build_report(folder))
    page = Page(html)
    assert page.tags["script"] == 0
    assert html.count("&lt;script&gt;") >= 5
    assert page.words.count(evil) >= 5


def test_in_stages_each_says_what_is_sent_back(report: Report, page: Page) -> None:
    assert "81.8 MiB of model to each hospital in each round and 81.8 MiB back;" in page.words
    staged = Page(render(edited(report, "run.bytes_up_by_stage", [2**20, 3 * 2**19])))
    assert "in each round and 1.0 MiB, 1.5 MiB back in its stages, without what each holds;" in staged.words


def test_the_summary_says_the_figures(report: Report, page: Page) -> None:
    svm = report.pooled.svm
    assert svm is not None and svm.sensitivity.value and svm.sensitivity.low and svm.sensitivity.high
    found = svm.sensitivity
    text = (
        f"Of every 100 malignant findings, the SVM found {found.value * 100:.0f} (95 % interval {found.low * 100:.0f} to "
        f"{found.high * 100:.0f})"
    )
    assert text in page.words
    assert f"counted on {sum(svm.confusion[1])} malignant and {sum(svm.confusion[0])} other test findings" in page.words
    assert [one.value for one in headlines(report)] == [
        f"{figure.value * 100:.0f}" for figure in (svm.sensitivity, svm.specificity, svm.auc, svm.balanced_accuracy)
    ]


def test_every_table_of_figures_holds_value_and_interval_of_each_site(report: Report, page: Page) -> None:
    text = " ".join(page.sections["figures"].split())
    for site in SITES:
        for head in (report.sites[site].svm, report.sites[site].network):
            assert head is not None
            for figure in (head.auc, head.sensitivity, head.specificity, head.precision, head.f1, head.accuracy):
                assert f"{number(figure.value)} {figure.low:.2f} to {figure.high:.2f}" in text


def test_what_intervals_show_is_kept_apart_from_what_they_don_t(report: Report) -> None:
    def proofs(of: Report) -> list[str]:
        return [statement.proof for statement in summary(of)]

    assert proofs(report) == ["plain", "plain", "shown", "shown", "shown", "shown", "plain"]
    unsure = edited(edited(report, "pooled.svm.auc.low", 0.49), "pooled.svm.gain.auc.low", -0.01)
    assert proofs(unsure) == ["plain", "plain", "not shown", "not shown", "shown", "shown", "plain"]
    worse = edited(edited(report, "pooled.svm.gain.auc.low", -0.3), "pooled.svm.gain.auc.high", -0.1)
    assert "training made it worse" in summary(worse)[3].text
    assert "▼ worse" in Page(render(worse)).words
    alone = edited(report, "sites.hill.svm.auc.low", 0.5)
    assert "not shown to be above chance at hill; at harbour and north it is" in summary(alone)[5].text


def test_a_model_that_learned_nothing_is_not_praised(tmp_path: Path) -> None:
    report = build_report(write_example_run(tmp_path / "chance", separation=-0.1))
    said = {statement.text: statement.proof for statement in summary(report)}
    changes = [proof for text, proof in said.items() if text.startswith("The rounds changed")]
    assert len(changes) == 2 and "shown" not in changes


@pytest.mark.parametrize(
    ("low", "high", "proof"),
    [
        (0.01, 0.2, "shown"),
        (0.0, 0.2, "not shown"),
        (-0.1, 0.2, "not shown"),
        (-0.2, -0.01, "worse"),
        (-0.2, 0.0, "not shown"),
    ],
)
def test_an_improvement_is_shown_only_by_an_interval_on_one_side_of_0(low: float, high: float, proof: str) -> None:
    assert improvement(PooledDifference(value=0, low=low, high=high, how="")) == proof
    assert improvement(Difference(value=0, low=low, high=high, standard_error=0.1)) == proof


def head_with(report: Report, *, low: float | None, positives: int, others: int) -> HeadReport:
    """A hospital's SVM with another AUC interval and other counts of images."""
    head = next(iter(report.sites.values())).svm
    assert head is not None
    auc = head.auc.model_copy(update={"value": 0.9, "low": low, "high": None if low is None else 0.95})
    return head.model_copy(
        update={
            "auc": auc,
            "sensitivity": head.sensitivity.model_copy(update={"images": positives}),
            "specificity": head.specificity.model_copy(update={"images": others}),
        }
    )


def test_chance_is_beaten_only_by_an_interval_above_it(report: Report) -> None:
    said = [above_chance(head_with(report, low=low, positives=40, others=40)) for low in (0.51, 0.5, 0.3, None)]
    assert said == ["shown", "not shown", "not shown", "plain"]


@pytest.mark.parametrize(
    ("positives", "others", "proof"), [(10, 10, "shown"), (9, 400, "not shown"), (400, 9, "not shown")]
)
def test_nothing_is_called_shown_on_a_handful_of_images(
    report: Report, positives: int, others: int, proof: str
) -> None:
    assert above_chance(head_with(report, low=0.8, positives=positives, others=others)) == proof


def test_synthetic_data_is_called_so_in_every_section_with_a_figure_from_it(page: Page, tmp_path: Path) -> None:
    for section in ("words", "figures", "gain", "classes", "roc", "confusion", "curves", "data"):
        assert "synthetic data" in page.sections[section], section
    assert "Synthetic data" in page.sections["limits"]
    real = Page(render(build_report(write_example_run(tmp_path / "real", synthetic=False, stand_in="lesion_id"))))
    assert "synthetic data" not in real.words.lower()
    assert "lesion_id" in real.sections["data"] and "lesion_id" in real.sections["limits"]
    assert "not a medical device" in real.words.lower()


def test_a_run_without_an_evaluation_says_so_and_shows_its_rounds(tmp_path: Path) -> None:
    folder = write_example_run(tmp_path / "demo", finished_rounds=2, state="failed", reason="1 of 3 sites, quorum 2")
    page = Page(render(build_report(folder)))
    assert "This run failed" in page.words and "1 of 3 sites, quorum 2" in page.words
    assert "not evaluated: there are no test figures" in page.words
    assert {"figures", "gain", "roc", "confusion"}.isdisjoint(page.sections)
    assert "Training loss" in page.sections["curves"]


def test_a_run_that_failed_before_its_first_round_still_has_a_page(tmp_path: Path) -> None:
    folder = write_example_run(tmp_path / "demo", finished_rounds=0, state="failed", reason="nobody came")
    (folder.round_path(0) / "round.json").unlink()
    page = Page(render(build_report(folder)))
    assert "nobody came" in page.words
    assert "curves" not in page.sections
    assert "its counts are not in the records" in page.sections["data"]


def test_the_pooled_row_says_when_a_hospital_is_not_part_of_it(tmp_path: Path) -> None:
    folder = write_example_run(tmp_path / "demo")
    final = folder.final()
    assert final is not None
    rest = {site: one for site, one in final.sites.items() if site != "hill"}
    missing = [Miss(site="hill", reason="refused", code="CONS-110")]
    folder.write("evaluation.json", FinalRecord(model=final.model, sites=rest, missing=missing, timing=final.timing))
    page = Page(render(build_report(folder)))
    assert "2 of 3 hospitals" in page.sections["figures"] and "All hospitals" not in page.sections["figures"]
    assert re.search(r"final evaluation\s+hill\s+refused \(CONS-110\)", page.sections["part"])


def test_who_missed_a_round_is_named_with_the_reason(page: Page) -> None:
    text = " ".join(page.sections["part"].split())
    assert "round 3 hill sent an answer that can't be used (CONS-250)" in text
    assert "came late and was ignored" in text


@pytest.mark.parametrize("change", [{"head": None}, {"evaluation": {"resamples": 200, "minimum_cell": 60}}])
def test_pages_of_studies_without_svm_or_with_histograms_that_may_not_leave(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    folder = write_example_run(tmp_path / "demo", study=example_study(**change))
    if change.get("head", 1) is None:
        final = folder.final()
        assert final is not None
        sites = {
            site: one.model_copy(update={"svm": None, "svm_paper": None, "svm_choice": None})
            for site, one in final.sites.items()
        }
        folder.write("evaluation.json", final.model_copy(update={"sites": sites}))
    page = Page(render(build_report(folder)))
    assert ("SVM on the common network" in page.words) == ("head" not in change)
    if "evaluation" in change:
        assert "cells are too small to leave" in page.sections["roc"]


def test_many_classes_have_a_matrix_and_a_row_each(tmp_path: Path) -> None:
    report = build_report(write_example_run(tmp_path / "skin", study=example_study(classes=SKIN), synthetic=False))
    page = Page(render(report))
    assert "basal cell" in page.sections["classes"]
    assert "Of every 100 melanoma images" in page.words
    hits = [value for tag, name, value in page.attributes if (tag, name, value) == ("td", "class", "hit")]
    assert len(hits) == 4 * 4 * 2  # classes, three hospitals and all, two heads


def test_one_hospital_alone_has_a_page(tmp_path: Path) -> None:
    page = Page(render(build_report(write_example_run(tmp_path / "one", sites=("north",)))))
    assert "One hospital (north)" in page.words


def test_words() -> None:
    assert joined(["a"]) == "a" and joined(["a", "b"]) == "a and b" and joined(["a", "b", "c"]) == "a, b and c"
    assert signed_number(-0.126) == "−0.13" and signed_number(0.3) == "+0.30"
    assert number(None) == "–"
    assert moment("2026-03-02T08:04:10+00:00") == "2 March 2026, 08:04 UTC"
    assert moment("soon") == "soon"


# -- colours -----------------------------------------------------------------------------------------------------------


def palettes() -> dict[str, dict[str, str]]:
    blocks = re.findall(r":root \{(.*?)\}", CSS, flags=re.DOTALL)
    assert len(blocks) == 3
    return {
        name: dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", block))
        for name, block in zip(("light", "dark", "print"), blocks, strict=True)
    }


def contrast(one: str, other: str) -> float:
    """WCAG 2.2 contrast ratio."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("mode", ["light", "dark", "print"])
def test_text_and_lines_stand_out_in_every_mode(mode: str) -> None:
    palette = palettes()[mode]
    for name in ("ink", "soft", "good", "open", "bad"):
        assert contrast(palette[name], palette["paper"]) >= 4.5, name
        assert contrast(palette[name], palette["tint"]) >= 4.5, name
    assert contrast(palette["warn-ink"], palette["warn-paper"]) >= 4.5
    for index in range(7):
        assert contrast(palette[f"s{index}"], palette["paper"]) >= 3.0, index
