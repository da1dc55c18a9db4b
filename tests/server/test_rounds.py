"""The rounds of a run, with Flower's messages but without a network: quorum, deadlines, refusals, and the same bytes again."""

from __future__ import annotations

import base64
import gc
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from safetensors.numpy import load_file

from benchmarks.bare_run import (
    bare_folder,
    bare_registry,
    bare_study,
    evaluated_answer,
    new_key,
    prepared_answer,
    staged_study,
    trained_answer,
)
from benchmarks.in_process_grid import InProcessGrid
from server import checkpoint, exchange
from server.checkpoint import kept_rounds, latest_checkpoint, read_starting_model
from server.receipts import Receipts
from server.registry import Registry
from server.rounds import Coordinator
from server.run_folder import RunFolder
from shared.aggregation import normalised_weights, weighted_mean
from shared.canonical import file_digest
from shared.errors import QuorumError, RunFolderError
from shared.messages import (
    ANSWER,
    BODY,
    FLAT,
    INSTRUCTION,
    MODEL,
    UPDATE,
    Answer,
    Instruction,
    read_answer,
    read_instruction,
    sign_answer,
)
from shared.release import Release, code_digest
from shared.results import MASK_METRICS, MaskResult, Refused, SiteHello
from shared.signing import SigningKey
from shared.study import Study, study_from_data
from shared.wire import Flat, Manifest, cut, decode, encode, flat_digest, flatten

COORDINATOR = new_key()
SITES = ("anna", "berta", "clara")
ARRAYS = {"w": np.linspace(-1, 1, 200, dtype=np.float32).reshape(10, 20), "b": np.zeros(5, np.float32)}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(exchange, "FIRST_POLL_SECONDS", 0.002)
    monkeypatch.setattr(exchange, "LONGEST_POLL_SECONDS", 0.002)
    monkeypatch.setattr(exchange, "ONLINE_CHECK_SECONDS", 0.02)
    gc.freeze()  # as in server.app: each answer is followed by a collection
    yield
    gc.unfreeze()


@dataclass
class FakeSite:
    """Answers as a hospital would; its training moves the model by something that depends on site, model and round."""

    name: str
    images: int = 100
    answers: dict[str, Callable[[Instruction, Message], Message | None]] = field(default_factory=dict)
    seen: list[tuple[str, int]] = field(default_factory=list)
    key: SigningKey = field(default_factory=new_key)
    digests: dict[int, str] = field(default_factory=dict)
    code: str = field(default_factory=code_digest)

    def __call__(self, message: Message) -> Message | None:
        instruction, digest = read_instruction(
            str(message.content.config_records[INSTRUCTION][BODY]), COORDINATOR.public
        )
        assert instruction.site == self.name
        self.digests[instruction.issued] = digest
        self.seen.append((instruction.kind, instruction.round))
        special = self.answers.get(f"{instruction.kind} {instruction.round}", self.answers.get(instruction.kind))
        return special(instruction, message) if special else self.usual(instruction, message)

    def usual(self, instruction: Instruction, message: Message) -> Message:
        if instruction.kind == "prepare":
            return self.reply(instruction, message, prepared=prepared_answer(images=self.images))
        if instruction.kind == "evaluate":
            return self.reply(instruction, message, evaluated=evaluated_answer(images=self.images))
        return self.trained(instruction, message, self.update_of(instruction, message))

    def update_of(self, instruction: Instruction, message: Message) -> np.ndarray:
        wire = instruction.study["federation"]["wire"]
        received = message.content.array_records[MODEL][FLAT].numpy()
        assert flat_digest(received) == instruction.model_digest
        rng = np.random.default_rng([len(self.name), ord(self.name[0]), instruction.round])
        drawn: np.ndarray = rng.normal(scale=0.01, size=received.size).astype(np.float32)
        manifest = Manifest.of(ARRAYS)
        free = manifest.without(study_from_data(instruction.study).training.held_in(instruction.round))
        return encode(cut(drawn - np.float32(0.01) * decode(received, wire), manifest, free), wire)

    def trained(self, instruction: Instruction, message: Message, update: np.ndarray, **changes: Any) -> Message:
        values = {"trained": trained_answer(images=self.images), "update_digest": flat_digest(update), **changes}
        return self.reply(instruction, message, update=update, **values)

    def reply(
        self,
        instruction: Instruction,
        message: Message,
        *,
        update: np.ndarray | None = None,
        site: str = "",
        **values: Any,
    ) -> Message:
        hello = SiteHello(site=site or self.name, code_digest=self.code, versions={"flwr": "1.41.0"})
        values = {"round": instruction.round, "instruction": self.digests[instruction.issued], **values}
        body = Answer(hello=hello, **values)
        content = RecordDict({ANSWER: ConfigRecord({BODY: sign_answer(body, self.key)})})
        if update is not None:
            content[UPDATE] = ArrayRecord({FLAT: Array(update)})
        return Message(content, reply_to=message)

    def refuse(self, code: str) -> Callable[[Instruction, Message], Message]:
        return lambda instruction, message: self.reply(instruction, message, refused=Refused(code=code))


@dataclass
class Federation:
    """One run folder and its sites."""

    folder: RunFolder
    sites: dict[str, FakeSite]
    grid: InProcessGrid
    registry: Registry

    @classmethod
    def make(cls, path: Path, study: Study | None = None, **federation: Any) -> Federation:
        sites = {name: FakeSite(name, images=50 * (index + 1)) for index, name in enumerate(SITES)}
        folder = bare_folder(path, study or bare_study(**federation), ARRAYS, list(SITES))
        registry = bare_registry(path / "coordinator", {name: site.key for name, site in sites.items()})
        return cls(folder, sites, InProcessGrid(sites), registry)

    def conduct(self) -> None:
        Coordinator(
            self.grid,
            self.folder,
            registry=self.registry,
            receipts=Receipts(self.folder.path.parent / "receipts"),
            key=COORDINATOR,
        ).conduct()

    def final_bytes(self) -> bytes:
        study = self.folder.study()
        manifest = read_starting_model(self.folder).manifest
        return latest_checkpoint(self.folder, manifest, study.federation.optimiser).flat.tobytes()

    def notes(self) -> list[str]:
        return [event.text for event in self.folder.events() if event.text]


def nobody(_instruction: Instruction, _message: Message) -> None:
    return None


def test_a_run_goes_from_prepare_to_the_evaluation(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "run")
    federation.conduct()
    run, rounds, final = federation.folder.run(), federation.folder.rounds(), federation.folder.final()
    assert run.state == "finished" and run.ended is not None
    assert sorted(run.sites) == list(SITES)
    assert run.resolved["anna.device"] == "cpu"
    assert [one.round for one in rounds] == [0, 1, 2, 3]
    assert sorted(rounds[0].prepared) == list(SITES)
    for before, after in itertools.pairwise(rounds):
        assert after.model_in == before.model_out
        assert after.model_in != after.model_out
        assert sorted(after.trained) == sorted(after.update_digests) == sorted(after.sites) == list(SITES)
        assert all(one.bytes_up == one.bytes_down == 205 * 4 for one in after.sites.values())
        assert not after.missing and not after.late
    assert final is not None and sorted(final.sites) == list(SITES) and final.model == rounds[-1].model_out
    assert federation.sites["anna"].seen == [("prepare", 0), ("train", 1), ("train", 2), ("train", 3), ("evaluate", 3)]
    assert not list((federation.folder.path / "rounds").glob(".*"))


def test_a_round_is_the_weighted_mean_of_the_updates(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "run", rounds=1, keep_updates=True)
    federation.conduct()
    start = read_starting_model(federation.folder).flat.astype(np.float64)
    updates = [
        np.load(federation.folder.round_path(1) / "updates" / f"{site}.npy").astype(np.float64) for site in SITES
    ]
    expected = start + np.average(updates, axis=0, weights=[50, 100, 150])
    np.testing.assert_allclose(np.frombuffer(federation.final_bytes(), np.float32), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("counts", [1 / 6, 2 / 6, 3 / 6]),
        ("uniform", [1 / 3, 1 / 3, 1 / 3]),
        ({"anna": 1, "berta": 1, "clara": 2}, [1 / 4, 1 / 4, 2 / 4]),
    ],
    ids=["counts", "uniform", "public"],
)
def test_weights_follow_the_studys_rule(tmp_path: Path, rule: Any, expected: list[float]) -> None:
    federation = Federation.make(tmp_path / "run", rounds=1, weighting=rule)
    federation.conduct()
    assert federation.folder.rounds()[1].weights == pytest.approx(dict(zip(SITES, expected, strict=True)))


def test_kept_updates_let_the_mean_be_computed_again(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "run", rounds=2, keep_updates=True)
    federation.conduct()
    for record in federation.folder.rounds()[1:]:
        place = federation.folder.round_path(record.round) / "updates"
        assert {path.stem: flat_digest(np.load(path)) for path in place.iterdir()} == record.update_digests
    again = weighted_mean({site: place / f"{site}.npy" for site in SITES}, record.weights)
    assert (model_after(federation.folder, 1) + again).tobytes() == federation.final_bytes()


def test_a_model_of_which_nothing_travels_is_evaluated_without_a_round(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "other")
    federation.folder = bare_folder(tmp_path / "run", bare_study(rounds=0), {}, list(SITES))
    federation.conduct()
    assert federation.sites["anna"].seen == [("prepare", 0), ("evaluate", 0)]
    final = federation.folder.final()
    assert final is not None and sorted(final.sites) == list(SITES) and federation.final_bytes() == b""


def test_models_of_the_rounds_that_the_study_keeps_stay(tmp_path: Path) -> None:
    plain = Federation.make(tmp_path / "plain", rounds=5)
    keeping = Federation.make(tmp_path / "keeping", rounds=5, keep_models={"every": 2})
    for federation, kept in ((plain, [4, 5]), (keeping, [2, 4, 5])):
        federation.conduct()
        assert kept_rounds(federation.folder) == kept
    assert keeping.final_bytes() == plain.final_bytes()
    manifest = read_starting_model(keeping.folder).manifest
    after = checkpoint.model_after(keeping.folder, 2, manifest)
    assert flat_digest(after) == keeping.folder.rounds()[2].model_out
    with pytest.raises(RunFolderError, match=r"round 3 is not kept \(those after 2, 4, 5 are\)"):
        checkpoint.model_after(keeping.folder, 3, manifest)
    changed = keeping.folder.round_path(2) / "model.safetensors"
    changed.write_bytes((keeping.folder.round_path(4) / "model.safetensors").read_bytes())
    with pytest.raises(RunFolderError, match="its digest is not the one"):
        checkpoint.model_after(keeping.folder, 2, manifest)


def model_after(folder: RunFolder, number: int) -> Flat:
    manifest = read_starting_model(folder).manifest
    arrays = load_file(folder.round_path(number) / "model.safetensors")
    return flatten({tensor.name: arrays[tensor.name] for tensor in manifest.tensors}, manifest)


@pytest.mark.parametrize("wire", ["fp32", "bf16"])
@pytest.mark.parametrize("optimiser", ["fedavg", "fedadam"])
def test_a_run_done_twice_ends_in_the_same_bytes(tmp_path: Path, wire: str, optimiser: str) -> None:
    runs = [Federation.make(tmp_path / name, wire=wire, optimiser={"name": optimiser}) for name in ("a", "b")]
    for one in runs:
        one.conduct()
    assert runs[0].final_bytes() == runs[1].final_bytes()


def arriving_in(order: tuple[str, ...], federation: Federation) -> None:
    """Let the sites' updates arrive in this order in every round, by holding each back until the one before is there."""
    grid, following = federation.grid, {**dict(itertools.pairwise(order)), order[-1]: None}

    def then(site: FakeSite, held: Callable[[], set[str]]) -> Callable[[Instruction, Message], Message]:
        def answer(instruction: Instruction, message: Message) -> Message:
            grid.held = held()
            return site.usual(instruction, message)

        return answer

    for name, after in following.items():
        site = federation.sites[name]
        site.answers["train"] = then(site, lambda after=after: grid.held - {after} if after else set(order[1:]))
    last, first = federation.sites[max(order)], federation.sites[order[0]]
    last.answers["prepare"] = then(last, lambda: set(order[1:]))
    first.answers["evaluate"] = then(first, set)


def test_the_order_of_arrival_does_not_change_a_byte(tmp_path: Path) -> None:
    ends = set()
    for order in itertools.permutations(SITES):
        federation = Federation.make(tmp_path / "-".join(order), rounds=2)
        arriving_in(order, federation)
        federation.conduct()
        for record in federation.folder.rounds()[1:]:
            assert tuple(record.sites) == order
        ends.add(federation.final_bytes())
    assert len(ends) == 1


class Killed(BaseException):
    """The coordinator's process ends here."""


@pytest.mark.parametrize("optimiser", ["fedavg", "fedadam"])
@pytest.mark.parametrize("moment", ["prepare 0", "train 1", "train 3", "evaluate 3"])
def test_a_run_that_was_killed_goes_on_to_the_same_bytes(tmp_path: Path, moment: str, optimiser: str) -> None:
    undisturbed = Federation.make(tmp_path / "a", optimiser={"name": optimiser})
    undisturbed.conduct()
    federation = Federation.make(tmp_path / "b", optimiser={"name": optimiser})

    def die(_instruction: Instruction, _message: Message) -> None:
        raise Killed

    federation.sites["clara"].answers[moment] = die
    with pytest.raises(Killed):
        federation.conduct()
    federation.sites["clara"].answers.clear()
    federation.grid = InProcessGrid(federation.sites)
    for site in federation.sites.values():
        site.seen.clear()
    federation.conduct()
    assert federation.final_bytes() == undisturbed.final_bytes()
    assert [one.model_out for one in federation.folder.rounds()] == [
        one.model_out for one in undisturbed.folder.rounds()
    ]
    done = {"prepare 0": 0, "train 1": 0, "train 3": 2, "evaluate 3": 3}[moment]
    trained = [number for kind, number in federation.sites["anna"].seen if kind == "train"]
    assert trained == list(range(done + 1, 4))


def test_a_run_whose_checkpoint_was_changed_does_not_go_on(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "run", rounds=1)
    federation.conduct()
    path = federation.folder.round_path(1) / "round.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "model_out": "f" * 64}))
    with pytest.raises(RunFolderError, match=r"its digest is not the one in round\.json"):
        federation.conduct()


# -- sites that fail ---------------------------------------------------------------------------------------------------


def test_nan_weights_are_refused_and_named_and_the_round_goes_on(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "run", rounds=2)
    berta = federation.sites["berta"]

    def broken(instruction: Instruction, message: Message) -> Message:
        update = berta.update_of(instruction, message)
        update[7] = np.nan
        return berta.trained(instruction, message, update)

    berta.answers["train 1"] = broken
    federation.conduct()
    first, second = federation.folder.rounds()[1:]
    assert [(miss.site, miss.reason, miss.code) for miss in first.missing] == [("berta", "invalid", "CONS-250")]
    assert sorted(first.trained) == ["anna", "clara"]
    assert first.weights == pytest.approx({"anna": 0.25, "clara": 0.75})
    assert sorted(second.trained) == list(SITES)
    assert np.isfinite(np.frombuffer(federation.final_bytes(), np.float32)).all()
    assert "missing: invalid, CONS-250" in federation.notes()


def hostile_updates(site: FakeSite) -> dict[str, Callable[[Instruction, Message], Message | None]]:
    def with_update(change: Callable[[np.ndarray], np.ndarray], **values: Any) -> Callable[..., Message]:
        def answer(instruction: Instruction, message: Message) -> Message:
            return site.trained(instruction, message, change(site.update_of(instruction, message)), **values)

        return answer

    def with_array(array: Array) -> Callable[..., Message]:
        def answer(instruction: Instruction, message: Message) -> Message:
            reply = site.trained(instruction, message, site.update_of(instruction, message))
            reply.content[UPDATE] = ArrayRecord({FLAT: array})
            return reply

        return answer

    def without(record: str) -> Callable[..., Message]:
        def answer(instruction: Instruction, message: Message) -> Message:
            reply = site.usual(instruction, message)
            del reply.content[record]
            return reply

        return answer

    def text(body: str) -> Callable[..., Message]:
        def answer(instruction: Instruction, message: Message) -> Message:
            reply = site.usual(instruction, message)
            reply.content[ANSWER] = ConfigRecord({BODY: body})
            return reply

        return answer

    return {
        "infinity": with_update(lambda update: np.where(update > 0, np.float32(np.inf), update)),
        "another length": with_update(lambda update: update[:-1]),
        "another type": with_update(lambda update: update.astype(np.float64)),
        "another shape": with_update(lambda update: update[None]),
        "another digest": with_update(lambda update: update, update_digest="0" * 64),
        "no digest": with_update(lambda update: update, update_digest=None),
        "no image": with_update(lambda update: update, trained=trained_answer(images=0)),
        "another round": with_update(lambda update: update, round=2),
        "another site's name": with_update(lambda update: update, site="anna"),
        "no update": without(UPDATE),
        "no answer record": without(ANSWER),
        "an answer to something else": lambda instruction, message: site.reply(
            instruction, message, evaluated=evaluated_answer()
        ),
        "no JSON": text("hello"),
        "no Python number": text('{"round": NaN}'),
        "pickled": with_array(Array("object", (1,), "numpy.ndarray", b"\x80\x04K\x01.")),
        "no bytes": with_array(Array("float32", (205,), "numpy.ndarray", b"")),
        "another serialisation": with_array(Array("float32", (205,), "torch.tensor", b"x")),
        "a header that asks for a terabyte": with_array(
            Array("float32", (1 << 38,), "numpy.ndarray", npy_header(1 << 38))
        ),
        "an exception": lambda _instruction, message: Message(Error(1, "ValueError: Mueller, Anna"), reply_to=message),
    }  # fmt: skip


# -- who said it -------------------------------------------------------------------------------------------------------


def signed_by(site: FakeSite, key: SigningKey) -> Callable[[Instruction, Message], Message]:
    def answer(instruction: Instruction, message: Message) -> Message:
        own, site.key = site.key, key
        try:
            return site.usual(instruction, message)
        finally:
            site.key = own

    return answer


def test_an_answer_that_another_key_signed_counts_for_nothing(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "run", rounds=1)
    federation.sites["berta"].answers["train"] = signed_by(federation.sites["berta"], new_key())
    federation.sites["clara"].answers["evaluate"] = signed_by(federation.sites["clara"], federation.sites["anna"].key)
    federation.conduct()
    record, final = federation.folder.rounds()[1], federation.folder.final()
    assert [(miss.site, miss.reason, miss.code) for miss in record.missing] == [("berta", "invalid", "CONS-241")]
    assert final is not None
    assert [(miss.site, miss.reason, miss.code) for miss in final.missing] == [("clara", "invalid", "CONS-241")]


def test_figures_of_masks_are_no_answer_in_a_study_of_classes(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "run", rounds=1)
    clara, cell = federation.sites["clara"], {"value": 0.5}
    masks = MaskResult.model_validate({**dict.fromkeys(MASK_METRICS, cell), "classes": []})
    of_masks = evaluated_answer().model_copy(update={"network": None, "masks": masks})
    clara.answers["evaluate"] = lambda instruction, message: clara.reply(instruction, message, evaluated=of_masks)
    federation.conduct()
    final = federation.folder.final()
    assert final is not None and sorted(final.sites) == ["anna", "berta"]
    assert [(miss.site, miss.reason) for miss in final.missing] == [("clara", "invalid")]


def test_an_answer_without_a_signature_or_with_a_changed_figure_counts_for_nothing(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "run", rounds=2, quorum=1)
    anna, berta = federation.sites["anna"], federation.sites["berta"]

    def unsigned(instruction: Instruction, message: Message) -> Message:
        reply = anna.usual(instruction, message)
        plain = read_answer(str(reply.content.config_records[ANSWER][BODY]), anna.key.public).model_dump_json()
        reply.content[ANSWER] = ConfigRecord({BODY: plain})
        return reply

    def changed(instruction: Instruction, message: Message) -> Message:
        reply = berta.usual(instruction, message)
        envelope = json.loads(str(reply.content.config_records[ANSWER][BODY]))
        payload = base64.b64decode(envelope["payload"]).replace(b'"images":', b'"images":9')
        assert payload != base64.b64decode(envelope["payload"])
        reply.content[ANSWER] = ConfigRecord(
            {BODY: json.dumps({**envelope, "payload": base64.b64encode(payload).decode()})}
        )
        return reply

    anna.answers["train 1"], berta.answers["train 2"] = unsigned, changed
    federation.conduct()
    missing = [[(miss.site, miss.code) for miss in one.missing] for one in federation.folder.rounds()[1:]]
    assert missing == [[("anna", "CONS-241")], [("berta", "CONS-241")]]


def test_an_answer_to_an_earlier_instruction_is_not_taken_for_this_rounds(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "run", rounds=2)
    berta = federation.sites["berta"]
    said: list[RecordDict] = []

    def once(instruction: Instruction, message: Message) -> Message:
        reply = berta.trained(instruction, message, berta.update_of(instruction, message), round=2)
        said.append(reply.content)
        return berta.usual(instruction, message)

    berta.answers["train 1"] = once
    berta.answers["train 2"] = lambda _instruction, message: Message(said[0], reply_to=message)
    federation.conduct()
    assert [(miss.site, miss.reason) for miss in federation.folder.rounds()[2].missing] == [("berta", "invalid")]


def test_a_site_that_is_revoked_in_a_round_is_left_out_from_that_moment(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "run", rounds=3)
    berta = federation.sites["berta"]

    def revoked_meanwhile(instruction: Instruction, message: Message) -> Message:
        record = federation.registry.get("berta")
        assert record is not None
        federation.registry.put(record.model_copy(update={"revoked": "2026-01-02T00:00:00+00:00"}))
        return berta.usual(instruction, message)

    berta.answers["train 2"] = revoked_meanwhile
    federation.conduct()
    rounds = federation.folder.rounds()
    assert sorted(rounds[1].trained) == list(SITES)
    assert [(miss.site, miss.reason, miss.code) for miss in rounds[2].missing] == [("berta", "invalid", "CONS-246")]
    assert [(miss.site, miss.reason) for miss in rounds[3].missing] == [("berta", "offline")]
    assert ("train", 3) not in berta.seen


def test_a_run_does_not_wait_for_a_site_that_was_revoked(tmp_path: Path) -> None:
    """A resumed run: its deadline for joining would be an hour."""
    federation = Federation.make(tmp_path / "run", rounds=1, join_deadline_s=3600)
    record = federation.registry.get("berta")
    assert record is not None
    federation.registry.put(record.model_copy(update={"revoked": "2026-01-02T00:00:00+00:00"}))
    federation.grid.offline.add("berta")
    federation.conduct()
    assert sorted(federation.folder.rounds()[1].trained) == ["anna", "clara"]


def test_a_site_with_another_release_is_named_with_both(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "run", rounds=1, quorum=3)
    federation.sites["anna"].code = "0" * 64
    federation.sites["anna"].answers["prepare"] = federation.sites["anna"].refuse("CONS-245")
    with pytest.raises(QuorumError) as problem:
        federation.conduct()
    own = Release.installed()
    assert "anna: refused (CONS-245): it runs release" in str(problem.value)
    assert "(code 000000000000, flwr 1.41.0), but the coordinator release" in str(problem.value)
    assert f"{own.versions['consilium']} (code {own.code_digest[:12]}" in str(problem.value)


def test_what_was_signed_is_kept_with_each_round(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "run", rounds=1)
    federation.conduct()
    folder = federation.folder
    places = {
        "prepare": folder.round_path(0) / "signed",
        "train": folder.round_path(1) / "signed",
        "evaluate": folder.path / "evaluation-signed",
    }
    for kind, place in places.items():
        assert len(list(place.iterdir())) == 2 * len(SITES)
        for name, site in federation.sites.items():
            instruction, digest = read_instruction(
                (place / f"{name}.{kind}.instruction.json").read_text(), COORDINATOR.public
            )
            answer = read_answer((place / f"{name}.{kind}.answer.json").read_text(), site.key.public)
            assert (instruction.kind, instruction.site, answer.instruction) == (kind, name, digest)
    previous = [json.loads(b64(place, "anna", kind))["previous"] for kind, place in places.items()]
    assert previous == [None, *(file_digest(folder.round_path(number) / "round.json") for number in (0, 1))]


def b64(place: Path, site: str, kind: str) -> bytes:
    return base64.b64decode(json.loads((place / f"{site}.{kind}.instruction.json").read_text())["payload"])


def test_a_site_that_refused_is_asked_again_at_rounds_2_4_8(tmp_path: Path) -> None:
    """A hospital that approves the study while the run goes on enters it."""
    federation = Federation.make(tmp_path / "run", rounds=6)
    anna = federation.sites["anna"]

    def not_yet(instruction: Instruction, message: Message) -> Message:
        if len([kind for kind, _ in anna.seen if kind == "prepare"]) < 3:
            return anna.refuse("CONS-210")(instruction, message)
        return anna.usual(instruction, message)

    anna.answers["prepare"] = not_yet
    federation.conduct()
    assert [kind for kind, _ in anna.seen] == ["prepare", "prepare", "prepare", *["train"] * 2, "evaluate"]
    assert [number for kind, number in anna.seen if kind == "train"] == [5, 6]


def npy_header(size: int) -> bytes:
    """The start of an .npy file of `size` float32 values, without the values."""
    body = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({size},), }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body.encode()


@pytest.mark.parametrize("what", list(hostile_updates(FakeSite("berta"))))
def test_whatever_a_site_sends_the_others_go_on(tmp_path: Path, what: str) -> None:
    federation = Federation.make(tmp_path / "run", rounds=1)
    berta = federation.sites["berta"]
    berta.answers["train"] = hostile_updates(berta)[what]
    federation.conduct()
    record = federation.folder.rounds()[1]
    assert [miss.site for miss in record.missing] == ["berta"]
    assert record.missing[0].reason == ("no answer" if what == "an exception" else "invalid")
    assert sorted(record.trained) == ["anna", "clara"]
    assert federation.folder.run().state == "finished"


def tensors_after(federation: Federation, number: int) -> dict[str, bytes]:
    """Bytes by name of the model after a round."""
    folder = federation.folder
    path = "model/initial.safetensors" if number == 0 else f"rounds/{number:04d}/model.safetensors"
    return {name: array.tobytes() for name, array in load_file(folder.path / path).items()}


@pytest.mark.parametrize("optimiser", ["fedavg", "fedavgm", "fedadam", "fedyogi"])
def test_what_a_stage_holds_is_in_no_update_and_does_not_move(tmp_path: Path, optimiser: str) -> None:
    study = staged_study(
        [], ["w"], ["b"], optimiser={"name": optimiser}, wire="bf16", keep_updates=True, keep_models={"every": 1}
    )
    federation = Federation.make(tmp_path / "run", study)
    federation.conduct()
    models = [tensors_after(federation, number) for number in range(4)]
    moved = [{name for name in before if before[name] != after[name]} for before, after in itertools.pairwise(models)]
    assert moved == [{"w", "b"}, {"b"}, {"w"}]
    for record, values in zip(federation.folder.rounds()[1:], (205, 5, 200), strict=True):
        assert {one.bytes_up for one in record.sites.values()} == {2 * values}
        assert {one.bytes_down for one in record.sites.values()} == {2 * 205}
        for site, digest in record.update_digests.items():
            stored = np.load(federation.folder.round_path(record.round) / "updates" / f"{site}.npy")
            assert stored.shape == (values,) and flat_digest(encode(stored, "bf16")) == digest
    run = federation.folder.run()
    assert (run.bytes_down, run.bytes_up, run.bytes_up_by_stage) == (410, 410, [410, 10, 400])


def test_an_update_that_holds_what_its_stage_holds_back_is_refused(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "run", staged_study(["w"], []))
    anna, berta = federation.sites["anna"], federation.sites["berta"]
    anna.answers["train 1"] = lambda instruction, message: anna.trained(instruction, message, np.zeros(205, np.float32))
    berta.answers["train 2"] = lambda instruction, message: berta.trained(instruction, message, np.zeros(5, np.float32))
    federation.conduct()
    missing = [[(miss.site, miss.reason, miss.code) for miss in one.missing] for one in federation.folder.rounds()[1:]]
    assert missing == [[("anna", "invalid", "CONS-200")], [("berta", "invalid", "CONS-200")]]


def test_a_run_that_goes_on_in_a_later_stage_ends_in_the_same_bytes(tmp_path: Path) -> None:
    study = staged_study([], ["w"], ["w"], optimiser={"name": "fedadam"})
    whole, cut_off = Federation.make(tmp_path / "whole", study), Federation.make(tmp_path / "cut-off", study)
    whole.conduct()
    for site in ("anna", "clara"):
        cut_off.sites[site].answers["train 3"] = cut_off.sites[site].refuse("CONS-230")
    with pytest.raises(QuorumError):
        cut_off.conduct()
    for site in cut_off.sites.values():
        site.answers.clear()
    cut_off.conduct()
    assert cut_off.final_bytes() == whole.final_bytes()


def test_a_refusal_is_recorded_with_its_code(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "run", rounds=1)
    federation.sites["anna"].answers["prepare"] = federation.sites["anna"].refuse("CONS-210")
    federation.conduct()
    rounds = federation.folder.rounds()
    assert [(miss.site, miss.reason, miss.code) for miss in rounds[0].missing] == [("anna", "refused", "CONS-210")]
    assert ("train", 1) not in federation.sites["anna"].seen
    assert federation.sites["anna"].seen == [("prepare", 0)], "a site that refused is not asked again"


def test_another_frozen_model_is_refused_before_round_1(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "run", rounds=1)
    anna = federation.sites["anna"]
    anna.answers["prepare"] = lambda instruction, message: anna.reply(
        instruction, message, prepared=prepared_answer(frozen_digest="1" * 64)
    )
    federation.conduct()
    assert [(miss.site, miss.code) for miss in federation.folder.rounds()[0].missing] == [("anna", "CONS-120")]
    assert sorted(federation.folder.rounds()[1].trained) == ["berta", "clara"]


def test_fewer_than_the_quorum_end_the_run_in_a_sentence_that_names_them(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "run", rounds=3)
    for site in ("anna", "clara"):
        federation.sites[site].answers["train 2"] = federation.sites[site].refuse("CONS-230")
    with pytest.raises(QuorumError) as problem:
        federation.conduct()
    assert str(problem.value) == (
        "1 of 3 sites finished round 2, but the quorum is 2. anna: refused (CONS-230); clara: refused (CONS-230)"
    )
    assert [one.round for one in federation.folder.rounds()] == [0, 1]


def test_a_run_without_a_site_at_the_end_keeps_its_model(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "run", rounds=1)
    for site in federation.sites.values():
        site.answers["evaluate"] = site.refuse("CONS-999")
    with pytest.raises(QuorumError, match="the model itself is kept"):
        federation.conduct()
    assert (federation.folder.round_path(1) / "model.safetensors").exists()
    final = federation.folder.final()
    assert final is not None and [miss.site for miss in final.missing] == list(SITES)


# -- sites that are silent, late or absent -----------------------------------------------------------------------------


def test_a_node_that_was_started_anew_in_a_round_is_asked_again_and_nothing_is_missing(tmp_path: Path) -> None:
    undisturbed = Federation.make(tmp_path / "a", rounds=2)
    undisturbed.conduct()
    federation = Federation.make(tmp_path / "b", rounds=2)
    berta = federation.sites["berta"]

    def dies(_instruction: Instruction, _message: Message) -> None:
        del berta.answers["train 1"]
        federation.grid.activated["berta"] = "a moment later"

    berta.answers["train 1"] = dies
    federation.conduct()
    assert [number for kind, number in berta.seen if kind == "train"] == [1, 1, 2]
    assert not any(record.missing for record in federation.folder.rounds())
    assert federation.final_bytes() == undisturbed.final_bytes()


class FirstMessageFirst(InProcessGrid):
    """Berta's node was started anew before it had taken its message: it finds that one, and the one that was sent again after it."""

    first: str = ""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        identifiers = list(message_ids)
        training = [
            name
            for name, message in self._waiting.items()
            if message.metadata.message_type == "train" and self._names[message.metadata.dst_node_id] == "berta"
        ]
        if len(training) < 2 and not self.first:
            return super().pull_messages(set(identifiers) - set(training))
        self.first = self.first or training[0]
        if self.first in training:
            return super().pull_messages(set(identifiers) - set(training[1:]))
        return super().pull_messages(identifiers)


@pytest.mark.parametrize("refuses", [False, True], ids=["answers both", "refuses the first"])
def test_a_node_that_finds_both_messages_is_not_missing(tmp_path: Path, refuses: bool) -> None:
    federation = Federation.make(tmp_path / "run", rounds=1)
    federation.grid = FirstMessageFirst(federation.sites)
    anna, berta = federation.sites["anna"], federation.sites["berta"]

    def restart(instruction: Instruction, message: Message) -> Message:
        federation.grid.activated["berta"] = "a moment later"
        return anna.usual(instruction, message)

    def first(instruction: Instruction, message: Message) -> Message:
        del berta.answers["train"]
        return (berta.refuse("CONS-242") if refuses else berta.usual)(instruction, message)

    anna.answers["train"] = restart
    berta.answers["train"] = first
    federation.conduct()
    record = federation.folder.rounds()[1]
    assert [kind for kind, _ in berta.seen].count("train") == 2
    assert not record.missing and not record.late
    assert sorted(record.trained) == list(SITES)


@pytest.mark.parametrize("moment", ["train 1", "train 2", "evaluate 2"])
def test_sites_that_are_all_cut_off_for_a_while_are_waited_for(tmp_path: Path, moment: str) -> None:
    """Below the quorum a round waits for those who are away, until its deadline."""
    undisturbed = Federation.make(tmp_path / "a", rounds=2, quorum=3)
    undisturbed.conduct()
    federation = Federation.make(tmp_path / "b", rounds=2, quorum=3)
    grid = federation.grid

    def cut(_instruction: Instruction, _message: Message) -> None:
        for site in federation.sites.values():
            site.answers.clear()
        grid.offline |= set(SITES)
        threading.Timer(0.2, grid.offline.clear).start()

    federation.sites["berta"].answers[moment] = cut
    federation.conduct()
    assert federation.final_bytes() == undisturbed.final_bytes()
    assert not any(record.missing for record in federation.folder.rounds())


def test_a_message_that_flower_gave_up_is_sent_again_when_the_site_is_back(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "run", rounds=1, quorum=3)
    berta = federation.sites["berta"]

    def unavailable(_instruction: Instruction, message: Message) -> Message:
        berta.answers.clear()
        return Message(Error(ErrorCode.NODE_UNAVAILABLE, "the node is not available"), reply_to=message)

    berta.answers["train"] = unavailable
    federation.conduct()
    assert sorted(federation.folder.rounds()[1].trained) == list(SITES)


def test_a_site_that_stays_away_ends_the_run_at_the_deadline_where_the_quorum_needs_it(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "run", rounds=1, quorum=3, round_deadline_s=0.5)

    def goes(_instruction: Instruction, _message: Message) -> None:
        federation.grid.offline.add("berta")

    federation.sites["berta"].answers["train"] = goes
    with pytest.raises(QuorumError, match=r"2 of 3 sites finished round 1, but the quorum is 3\. berta: offline"):
        federation.conduct()


def test_a_site_that_never_answers_is_given_up_at_the_deadline(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "run", rounds=2, round_deadline_s=0.3)
    federation.sites["berta"].answers["train"] = nobody
    begun = time.monotonic()
    federation.conduct()
    assert time.monotonic() - begun >= 0.6
    for record in federation.folder.rounds()[1:]:
        assert [(miss.site, miss.reason) for miss in record.missing] == [("berta", "no answer")]
        assert record.timing.push + record.timing.wait >= 0.28  # the deadline runs from the sending on


def test_a_late_answer_is_counted_and_ignored(tmp_path: Path) -> None:
    """Berta's answer to round 1 comes while clara's to round 2 is awaited, and clara's only after it."""
    punctual = Federation.make(tmp_path / "a", rounds=2, round_deadline_s=0.5)
    punctual.sites["berta"].answers["train 1"] = nobody
    punctual.conduct()
    federation = Federation.make(tmp_path / "b", rounds=2, round_deadline_s=0.5)
    anna, berta = federation.sites["anna"], federation.sites["berta"]

    def holding(held: set[str], site: FakeSite) -> Callable[[Instruction, Message], Message]:
        def answer(instruction: Instruction, message: Message) -> Message:
            federation.grid.held = held
            return site.usual(instruction, message)

        return answer

    anna.answers = {"train 1": holding({"berta"}, anna), "train 2": holding({"clara"}, anna)}
    berta.answers = {"train 1": holding(set(), berta)}
    federation.conduct()
    first, second = federation.folder.rounds()[1:]
    assert [(miss.site, miss.reason) for miss in first.missing] == [("berta", "no answer")]
    assert ("train", 1) in berta.seen
    assert second.late == ["berta"]
    assert sorted(second.trained) == list(SITES)
    assert federation.final_bytes() == punctual.final_bytes()
    assert "answered too late, ignored" in federation.notes()


def test_a_site_that_goes_offline_does_not_hold_the_round_up(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "run", rounds=1, round_deadline_s=60)

    def leave(_instruction: Instruction, _message: Message) -> None:
        federation.grid.offline.add("berta")

    federation.sites["berta"].answers["train"] = leave
    begun = time.monotonic()
    federation.conduct()
    assert time.monotonic() - begun < 20
    assert [(miss.site, miss.reason) for miss in federation.folder.rounds()[1].missing] == [("berta", "offline")]


def test_a_latecomer_enters_at_the_next_round(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "run", rounds=3, join_deadline_s=0.3)
    federation.grid.offline.add("clara")
    anna = federation.sites["anna"]

    def bring_clara(instruction: Instruction, message: Message) -> Message:
        federation.grid.offline.clear()
        return anna.usual(instruction, message)

    anna.answers["prepare"] = bring_clara
    federation.conduct()
    rounds = federation.folder.rounds()
    assert [(miss.site, miss.reason) for miss in rounds[0].missing] == [("clara", "offline")]
    assert sorted(rounds[1].trained) == ["anna", "berta"]
    assert sorted(rounds[2].trained) == sorted(rounds[3].trained) == list(SITES)
    assert sorted(federation.folder.run().sites) == list(SITES)


def test_a_site_that_did_not_prepare_in_time_is_asked_again(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "run", rounds=3, prepare_deadline_s=0.3)
    clara = federation.sites["clara"]
    asked = itertools.count()
    clara.answers["prepare"] = lambda instruction, message: (
        None if next(asked) == 0 else clara.usual(instruction, message)
    )
    federation.conduct()
    rounds = federation.folder.rounds()
    assert [(miss.site, miss.reason) for miss in rounds[0].missing] == [("clara", "no answer")]
    assert sorted(rounds[3].trained) == list(SITES)


def test_too_few_sites_online_end_in_a_sentence(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "run", join_deadline_s=0.2)
    federation.grid.offline |= {"anna", "clara"}
    with pytest.raises(QuorumError, match=r"1 of 3 sites came online .* missing: anna, clara"):
        federation.conduct()


def test_a_node_that_is_not_of_this_run_is_never_asked(tmp_path: Path) -> None:
    stranger = FakeSite("stranger")
    federation = Federation.make(tmp_path / "run", rounds=1)
    federation.grid = InProcessGrid({**federation.sites, "stranger": stranger})
    federation.conduct()
    assert stranger.seen == []


def test_messages_carry_nothing_but_one_text_and_one_array(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "run", rounds=1, wire="bf16")
    anna = federation.sites["anna"]

    def look(instruction: Instruction, message: Message) -> Message:
        assert set(message.content) == {INSTRUCTION, MODEL}
        assert set(message.content[INSTRUCTION]) == {BODY} and set(message.content[MODEL]) == {FLAT}
        assert message.content.array_records[MODEL][FLAT].dtype == "uint16"
        assert message.metadata.ttl >= 7200
        return anna.usual(instruction, message)

    anna.answers = {"prepare": look, "train": look, "evaluate": look}
    federation.conduct()
    assert len(anna.seen) == 3


def test_weights_by_counts_are_those_of_the_answers(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "run", rounds=1)
    federation.sites["anna"].images = 1
    federation.conduct()
    assert federation.folder.rounds()[1].weights == normalised_weights({"anna": 1, "berta": 100, "clara": 150})
