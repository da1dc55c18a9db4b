"""An approval is of one study, one release, one coordinator, so many runs, until a day; anything else asks a person again."""

from __future__ import annotations

import hashlib
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from publications import profile_of, publication_of

from benchmarks.bare_run import bare_study, study_values
from client.approvals import (
    Approval,
    approve,
    bring_weights,
    decline,
    find_approval,
    find_declined,
    require_approval,
    runs_made,
)
from client.site_folder import SiteFolder
from shared.errors import (
    ApprovalChangedError,
    ApprovalEndedError,
    DeclinedError,
    DocumentError,
    InputError,
    NotApprovedError,
    WeightsError,
)
from shared.release import Release
from shared.signing import SigningKey
from shared.study import Study

OWN = Release.installed()
DIGEST = bare_study().digest()


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return SigningKey.create(tmp_path / "coordinator.key")


@pytest.fixture
def folder(tmp_path: Path) -> SiteFolder:
    return SiteFolder.create(tmp_path / "anna", profile_of())


def study_from(weights: dict[str, Any]) -> Study:
    values = study_values()
    return Study.model_validate({**values, "model": {**values["model"], "weights": weights}})


def approved(folder: SiteFolder, key: SigningKey, study: Study | None = None, **options: Any) -> Approval:
    published = options.pop("published", {})
    weights_folder = options.pop("weights_folder", folder.path)
    publication = publication_of(study, key=key, **published)
    return approve(folder, publication, by="Dr. A", weights_folder=weights_folder, **options)


def required(folder: SiteFolder, key: SigningKey, run: str = "run-1", **changes: Any) -> Approval:
    given: dict[str, Any] = {"coordinator_key": str(key.public), "run": run, "release": OWN, **changes}
    return require_approval(folder, given.pop("study", bare_study()), **given)


def test_what_is_approved_is_approved_and_nothing_else(folder: SiteFolder, key: SigningKey) -> None:
    with pytest.raises(NotApprovedError):
        required(folder, key)
    made = approved(folder, key)
    assert required(folder, key) == made
    assert (made.approved_by, made.runs, made.rounds) == ("Dr. A", 2, 3)
    with pytest.raises(NotApprovedError):
        required(folder, key, study=bare_study(rounds=4))


def test_an_approval_under_another_digests_name_is_none(folder: SiteFolder, key: SigningKey) -> None:
    approved(folder, key)
    other = bare_study(rounds=4)
    approvals = folder.path / "approvals"
    (approvals / f"{other.digest()}.json").write_text((approvals / f"{DIGEST}.json").read_text())
    with pytest.raises(NotApprovedError):
        required(folder, key, study=other)


@pytest.mark.parametrize("content", ["", "{}", "\0", '{"study_digest": "'])
def test_a_damaged_approval_is_none(folder: SiteFolder, key: SigningKey, content: str) -> None:
    approved(folder, key)
    (folder.path / "approvals" / f"{DIGEST}.json").write_text(content)
    with pytest.raises(NotApprovedError):
        required(folder, key)


def test_other_code_libraries_or_coordinator_ask_again(folder: SiteFolder, key: SigningKey, tmp_path: Path) -> None:
    approved(folder, key)
    stranger = SigningKey.create(tmp_path / "stranger.key")
    for changes, what in (
        ({"coordinator_key": str(stranger.public)}, "coordinator's key"),
        ({"release": OWN.model_copy(update={"code_digest": "0" * 64})}, "installed code"),
        ({"release": OWN.model_copy(update={"lock_digest": "0" * 64})}, "installed libraries"),
    ):
        with pytest.raises(ApprovalChangedError, match=what):
            required(folder, key, **changes)
    assert runs_made(folder, DIGEST) == ()  # what was refused is no run


def test_a_run_counts_once_and_no_more_runs_are_made_than_approved(folder: SiteFolder, key: SigningKey) -> None:
    approved(folder, key)
    for run in ("run-1", "run-2", "run-1", "run-2", "run-1"):
        required(folder, key, run)
    with pytest.raises(ApprovalEndedError, match="approved for 2 run"):
        required(folder, key, "run-3")
    assert runs_made(folder, DIGEST) == ("run-1", "run-2")
    required(folder, key, "run-2")  # a run that goes on is none more


def test_an_approval_anew_counts_its_own_runs(folder: SiteFolder, key: SigningKey) -> None:
    approved(folder, key, runs=1)
    required(folder, key, "run-1")
    approved(folder, key, runs=1)
    required(folder, key, "run-2")
    with pytest.raises(ApprovalEndedError):
        required(folder, key, "run-1")


def test_an_approval_ends_after_its_last_day(folder: SiteFolder, key: SigningKey) -> None:
    approved(folder, key, expires="2026-04-30", today=date(2026, 4, 1))
    required(folder, key, today=date(2026, 4, 30))
    with pytest.raises(ApprovalEndedError, match="2026-04-30"):
        required(folder, key, today=date(2026, 5, 1))


def test_an_expired_offer_can_not_be_approved(folder: SiteFolder, key: SigningKey) -> None:
    with pytest.raises(ApprovalEndedError):
        approved(folder, key, published={"expires": "2026-04-30"}, today=date(2026, 5, 1))
    assert find_approval(folder, DIGEST) is None


@pytest.mark.parametrize(
    "options", [{"runs": 3}, {"runs": 0}, {"expires": "3000-01-01"}, {"expires": "2020-01-01"}, {"expires": "soon"}]
)
def test_no_more_is_approved_than_is_offered(folder: SiteFolder, key: SigningKey, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="expected"):
        approved(folder, key, **options)


def test_a_study_of_another_release_can_not_be_approved(folder: SiteFolder, key: SigningKey) -> None:
    theirs = OWN.model_copy(update={"code_digest": "0" * 64, "versions": {**OWN.versions, "consilium": "9.9"}})
    with pytest.raises(ApprovalChangedError, match=rf"consilium 9\.9 .* installed here is {OWN.versions['consilium']}"):
        approved(folder, key, published={"release": theirs})


def test_the_coordinators_libraries_may_differ_from_the_hospitals(folder: SiteFolder, key: SigningKey) -> None:
    theirs = OWN.model_copy(update={"lock_digest": "0" * 64})
    assert approved(folder, key, published={"release": theirs}).lock_digest == OWN.lock_digest
    required(folder, key)


def test_a_publication_that_holds_another_study_than_it_names(folder: SiteFolder, key: SigningKey) -> None:
    with pytest.raises(DocumentError):
        approved(folder, key, published={"study_digest": "0" * 64})


def test_a_decline_ends_an_approval_and_an_approval_takes_a_decline_back(folder: SiteFolder, key: SigningKey) -> None:
    approved(folder, key)
    required(folder, key)
    decline(folder, publication_of(key=key), by="Dr. B", reason="no ethics vote")
    with pytest.raises(DeclinedError):
        required(folder, key)
    said = find_declined(folder, DIGEST)
    assert said is not None and said.reason == "no ethics vote"
    approved(folder, key)
    required(folder, key)


def test_a_damaged_decline_is_still_a_decline(folder: SiteFolder, key: SigningKey) -> None:
    approved(folder, key)
    (folder.path / "declined" / f"{DIGEST}.json").write_text("{")
    with pytest.raises(DeclinedError):
        required(folder, key)


def test_exchanged_starting_weights_ask_again(folder: SiteFolder, key: SigningKey, tmp_path: Path) -> None:
    beside = tmp_path / "studies"
    (beside / "weights").mkdir(parents=True)
    (beside / "weights" / "w.pth").write_bytes(b"weights")
    study = study_from({"file": "weights/w.pth", "sha256": hashlib.sha256(b"weights").hexdigest(), "source": "a book"})
    made = approved(folder, key, study, weights_folder=beside)
    assert made.weights == {"weights/w.pth": hashlib.sha256(b"weights").hexdigest()}
    copied = folder.weights / "weights" / "w.pth"
    assert copied.read_bytes() == b"weights"
    required(folder, key, study=study)
    for spoil in (lambda: copied.write_bytes(b"others!"), copied.unlink):
        spoil()
        with pytest.raises(ApprovalChangedError, match=r"the weights weights/w\.pth"):
            required(folder, key, study=study)


def test_weights_are_those_that_the_study_names(folder: SiteFolder, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"weights")
    named = {"file": "w.pth", "sha256": hashlib.sha256(b"weights").hexdigest(), "source": "a book"}
    with pytest.raises(WeightsError, match="the study names SHA-256 0000"):
        bring_weights(study_from({**named, "sha256": "0" * 64}), tmp_path, folder.weights)
    with pytest.raises(WeightsError, match="no such file"):
        bring_weights(study_from({**named, "file": "v.pth"}), tmp_path, folder.weights)


def test_a_study_cannot_bring_the_approval_of_another_as_its_weights(
    folder: SiteFolder, key: SigningKey, tmp_path: Path
) -> None:
    """A file named `../approvals/DIGEST.json` would be copied to where approvals lie."""
    elsewhere = SiteFolder.create(tmp_path / "attacker", profile_of())
    other = bare_study(rounds=4)
    approved(elsewhere, key, other)
    forged = f"../approvals/{other.digest()}.json"
    (elsewhere.path / "studies").mkdir()
    content = (elsewhere.path / "studies" / forged).read_bytes()
    study = study_from({"file": forged, "sha256": hashlib.sha256(content).hexdigest(), "source": "a book"})
    with pytest.raises(WeightsError, match="expected a file beside the study or below it"):
        approved(folder, key, study, weights_folder=elsewhere.path / "studies")
    with pytest.raises(NotApprovedError):
        required(folder, key, study=other)
