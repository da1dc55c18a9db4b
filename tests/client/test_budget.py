"""The lifetime budget holds for every patient, over studies, ids, crashes and restored backups."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity
from test_gate import (
    MODEL_VALUES,
    answer_in,
    approved,
    bytes_of,
    instruction_of,
    message_of,
    never,
    refused,
    site_folder,
    spoilt,
    training,
)
from test_ledger import Killed
from test_pixel_digests import under_other_ids
from test_withdrawal import STUDY as ON_PHANTOMS

from benchmarks.bare_run import bare_study, evaluated_answer, prepared_answer, study_values, trained_answer
from client import gate, ledger, run_on_ledger
from client.budget import _beyond, everybody, groups
from client.closing import close
from client.cohort import open_cohort
from client.gate import Result, Task
from client.ledger import read_ledger
from client.own_runs import on_record
from client.phantom import write_phantom
from client.site_folder import SiteFolder
from client.withdrawn import Tags
from shared.errors import InputError, LedgerError, ProcessError
from shared.exact import exact
from shared.ledger.entries import Budget, Lifetime, Reserve, Start
from shared.ledger.rules import Rules
from shared.ledger.spending import vector_of
from shared.messages import Receipt
from shared.privacy.rdp import epsilon_of_vector
from shared.profile import LifetimeBudget
from shared.results import Estimate
from shared.study import Study
from shared.study_cost import study_events
from shared.wire import flat_digest

DELTA = "1e-5"
PLAIN = bare_study()


def private_study(name: str = "private", *, rounds: int = 3, sigma: str = "1.0", **federation: Any) -> Study:
    values = study_values(rounds=rounds, weighting="uniform", **federation)
    training_values = {
        key: value for key, value in values["training"].items() if key not in ("local_epochs", "batch_size")
    }
    return Study.model_validate(
        {
            **values,
            "name": name,
            "model": {**values["model"], "norm": "group"},
            "training": training_values,
            "evaluation": {"baseline": False, "release": {"epsilon": "0.5"}},
            "privacy": {
                "sampling_rate": "1/10", "steps_per_round": 5, "clipping_norm": "1.0", "normaliser": "10",
                "noise_multiplier": sigma, "delta": DELTA,
            },
        }
    )  # fmt: skip


STUDY, OTHER = private_study(), private_study("other", rounds=2, sigma="1.5")


def composed(*studies: Study) -> float:
    """Epsilon of a patient who was in a whole run of each."""
    return epsilon_of_vector(sum(vector_of(study_events(one)) for one in studies), float(DELTA))  # type: ignore[arg-type]


def patients(*names: str, images: Mapping[str, str] | None = None) -> dict[str, frozenset[str]]:
    """By name, each with an image of its own, or those of `images` (a letter an image)."""
    return {name: frozenset((images or {}).get(name, name)) for name in names}


@dataclass
class Hospital:
    """A hospital with a lifetime budget, and work that opens no real data."""

    folder: SiteFolder
    opened: list[str] = field(default_factory=list)

    def work(self, whom: Mapping[str, frozenset[str]], update: float = 0.1) -> Callable[[Task], Result]:
        tags = Tags.of(self.folder)
        known = {tags.tag(name): frozenset(tags.image(one) for one in images) for name, images in whom.items()}

        def do(task: Task) -> Result:
            run_on_ledger.before_images(task.on_ledger, dict.fromkeys(known, frozenset()))
            self.opened.append(f"{task.instruction.run} {task.instruction.kind} {task.instruction.round}")
            return Result(**{**results(task, update), "patients": known})

        return do

    def ask(
        self, kind: Any, study: Study, run: str, whom: Mapping[str, frozenset[str]], number: int = 0, **changes: Any
    ) -> Message:
        return gate.answer(message_of(kind, study, run=run, round=number, **changes), self.folder, self.work(whom))

    def prepare(self, study: Study, run: str, whom: Mapping[str, frozenset[str]]) -> str:
        """The code of a refusal, or empty."""
        reply = self.ask("prepare", study, run, whom)
        answer = answer_in(reply, self.folder)
        return answer.refused.code if answer.refused is not None else ""

    def train(self, study: Study, run: str, whom: Mapping[str, frozenset[str]], *rounds: int) -> None:
        for number in rounds:
            assert answer_in(self.ask("train", study, run, whom, number), self.folder).trained is not None

    def whole(self, study: Study, run: str, whom: Mapping[str, frozenset[str]]) -> None:
        assert self.prepare(study, run, whom) == ""
        last = study.federation.rounds
        self.train(study, run, whom, *range(1, last + 1))
        assert answer_in(self.ask("evaluate", study, run, whom, last), self.folder).evaluated is not None

    def rules(self) -> Rules:
        found = read_ledger(self.folder)
        return found[0].rules if found is not None else Rules()

    def types(self) -> list[str]:
        found = read_ledger(self.folder)
        return [link.entry.type for link in found[0].links] if found is not None else []

    def spent(self) -> dict[int, float]:
        """Epsilon by number of patients who have it."""
        found = groups(self.rules(), self.folder, everybody(self.rules(), self.folder))
        return {one.patients: one.epsilon(float(DELTA)) for one in found}

    def sets(self, epsilon: str | float | None, unbounded: Any = "refuse", delta: str = DELTA) -> None:
        """What the profile says from now on."""
        profile = self.folder.profile()
        text = exact(epsilon) if isinstance(epsilon, float) else epsilon
        budget = LifetimeBudget(epsilon=text, delta=delta, unbounded=unbounded) if text is not None else None
        changed = profile.model_copy(update={"policy": profile.policy.model_copy(update={"lifetime": budget})})
        (self.folder.path / "site.json").write_text(changed.model_dump_json(by_alias=True))


def results(task: Task, update: float) -> dict[str, Any]:
    """As a private run's work returns them."""
    private, kind = task.study.privacy is not None, task.instruction.kind
    if kind == "prepare":
        less = {"parts": {}, "left_out": None, "unreadable": None, "seconds": {}}
        return {"prepared": prepared_answer().model_copy(update=less if private else {})}
    if kind == "train":
        less = {"images": None, "patients": None, "epochs": [], "validation": None, "seconds": {}}
        trained = trained_answer().model_copy(update=less if private else {})
        return {"trained": trained, "update": training(spoilt(update)).update}
    exact_one = evaluated_answer()
    if not private:
        return {"evaluated": exact_one}
    network = exact_one.network.model_copy(update={"noise": "1/2", "auc": Estimate(value=None)})
    counts = dict.fromkeys(("patients", "images", "train_patients", "train_images"), None)
    return {"evaluated": exact_one.model_copy(update={**counts, "network": network, "seconds": {}})}


@pytest.fixture
def anna(tmp_path: Path) -> Hospital:
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    made = Hospital(site_folder(tmp_path / "anna"))
    for study in (STUDY, OTHER, PLAIN):
        approved(made.folder, study, runs=50)
    made.sets(composed(STUDY, OTHER))
    return made


A_TO_D = patients("a", "b", "c", "d")


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


def killed_in(anna: Hospital, study: Study, number: int, run: str = "run-1") -> None:
    def killed(_task: Task) -> Result:
        raise Killed

    with pytest.raises(Killed):
        gate.answer(message_of("train", study, run=run, round=number), anna.folder, killed)


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


def dying(number: int, when: str, patched: pytest.MonkeyPatch) -> None:
    """Killed before or after the n-th of: writes of entries, of the head, and of the kept answer."""
    steps = iter(range(100))

    def wrapped(act: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **named: Any) -> Any:
            mine = next(steps) == number
            if mine and when == "before":
                raise Killed
            done = act(*args, **named)
            if mine:
                raise Killed
            return done

        return step

    for module, name in ((ledger, "append"), (ledger, "write_head"), (gate, "keep")):
        patched.setattr(module, name, wrapped(getattr(module, name)))


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
        dying(number, when, patched)
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
