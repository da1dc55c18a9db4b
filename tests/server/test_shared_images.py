"""Where a study asks for it, hospitals learn each other's keys from the instruction, and images that two hold are counted."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Message
from test_rounds import ARRAYS, SITES, FakeSite, Federation, quick

from benchmarks.bare_run import bare_folder, bare_registry, bare_study, prepared_answer, study_values
from benchmarks.in_process_grid import InProcessGrid
from client.duplicate_tags import tags_for
from server.report.shared_images import shared_images
from shared.messages import Instruction
from shared.study import Study

__all__ = ["quick"]  # test_rounds' fixture, for every test here
IMAGES = {"anna": range(40), "berta": range(28, 60), "clara": range(57, 90)}


def test_the_coordinator_names_the_others_keys_and_reports_counts_by_pairs(tmp_path: Path) -> None:
    study = Study.model_validate(
        {**study_values(rounds=1), "data": {"duplicates": {"across": "report"}}, "evaluation": {"minimum_cell": 5}}
    )
    sites = {name: FakeSite(name) for name in SITES}
    asked: list[Instruction] = []

    def with_tags(site: FakeSite) -> None:
        def prepared(instruction: Instruction, message: Message) -> Message:
            asked.append(instruction)
            tags = tags_for(
                [f"{number:016x}" for number in IMAGES[site.name]], instruction.peers, site=site.name, key=site.key,
                run=instruction.run, study=instruction.study_digest,
            )  # fmt: skip
            return site.reply(instruction, message, prepared=prepared_answer().model_copy(update={"tags": tags}))

        site.answers["prepare"] = prepared

    for site in sites.values():
        with_tags(site)
    folder = bare_folder(tmp_path / "run", study, ARRAYS, list(SITES))
    registry = bare_registry(tmp_path / "coordinator", {name: site.key for name, site in sites.items()})
    Federation(folder, sites, InProcessGrid(sites), registry).conduct()
    keys = {name: str(site.key.public) for name, site in sites.items()}
    assert {one.site: one.peers for one in asked} == {
        name: {other: key for other, key in keys.items() if other != name} for name in SITES
    }
    found = shared_images(folder.rounds()[0].prepared, minimum_cell=study.evaluation.minimum_cell)
    assert {pair.sites: (pair.images, pair.fewer_than) for pair in found} == {
        ("anna", "berta"): (12, None),
        ("anna", "clara"): (0, None),
        ("berta", "clara"): (None, 5),
    }


def test_who_is_not_asked_is_told_no_keys(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "run", rounds=1)
    told: list[Instruction] = []
    anna = federation.sites["anna"]

    def look(instruction: Instruction, message: Message) -> Message:
        told.append(instruction)
        return anna.usual(instruction, message)

    anna.answers = {"prepare": look, "train": look, "evaluate": look}
    federation.conduct()
    assert len(told) == 3 and all(one.peers == {} for one in told)
    assert not bare_study().counts_shared_images
