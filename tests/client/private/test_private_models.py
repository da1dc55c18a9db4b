"""Every architecture of the registry can be trained privately where it has no batch norm. A small form stands for the larger ones."""

from functools import partial

import pytest
import torch

from client.losses import losses_of
from client.private.requirements import require_private_network
from shared.errors import PrivacyError
from shared.models import build_network
from shared.models.network import Network
from shared.models.registry import MODELS
from shared.models.summary import dp_obstacles
from shared.models.vit import VisionTransformer
from shared.study import Study, study_from_data

#: model.stem of each model that is tried.
STEMS = {
    "resnet18": ("haar", "haar_attention", "haar_features"),
    "googlenet": ("plain",),
    "mobilenet_v2": ("plain",),
    "regnet_y_400mf": ("plain",),
    "efficientnet_b0": ("plain",),
    "cnn_vit": ("plain",),
    "rcdnet": ("plain",),
}
#: Larger forms of what is tried, of the same layers, and their norm.
LARGER = {
    "resnet34": "group",
    "resnet50": "group",
    "resnext50_32x4d": "group",
    "vgg16": "none",
    "vgg16_bn": "group",
    "efficientnet_b3": "group",
    "vit_b_16": "none",
    "skinnet_v1": "group",
    "skinnet_v2": "group",
    "skinnet_v3": "group",
    "skinnet_v4": "group",
}


def study(**model: str) -> Study:
    age = [{"kind": "number", "name": "age", "low": 0, "high": 100}]
    return study_from_data(
        {
            "schema": "consilium/study/1",
            "name": "toy",
            "title": "A toy",
            "governance": {"purpose": "test", "ethics": "none needed", "retention": "none"},
            "seed": 3,
            "task": {"classes": {"benign": [], "malignant": []}, "positive_class": "malignant", "unit": "image"},
            "preprocessing": {
                "region": "whole",
                "size": 32,
                "channels": 3,
                "mask": {"from": "annotated"} if MODELS[model["name"]].mask == "needed" else None,
            },
            "metadata": age if MODELS[model["name"]].metadata else [],
            "model": model,
            "training": {
                "local_epochs": 1,
                "batch_size": 4,
                "optimiser": "adam",
                "learning_rate": 1e-3,
                "loss": "binary_cross_entropy",
            },
            "federation": {"rounds": 1, "quorum": 1, "weighting": "counts"},
        }
    )


def require(network: Network) -> None:
    require_private_network(network, losses=partial(losses_of, positive_index=1), image_shape=(3, 32, 32))


def test_every_model_is_tried_or_a_larger_form_of_one_that_is() -> None:
    assert set(MODELS) == set(STEMS) | set(LARGER)


@pytest.mark.parametrize(("name", "norm"), LARGER.items())
def test_opacus_has_nothing_against_the_larger_forms(name: str, norm: str) -> None:
    assert dp_obstacles(build_network(study(name=name, norm=norm))) == ()


@pytest.mark.parametrize(("name", "stem"), [(name, stem) for name, stems in STEMS.items() for stem in stems])
def test_with_group_norm_a_model_can_be_trained_privately(name: str, stem: str) -> None:
    require(build_network(study(name=name, stem=stem, norm="group")))


def test_a_vision_transformer_can_be_trained_privately() -> None:
    torch.manual_seed(1)
    require(VisionTransformer(outputs=1, size=32, depth=2, heads=2, width=32, hidden=64))


@pytest.mark.parametrize("name", ["googlenet", "rcdnet", "cnn_vit"])
def test_with_batch_norm_it_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(PrivacyError, match="is a BatchNorm2d: it normalises each patient by the others"):
        require(build_network(study(name=name)))
