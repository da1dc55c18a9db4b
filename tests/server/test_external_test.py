"""A hospital that never trains tests the final model: it is not asked to train, counts for no quorum, and is shown apart."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pytest
from example_run import write_example_run
from private_run import write_private_run
from rich.console import Console
from test_rounds import SITES, FakeSite, Federation, quick  # noqa: F401  (the fixture shortens the waits)

from benchmarks.bare_run import evaluated_answer, prepared_answer
from server.comparison import comparison, side_of
from server.documents.model_card import model_card
from server.documents.rendering import markdown
from server.learned import questions_of_run
from server.report import build_report
from server.report.page import render
from server.report.words import all_hospitals, summary
from shared.audit.records import read_run
from shared.audit.run import audit_run
from shared.canonical import digest
from shared.errors import QuorumError
from shared.ledger.entries import figures_digest
from shared.messages import Instruction
from shared.results import Prepared


def outsider(site: FakeSite) -> FakeSite:
    """The site as one of the external test."""
    prepared = prepared_answer(images=site.images)
    empty = prepared.parts["train"].model_copy(update={"patients": 0, "images": 0, "by_class": [0, 0]})
    prepared = prepared.model_copy(
        update={"external": True, "parts": {"train": empty, "validation": empty, "test": prepared.parts["test"]}}
    )
    site.answers["prepare"] = lambda instruction, message: site.reply(instruction, message, prepared=prepared)
    return site


def test_it_prepares_and_evaluates_and_is_never_asked_to_train(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "run")
    outsider(federation.sites["clara"])
    federation.conduct()
    assert federation.sites["clara"].seen == [("prepare", 0), ("evaluate", 3)]
    rounds, final = federation.folder.rounds(), federation.folder.final()
    assert sorted(rounds[0].prepared) == list(SITES) and rounds[0].prepared["clara"].external
    for record in rounds[1:]:
        assert sorted(record.trained) == sorted(record.weights) == ["anna", "berta"]
        assert not record.missing and not record.late
    assert final is not None and sorted(final.sites) == list(SITES)
    assert "prepared; it never trains and tests the final model" in federation.notes()


def test_the_model_is_the_one_that_the_others_make_without_it(tmp_path: Path) -> None:
    with_it, without = Federation.make(tmp_path / "a"), Federation.make(tmp_path / "b")
    outsider(with_it.sites["clara"])
    without.sites["clara"].answers["prepare"] = without.sites["clara"].refuse("CONS-210")
    for one in (with_it, without):
        one.conduct()
    assert with_it.final_bytes() == without.final_bytes()


def test_only_sites_that_train_make_a_quorum(tmp_path: Path) -> None:
    federation = Federation.make(
        tmp_path / "run", quorum=2, join_deadline_s=2, round_deadline_s=2, prepare_deadline_s=2
    )
    for name in ("berta", "clara"):
        outsider(federation.sites[name])
    with pytest.raises(QuorumError, match=r"1 of 3 sites prepared \(berta, clara never train and don't count\), but"):
        federation.conduct()


def test_a_round_that_lacks_one_that_trains_is_not_saved_by_it(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "run", quorum=2)
    outsider(federation.sites["clara"])
    federation.sites["berta"].answers["train 2"] = federation.sites["berta"].refuse("CONS-210")
    with pytest.raises(QuorumError, match="1 of 3 sites finished round 2"):
        federation.conduct()


def test_it_may_go_offline_while_the_others_train(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "run")
    site, grid = outsider(federation.sites["clara"]), federation.grid
    anna = federation.sites["anna"]

    def away(instruction: Instruction, message: object) -> object:
        grid.offline = {"clara"} if instruction.round < 3 else set()
        return anna.usual(instruction, message)  # type: ignore[arg-type]

    anna.answers["train"] = away  # type: ignore[assignment]
    federation.conduct()
    assert all(not record.missing for record in federation.folder.rounds())
    assert site.seen == [("prepare", 0), ("evaluate", 3)]


def test_a_run_that_goes_on_asks_it_again_to_prepare_and_no_more(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "run", quorum=2)
    site, berta = outsider(federation.sites["clara"]), federation.sites["berta"]
    berta.answers["train 2"] = berta.refuse("CONS-210")
    with pytest.raises(QuorumError):
        federation.conduct()
    del berta.answers["train 2"]
    federation.conduct()
    assert site.seen == [("prepare", 0), ("prepare", 0), ("evaluate", 3)]


def test_the_audit_says_whether_it_trained(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "run")
    outsider(federation.sites["clara"])
    federation.conduct()
    checks = {one.name: one for one in audit_run(read_run(federation.folder.path)).checks}
    name = "who tests the final model as an outsider never trained it"
    assert (checks[name].outcome, checks[name].why) == ("proven", "no update of clara in 3 rounds")
    files = read_run(federation.folder.path)
    trained = files.rounds[1].trained
    forged = files.rounds[1].model_copy(update={"trained": {**trained, "clara": trained["anna"]}})
    files = dataclasses.replace(files, rounds=[files.rounds[0], forged, *files.rounds[2:]])
    (check,) = [one for one in audit_run(files).checks if one.name == name]
    assert check.outcome == "violated" and "clara trained" in check.why
    Federation.make(tmp_path / "other").conduct()
    assert name not in {one.name for one in audit_run(read_run(tmp_path / "other")).checks}


def test_the_report_shows_it_apart_and_pools_it_with_nobody(tmp_path: Path) -> None:
    report = build_report(write_example_run(tmp_path / "run", external=("hill",)))
    alone = build_report(write_example_run(tmp_path / "alone", sites=("north", "harbour")))
    assert report.external_sites == ["hill"] and report.sites["hill"].svm is None
    assert report.pooled == alone.pooled and report.pooled.network is not None
    assert report.pooled.network.sites == ["harbour", "north"]
    assert all_hospitals(report) == "All that trained"
    said = " ".join(one.text for one in summary(report))
    network = report.sites["hill"].network
    assert network is not None and network.auc.value is not None
    assert "2 hospitals (harbour and north) trained one common network" in said
    assert f"External test: at hill, which never trained, the network has AUC {network.auc.value:.2f}" in said
    page = render(report)
    table = page.split("The network's own answer")[1].split("</table>")[0]
    assert table.index("All that trained") < table.index("hill (external test)")
    assert "hill (external test)" not in page.split("SVM on the common network")[1].split("</table>")[0]
    assert "hill never trained; all other test patients" in page
    assert "How the model does at another hospital is not known" not in page


def test_an_artificial_division_is_told_on_the_page(tmp_path: Path) -> None:
    report = build_report(write_example_run(tmp_path / "run", artificial=True, synthetic=False))
    assert report.artificial_sites == ["harbour", "hill", "north"]
    page = render(report)
    assert "<b>Artificial division.</b> harbour, hill and north are no hospitals" in page
    assert "artificial division: part 3 of 3 of a published set (seed 1)" in page
    assert "rtificial division" not in render(build_report(write_example_run(tmp_path / "own")))


def test_its_evaluation_alone_is_no_evaluation_of_those_who_trained(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "run")
    outsider(federation.sites["clara"])
    for name in ("anna", "berta"):
        federation.sites[name].answers["evaluate"] = federation.sites[name].refuse("CONS-210")
    federation.sites["clara"].answers["evaluate"] = lambda instruction, message: federation.sites["clara"].reply(
        instruction, message, evaluated=evaluated_answer()
    )
    federation.conduct()
    report = build_report(federation.folder)
    assert report.pooled.network is None
    assert any("External test: at clara" in one.text for one in summary(report))


def test_what_all_hospitals_are_asked_is_asked_of_those_who_trained(tmp_path: Path) -> None:
    with_it = {one.text: one for one in questions_of_run(write_example_run(tmp_path / "run", external=("hill",)))}
    alone = {one.text: one for one in questions_of_run(write_example_run(tmp_path / "a", sites=("north", "harbour")))}
    assert with_it.keys() - alone.keys() == {"hill: its network is above chance"}
    assert all(with_it[text] == one for text, one in alone.items())


def test_documents_and_comparison_name_it_as_an_external_test(tmp_path: Path) -> None:
    folder = write_example_run(tmp_path / "run", external=("hill",), artificial=True)
    report = build_report(folder)
    card = markdown(model_card(report))
    assert "hill (external test)" in card and "All that trained" in card
    assert "hill never trained and tested the model as an outsider" in card
    assert "Artificial division (harbour, hill and north)" in card
    console = Console(file=io.StringIO(), width=200)
    console.print(comparison([side_of(folder.path), side_of(folder.path)]))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "hill (external test)" in text and "all that trained" in text


def test_a_private_run_charges_it_with_what_it_released(tmp_path: Path) -> None:
    folder = write_private_run(tmp_path / "run", external=("north",))
    report = build_report(folder)
    assert report.privacy is not None and report.pooled.network is not None
    assert report.pooled.network.sites == ["harbour"]
    sites = report.privacy.sites
    assert sites["north"].epsilon == pytest.approx(1.0, rel=0.01) and sites["harbour"].epsilon > 1.5
    assert "External test: at north, which never trained, the network has balanced accuracy" in render(report)


def test_figures_of_an_older_release_have_the_digest_that_they_had_then() -> None:
    """A field that a later release added, with a default, was in no ledger then."""
    prepared = prepared_answer()
    assert figures_digest(Prepared.model_validate_json(prepared.model_dump_json()), as_written=True) == figures_digest(
        prepared
    )
    older = {
        name: value
        for name, value in json.loads(prepared.model_dump_json()).items()
        if name not in ("external", "artificial_part")
    }
    assert figures_digest(Prepared.model_validate(older), as_written=True) == digest(older)
