"""Site profiles: paths resolve, and a mistake is a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from shared.errors import ProfileError
from shared.profile import load_profile

VALUES: dict[str, Any] = {
    "schema": "consilium/profile/1",
    "site": "anna",
    "title": "Hospital Anna",
    "data": {"layout": "cbis_ddsm", "root": "images", "synthetic": True},
}


def written(folder: Path, **changes: Any) -> Path:
    values = {**VALUES, **changes}
    path = folder / "profile.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}, sort_keys=False))
    return path


def data(**changes: Any) -> dict[str, Any]:
    return {**VALUES["data"], **changes}


def test_a_folder_and_its_file_mean_the_same_profile(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert load_profile(tmp_path) == load_profile(path)
    assert load_profile(path).policy.minimum_patients == 20


def test_a_relative_root_is_relative_to_the_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, data=data(root="../data/anna"), cache="cache")
    monkeypatch.chdir("/")
    profile = load_profile(tmp_path)
    assert profile.data.root == str((tmp_path / "../data/anna").resolve())
    assert profile.cache == str(tmp_path.resolve() / "cache")


def test_a_variable_in_the_root_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSILIUM_TEST_ROOT", str(tmp_path / "elsewhere"))
    written(tmp_path, data=data(root="${CONSILIUM_TEST_ROOT}/ham"))
    assert load_profile(tmp_path).data.root == str(tmp_path / "elsewhere" / "ham")


def test_a_variable_that_is_not_set_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONSILIUM_TEST_ROOT", raising=False)
    path = written(tmp_path, data=data(root="${CONSILIUM_TEST_ROOT}/ham"))
    with pytest.raises(ProfileError) as problem:
        load_profile(tmp_path)
    assert str(problem.value) == (
        f"{path}: data.root is '${{CONSILIUM_TEST_ROOT}}/ham', but the environment variable CONSILIUM_TEST_ROOT is not set"
    )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data": data(patient_standin="lesion_id")}, "unknown key 'patient_standin' in data; did you mean 'patient_stand_in'?"),
        ({"polcy": {}}, "unknown key 'polcy'; did you mean 'policy'?"),
        ({"shema": "consilium/profile/1"}, "unknown key 'shema'; did you mean 'schema'?"),
        ({"site": None}, "key 'site' is missing"),
        ({"site": "Anna Hospital"}, "should match pattern"),
        ({"device": "gpu"}, "but got 'gpu'"),
        ({"title": "x" * 201}, "title"),
        ({"threads": 0}, "but got 0"),
        ({"policy": {"maximum_update_norm": 0}}, "policy.maximum_update_norm"),
        ({"data": data(synthetic="perhaps")}, "data.synthetic"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_file_and_line(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    path = written(tmp_path, **changes)
    with pytest.raises(ProfileError) as problem:
        load_profile(tmp_path)
    assert sentence in str(problem.value)
    assert str(problem.value).startswith(f"{path}:")


def test_a_folder_without_a_profile_is_told(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"profile\.yaml: no such file"):
        load_profile(tmp_path)
