"""Two hospitals' common images are counted by somebody who learns no hash and can try none; what leaves is tags and nothing else."""

from __future__ import annotations

import base64
import hashlib
import hmac
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from pydantic import ValidationError
from test_copies import drawn, profile, study_of

from benchmarks.bare_run import new_key, prepared_answer
from client.cohort import open_cohort
from client.data.splits import PARTS
from client.duplicate_tags import agreement_key, agreement_point, require_tags, tags_for
from client.policy import clamped_preparation
from client.site_folder import SiteFolder
from client.withdrawal import withdraw
from server.report.shared_images import shared_images
from shared.errors import EgressError, InstructionError
from shared.noised_answers import exact_in_preparation
from shared.profile import Policy
from shared.results import Prepared
from shared.signing import PublicKey, SigningKey
from shared.study import Study

STUDY = study_of(duplicates={"across": "report"})
KEYS = {"anna": new_key(), "bertha": new_key(), "clara": new_key()}


def hospital(path: Path, numbers: range, saved_again: tuple[int, ...] = ()) -> SiteFolder:
    """A hospital with the images of these numbers, each of its own patient; some were saved again as JPEG."""
    rows = ["file,label,patient"]
    for number in numbers:
        label = "benign" if number % 2 else "malignant"
        again = number in saved_again
        name = f"{label}/{number:03}.{'jpg' if again else 'png'}"
        (path / "data" / label).mkdir(parents=True, exist_ok=True)
        drawn(number).save(path / "data" / name, **({"quality": 85} if again else {}))
        rows.append(f"{name},{label},p{number}")
    (path / "data" / "index.csv").write_text("\n".join(rows) + "\n")
    return SiteFolder.create(path / "site", profile(path / "data", minimum_patients=5))


def tags(folder: SiteFolder, site: str, run: str = "run-1", study: Study = STUDY) -> dict[str, str]:
    roll = open_cohort(study, folder, folder.run_folder(run)).roll
    peers = {one: str(key.public) for one, key in KEYS.items() if one != site}
    rows = np.concatenate([roll.parts[part] for part in PARTS])
    hashes = [roll.hashes[row] for row in rows]
    return tags_for(hashes, peers, site=site, key=KEYS[site], run=run, study=study.digest())


def answer_with(made: dict[str, str]) -> Prepared:
    return prepared_answer().model_copy(update={"tags": made})


def cut(text: str) -> set[bytes]:
    joined = base64.b64decode(text)
    return {joined[start : start + 8] for start in range(0, len(joined), 8)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SiteFolder]:
    root = tmp_path_factory.mktemp("three")
    return {
        "anna": hospital(root / "anna", range(40)),
        "bertha": hospital(root / "bertha", range(30, 70), saved_again=(31, 33)),
        "clara": hospital(root / "clara", range(67, 100)),
    }


def test_common_images_are_counted_and_a_few_are_not_told(folders: dict[str, SiteFolder]) -> None:
    prepared = {site: answer_with(tags(folder, site)) for site, folder in folders.items()}
    counted = {pair.sites: (pair.images, pair.fewer_than) for pair in shared_images(prepared, minimum_cell=5)}
    assert counted == {("anna", "bertha"): (10, None), ("anna", "clara"): (0, None), ("bertha", "clara"): (None, 5)}
    again = {site: answer_with(tags(folder, site)) for site, folder in folders.items()}
    assert {site: one.tags for site, one in again.items()} == {site: one.tags for site, one in prepared.items()}
    # Who sent none for the other is in no pair.
    del prepared["clara"].tags["bertha"]
    assert [pair.sites for pair in shared_images(prepared, minimum_cell=1)] == [("anna", "bertha"), ("anna", "clara")]


def test_what_the_coordinator_has_matches_no_list_of_hashes_and_links_nothing(folders: dict[str, SiteFolder]) -> None:
    seen = tags(folders["anna"], "anna")
    roll = open_cohort(STUDY, folders["anna"], folders["anna"].run_folder("run-1")).roll
    hashes = [bytes.fromhex(one) for one in roll.hashes]
    every = cut(seen["bertha"]) | cut(seen["clara"])
    assert len(every) == 80  # none is the same for two others
    public = [b"", *(key.public.raw for key in KEYS.values())]
    guesses = set(hashes) | {hmac.digest(key, one, hashlib.sha256)[:8] for key in public for one in hashes}
    guesses |= {hashlib.sha256(key + one).digest()[:8] for key in public for one in hashes}
    assert not guesses & every
    # A hospital that is no party has another key with each; another run has other tags.
    outsider = new_key()
    foreign = tags_for(
        roll.hashes, {"anna": str(KEYS["anna"].public), "bertha": str(KEYS["bertha"].public)}, site="mallory",
        key=outsider, run="run-1", study=STUDY.digest(),
    )  # fmt: skip
    assert not (cut(foreign["anna"]) | cut(foreign["bertha"])) & every
    other_run = tags(folders["anna"], "anna", run="run-2")
    assert not (cut(other_run["bertha"]) | cut(other_run["clara"])) & every


def test_the_signing_keys_agree_as_x25519_keys_do() -> None:
    for key in (KEYS["anna"], new_key()):
        raw = (serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        assert agreement_key(key).public_key().public_bytes(*raw) == agreement_point(key.public).public_bytes(*raw)
    # RFC 7748, section 4.1: the base point of edwards25519 (y = 4/5) is u = 9.
    base = PublicKey((4 * pow(5, -1, 2**255 - 19) % (2**255 - 19)).to_bytes(32, "little"))
    assert agreement_point(base).public_bytes(
        serialization.Encoding.Raw, serialization.PublicFormat.Raw
    ) == X25519PublicKey.from_public_bytes((9).to_bytes(32, "little")).public_bytes(
        serialization.Encoding.Raw, serialization.PublicFormat.Raw
    )


@pytest.mark.parametrize("y", [1, 2**255 - 20, 0])
def test_a_key_of_small_order_is_refused(y: int) -> None:
    with pytest.raises(InstructionError, match="the key that the instruction gives for mallory can't be used"):
        tags_for(
            ["0" * 16],
            {"mallory": str(PublicKey(y.to_bytes(32, "little")))},
            site="anna",
            key=KEYS["anna"],
            run="r",
            study="s",
        )


def test_what_is_not_ascending_tags_for_a_named_site_does_not_leave() -> None:
    def joined(*numbers: int) -> str:
        return base64.b64encode(b"".join(number.to_bytes(8, "big") for number in numbers)).decode()

    require_tags({"bertha": joined(1, 2, 9)}, ["bertha", "clara"], 3)
    for bad, images in (
        ({"mallory": joined(1)}, 3),
        ({"bertha": joined(2, 1)}, 3),
        ({"bertha": joined(1, 1)}, 3),
        ({"bertha": joined(1, 2)}, 1),
        ({"bertha": base64.b64encode(b"a text of a doctor").decode()}, 9),
    ):
        with pytest.raises(EgressError):
            require_tags(bad, ["bertha", "clara"], images)
    with pytest.raises(ValidationError):
        Prepared.model_validate({**prepared_answer().model_dump(), "tags": {"bertha": "Mueller, Anna"}})


def test_a_hospital_can_keep_them_and_a_private_run_has_none() -> None:
    made = answer_with({"bertha": ""})
    assert clamped_preparation(made, Policy()).tags == {"bertha": ""}
    assert clamped_preparation(made, Policy(allowed_outputs=["network", "svm"])).tags == {}
    assert "tags" in exact_in_preparation(made)


def test_who_withdraws_is_in_no_tag_of_the_next_preparation(tmp_path: Path) -> None:
    folder = hospital(tmp_path, range(24))
    study = study_of(duplicates={"distance": None, "across": "report"})
    before = tags(folder, "anna", study=study)
    withdraw(folder, "p4")
    after = tags(folder, "anna", study=study)
    assert (
        len(cut(before["bertha"])) == 24
        and len(cut(after["bertha"])) == 23
        and cut(after["bertha"]) < cut(before["bertha"])
    )


def test_nothing_is_asked_for_by_nothing() -> None:
    with pytest.raises(ValidationError, match="leave duplicates out"):
        study_of(duplicates={"distance": None})
    assert isinstance(KEYS["anna"], SigningKey) and not study_of(duplicates={}).counts_shared_images
