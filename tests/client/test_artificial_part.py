"""One published set cut into parts that stand for sites: by patient, the same for everybody, and never without saying so."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from client.data.registry import in_part, open_holding, read_holding
from client.data.selection import choose
from shared.errors import ProfileError
from shared.profile import ArtificialPart, Profile, SiteData, load_profile
from shared.study import load_study

ROOT = Path(__file__).parents[2]


@given(st.text(min_size=1), st.integers(2, 9), st.integers(0, 5))
def test_every_patient_is_in_one_part_and_no_other(patient: str, of: int, seed: int) -> None:
    assert sum(in_part(patient, ArtificialPart(index=index, of=of, seed=seed)) for index in range(of)) == 1


def test_parts_are_about_as_large_and_another_seed_cuts_elsewhere() -> None:
    patients = [f"patient {number}" for number in range(3000)]
    parts = [{one for one in patients if in_part(one, ArtificialPart(index=index, of=3))} for index in range(3)]
    assert all(900 < len(part) < 1100 for part in parts)
    other = {one for one in patients if in_part(one, ArtificialPart(index=0, of=3, seed=2))}
    assert 250 < len(other & parts[0]) < 420


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for label in ("benign", "malignant"):
        (tmp_path / label).mkdir()
        for number in range(30):
            Image.fromarray(np.full((4, 4), number, np.uint8)).save(tmp_path / label / f"{number}.png")
    (tmp_path / "busi_index.csv").write_text(
        "file,near_duplicate_group\n"
        + "".join(f"{label}/{number}.png,g{number // 3}\n" for number in range(30) for label in ("benign", "malignant"))
    )
    return tmp_path


def data(root: Path, **part: Any) -> SiteData:
    return SiteData(
        layout="busi", root=str(root), synthetic=True, patient_stand_in="near_duplicate_group",
        part=ArtificialPart(**part) if part else None,
    )  # fmt: skip


def test_a_site_sees_its_parts_patients_whole_and_is_told(root: Path) -> None:
    everything = read_holding(data(root), unit="image")
    parts = [read_holding(data(root, index=index, of=3), unit="image") for index in range(3)]
    assert not everything.notes
    keys = [key for part in parts for key in (one.key for one in part.records)]
    assert sorted(keys) == sorted(one.key for one in everything.records)
    patients = [{one.patient for one in part.records} for part in parts]
    assert not patients[0] & patients[1] and not patients[0] & patients[2] and not patients[1] & patients[2]
    for index, part in enumerate(parts):
        assert f"artificial division: this site is part {index + 1} of 3 of the data" in part.notes[-1]
        assert f"sees {len(patients[index])} of 10 patients ({len(part.records)} of 60 records)" in part.notes[-1]


def test_an_index_beyond_the_number_of_parts_ends_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "profile.yaml").write_text(
        "schema: consilium/profile/1\nsite: a\ntitle: A\n"
        "data: {layout: busi, root: /data, synthetic: false, part: {index: 3, of: 3}}\n"
    )
    with pytest.raises(ProfileError, match=r"must be below of \(3\), but is 3"):
        load_profile(tmp_path)


def profiles(folder: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Profile]:
    monkeypatch.setenv("FEDERATION_DATA", os.environ.get("FEDERATION_DATA", "/somewhere"))
    return {path.name: load_profile(path) for path in sorted((ROOT / "sites" / folder).iterdir())}


def test_the_sites_that_busi_is_cut_into_share_no_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    found = profiles("busi_divided", monkeypatch)
    assert sorted(found) == ["one", "outside", "three", "two"]
    parts = [profile.data.part for profile in found.values()]
    assert all(part is not None and (part.of, part.seed) == (4, 1) for part in parts)
    assert sorted(part.index for part in parts if part is not None) == [0, 1, 2, 3]
    assert [name for name, profile in found.items() if profile.role == "external_test"] == ["outside"]


@pytest.mark.real_data
def test_the_parts_of_busi_can_serve_the_studies(monkeypatch: pytest.MonkeyPatch) -> None:
    if "FEDERATION_DATA" not in os.environ:
        pytest.skip("FEDERATION_DATA is not set: the published images are not there")
    found = profiles("busi_divided", monkeypatch)
    for study in (load_study(ROOT / "configs" / f"{name}.yaml") for name in ("busi_resnet18", "busi_rcdnet")):
        cohorts = {
            name: choose(
                study,
                open_holding(profile, unit="view"),
                minimum_patients=profile.policy.minimum_patients,
                external=profile.role == "external_test",
            )
            for name, profile in found.items()
        }
        keys = [record.key for cohort in cohorts.values() for record in cohort.records]
        assert len(keys) == len(set(keys)) == 647
        assert len(cohorts["outside"].parts["train"]) == 0 and len(cohorts["outside"].parts["test"]) > 100
