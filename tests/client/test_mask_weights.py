"""The file of the network that predicts masks: it comes with the study, is shown, checked and approved like starting weights."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from publications import joined, profile_of, published
from rich.console import Console
from safetensors.torch import save_file

import client.review
from benchmarks.bare_run import study_values
from client import cohort
from client.approvals import approve, require_approval
from client.publications import receive, weights_folder
from client.review import review
from client.site_folder import SiteFolder
from server.check import check_studies
from shared.canonical import canonical_json
from shared.errors import ApprovalChangedError, WeightsError
from shared.models import segmenter
from shared.models.unet import SplitAttentionUNet
from shared.release import Release
from shared.signing import SigningKey
from shared.study import Study
from shared.study_mask import PredictedMask

OWN = Release.installed()


def unet(of: Study) -> SplitAttentionUNet:
    return SplitAttentionUNet(channels=of.preprocessing.channels, widths=(8, 16))


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """It names outlines.safetensors, which lies in `beside`."""
    values: dict[str, Any] = {**study_values(), "model": {"name": "rcdnet"}}
    own = Study.model_validate({**values, "name": "outlines"})
    path = tmp_path / "beside" / "outlines.safetensors"
    path.parent.mkdir()
    save_file(unet(own).state_dict(), path, metadata={"consilium.study": canonical_json(own.to_data()).decode()})
    weights = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "source": "run 1"}
    pixels = {**values["preprocessing"], "mask": {"from": "model", "weights": weights}}
    return Study.model_validate({**values, "preprocessing": pixels})


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return SigningKey.create(tmp_path / "coordinator.key")


@pytest.fixture
def folder(tmp_path: Path, key: SigningKey) -> SiteFolder:
    return joined(SiteFolder.create(tmp_path / "anna", profile_of()), key)


def test_it_is_received_shown_approved_and_asked_for_again_when_it_changes(
    study: Study, folder: SiteFolder, key: SigningKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publication = receive(folder, published(tmp_path / "beside" / "study.json", key, study))
    apart = weights_folder(folder, study.digest())
    assert (apart / "outlines.safetensors").is_file() and not folder.weights.exists()

    def obstacles() -> str:
        return " ".join(review(folder, publication).obstacles)

    assert (
        "preprocessing.mask.weights: outlines.safetensors: study outlines trains no segmentation network" in obstacles()
        or ("its tensors are not those of study outlines's network" in obstacles())
    ), "built as what its study says, a classifier, it is no segmentation network"
    monkeypatch.setattr(client.review, "segmenter_of", partial(segmenter.segmenter_of, build=unet))
    assert "preprocessing.mask.weights" not in obstacles()
    (trained,) = [one for one in review(folder, publication).sections if one.title == "What is trained"]
    said = dict(trained.rows)["Mask of the lesion"]
    assert said.startswith(
        "the network gets it as one more plane; predicted by a segmentation network, outlines.safetensors"
    )
    (apart / "outlines.safetensors").rename(apart / "away")
    assert "preprocessing.mask.weights: " in obstacles() and "can't be read" in obstacles()
    (apart / "away").rename(apart / "outlines.safetensors")

    approval = approve(folder, publication, weights_folder=apart, release=OWN, by="Dr A")
    assert approval.weights == {"outlines.safetensors": study.weight_files["preprocessing.mask.weights"].sha256}

    def asked() -> None:
        require_approval(folder, study, coordinator_key=str(key.public), run="run-1", release=OWN)

    asked()
    (folder.weights / "outlines.safetensors").write_bytes(b"others")
    with pytest.raises(ApprovalChangedError, match=r"the weights outlines\.safetensors"):
        asked()


def test_without_the_file_a_study_is_not_taken_in(
    study: Study, folder: SiteFolder, key: SigningKey, tmp_path: Path
) -> None:
    path = published(tmp_path / "elsewhere.json", key, study)
    with pytest.raises(
        WeightsError, match=r"no such file, but the study names it in preprocessing\.mask\.weights \(run 1\)"
    ):
        receive(folder, path)


def test_the_network_is_read_from_where_approved_weights_lie(
    study: Study, folder: SiteFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(WeightsError, match="can't be read"):
        cohort._segmenter(study, folder.profile(), folder)
    folder.weights.mkdir()
    (tmp_path / "beside" / "outlines.safetensors").rename(folder.weights / "outlines.safetensors")
    monkeypatch.setattr(segmenter, "segmenter_of", partial(segmenter.segmenter_of, build=unet))
    found = cohort._segmenter(study, folder.profile(), folder)
    assert found is not None
    side = found.recipe.size
    with torch.no_grad():
        assert found.probabilities(np.zeros((side, side), np.float32)).shape == (side, side)


def test_the_coordinators_check_warns_where_only_hospitals_need_the_file(study: Study, tmp_path: Path) -> None:
    def said(one: Study, root: Path) -> tuple[bool, str]:
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(one.to_data()))
        console = Console(record=True, width=250, file=(tmp_path / "out").open("w"))
        return not check_studies([tmp_path / "study.yaml"], console, weights_root=root), console.export_text()

    fine, text = said(study, tmp_path / "nowhere")
    assert fine and "warning" in text and "The hospitals need it to predict the masks" in text
    assert "4x" in text.replace(" ", ""), "the network gets four planes"
    mask = study.preprocessing.mask
    assert isinstance(mask, PredictedMask)
    other = mask.model_copy(update={"weights": mask.weights.model_copy(update={"sha256": "0" * 64})})
    pixels = study.preprocessing.model_copy(update={"mask": other})
    fine, text = said(study.model_copy(update={"preprocessing": pixels}), tmp_path / "beside")
    assert not fine and "expected SHA-256 0000" in text
