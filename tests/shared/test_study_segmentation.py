"""What a segmentation study may ask for, and what would do nothing in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shared.errors import StudyError
from shared.models import build_network
from shared.models.registry import MODELS
from shared.models.unet import SplitAttentionUNet
from shared.study import Study, load_study, study_from_data
from shared.study_cost import run_epsilon, study_events

CONFIGS = Path(__file__).parents[2] / "configs"


def changed(**sections: Any) -> Study:
    data = load_study(CONFIGS / "skinnet_segmentation_small.yaml").to_data()
    if "privacy" in sections:
        data = load_study(CONFIGS / "skinnet_segmentation_private_small.yaml").to_data()
    for name, values in sections.items():
        data[name] = {**data[name], **values} if isinstance(data.get(name), dict) else values
    return study_from_data(data)


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        ({"training": {"loss": "cross_entropy"}}, "training.loss: cross_entropy is about classes; use cross_entropy_dice"),
        ({"training": {"class_weights": "balanced"}}, "training.class_weights: the loss is about pixels"),
        ({"head": {"C": 1.0}}, "head: an SVM needs one vector of features an image"),
        ({"privacy": {"svm": {"steps": 5, "noise_multiplier": 4}}}, "privacy.svm: an SVM needs one vector of features an image"),
        ({"preprocessing": {"mask": None}}, "preprocessing.mask: the network learns the hospitals' own masks; set it to"),
        ({"task": {"kind": "classification"}}, "training.loss: cross_entropy_dice compares masks; it needs task.kind: segm"),
    ],
)  # fmt: skip
def test_what_contradicts_the_kind_is_refused_with_a_sentence(sections: dict[str, Any], sentence: str) -> None:
    with pytest.raises(StudyError, match=sentence):
        changed(**sections)


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        ({"model": {"name": "resnet18", "widths": None}}, "resnet18 is a network for classification, but task.kind is segmentation; netw"),
        ({"model": {"name": "resnet18"}}, "model.widths: the widths of resnet18 are fixed"),
        ({"model": {"dropout": 0.5}}, "model.dropout: split_attention_unet has none, so it would do nothing"),
        ({"model": {"attention": "se"}}, "model.attention: expected none, which is what split_attention_unet has"),
        ({"model": {"widths": [8] * 6}, "preprocessing": {"size": 16}, "augmentation": {}}, "6 levels need images of at least 32 pixels"),
        ({"model": {"weights": "torchvision"}}, "torchvision has no weights for 'split_attention_unet'"),
    ],
)  # fmt: skip
def test_an_option_that_the_model_lacks_is_refused(sections: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Exception, match=sentence):
        build_network(changed(**sections))


def test_it_is_the_narrow_u_net_whose_parts_can_be_frozen_by_name() -> None:
    network = build_network(changed())
    assert isinstance(network, SplitAttentionUNet) and network.head_name == "head"
    assert [block.second.pointwise.out_channels for block in network.encoder] == [16, 32, 64, 64]  # type: ignore[union-attr]
    network.freeze(["encoder"])
    trained = {name.split(".")[0] for name, one in network.named_parameters() if one.requires_grad}
    assert trained == {"decoder", "head"} and not network.encoder.training


def test_the_mask_is_the_target_and_no_plane_of_the_input() -> None:
    study = changed()
    assert (study.input_shape, study.outputs) == ((3, 64, 64), 1)
    assert [name for name, entry in MODELS.items() if entry.task == "segmentation"] == ["split_attention_unet"]


def test_noise_on_the_figures_may_be_asked_for_with_private_training_and_without() -> None:
    released = changed(evaluation={"release": {"epsilon": "1"}, "baseline": False})
    assert released.privacy is None and released.evaluation.release is not None
    private = load_study(CONFIGS / "skinnet_segmentation_private_small.yaml")
    assert private.privacy is not None and private.privacy.noise_multiplier is not None
    assert [type(one).__name__ for one in study_events(private)] == ["SubsampledGaussian", "Geometric"]
    assert run_epsilon(private)[0] <= 8
