"""The hospital's folder: private, and made once."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from client.node import run_node
from client.site_folder import Progress, SiteFolder
from shared.errors import InputError
from shared.profile import Profile

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


def test_progress_is_what_was_shown_last(folder: SiteFolder) -> None:
    assert folder.progress() is None
    for done in (1, 2):
        folder.show_progress(Progress(phase="train", done=done, total=2, loss=0.5))
    assert folder.progress() == Progress(phase="train", done=2, total=2, loss=0.5)
    assert not [path for path in folder.path.iterdir() if path.name.startswith("progress.") and path.suffix != ".json"]


@pytest.mark.parametrize("content", [None, b"", b"garbage", b"\xff\xfe"])
def test_a_node_whose_key_is_lost_or_damaged_does_not_start(folder: SiteFolder, content: bytes | None) -> None:
    folder.node_key.unlink()
    if content is not None:
        folder.node_key.write_bytes(content)
    with pytest.raises(InputError, match=r"node\.key: the node's key can't be used: .* restore it .* --replace"):
        run_node(folder, "127.0.0.1:1", folder.ca)
