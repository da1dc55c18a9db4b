"""A hospital with a lifetime budget, whose work opens no real data, and the studies that it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from dying import Killed
from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity
from test_gate import answer_in, approved, message_of, site_folder, spoilt, training

from benchmarks.bare_run import bare_study, evaluated_answer, prepared_answer, study_values, trained_answer
from client import gate, run_on_ledger
from client.budget import everybody, groups
from client.gate import Result, Task
from client.ledger import read_ledger
from client.site_folder import SiteFolder
from client.withdrawn import Tags
from shared.exact import exact
from shared.ledger.rules import Rules
from shared.ledger.spending import vector_of
from shared.privacy.rdp import epsilon_of_vector
from shared.profile import LifetimeBudget
from shared.results import Estimate
from shared.study import Study
from shared.study_cost import study_events

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


def killed_in(anna: Hospital, study: Study, number: int, run: str = "run-1") -> None:
    def killed(_task: Task) -> Result:
        raise Killed

    with pytest.raises(Killed):
        gate.answer(message_of("train", study, run=run, round=number), anna.folder, killed)
