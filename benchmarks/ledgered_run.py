"""A run whose hospitals are real but for their data: the gate, the ledger and the signatures of `client`, around invented work.

What the auditor's tests and benchmark read: records that are signed and entered as in a real run, of a model of any size.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Message

from benchmarks.bare_run import (
    FROZEN_DIGEST,
    bare_folder,
    bare_registry,
    evaluated_answer,
    new_key,
    prepared_answer,
    study_values,
    trained_answer,
)
from benchmarks.in_process_grid import InProcessGrid
from client import gate
from client.approvals import approve
from client.device import chosen_device, device_name
from client.gate import Result, Task
from client.site_folder import Coordinator as Joined
from client.site_folder import SiteFolder
from client.withdrawn import Tags
from server import exchange
from server.receipts import Receipts
from server.registry import Registry
from server.rounds import Coordinator
from server.run_folder import RunFolder
from shared.documents import Publication, StartingPoint
from shared.metrics.noised import figures_from_noised
from shared.metrics.noised_masks import figures_from_noised_masks
from shared.profile import Profile
from shared.release import Release
from shared.results import Evaluated, HeadResult, NoisedMasks, Prepared, Trained
from shared.signing import SigningKey
from shared.study import Study
from shared.wire import Flat, Manifest, cut, encode, flat_digest, flatten, put

ARRAYS: dict[str, Flat] = {
    "w": np.linspace(-1, 1, 200, dtype=np.float32).reshape(10, 20),
    "b": np.zeros(5, np.float32),
}
#: Epsilon 20 at delta 1e-5 is more than one run of `private_study` costs, and less than four.
LIFETIME = {"epsilon": 20.0, "delta": 1e-5}

Answering = Callable[["Hospital", Message], Message | None]


def private_study(*, svm: bool = False, masks: bool = False, epsilon: float = 6, **federation: Any) -> Study:
    """A private study of the bare model, of `masks` or of classes, that states `epsilon`; `federation` changes its section of that name."""
    values = study_values(weighting="uniform", **federation)
    values["name"] = "private"
    values["model"] |= {"norm": "group"}
    values["training"] = {"optimiser": "sgd", "learning_rate": 0.1, "loss": "binary_cross_entropy"}
    values["evaluation"] = {"baseline": False, "release": {"epsilon": 1}}
    values["privacy"] = {
        "sampling_rate": "1/20", "steps_per_round": 5, "clipping_norm": 1.0, "normaliser": 8, "noise_multiplier": 1.0,
        "epsilon": epsilon, "delta": 1e-5, "svm": {"steps": 10, "noise_multiplier": 2.0} if svm else None,
    }  # fmt: skip
    if masks:
        values["task"] |= {"kind": "segmentation"}
        values["preprocessing"] |= {"mask": {"from": "annotated"}}
        values["model"] |= {"name": "split_attention_unet"}
        values["training"] |= {"loss": "cross_entropy_dice"}
    return Study.model_validate(values)


def plain_study(**federation: Any) -> Study:
    return Study.model_validate(study_values(**federation))


@dataclass
class Hospital:
    """Answers through its own gate. `instead` stands in the place of an answer to `KIND ROUND`."""

    folder: SiteFolder
    images: int
    instead: dict[str, Answering] = field(default_factory=dict)
    manifest: Manifest = field(default_factory=lambda: Manifest.of(ARRAYS))

    def __call__(self, message: Message) -> Message | None:
        kind = message.metadata.message_type.removeprefix("query.")
        special = self.instead.get(f"{kind} {message.metadata.group_id}")
        return special(self, message) if special else self.usual(message)

    def usual(self, message: Message) -> Message:
        return gate.answer(message, self.folder, self.work)

    @property
    def key(self) -> SigningKey:
        return self.folder.signing_key()

    @property
    def ledger(self) -> Path:
        return self.folder.path / "ledger.jsonl"

    def work(self, task: Task) -> Result:
        tags = Tags.of(self.folder)
        patients = {tags.tag(f"patient {number}"): frozenset[str]() for number in range(self.images)}
        private = task.study.privacy is not None
        if task.instruction.kind == "prepare":
            gate.run_on_ledger.before_images(task.on_ledger, patients)
            return Result(prepared=_prepared(self.images, private=private), patients=patients)
        if task.instruction.kind == "evaluate":
            svm = "5" * 64 if task.study.privacy is not None and task.study.privacy.svm is not None else None
            return Result(
                evaluated=noised(task.study) if private else evaluated_answer(images=self.images),
                svm=svm, patients=patients,
            )  # fmt: skip
        seed = [ord(self.folder.profile().site[0]), task.instruction.round]
        update: Flat = np.random.default_rng(seed).normal(scale=0.01, size=task.model.size).astype(np.float32)
        free = self.manifest.without(task.study.training.held_in(task.instruction.round))
        update = put(cut(update, self.manifest, free), np.zeros_like(update), self.manifest, free)
        return Result(
            trained=_trained(self.images, private=private), update=update, tensors=self.manifest, patients=patients
        )


@dataclass
class LedgeredFederation:
    """One coordinator, its run folder, and hospitals with folders of their own beside it: `path`/run, `path`/sites, `path`/home."""

    path: Path
    folder: RunFolder
    hospitals: dict[str, Hospital]
    registry: Registry
    key: SigningKey

    @classmethod
    def make(
        cls, path: Path, study: Study, *, sites: tuple[str, ...] = ("anna", "berta", "clara"),
        arrays: Mapping[str, Flat] = ARRAYS, lifetime: Mapping[str, Any] | None = LIFETIME,
    ) -> LedgeredFederation:  # fmt: skip
        key = new_key()
        hospitals = {
            site: Hospital(_site(path / "sites" / site, site, key, lifetime if study.privacy else None), 50 * number)
            for number, site in enumerate(sites, start=1)
        }
        registry = bare_registry(path / "home", {site: one.key for site, one in hospitals.items()})
        made = cls(path, bare_folder(path / "run", study, arrays, list(sites)), hospitals, registry, key)
        made.approve(study, arrays)
        return made

    def approve(self, study: Study, arrays: Mapping[str, Flat] = ARRAYS) -> None:
        """Every hospital does."""
        manifest = Manifest.of(arrays)
        start = StartingPoint(
            manifest_digest=manifest.digest(),
            model_digest=flat_digest(encode(flatten(arrays, manifest), study.federation.wire)),
            frozen_digest=FROZEN_DIGEST,
        )
        publication = Publication(
            federation="ledgered", coordinator_key=str(self.key.public), study=study.to_data(), study_digest=study.digest(),
            starting_point=start, runs=100, expires="2999-12-31", created="today", release=Release.installed(),
        )  # fmt: skip
        for one in self.hospitals.values():
            one.manifest = manifest
            approve(one.folder, publication, by="the benchmark", weights_folder=Path("/nowhere"))

    def another_run(self, name: str, study: Study, arrays: Mapping[str, Flat] = ARRAYS) -> LedgeredFederation:
        """The same coordinator and hospitals, in `path`/`name`."""
        self.approve(study, arrays)
        folder = bare_folder(self.path / name, study, arrays, list(self.hospitals))
        return LedgeredFederation(self.path, folder, self.hospitals, self.registry, self.key)

    def conduct(self) -> Path:
        """The run's folder."""
        receipts = Receipts(self.path / "home" / "receipts")
        with _without_waits():
            Coordinator(
                InProcessGrid(self.hospitals), self.folder, registry=self.registry, receipts=receipts, key=self.key
            ).conduct()
        return self.folder.path


@contextlib.contextmanager
def _without_waits() -> Iterator[None]:
    """Nobody is far away here; and each answer is followed by a collection of garbage, which costs half a second in a full process."""
    before = exchange.FIRST_POLL_SECONDS, exchange.LONGEST_POLL_SECONDS
    exchange.FIRST_POLL_SECONDS = exchange.LONGEST_POLL_SECONDS = 0.002
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        exchange.FIRST_POLL_SECONDS, exchange.LONGEST_POLL_SECONDS = before


def noised(study: Study) -> Evaluated:
    """As `client.noised_evaluation` makes it, of invented counts."""
    release = study.evaluation.release
    if release is None:
        raise ValueError("the study asks for no noise")
    if study.task.kind == "segmentation":
        by_iou = [1, -1, 0, 2, 0, -2, 1, 0, 3, 2, 4, 6, 9, 12, 15, 17, 11, 8, 3, -1]
        figures = figures_from_noised_masks(
            by_iou, epsilon=float(release.epsilon), confidence=study.evaluation.confidence
        )
        masks = NoisedMasks.model_validate({**figures, "counts": by_iou, "noise": release.epsilon})
        return Evaluated(
            patients=None, images=None, train_patients=None, train_images=None, noised_masks=masks, seconds={}
        )
    heads = ["network", "svm"] if study.privacy is not None and study.privacy.svm is not None else ["network"]
    share = float(release.epsilon) / len(heads)
    results = {}
    for place, name in enumerate(heads):
        counts = [[31 + place, -2], [8, 27]]
        overall, classes = figures_from_noised(
            counts, positive=study.task.positive_index, epsilon=share, confidence=study.evaluation.confidence
        )
        values = {**overall, "confusion": counts, "classes": classes, "noise": repr(share)}
        results[name] = HeadResult.model_validate(values)
    return Evaluated(
        patients=None, images=None, train_patients=None, train_images=None, network=results["network"],
        svm=results.get("svm"), seconds={},
    )  # fmt: skip


def _prepared(images: int, *, private: bool) -> Prepared:
    made = prepared_answer(images=images).model_copy(update={"device": device_name(chosen_device("cpu"))})
    if not private:
        return made
    return made.model_copy(update={"parts": {}, "left_out": None, "unreadable": None, "seconds": {}})


def _trained(images: int, *, private: bool) -> Trained:
    if not private:
        return trained_answer(images=images)
    return Trained(images=None, patients=None, steps=5, epochs=[], validation=None, update_norm=0.1, seconds={})


def _site(path: Path, site: str, coordinator: SigningKey, lifetime: Mapping[str, Any] | None) -> SiteFolder:
    profile = {
        "schema": "consilium/profile/1",
        "site": site,
        "title": site,
        "data": {"layout": "cbis_ddsm", "root": "/nowhere", "synthetic": True},
        "device": "cpu",
        "policy": {
            "maximum_rounds": 10_000, "minimum_patients": 1, **({"lifetime": lifetime} if lifetime else {}),
        },
    }  # fmt: skip
    folder = SiteFolder.create(path, Profile.model_validate(profile))
    joined = Joined(
        federation="ledgered", address="127.0.0.1:1", coordinator_key=str(coordinator.public), joined="today"
    )
    (path / "coordinator.json").write_text(joined.model_dump_json())
    return folder
