"""The lifetime budget holds for every patient, over studies and ids, as the profile says it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import hospital_with_budget
import pytest
from hospital_with_budget import A_TO_D, DELTA, OTHER, PLAIN, STUDY, Hospital, composed, patients, results
from test_gate import answer_in, bytes_of, message_of, never, refused, spoilt
from test_pixel_digests import under_other_ids
from test_withdrawal import STUDY as ON_PHANTOMS

from client import gate, run_on_ledger
from client.budget import _beyond, everybody, groups
from client.cohort import open_cohort
from client.gate import Result, Task
from client.ledger import read_ledger
from client.phantom import write_phantom
from shared.errors import LedgerError
from shared.exact import exact
from shared.ledger.entries import Budget, Lifetime, Reserve
from shared.study import Study

anna = hospital_with_budget.anna  # the fixture


# -- the limit ---------------------------------------------------------------------------------------------------------------


def test_a_second_study_of_the_same_patients_is_allowed_exactly_at_the_limit(anna: Hospital) -> None:
    anna.whole(STUDY, "run-1", A_TO_D)
    assert anna.spent() == {4: composed(STUDY)}
    anna.whole(OTHER, "run-2", A_TO_D)
    assert anna.spent() == {4: composed(STUDY, OTHER)}
    assert anna.prepare(OTHER, "run-3", A_TO_D) == "CONS-262"


@pytest.mark.parametrize("less", [lambda limit: math.nextafter(limit, 0), lambda limit: limit - 1e-9])
def test_a_second_study_beyond_the_limit_is_refused_before_an_image_is_opened(
    anna: Hospital, less: Callable[[float], float]
) -> None:
    anna.sets(less(composed(STUDY, OTHER)))
    anna.whole(STUDY, "run-1", A_TO_D)
    before, opened = anna.types(), list(anna.opened)
    assert anna.prepare(OTHER, "run-2", A_TO_D) == "CONS-262"
    assert (anna.types(), anna.opened) == (before, opened)
    assert anna.prepare(OTHER, "run-2", patients("e", "f")) == ""  # of others


@pytest.mark.parametrize("epsilon", ["1/3", "2/3", "22/7", "0.1", "2.675"])
def test_budget_and_ledger_compare_the_same_fractions(epsilon: str) -> None:
    """A double next to 1/3 lies below it, its neighbour above; neither is rounded to the limit."""
    lifetime = Lifetime(epsilon=epsilon, delta=DELTA)
    nearest = float(Fraction(epsilon))
    for value in (math.nextafter(nearest, 0), nearest, math.nextafter(nearest, 9)):
        assert _beyond(value, lifetime) == (Fraction(exact(value)) > Fraction(epsilon))


def test_a_run_that_costs_more_than_a_life_is_refused_for_anybody(anna: Hospital) -> None:
    anna.sets(composed(STUDY) - 1e-9)
    assert refused(gate.answer(message_of("prepare", STUDY), anna.folder, never), anna.folder) == "CONS-262"


def test_overlapping_cohorts_add_up_patient_by_patient(anna: Hospital) -> None:
    assert anna.prepare(STUDY, "run-1", patients("a", "b", "c")) == ""
    assert anna.prepare(OTHER, "run-2", patients("c", "d", "e", "f", "g")) == ""
    assert anna.spent() == {2: composed(STUDY), 4: composed(OTHER), 1: composed(STUDY, OTHER)}
    reserves = [one.reserve.charged for one in anna.rules().runs.values()]
    assert reserves == [exact(composed(STUDY)), exact(composed(STUDY, OTHER))]
    assert anna.prepare(OTHER, "run-3", patients("c")) == "CONS-262"
    assert anna.prepare(OTHER, "run-3", patients("a")) == ""


# -- the same patient under another id ------------------------------------------------------------------------------------------


def test_new_ids_for_the_same_images_have_no_new_budget(anna: Hospital) -> None:
    anna.sets(composed(STUDY, OTHER) - 1e-9)
    anna.whole(STUDY, "run-1", A_TO_D)
    renamed = patients("x", "y", images={"x": "a", "y": "b"})
    assert anna.prepare(OTHER, "run-2", renamed) == "CONS-262"
    assert "run-2" not in anna.rules().runs
    assert anna.prepare(OTHER, "run-2", patients("x", "y")) == ""  # new ids, new images: somebody else


def test_a_copy_of_a_real_holding_under_other_ids_is_refused_and_another_holding_is_not(
    anna: Hospital, tmp_path: Path
) -> None:
    """From the files to RESERVE: copied, renamed, with other pseudonyms."""
    for name, seed in (("own", 1), ("strangers", 2)):
        write_phantom(tmp_path / name, patients=8, seed=seed, scanner="halide", prevalence=0.5)
    under_other_ids(tmp_path / "own", tmp_path / "renamed")
    under_other_ids(tmp_path / "strangers", tmp_path / "others")  # phantoms of any seed have the same ids
    anna.sets(composed(STUDY, OTHER) - 1e-9)

    def prepared(study: Study, run: str, root: str) -> str:
        profile = anna.folder.profile()
        policy = profile.policy.model_copy(update={"minimum_patients": 1})
        data = profile.data.model_copy(update={"root": str(tmp_path / root)})
        changed = profile.model_copy(update={"data": data, "policy": policy})
        (anna.folder.path / "site.json").write_text(changed.model_dump_json(by_alias=True))

        def work(task: Task) -> Result:
            opened = open_cohort(
                ON_PHANTOMS,
                anna.folder,
                anna.folder.run_folder(run),
                before_images=lambda whom: run_on_ledger.before_images(task.on_ledger, whom),
            )
            return Result(**{**results(task, 0.1), "patients": opened.roll.known()})

        refusal = answer_in(gate.answer(message_of("prepare", study, run=run), anna.folder, work), anna.folder).refused
        return refusal.code if refusal is not None else ""

    assert prepared(STUDY, "run-1", "own") == ""
    assert prepared(OTHER, "run-2", "own") == prepared(OTHER, "run-3", "renamed") == "CONS-262"
    assert prepared(OTHER, "run-4", "others") == ""
    found = groups(anna.rules(), anna.folder, everybody(anna.rules(), anna.folder))
    assert {one.runs: one.patients for one in found} == {("run-1",): 8, ("run-4",): 8}


def test_a_copy_counts_on_top_and_as_one_patient(anna: Hospital) -> None:
    assert anna.prepare(STUDY, "run-1", patients("a", "b")) == ""
    assert anna.prepare(OTHER, "run-2", patients("x", "z", images={"x": "ax"})) == ""
    found = groups(anna.rules(), anna.folder, everybody(anna.rules(), anna.folder))
    assert {one.runs: one.patients for one in found} == {("run-1",): 1, ("run-1", "run-2"): 1, ("run-2",): 1}


def test_ids_that_hang_together_over_a_third_are_one_patient(anna: Hospital) -> None:
    """The first run's id and the third's share no image; the second's has one of each."""
    anna.sets("100")
    anna.prepare(STUDY, "run-1", patients("a"))
    anna.prepare(OTHER, "run-2", patients("m", images={"m": "az"}))
    assert anna.prepare(OTHER, "run-3", patients("z")) == ""
    assert anna.spent() == {1: composed(STUDY, OTHER, OTHER)}
    assert anna.rules().runs["run-3"].reserve.charged == exact(composed(STUDY, OTHER, OTHER))


def test_another_image_of_a_known_id_is_followed_to_its_copies(anna: Hospital) -> None:
    anna.sets("100")
    anna.prepare(STUDY, "run-1", patients("a", images={"a": "1"}))
    anna.prepare(OTHER, "run-2", patients("a", images={"a": "2"}))
    anna.prepare(OTHER, "run-3", patients("x", images={"x": "2"}))
    assert anna.rules().runs["run-3"].reserve.charged == exact(composed(STUDY, OTHER, OTHER))


def test_images_that_become_known_in_the_middle_of_a_run_are_held_against_the_budget(anna: Hospital) -> None:
    anna.sets(composed(STUDY, OTHER) - 1e-9)
    anna.whole(STUDY, "run-1", patients("a"))
    unknown = {"x": frozenset[str](), "y": frozenset[str]()}
    assert anna.prepare(OTHER, "run-2", unknown) == ""
    anna.train(OTHER, "run-2", patients("x", "y"), 1)  # they are nobody's that is known
    reply = anna.ask("train", OTHER, "run-2", patients("x", "y", images={"x": "xa", "y": "y"}), 2)
    assert refused(reply, anna.folder) == "CONS-262"
    assert spoilt(0.1).tobytes() not in bytes_of(reply)


def test_a_cohorts_list_that_is_damaged_or_gone_stops_private_and_plain_runs(anna: Hospital) -> None:
    anna.sets("100", "allow")
    anna.prepare(STUDY, "run-1", A_TO_D)
    (path,) = (anna.folder.path / "cohorts").iterdir()
    whole = path.read_bytes()
    for content in (b"{}", whole[: len(whole) // 2], whole.replace(b'"tags":["', b'"tags":["0' * 1), None):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        assert anna.prepare(OTHER, "run-2", A_TO_D) == "CONS-261"
        assert anna.prepare(OTHER, "run-2", patients("z")) == "CONS-261"
        assert anna.prepare(PLAIN, "run-3", A_TO_D) == "CONS-261"
    path.write_bytes(whole)
    assert anna.prepare(OTHER, "run-2", A_TO_D) == ""


# -- what the profile says -----------------------------------------------------------------------------------------------------------


def test_without_a_lifetime_a_private_study_is_refused_and_a_plain_one_passes(anna: Hospital) -> None:
    anna.sets(None)
    assert refused(gate.answer(message_of("prepare", STUDY), anna.folder, never), anna.folder) == "CONS-262"
    assert anna.prepare(PLAIN, "run-2", A_TO_D) == ""
    anna.sets("100")
    assert anna.prepare(STUDY, "run-3", A_TO_D) == ""
    assert "BUDGET" in anna.types()
    assert [one.unbounded for one in groups(anna.rules(), anna.folder, everybody(anna.rules(), anna.folder))] == [
        ("run-2",)
    ]


def test_with_a_lifetime_a_plain_study_is_refused_unless_the_policy_lets_it_pass(anna: Hospital) -> None:
    assert refused(gate.answer(message_of("prepare", PLAIN), anna.folder, never), anna.folder) == "CONS-262"
    anna.sets(composed(STUDY, OTHER), "allow")  # the ledger was begun with refuse: that is for good
    assert refused(gate.answer(message_of("prepare", PLAIN), anna.folder, never), anna.folder) == "CONS-262"


def test_a_policy_that_lets_plain_studies_pass_can_be_tightened(anna: Hospital) -> None:
    anna.sets("100", "allow")
    assert anna.prepare(PLAIN, "run-1", A_TO_D) == ""
    anna.sets("100", "refuse")
    assert (
        refused(gate.answer(message_of("prepare", PLAIN, run="run-2"), anna.folder, never), anna.folder) == "CONS-262"
    )


def test_a_budget_is_lowered_never_raised(anna: Hospital) -> None:
    anna.sets("50")
    anna.prepare(STUDY, "run-1", A_TO_D)
    for higher in (("51", DELTA), ("50.000000001", DELTA), ("50", "2e-5"), ("40", "2e-5")):
        anna.sets(higher[0], delta=higher[1])
        reply = gate.answer(message_of("prepare", OTHER, run="run-2"), anna.folder, never)
        assert refused(reply, anna.folder) == "CONS-262"
    assert "BUDGET" not in anna.types()
    anna.sets(composed(STUDY, OTHER) - 1e-9)
    assert anna.prepare(OTHER, "run-2", A_TO_D) == "CONS-262"
    found = read_ledger(anna.folder)
    assert found is not None
    (entered,) = [link.entry for link in found[0].links if isinstance(link.entry, Budget)]
    assert entered.lifetime.epsilon == exact(composed(STUDY, OTHER) - 1e-9)
    anna.sets("50")
    assert (
        refused(gate.answer(message_of("prepare", OTHER, run="run-2"), anna.folder, never), anna.folder) == "CONS-262"
    )
    anna.sets(None)  # taken out of the profile, it stays on the ledger
    assert anna.prepare(OTHER, "run-2", A_TO_D) == "CONS-262"


def test_a_private_reserve_names_no_number_of_patients(anna: Hospital) -> None:
    anna.prepare(STUDY, "run-1", A_TO_D)
    rules = anna.rules()
    assert [one.patients for one in rules.cohorts.values()] == [None]
    (reserve,) = [one.reserve for one in rules.runs.values()]
    assert isinstance(reserve, Reserve) and reserve.claim is not None
    text = (anna.folder.path / "ledger.jsonl").read_text()
    assert not any(name in text for tag in everybody(rules, anna.folder) for name in (tag,))


def test_what_was_spent_of_a_patient_who_withdrew_still_counts(anna: Hospital) -> None:
    """The cohort's list keeps tag and images: under another id the patient would have no new budget."""
    anna.sets(composed(STUDY, OTHER) - 1e-9)
    anna.prepare(STUDY, "run-1", A_TO_D)
    anna.train(STUDY, "run-1", {name: images for name, images in A_TO_D.items() if name != "a"}, 1)
    assert anna.prepare(OTHER, "run-2", patients("x", images={"x": "a"})) == "CONS-262"
    assert anna.spent() == {4: composed(STUDY)}


def test_groups_of_a_missing_list_are_an_error(anna: Hospital) -> None:
    anna.prepare(STUDY, "run-1", A_TO_D)
    shutil.rmtree(anna.folder.path / "cohorts")
    with pytest.raises(LedgerError, match="missing or damaged"):
        everybody(anna.rules(), anna.folder)
