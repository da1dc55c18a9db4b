"""The hospital's folder: private, made once, and an approval is of one digest."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from benchmarks.bare_run import bare_study, study_values
from client.site_folder import Progress, SiteFolder
from shared.errors import InputError, NotApprovedError, WeightsError
from shared.profile import Profile
from shared.study import Study

PROFILE = Profile.model_validate(
    {
        "schema": "consilium/profile/1",
        "site": "anna",
        "title": "Hospital Anna",
        "data": {"layout": "cbis_ddsm", "root": "/nowhere", "synthetic": True},
    }
)


@pytest.fixture
def folder(tmp_path: Path) -> SiteFolder:
    return SiteFolder.create(tmp_path / "anna", PROFILE)


def study_from(weights: dict[str, Any]) -> Study:
    values = study_values()
    return Study.model_validate({**values, "model": {**values["model"], "weights": weights}})


def test_the_folder_its_keys_and_its_profile_are_the_owners_alone(folder: SiteFolder) -> None:
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    for path in (folder.node_key, folder.executor_secret, folder.path / "site.json"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert folder.profile() == PROFILE


def test_the_node_key_is_a_pair_on_p384(folder: SiteFolder) -> None:
    private = load_ssh_private_key(folder.node_key.read_bytes(), None)
    public = load_ssh_public_key((folder.path / "keys" / "node.pub").read_bytes())
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert isinstance(private.curve, ec.SECP384R1)
    assert private.public_key() == public


def test_a_folder_is_made_once(folder: SiteFolder) -> None:
    key = folder.node_key.read_bytes()
    with pytest.raises(InputError, match="already is a site's folder"):
        SiteFolder.create(folder.path, PROFILE)
    assert folder.node_key.read_bytes() == key


def test_two_sites_have_two_keys(folder: SiteFolder, tmp_path: Path) -> None:
    other = SiteFolder.create(tmp_path / "berta", PROFILE)
    assert other.node_key.read_bytes() != folder.node_key.read_bytes()
    assert other.executor_secret.read_bytes() != folder.executor_secret.read_bytes()


def test_an_approval_is_of_exactly_one_study(folder: SiteFolder, tmp_path: Path) -> None:
    with pytest.raises(NotApprovedError):
        folder.require_approval(bare_study())
    folder.approve(bare_study(), by="Dr. A", study_folder=tmp_path)
    assert folder.require_approval(bare_study()).approved_by == "Dr. A"
    with pytest.raises(NotApprovedError):
        folder.require_approval(bare_study(rounds=4))


def test_weights_come_from_beside_the_study_by_digest(folder: SiteFolder, tmp_path: Path) -> None:
    (tmp_path / "studies" / "weights").mkdir(parents=True)
    (tmp_path / "studies" / "weights" / "w.pth").write_bytes(b"weights")
    named = {"file": "weights/w.pth", "sha256": hashlib.sha256(b"weights").hexdigest(), "source": "a journal"}
    folder.approve(study_from(named), by="Dr. A", study_folder=tmp_path / "studies")
    assert (folder.weights / "weights" / "w.pth").read_bytes() == b"weights"
    with pytest.raises(WeightsError, match="the study names SHA-256 0000"):
        folder.approve(study_from({**named, "sha256": "0" * 64}), by="Dr. A", study_folder=tmp_path / "studies")
    with pytest.raises(WeightsError, match="no such file"):
        folder.approve(study_from({**named, "file": "w.pth"}), by="Dr. A", study_folder=tmp_path / "studies")


def test_a_study_cannot_bring_the_approval_of_another_as_its_weights(folder: SiteFolder, tmp_path: Path) -> None:
    """A file named `../approvals/DIGEST.json` would be copied to where approvals lie."""
    elsewhere = SiteFolder.create(tmp_path / "attacker", PROFILE)
    other = bare_study(rounds=4)
    elsewhere.approve(other, by="the attacker", study_folder=tmp_path)
    forged = f"../approvals/{other.digest()}.json"
    studies = elsewhere.path / "studies"
    studies.mkdir()
    content = (studies / forged).read_bytes()
    study = study_from({"file": forged, "sha256": hashlib.sha256(content).hexdigest(), "source": "a journal"})
    with pytest.raises(WeightsError, match="expected a file beside the study or below it"):
        folder.approve(study, by="Dr. A", study_folder=studies)
    with pytest.raises(NotApprovedError):
        folder.require_approval(other)


def test_progress_is_what_was_shown_last(folder: SiteFolder) -> None:
    assert folder.progress() is None
    for done in (1, 2):
        folder.show_progress(Progress(phase="train", done=done, total=2, loss=0.5))
    assert folder.progress() == Progress(phase="train", done=2, total=2, loss=0.5)
    assert not [path for path in folder.path.iterdir() if path.name.startswith("progress.") and path.suffix != ".json"]
