"""consilium-audit on private runs: hospitals' real gates and ledgers around invented work. Each kind of tampering is detected and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from resigned import (
    Body,
    body_of,
    change_answers,
    change_entries,
    exchanges_of,
    sign_instruction_again,
    without,
)
from test_audit_of_a_run import audit, fingerprints

from benchmarks.bare_run import new_key
from benchmarks.ledgered_run import Hospital, LedgeredFederation, plain_study, private_study
from client.gate import Result, Task
from shared.audit.budgets import BUDGETS, CHARGED
from shared.audit.cohorts import COHORTS
from shared.audit.completeness import CLOSED, INSTRUCTED, RELEASED, RESERVED
from shared.audit.entries import CHAINED, RECEIPTS, SIGNED
from shared.audit.exchanges import Exchange
from shared.audit.exports import PREFIX, read_export
from shared.audit.gaps import spans, split
from shared.audit.ledger import FIGURES, ORDER, SIGNATURES, UPDATES, WRITER
from shared.audit.private_record import EXACT, NOISED
from shared.audit.records import read_run
from shared.audit.run import Audit, audit_run
from shared.audit.signatures import ANSWERS, INSTRUCTIONS, PREVIOUS, WRITERS
from shared.audit.spending import AGREE, CLAIMED, PROMISED, UNBOUNDED
from shared.audit.trust import read_trust
from shared.audit.verdict import Check
from shared.ledger.entries import ENTRY
from shared.signing import SigningKey, seal

MODELS = "the models are what the updates add up to"
ROUNDS = 3


@dataclass(frozen=True)
class Original:
    """Two private runs in a row of the same hospitals, and their keys."""

    federation: LedgeredFederation
    first: Path
    second: Path

    def key(self, site: str = "anna") -> SigningKey:
        return self.federation.hospitals[site].key

    def ledger(self, site: str = "anna") -> Path:
        return self.federation.hospitals[site].ledger


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Original:
    federation = LedgeredFederation.make(tmp_path_factory.mktemp("private"), private_study(rounds=ROUNDS, svm=True))
    first = federation.conduct()
    return Original(federation, first, federation.another_run("second", private_study(rounds=2)).conduct())


@pytest.fixture
def run(original: Original, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original.first, tmp_path / "run"))


def audited(run: Path, *ledgers: Path, trusted: list[str] | None = None) -> Audit:
    trust = read_trust(fingerprints(run) if trusted is None else trusted)
    return audit_run(read_run(run), trust, [read_export(path, trust) for path in ledgers])


def found(run: Path, *ledgers: Path, trusted: list[str] | None = None) -> dict[str, Check]:
    return {check.name: check for check in audited(run, *ledgers, trusted=trusted).checks}


def unproven(checks: dict[str, Check]) -> dict[str, str]:
    return {name: f"{check.outcome}: {check.why}" for name, check in checks.items() if check.outcome != "proven"}


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))


# -- what is proven ------------------------------------------------------------------------------------------------------


def test_all_is_proven_of_an_untouched_private_run(run: Path) -> None:
    audit = audited(run)
    checks = {check.name: check for check in audit.checks}
    assert unproven(checks) == {}
    assert {SIGNED, CHAINED, RECEIPTS, ORDER, INSTRUCTED, RESERVED, UPDATES, FIGURES, RELEASED, CLOSED} <= set(checks)
    assert {AGREE, CLAIMED, PROMISED, CHARGED, BUDGETS, EXACT, NOISED} <= set(checks)
    assert [cost.site for cost in audit.costs] == ["anna", "berta", "clara"]
    assert len({(cost.accounted, cost.spent_rdp, cost.charged) for cost in audit.costs}) == 1
    cost = audit.costs[0]
    assert cost.accounted.pld == pytest.approx(cost.accounted.independent, abs=0.02)
    assert cost.claimed == pytest.approx(cost.accounted.pld) and cost.charged is not None
    assert cost.spent_rdp == pytest.approx(cost.charged) and cost.spent_rdp > cost.accounted.pld


def test_a_plain_run_is_proven_to_have_no_bound(tmp_path: Path) -> None:
    run = LedgeredFederation.make(tmp_path, plain_study(rounds=1, keep_updates=True)).conduct()
    checks = found(run)
    assert unproven(checks) == {}
    assert checks[UNBOUNDED].why.startswith("no bound")
    assert not {AGREE, CHARGED, EXACT} & set(checks)


def test_a_second_run_shows_whose_ledger_it_is_and_leaves_the_first_one_out(original: Original) -> None:
    checks = found(original.second)
    assert unproven(checks) == {}
    assert "anna: 2-11 are of other runs, as the hospital says" in checks[CHAINED].why
    ledgers = [original.ledger(site) for site in ("anna", "berta", "clara")]
    closed = found(original.second, *ledgers)
    assert unproven(closed) == {}
    assert "other runs" not in closed[CHAINED].why
    assert "2 charges" in closed[f"anna's exported ledger: {COHORTS}"].why
    charges = [cost.charged or 0.0 for one in (original.first, original.second) for cost in audited(one).costs]
    assert charges[3] > charges[0], "the second charge covers both runs"


def test_rounds_that_were_begun_again_are_charged_by_rdp_and_never_claimed_by_pld(tmp_path: Path) -> None:
    class Killed(BaseException):
        """The coordinator's process ends here, after a START that nothing settles."""

    federation = LedgeredFederation.make(tmp_path, private_study(rounds=2))

    def die(hospital: Hospital, message: Message) -> None:
        def work(task: Task) -> Result:
            raise Killed

        from client import gate

        gate.answer(message, hospital.folder, work)

    federation.hospitals["berta"].instead["train 2"] = die
    with pytest.raises(Killed):
        federation.conduct()
    federation.hospitals["berta"].instead.clear()
    run = federation.conduct()
    audit = audited(run)
    checks = {check.name: check for check in audit.checks}
    assert set(unproven(checks)) <= {INSTRUCTED, PROMISED}, unproven(checks)
    assert checks[INSTRUCTED].outcome == "not checkable" and "berta, entry 5 (START)" in checks[INSTRUCTED].why
    assert "berta began 1 round(s) again" in checks[AGREE].why
    costs = {cost.site: cost for cost in audit.costs}
    assert costs["berta"].again == 1 and costs["berta"].spent_rdp > costs["clara"].spent_rdp
    assert costs["berta"].charged == pytest.approx(costs["berta"].spent_rdp)


def test_a_preparation_that_was_asked_for_again_is_among_the_files(tmp_path: Path) -> None:
    """What is entered between two lives of the coordinator reaches the auditor."""
    federation = LedgeredFederation.make(tmp_path, plain_study(rounds=2))

    class Killed(BaseException):
        pass

    def die(_hospital: Hospital, _message: Message) -> None:
        raise Killed

    federation.hospitals["clara"].instead["train 2"] = die
    with pytest.raises(Killed):
        federation.conduct()
    federation.hospitals["clara"].instead.clear()
    run = federation.conduct()
    assert (run / "rounds/0002/signed/anna.prepare.answer.json").exists()
    checks = found(run)
    assert [checks[name].outcome for name in (SIGNED, CHAINED, RECEIPTS, ORDER, UPDATES, FIGURES)] == ["proven"] * 6


# -- tampering: the check, what its sentence names, and what is done ---------------------------------------------------------


def rewritten(site: str, change: Callable[[Body], object]) -> Callable[[Path, Original], None]:
    return lambda run, original: change_entries(run, site, original.key(site), change)


def answered(site: str, change: Callable[[Exchange, Body], object]) -> Callable[[Path, Original], None]:
    return lambda run, original: change_answers(run, site, original.key(site), change)


def of_type(kind: str, **values: Any) -> Callable[[Body], None]:
    def change(entry: Body) -> None:
        if entry["type"] == kind:
            entry.update(values)

    return change


def less_noise(entry: Body) -> None:
    if entry["type"] == "RESERVE":
        entry["mechanism"]["noise_multiplier"] = "0.9"


def sigma_unsigned(_exchange: Exchange, body: Body) -> None:
    for place, line in enumerate(body["entries"]):
        entry = body_of(line)
        less_noise(entry)
        if entry["type"] == "RESERVE":
            body["entries"][place] = seal(ENTRY, entry, new_key())


def swapped(_exchange: Exchange, body: Body) -> None:
    body["entries"].reverse()


def cut_off(exchange: Exchange, body: Body) -> None:
    if exchange.kind == "evaluate":
        *body["entries"], _ = body["entries"]
        last = body_of(body["entries"][-1])
        body["receipt"] = {"seq": last["seq"], "digest": body_of_digest(body["entries"][-1])}


def body_of_digest(line: str) -> str:
    from shared.ledger.chain import payload_of
    from shared.signing import payload_digest

    return payload_digest(payload_of(line))


def foreign_entries(run: Path, original: Original) -> None:
    """What the hospital entered for its second run, in the answers of the first."""
    other = [line for one in exchanges_of(original.second, "anna") for line in body_of(one.text("answer"))["entries"]]

    def change(exchange: Exchange, body: Body) -> None:
        if exchange.kind == "evaluate":
            body["entries"] += [line for line in other if body_of(line).get("run")]

    change_answers(run, "anna", original.key(), change)


def signed_by_another(run: Path, original: Original) -> None:
    key = new_key()

    def change(_exchange: Exchange, body: Body) -> None:
        body["entries"] = [seal(ENTRY, body_of(line), key) for line in body["entries"]]

    change_answers(run, "anna", original.key(), change)


def record_written_anew(run: Path, original: Original) -> None:
    """Round 1's record, and every instruction that names it, by the coordinator's own hand."""
    from shared.canonical import file_digest

    path = run / "rounds/0001/round.json"
    edit(path, lambda body: body["timing"].update(wait=0.0))
    for site in ("anna", "berta", "clara"):
        for exchange in exchanges_of(run, site):
            if (exchange.kind, exchange.round) == ("train", 2):
                sign_instruction_again(exchange, original.federation.key, previous=file_digest(path))


def update_replaced(run: Path, _original: Original) -> None:
    shutil.copy(run / "rounds/0001/updates/berta.npy", run / "rounds/0001/updates/anna.npy")


def update_and_record_replaced(run: Path, _original: Original) -> None:
    """The record says so too: the hospital's signature and its ledger don't."""
    update_replaced(run, _original)
    edit(
        run / "rounds/0001/round.json",
        lambda body: body["update_digests"].update(anna=body["update_digests"]["berta"]),
    )


def more_than_was_reserved(entry: Body) -> None:
    if entry["type"] == "GENESIS":
        entry["lifetime"]["epsilon"] = "2"


def raised(run: Path, original: Original) -> None:
    """Entry 1 is a BUDGET that raises the lifetime's, in the place of COHORT."""

    def change(entry: Body) -> None:
        if entry["type"] == "COHORT":
            place = {name: entry[name] for name in ("seq", "prev", "at")}
            entry.clear()
            entry.update(place, type="BUDGET", lifetime={"epsilon": "900", "delta": "1e-05", "unbounded": "refuse"})

    change_entries(run, "anna", original.key(), change)


def exact_count(run: Path, _original: Original) -> None:
    edit(run / "rounds/0002/round.json", lambda body: body["trained"]["clara"].update(images=150))


def figure_improved(run: Path, _original: Original) -> None:
    edit(
        run / "evaluation.json",
        lambda body: body["sites"]["clara"]["network"]["accuracy"].update(value=0.99, high=0.995),
    )


def other_code(exchange: Exchange, body: Body) -> None:
    if exchange.round == 2:
        body["hello"]["code_digest"] = "1" * 64


def record_edited(run: Path, _original: Original) -> None:
    edit(run / "rounds/0001/round.json", lambda body: body["timing"].update(wait=0.0))


ANNAS, BERTAS = "anna, entry ", "berta, entry "
TAMPERING: dict[str, tuple[str, str, Callable[[Path, Original], None]]] = {
    "an entry taken out of the middle": (ORDER, ANNAS + "6 (SETTLE)", answered("anna", without("START", 1))),
    "an entry taken out of the middle, and its update is unannounced": (UPDATES, "anna", answered("anna", without("SETTLE", 1))),
    "the reservation taken out": (RESERVED, "anna: no RESERVE", answered("anna", without("RESERVE"))),
    "the last entry cut off": (CLOSED, "anna: its evaluation is on record, but no CLOSE", answered("anna", cut_off)),
    "the SVM's entry taken out": (RELEASED, "anna: no RELEASE of its svm", answered("anna", without("RELEASE"))),
    "two entries swapped": (CHAINED, ANNAS, answered("anna", swapped)),
    "sigma edited": (SIGNED, ANNAS + "2 (RESERVE)", answered("anna", sigma_unsigned)),
    "sigma edited and signed again": (RESERVED, BERTAS + "2 (RESERVE)", rewritten("berta", less_noise)),
    "sigma edited and signed again: the accountants": (CLAIMED, BERTAS + "2 (RESERVE)", rewritten("berta", less_noise)),
    "a whole history signed again": (RECEIPTS, ANNAS + "2", rewritten("anna", lambda entry: entry.update(at="2026-01-01T00:00:00+00:00"))),
    "a smaller claim": (CLAIMED, ANNAS + "2 (RESERVE)", rewritten("anna", of_type("RESERVE", claim={"epsilon": "1.0", "delta": "1e-05"}))),
    "a smaller charge": (CHARGED, ANNAS + "2 (RESERVE)", rewritten("anna", of_type("RESERVE", charged="0.5"))),
    "a budget that is exceeded": (BUDGETS, ANNAS + "2 (RESERVE)", rewritten("anna", more_than_was_reserved)),
    "a budget that is raised": (BUDGETS, ANNAS + "1 (BUDGET)", raised),
    "the coordinator's record written anew": (PREVIOUS, "round 2", record_edited),
    "the coordinator's record and instructions written anew": (ANSWERS, "anna, train, round 2", record_written_anew),
    "a stored update replaced": (MODELS, "anna", update_replaced),
    "a stored update replaced, and the record": (UPDATES, "anna", update_and_record_replaced),
    "entries of another run": (SIGNED, "of another run", foreign_entries),
    "a wrong key": (SIGNED, ANNAS + "0 (GENESIS)", signed_by_another),
    "other code in one answer": ("every site ran the coordinator's code", "berta", answered("berta", other_code)),
    "an exact count": (EXACT, "clara, round 2: images", exact_count),
    "a figure made better": (NOISED, "clara, network: accuracy is 0.99", figure_improved),
}  # fmt: skip


@pytest.mark.parametrize("name", TAMPERING)
def test_tampering_is_detected_and_named(run: Path, original: Original, name: str) -> None:
    check, words, tamper = TAMPERING[name]
    tamper(run, original)
    said = found(run)[check]
    assert said.outcome == "violated", said
    assert words in said.why


def test_a_history_that_was_signed_again_is_named_by_the_coordinators_receipts(run: Path, original: Original) -> None:
    """Even where every answer was signed again, and nothing but the coordinator's instructions is left of the old history."""
    rewritten("anna", of_type("SETTLE", figures="0" * 64))(run, original)
    said = found(run)
    assert said[RECEIPTS].outcome == said[FIGURES].outcome == "violated"
    assert "coordinator's instruction" in said[RECEIPTS].why
    assert said[SIGNED].outcome == "proven", "the hospital's own key did it"


def test_a_complete_forgery_is_rejected(run: Path, tmp_path: Path) -> None:
    """Consistent in itself, ledgers and all, under keys of the forger's own."""
    forged = LedgeredFederation.make(tmp_path / "forged", private_study(rounds=1)).conduct()
    assert unproven(found(forged)) == {}
    assert set(unproven(found(forged, trusted=fingerprints(run)))) == {WRITERS}


def test_an_instruction_of_another_run_is_named(run: Path, original: Original) -> None:
    for name in ("instruction", "answer"):
        shutil.copy(
            original.second / f"rounds/0002/signed/anna.train.{name}.json",
            run / f"rounds/0002/signed/anna.train.{name}.json",
        )
    said = found(run)
    assert said[INSTRUCTIONS].outcome == "violated"


# -- what is absent --------------------------------------------------------------------------------------------------------


def test_a_lost_answer_leaves_a_gap_that_the_exported_ledger_closes(run: Path, original: Original) -> None:
    for name in ("instruction", "answer"):
        (run / f"rounds/0002/signed/anna.train.{name}.json").unlink()
    said = found(run)
    assert {check.outcome for check in said.values()} == {"proven", "not checkable"}
    assert "anna: entries 5-6 are not in these files" in said[CHAINED].why
    assert said[UPDATES].outcome == "not checkable" and "anna" in said[UPDATES].why
    closed = found(run, original.ledger())
    assert [closed[name].outcome for name in (CHAINED, UPDATES, ORDER)] == ["proven"] * 3


def test_a_lost_last_answer_contradicts_nothing(run: Path, original: Original) -> None:
    (run / "evaluation-signed/anna.evaluate.answer.json").unlink()
    said = found(run)
    assert {check.outcome for check in said.values()} == {"proven", "not checkable"}
    assert "anna, evaluate, round 3" in said[CLOSED].why
    closed = found(run, original.ledger())
    assert [closed[name].outcome for name in (CLOSED, RELEASED, FIGURES)] == ["proven"] * 3


def test_a_hospital_that_did_not_sign_the_end_is_named(tmp_path: Path) -> None:
    federation = LedgeredFederation.make(tmp_path, private_study(rounds=1))
    federation.hospitals["clara"].instead["evaluate 1"] = lambda hospital, message: hospital_refuses(hospital, message)
    said = found(federation.conduct())
    assert said[CLOSED].outcome == "not checkable" and said[CLOSED].why.startswith("clara: has not signed")
    assert set(unproven(said)) == {CLOSED}


def hospital_refuses(hospital: Hospital, message: Message) -> Message:
    from client import gate

    def work(task: Task) -> Result:
        raise RuntimeError("the disk is full")

    return gate.answer(message, hospital.folder, work)


@pytest.mark.parametrize("what", ["another", "shorter", "resigned"])
def test_an_exported_ledger_that_is_not_the_one_of_the_run_is_named(
    run: Path, original: Original, tmp_path: Path, what: str
) -> None:
    path = tmp_path / "anna.jsonl"
    lines = original.ledger().read_bytes().splitlines(keepends=True)
    if what == "another":
        other = LedgeredFederation.make(tmp_path / "other", private_study(rounds=1), sites=("anna", "berta"))
        other.conduct()
        shutil.copy(other.hospitals["anna"].ledger, path)
    elif what == "shorter":
        path.write_bytes(b"".join(lines[:7]))
    else:
        path.write_bytes(
            b"".join([*lines[:4], seal(ENTRY, body_of(lines[4].decode()), new_key()).encode() + b"\n", *lines[5:]])
        )
    said = found(run, path)
    prefix = said[f"anna's exported ledger: {PREFIX}"]
    if what == "resigned":
        assert said[f"anna's exported ledger: {SIGNATURES}"].outcome == "violated"
        assert prefix.outcome == "not checkable"
        return
    assert prefix.outcome == "violated"
    if what == "another":
        assert said[f"anna's exported ledger: {WRITER}"].outcome == "violated"
    else:
        assert "anna, entry 7 (START)" in prefix.why


# -- the command ---------------------------------------------------------------------------------------------------------------


def test_the_command_prints_epsilons_and_writes_a_page_for_people(
    original: Original, run: Path, tmp_path: Path
) -> None:
    trusted, packed, page = tmp_path / "trust", tmp_path / "run.zip", tmp_path / "audit.html"
    trusted.write_text("\n".join(fingerprints(run)))
    assert audit("bundle", run, "--out", packed).returncode == 0
    done = audit(
        "verify", packed, "--trust", trusted, "--ledger", original.ledger(), "--json", "--html", page,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout)
    assert [cost["site"] for cost in said["costs"]] == ["anna", "berta", "clara"]
    assert said["costs"][0]["accounted"]["agree"] is True
    text = page.read_text()
    assert "What the run cost a patient" in text and f"{said['costs'][0]['claimed']:.4f}" in text
    assert "two patients of a hospital" in text and "no differential privacy" not in text
    assert "<script" not in text


def test_the_ledger_command_adds_up_runs_on_one_cohort(original: Original, tmp_path: Path) -> None:
    done = audit(
        "ledger", original.ledger(), "--trust", fingerprints(original.first)[1], "--run", original.second, "--json"
    )
    outcomes = {check["name"]: check["outcome"] for check in json.loads(done.stdout)["checks"]}
    assert outcomes[COHORTS] == "proven" and done.returncode == 2
    assert "violated" not in outcomes.values()


def test_what_lies_in_a_gap_is_told_apart_however_long_it_is() -> None:
    far = 10**30
    inside, outside = split(range(3, far), [range(20, 30), range(5, 8), range(8, 9), range(7, 8), range(4)])
    assert spans(inside) == "3, 5-8, 20-29"
    assert spans(outside) == f"4, 9-19, 30-{far - 1}"
    assert split(range(4, 4), [range(9)]) == ([], [])
