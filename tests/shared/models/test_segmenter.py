"""A segmentation network out of a file that says by itself what it is of; every other file ends in a sentence."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks.bare_run import study_values
from shared.canonical import canonical_json
from shared.errors import WeightsError, WeightsUnavailableError
from shared.models import build_network
from shared.models.segmenter import NetworkSegmenter, segmenter_of
from shared.models.unet import SplitAttentionUNet
from shared.study import Study
from shared.study_pixels import Preprocessing

PIXELS = {"region": "whole", "size": 32, "channels": 3, "normalise": {"mean": [0.5], "std": [0.2]}}


def study(**pixels: Any) -> Study:
    values = {**study_values(), "name": "outlines", "model": {"name": "rcdnet"}}
    return Study.model_validate({**values, "preprocessing": {**PIXELS, **pixels}})


def unet(of: Study) -> SplitAttentionUNet:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return SplitAttentionUNet(channels=of.preprocessing.channels, widths=(8, 16))


def written(folder: Path, network: torch.nn.Module, told: dict[str, str] | None, **changes: str) -> Preprocessing:
    """A recipe that names the file with these tensors and this metadata."""
    path = folder / "unet.safetensors"
    save_file(network.state_dict(), path, metadata=told)
    weights = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "source": "run 1", **changes}
    return recipe_of(weights)


def recipe_of(weights: dict[str, str]) -> Preprocessing:
    return Preprocessing.model_validate(
        {"region": "whole", "size": 48, "channels": 3, "mask": {"from": "model", "weights": weights}}
    )


def told_of(one: Study) -> dict[str, str]:
    return {"consilium.study": canonical_json(one.to_data()).decode(), "consilium.run": "run-1"}


@pytest.mark.parametrize("shape", [(32, 32, 3), (32, 32)])
def test_the_network_sees_what_its_own_study_normalises_and_answers_with_probabilities(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    own = study(mask={"from": "annotated"})
    network = unet(own)
    found = segmenter_of(written(tmp_path, network, told_of(own)), root=tmp_path, build=unet)
    assert isinstance(found, NetworkSegmenter)
    assert found.recipe == own.preprocessing.model_copy(update={"mask": None}) and not found.network.training
    levels = np.random.default_rng(0).random(shape, dtype=np.float32)
    image = levels if levels.ndim == 3 else np.stack([levels] * 3, axis=2)
    with torch.no_grad():
        expected = torch.sigmoid(network.eval()(torch.from_numpy((np.moveaxis(image, 2, 0)[None] - 0.5) / 0.2).float()))
    np.testing.assert_allclose(found.probabilities(levels), expected[0, 0].numpy(), atol=1e-6)


def test_layer_normalisation_of_the_networks_own_study_is_applied(tmp_path: Path) -> None:
    own = study(normalise=None, layer_normalise={"gamma": 1.2, "beta": 0.1})
    network = unet(own)
    found = segmenter_of(written(tmp_path, network, told_of(own)), root=tmp_path, build=unet)
    assert found is not None
    levels = np.random.default_rng(0).random((32, 32, 3)).astype(np.float32)
    planes = 1.2 * (levels - levels.mean()) / np.sqrt(levels.var() + 1e-5) + 0.1
    with torch.no_grad():
        expected = torch.sigmoid(network.eval()(torch.from_numpy(np.moveaxis(planes, 2, 0)[None]).float()))
    np.testing.assert_allclose(found.probabilities(levels), expected[0, 0].numpy(), atol=1e-4)


def test_other_masks_need_no_network() -> None:
    assert segmenter_of(Preprocessing(region="whole", size=48, channels=3)) is None


def test_files_that_can_not_be_used_end_in_a_sentence(tmp_path: Path) -> None:
    own = study()
    network = unet(own)

    def refused(recipe: Preprocessing, said: str, build: Any = unet) -> None:
        with pytest.raises(WeightsError, match=said) as caught:
            segmenter_of(recipe, root=tmp_path, build=build)
        assert "preprocessing.mask.weights" in str(caught.value) and "\n" not in str(caught.value)

    good = told_of(own)
    refused(written(tmp_path, network, None), "does not say which network it is of")
    refused(written(tmp_path, network, good, sha256="0" * 64), "expected SHA-256 0000")
    refused(written(tmp_path, network, {"consilium.study": "{"}), "none that this release can read")
    refused(written(tmp_path, network, {"consilium.study": '{"name": "x"}'}), "none that this release can read")
    refused(written(tmp_path, network, told_of(study(region="finding"))), "trained on squares around findings")
    refused(written(tmp_path, network.encoder, good), "its tensors are not those of study outlines's network")
    spoilt = unet(own)
    spoilt.head.bias.data.fill_(float("nan"))
    refused(written(tmp_path, spoilt, good), "not finite")
    classifier = build_network(own)
    refused(
        written(tmp_path, classifier, good), "trains no segmentation network: expected a mask of shape", build_network
    )
    with pytest.raises(WeightsUnavailableError, match=r"preprocessing\.mask\.weights: .*gone: can't be read.*run 1"):
        segmenter_of(recipe_of({"file": "gone", "sha256": "0" * 64, "source": "run 1"}), root=tmp_path)
