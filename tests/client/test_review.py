"""What a hospital is shown before it says yes or no: everything that leaves, by the contract's own names, and what has changed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from publications import STARTING_POINT, joined, profile_of, publication_of, published
from pydantic import BaseModel
from typer.testing import CliRunner

from benchmarks.bare_run import bare_study, study_values
from client.approvals import approve, decline, find_approval, require_approval
from client.cli import app
from client.leaving import names_that_leave
from client.publications import find_publication, publications, receive, state_of
from client.review import Review, review
from client.site_folder import SiteFolder
from client.study_changes import study_changes
from shared.documents import StartingPoint
from shared.errors import ApprovalChangedError, DocumentError, InputError, PolicyError, WeightsError
from shared.messages import Answer
from shared.models import build_network
from shared.models.state import frozen_digest, travelling_arrays
from shared.profile import ArtificialPart
from shared.release import Release
from shared.signing import SigningKey
from shared.study import Study
from shared.wire import Manifest, encode, flat_digest, flatten

OWN = Release.installed()
RUN = CliRunner()


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return SigningKey.create(tmp_path / "coordinator.key")


@pytest.fixture
def folder(tmp_path: Path, key: SigningKey) -> SiteFolder:
    return joined(SiteFolder.create(tmp_path / "anna", profile_of()), key)


def small_study(**changes: Any) -> Study:
    values = study_values()
    values["model"] = {"name": "resnet18"}
    return Study.model_validate({**values, **changes})


def true_start(study: Study) -> StartingPoint:
    network = build_network(study)
    arrays = travelling_arrays(network)
    manifest = Manifest.of(arrays)
    return StartingPoint(
        manifest_digest=manifest.digest(),
        model_digest=flat_digest(encode(flatten(arrays, manifest), study.federation.wire)),
        frozen_digest=frozen_digest(network),
    )


def section(found: Review, title: str) -> dict[str, str]:
    (one,) = [section for section in found.sections if section.title == title]
    return dict(one.rows)


# -- taking in ---------------------------------------------------------------------------------------------------------


def test_what_the_joined_coordinator_signed_is_taken_in(folder: SiteFolder, key: SigningKey, tmp_path: Path) -> None:
    taken = receive(folder, published(tmp_path / "study.json", key))
    assert publications(folder) == [taken]
    assert find_publication(folder, taken.study_digest[:8]) == taken
    assert state_of(folder, taken, OWN) == "waiting"


def test_what_somebody_else_signed_is_not(folder: SiteFolder, key: SigningKey, tmp_path: Path) -> None:
    stranger = SigningKey.create(tmp_path / "stranger.key")
    for path in (
        published(tmp_path / "theirs.json", stranger),
        published(tmp_path / "pretended.json", stranger, coordinator_key=str(key.public)),
        published(tmp_path / "other.json", key, coordinator_key=str(stranger.public)),
        published(tmp_path / "digest.json", key, study_digest="0" * 64),
        published(tmp_path / "day.json", key, expires="2026-99-99"),
    ):
        with pytest.raises(DocumentError):
            receive(folder, path)
    assert publications(folder) == []


def test_without_a_coordinator_nothing_is_taken_in(key: SigningKey, tmp_path: Path) -> None:
    alone = SiteFolder.create(tmp_path / "berta", profile_of("berta"))
    with pytest.raises(InputError, match="not joined yet"):
        receive(alone, published(tmp_path / "study.json", key))


def test_weights_come_along_and_lie_apart_until_approved(folder: SiteFolder, key: SigningKey, tmp_path: Path) -> None:
    named = {"file": "weights/w.pth", "sha256": hashlib.sha256(b"weights").hexdigest(), "source": "a book"}
    study = small_study(model={"name": "resnet18", "weights": named})
    path = published(tmp_path / "study.json", key, study)
    with pytest.raises(WeightsError, match="no such file"):
        receive(folder, path)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "w.pth").write_bytes(b"weights")
    receive(folder, path)
    assert not folder.weights.exists()
    (tmp_path / "weights" / "w.pth").unlink()
    receive(folder, path)  # it is here already
    said = RUN.invoke(app, ["approve", str(folder.path), study.digest()[:8]], catch_exceptions=False)
    assert said.exit_code == 0
    assert (folder.weights / "weights" / "w.pth").read_bytes() == b"weights"


@pytest.mark.parametrize("prefix", ["", "1234567", "zzzzzzzz", "0" * 8, "0" * 65])
def test_a_study_is_found_by_eight_digits_of_its_digest(
    folder: SiteFolder, key: SigningKey, tmp_path: Path, prefix: str
) -> None:
    receive(folder, published(tmp_path / "study.json", key))
    with pytest.raises(InputError):
        find_publication(folder, prefix)


def test_a_file_that_is_not_there_is_told(folder: SiteFolder) -> None:
    with pytest.raises(InputError, match=r"nothere\.study\.json': no such file"):
        RUN.invoke(app, ["approve", str(folder.path), "./nothere.study.json"], catch_exceptions=False)


def test_the_state_follows_what_was_said(folder: SiteFolder, key: SigningKey, tmp_path: Path) -> None:
    one = receive(folder, published(tmp_path / "study.json", key, runs=1))
    other_code = OWN.model_copy(update={"code_digest": "0" * 64})
    approve(folder, one, by="Dr. A", weights_folder=tmp_path)
    assert state_of(folder, one, OWN) == "approved"
    assert state_of(folder, one, other_code) == "changed"
    require_approval(folder, bare_study(), coordinator_key=one.coordinator_key, run="run-1", release=OWN)
    assert state_of(folder, one, OWN) == "used up"
    decline(folder, one, by="Dr. A")
    assert state_of(folder, one, OWN) == "declined"
    late = receive(folder, published(tmp_path / "late.json", key, bare_study(rounds=4), expires="2020-01-01"))
    assert state_of(folder, late, OWN) == "expired"


# -- showing -----------------------------------------------------------------------------------------------------------


def test_sizes_are_those_of_the_network_that_is_built_here(folder: SiteFolder, key: SigningKey, tmp_path: Path) -> None:
    study = small_study()
    found = review(
        folder, receive(folder, published(tmp_path / "s.json", key, study, starting_point=true_start(study)))
    )
    network = build_network(study)
    parameters = sum(one.numel() for one in network.parameters())
    values = sum(array.size for array in travelling_arrays(network).values())
    assert (
        f"{parameters:,}, of which {parameters:,} are trained (100 %)"
        in section(found, "What is trained")["Parameters"]
    )
    leaving = section(found, "What leaves, and what never does")
    assert f"{values:,} numbers (fp32) of {len(travelling_arrays(network))} tensors" in leaving["Each round out"]
    assert f"{4 * values / 1e6:.1f} MB" in leaving["Each round out"]
    assert found.obstacles == []
    assert section(found, "What is trained")["Starts from"].endswith("the same values were built here")


def test_of_a_study_in_stages_what_leaves_is_told_for_each(folder: SiteFolder, key: SigningKey, tmp_path: Path) -> None:
    training = small_study().to_data()["training"]
    held = ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"]
    stages = [{"rounds": 1, "freeze": ["fc"]}, {"rounds": 2, "freeze": held}]
    study = small_study(training={**training, "stages": stages})
    found = review(
        folder, receive(folder, published(tmp_path / "s.json", key, study, starting_point=true_start(study)))
    )
    arrays = travelling_arrays(build_network(study))
    values = sum(array.size for array in arrays.values())
    leaving = section(found, "What leaves, and what never does")
    assert f"{values - 513:,} numbers (fp32) of {len(arrays) - 2} tensors" in leaving["A round of stage 1 out"]
    assert (
        "0.0 MB" in leaving["A round of stage 2 out"] and "513 numbers (fp32) of 2" in leaving["A round of stage 2 out"]
    )
    assert f"about {4 * (3 * values + values - 513 + 2 * 513) / 1e6:,.0f} MB" in section(found, "How often")["In all"]


def test_another_starting_model_than_the_studys_is_told(folder: SiteFolder, key: SigningKey, tmp_path: Path) -> None:
    study = small_study()
    start = true_start(study).model_copy(update={"model_digest": "0" * 64})
    found = review(folder, receive(folder, published(tmp_path / "s.json", key, study, starting_point=start)))
    assert "others than the coordinator's" in section(found, "What is trained")["Starts from"]


def test_tensors_or_frozen_layers_of_another_network_stand_in_the_way(
    folder: SiteFolder, key: SigningKey, tmp_path: Path
) -> None:
    study = small_study()
    for change, said in (({"manifest_digest": "0" * 64}, "names or shapes"), ({"frozen_digest": "0" * 64}, "frozen")):
        start = true_start(study).model_copy(update=change)
        found = review(folder, receive(folder, published(tmp_path / "s.json", key, study, starting_point=start)))
        assert any(said in one for one in found.obstacles)


def test_every_name_that_an_answer_can_hold_is_shown(folder: SiteFolder, key: SigningKey, tmp_path: Path) -> None:
    """Compared with the JSON schema that Pydantic itself makes of the contract."""
    schema = Answer.model_json_schema()
    objects = [schema, *schema["$defs"].values()]
    names = {name for one in objects if "properties" in one for name in one["properties"]}
    found = review(folder, receive(folder, published(tmp_path / "study.json", key, small_study())))
    shown = " ".join(section(found, "What leaves, and what never does").values())
    assert not {name for name in names if name not in shown}


def test_a_new_field_of_the_contract_is_shown_by_itself() -> None:
    class Inner(BaseModel):
        """Something new."""

        surprise: int

    class Outer(BaseModel):
        """Around it."""

        inner: dict[str, list[Inner | None]]

    assert names_that_leave(Outer) == {"Outer: Around it": ("inner",), "Inner: Something new": ("surprise",)}


def test_who_asks_what_for_and_that_no_privacy_is_promised(folder: SiteFolder, key: SigningKey, tmp_path: Path) -> None:
    study = small_study()
    found = review(folder, receive(folder, published(tmp_path / "study.json", key, study)))
    assert section(found, "Who asks")["Coordinator"] == key.public.spoken
    purpose = section(found, "What for")
    governance = study.governance
    assert (purpose["Purpose"], purpose["Ethics"], purpose["Retention"]) == (
        governance.purpose,
        governance.ethics,
        governance.retention,
    )
    assert "no formal privacy guarantee" in section(found, "What privacy it costs")["Guarantee"]


def test_our_limits_are_shown_and_what_is_too_much_stands_in_the_way(key: SigningKey, tmp_path: Path) -> None:
    profile = profile_of(maximum_rounds=2, minimum_cell=9, maximum_round_s=600, allowed_outputs=["network", "baseline"])
    folder = joined(SiteFolder.create(tmp_path / "berta", profile), key)
    found = review(folder, receive(folder, published(tmp_path / "study.json", key, small_study())))
    limits = section(found, "What our own limits make of it")
    assert "9 images" in limits["Histogram cells"]
    assert limits["Figures kept here"].startswith("svm, gain, classes, histogram")
    assert any("maximum_rounds" in one for one in found.obstacles)
    with pytest.raises(PolicyError):
        RUN.invoke(app, ["approve", str(folder.path), found.study_digest[:8]], catch_exceptions=False)


def test_another_release_is_named_and_can_not_be_approved(folder: SiteFolder, key: SigningKey, tmp_path: Path) -> None:
    theirs = OWN.model_copy(update={"code_digest": "0" * 64, "versions": {**OWN.versions, "consilium": "9.9"}})
    found = review(folder, receive(folder, published(tmp_path / "study.json", key, release=theirs)))
    assert any("9.9" in one and OWN.versions["consilium"] in one for one in found.obstacles)
    with pytest.raises(ApprovalChangedError, match=r"9\.9"):
        RUN.invoke(app, ["approve", str(folder.path), found.study_digest[:8]], catch_exceptions=False)
    assert find_approval(folder, found.study_digest) is None


# -- differences -------------------------------------------------------------------------------------------------------


def test_nothing_approved_before_is_said_so(folder: SiteFolder, key: SigningKey, tmp_path: Path) -> None:
    assert review(folder, receive(folder, published(tmp_path / "study.json", key))).changes is None


def test_one_changed_digit_is_shown_against_what_was_approved(
    folder: SiteFolder, key: SigningKey, tmp_path: Path
) -> None:
    first = receive(folder, published(tmp_path / "1.json", key, bare_study(rounds=3)))
    approve(folder, first, by="Dr. A", weights_folder=tmp_path)
    other_start = STARTING_POINT.model_copy(update={"model_digest": "9" * 64})
    second = receive(folder, published(tmp_path / "2.json", key, bare_study(rounds=4), starting_point=other_start))
    found = review(folder, second)
    assert found.compared_with == f"bare ({first.study_digest[:12]})"
    told = {one.key: (one.approved, one.offered) for one in found.changes or []}
    assert told == {"federation.rounds": ("3", "4"), "starting model": ("2" * 64, "9" * 64)}


def test_the_difference_of_two_studies_is_key_by_key() -> None:
    before = {"a": {"b": 1, "c": [1, 2]}, "gone": None, "same": {"x": "y"}}
    after = {"a": {"b": 2, "c": [1, 2, 3]}, "new": {"deep": True}, "same": {"x": "y"}}
    assert [(one.key, one.approved, one.offered) for one in study_changes(before, after)] == [
        ("a.b", "1", "2"),
        ("a.c", "[1, 2]", "[1, 2, 3]"),
        ("gone", "null", "(not there)"),
        ("new.deep", "(not there)", "true"),
    ]


def test_the_same_study_differs_in_nothing() -> None:
    assert study_changes(bare_study().to_data(), bare_study().to_data()) == []


# -- the commands ------------------------------------------------------------------------------------------------------


def test_by_command_from_the_file_to_the_decline(folder: SiteFolder, key: SigningKey, tmp_path: Path) -> None:
    publication = publication_of(small_study(), key=key)
    path = str(published(tmp_path / "study.json", key, small_study()))
    site, digest = str(folder.path), publication.study_digest

    def told(*arguments: str) -> str:
        said = RUN.invoke(app, [*arguments], catch_exceptions=False)
        assert said.exit_code == 0, said.output
        return said.output

    assert digest in told("review", site, path)
    assert json.loads(told("review", site, digest[:8], "--json"))["study_digest"] == digest
    assert json.loads(told("review", site, "--json"))[0]["state"] == "waiting"
    told("approve", site, digest[:8], "--runs", "1", "--until", "2999-01-01", "--by", "Dr. A")
    made = find_approval(folder, digest)
    assert made is not None and (made.runs, str(made.expires), made.approved_by) == (1, "2999-01-01", "Dr. A")
    assert "approved" in told("review", site)
    told("decline", site, digest[:8], "--reason", "too early")
    assert json.loads(told("review", site, "--json"))[0]["state"] == "declined"
    assert "too early" not in told("review", site, digest[:8])


def test_a_site_of_the_external_test_is_told_that_it_never_trains(key: SigningKey, tmp_path: Path) -> None:
    profile = profile_of()
    data = profile.data.model_copy(update={"part": ArtificialPart(index=1, of=3)})
    profile = profile.model_copy(update={"role": "external_test", "data": data})
    folder = joined(SiteFolder.create(tmp_path / "anna", profile), key)
    study = small_study()
    path = published(tmp_path / "s.json", key, study, starting_point=true_start(study))
    found = review(folder, receive(folder, path))
    said = {**section(found, "On which of our patients"), **section(found, "What leaves, and what never does")}
    assert "none of them trains it" in said["Our role"] and "Divided" not in said
    assert "no update goes out" in said["Each round"] and "Each round out" not in said
    assert section(found, "How often")["Rounds"] == f"{study.federation.rounds}, none of them here"
    assert said["Artificial"].startswith("part 2 of 3 of one data set")
