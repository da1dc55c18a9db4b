"""The lifetime budget over rounds that never began or began twice, crashes and restored backups."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import hospital_with_budget
import pytest
from dying import Killed, die_while_writing
from flwr.app import Message
from hospital_with_budget import A_TO_D, DELTA, OTHER, STUDY, Hospital, composed, killed_in, private_study
from test_gate import MODEL_VALUES, answer_in, instruction_of, message_of, never, refused, spoilt

from client import gate
from client.closing import close
from client.ledger import read_ledger
from client.own_runs import on_record
from shared.errors import InputError, ProcessError
from shared.exact import exact
from shared.ledger.entries import Start
from shared.ledger.spending import vector_of
from shared.messages import Receipt
from shared.privacy.rdp import epsilon_of_vector
from shared.study_cost import study_events
from shared.wire import flat_digest

anna = hospital_with_budget.anna  # the fixture


# -- rounds that never began, and rounds that began twice -----------------------------------------------------------------------


def test_closing_gives_back_what_never_began(anna: Hospital) -> None:
    anna.sets(composed(STUDY, OTHER) - 1e-9)
    anna.prepare(STUDY, "run-1", A_TO_D)
    anna.train(STUDY, "run-1", A_TO_D, 1)
    assert anna.prepare(OTHER, "run-2", A_TO_D) == "CONS-262"
    done = close(anna.folder, "run-1")
    assert (done.unbegun, done.evaluated, done.before) == (2, False, composed(STUDY))
    one_round = epsilon_of_vector(vector_of(study_events(private_study(rounds=1))[:1]), float(DELTA))
    assert anna.spent() == {4: one_round} and done.after == one_round
    assert anna.prepare(OTHER, "run-2", A_TO_D) == ""
    for kind, number in (("train", 2), ("evaluate", 3)):
        assert refused(anna.ask(kind, STUDY, "run-1", A_TO_D, number), anna.folder) == "CONS-261"


def test_a_round_that_began_and_was_lost_is_not_given_back(anna: Hospital) -> None:
    anna.prepare(STUDY, "run-1", A_TO_D)
    killed_in(anna, STUDY, 1)
    close(anna.folder, "run-1")
    assert anna.spent() == {4: epsilon_of_vector(vector_of(study_events(private_study(rounds=1))[:1]), float(DELTA))}


def test_a_run_is_closed_once_when_it_is_known_and_rests(anna: Hospital) -> None:
    with pytest.raises(InputError, match="open: none"):
        close(anna.folder, "run-1")
    anna.prepare(STUDY, "run-1", A_TO_D)
    with pytest.raises(InputError, match="open: run-1"):
        close(anna.folder, "run-2")
    at_work = instruction_of("train", STUDY, MODEL_VALUES)
    with (
        on_record(anna.folder.run_folder("run-1"), at_work, STUDY),
        pytest.raises(ProcessError, match="train, round 1"),
    ):
        close(anna.folder, "run-1")
    close(anna.folder, "run-1")
    with pytest.raises(InputError, match="closed already"):
        close(anna.folder, "run-1")


def test_a_round_that_is_begun_again_is_charged_again(anna: Hospital) -> None:
    anna.sets("100")
    anna.prepare(STUDY, "run-1", A_TO_D)
    killed_in(anna, STUDY, 1)
    assert anna.spent() == {4: composed(STUDY)}
    anna.train(STUDY, "run-1", A_TO_D, 1)
    again = epsilon_of_vector(
        vector_of(study_events(STUDY)) + vector_of(study_events(private_study(rounds=1))[:1]), float(DELTA)
    )
    (found,) = anna.spent().values()
    assert found == pytest.approx(again, rel=1e-12)
    starts = [link.entry for link in read_ledger(anna.folder)[0].links if isinstance(link.entry, Start)]  # type: ignore[index]
    assert [(one.attempt, one.charged) for one in starts] == [(1, None), (2, exact(found))]


def test_a_round_is_not_begun_again_beyond_the_limit_and_the_others_go_on(anna: Hospital) -> None:
    anna.sets(composed(STUDY))
    anna.prepare(STUDY, "run-1", A_TO_D)
    killed_in(anna, STUDY, 1)
    before = anna.types()
    assert refused(gate.answer(message_of("train", STUDY, round=1), anna.folder, never), anna.folder) == "CONS-262"
    assert anna.types() == before
    anna.train(STUDY, "run-1", A_TO_D, 2, 3)


# -- crashes ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("kind", ["prepare", "train", "evaluate"])
def test_a_kill_at_any_step_never_shows_less_than_was_spent(
    anna: Hospital, monkeypatch: pytest.MonkeyPatch, kind: Any, number: int, when: str
) -> None:
    """After it the same is asked for again: what had left leaves in the same bytes, and what is made anew is charged again."""
    anna.sets("100")
    if kind != "prepare":
        anna.prepare(STUDY, "run-1", A_TO_D)
        anna.train(STUDY, "run-1", A_TO_D, *((1, 2, 3) if kind == "evaluate" else ()))
    asked = {"prepare": 0, "train": 1, "evaluate": 3}[kind]
    reply: Message | None = None
    with monkeypatch.context() as patched:
        die_while_writing(patched, number, when)
        try:
            reply = anna.ask(kind, STUDY, "run-1", A_TO_D, asked)
        except Killed:
            anna.opened.clear()
    begun = anna.rules().runs.get("run-1")
    assert begun is not None or (kind == "prepare" and reply is None)
    if begun is not None:
        assert anna.spent()[4] >= composed(STUDY) * (1 - 1e-12)
    again = anna.ask(kind, STUDY, "run-1", A_TO_D, asked)
    first, second = (answer_in(one, anna.folder) if one is not None else None for one in (reply, again))
    assert second is not None and second.refused is None
    if first is not None:
        assert (first.trained, first.update_digest, first.evaluated) == (
            second.trained, second.update_digest, second.evaluated,
        )  # fmt: skip
    run = anna.rules().runs["run-1"]
    assert len(run.updates) == {"prepare": 0, "train": 1, "evaluate": 3}[kind]
    assert sum(one.what == "evaluation" for one in run.releases) == (kind == "evaluate")
    redone = vector_of(study_events(private_study(rounds=1))[:1] * run.redone)
    expected = epsilon_of_vector(vector_of(study_events(STUDY)) + redone, float(DELTA))
    assert anna.spent()[4] == pytest.approx(expected, rel=1e-12)
    assert run.redone in ((0, 1) if kind == "train" else (0,))


def test_a_reply_that_was_lost_leaves_again_in_the_same_bytes_and_costs_nothing(anna: Hospital) -> None:
    anna.prepare(STUDY, "run-1", A_TO_D)
    first = answer_in(anna.ask("train", STUDY, "run-1", A_TO_D, 1), anna.folder)
    before = anna.types()
    again = gate.answer(message_of("train", STUDY, round=1), anna.folder, never)
    assert answer_in(again, anna.folder).update_digest == first.update_digest == flat_digest(spoilt(0.1))
    assert anna.types() == before


def test_a_private_runs_figures_leave_once(anna: Hospital) -> None:
    anna.whole(STUDY, "run-1", A_TO_D)
    first = answer_in(gate.answer(message_of("evaluate", STUDY, round=3), anna.folder, never), anna.folder)
    assert first.evaluated is not None
    shutil.rmtree(anna.folder.run_folder("run-1"))
    assert refused(gate.answer(message_of("evaluate", STUDY, round=3), anna.folder, never), anna.folder) == "CONS-261"


# -- backups ------------------------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_restored_as_a_whole_contradicts_the_coordinators_receipt(
    anna: Hospital, tmp_path: Path
) -> None:
    anna.prepare(STUDY, "run-1", A_TO_D)
    anna.train(STUDY, "run-1", A_TO_D, 1)
    shutil.copytree(anna.folder.path, tmp_path / "snapshot")
    seen = answer_in(anna.ask("train", STUDY, "run-1", A_TO_D, 2), anna.folder).receipt
    assert seen is not None
    shutil.rmtree(anna.folder.path)
    (tmp_path / "snapshot").rename(anna.folder.path)
    before = anna.types()
    for kind, number in (
        ("train", 1),
        ("train", 2),
        ("train", 3),
        ("evaluate", 3),
    ):  # round 1 is kept, and would leave again
        message = message_of(kind, STUDY, round=number, receipt=seen)  # type: ignore[arg-type]
        assert refused(gate.answer(message, anna.folder, never), anna.folder) == "CONS-261"
    assert refused(
        gate.answer(message_of("prepare", OTHER, run="run-2", receipt=seen), anna.folder, never), anna.folder
    ) == ("CONS-261")
    assert anna.types() == before


def test_a_ledger_that_goes_on_from_the_receipt_is_believed_and_another_is_not(anna: Hospital) -> None:
    anna.prepare(STUDY, "run-1", A_TO_D)
    seen = answer_in(anna.ask("train", STUDY, "run-1", A_TO_D, 1), anna.folder).receipt
    assert seen is not None
    assert answer_in(anna.ask("train", STUDY, "run-1", A_TO_D, 2, receipt=seen), anna.folder).trained is not None
    other = Receipt(seq=seen.seq, digest="f" * 64)
    assert refused(anna.ask("train", STUDY, "run-1", A_TO_D, 3, receipt=other), anna.folder) == "CONS-261"
