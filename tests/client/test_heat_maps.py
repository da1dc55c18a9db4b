"""Heat maps are those of Captum on every network that has a feature map, and what falls on a lesion is counted as it should be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from client.heat_maps import enlarged, grad_cam, heat_inside, last_map, overlaid
from client.lesion_heat import HeatMaps
from shared.models import build_network
from shared.models.network import Network
from shared.study import Study, study_from_data
from shared.study_pixels import Preprocessing

LAYERS = {
    "resnet18": ("layer4", (3, 3)),
    "resnet18_cbam": ("attention4", (3, 3)),
    "vgg16": ("features", (3, 3)),
    "googlenet": ("inception5b", (3, 3)),
    "mobilenet_v2": ("features", (3, 3)),
    "regnet_y_400mf": ("trunk_output", (3, 3)),
    "efficientnet_b0": ("features", (3, 3)),
    "rcdnet": ("stage4", (3, 3)),
}


def study_of(model: str, *, classes: int = 2, size: int = 96, loss: str = "binary_cross_entropy") -> Study:
    name = model.removesuffix("_cbam")
    attention = {"attention": "cbam", "cbam_at": "stage_outputs"} if model.endswith("_cbam") else {}
    names = [f"class{index}" for index in range(classes)]
    return study_from_data(
        {
            "schema": "consilium/study/1",
            "name": "heat",
            "title": "Heat",
            "governance": {"purpose": "test", "ethics": "none needed", "retention": "none"},
            "seed": 3,
            "task": {"classes": {one: [] for one in names}, "positive_class": names[1], "unit": "image"},
            "preprocessing": {"region": "whole", "size": size, "channels": 3},
            "model": {"name": name, "norm": "none" if model.startswith(("vgg16", "vit")) else "batch", **attention},
            "training": {
                "local_epochs": 1,
                "batch_size": 4,
                "optimiser": "adam",
                "learning_rate": 1e-3,
                "loss": loss,
            },
            "federation": {"rounds": 1, "quorum": 1, "weighting": "counts"},
        }
    )


def network_of(model: str, **study: object) -> Network:
    return build_network(study_of(model, **study)).eval()  # type: ignore[arg-type, return-value]


def pictures(images: int = 2, size: int = 96) -> Tensor:
    return torch.rand(images, 3, size, size, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("model", LAYERS)
def test_the_last_feature_map_is_found_in_every_network_and_its_heat_is_captums(model: str) -> None:
    network, images = network_of(model), pictures()
    assert last_map(network, images) == LAYERS[model]
    layer = LAYERS[model][0]
    heat = grad_cam(network, layer, images, class_index=1, positive_index=1)
    assert heat.shape == (2, *LAYERS[model][1]) and (heat >= 0).all()
    captum = pytest.importorskip("captum.attr", reason="captum is not installed: Grad-CAM is compared with nothing")
    reference = captum.LayerGradCam(network, network.get_submodule(layer))
    expected = reference.attribute(images, target=0, relu_attributions=True)
    torch.testing.assert_close(heat, expected[:, 0].detach().float(), rtol=1e-4, atol=1e-7)
    larger = captum.LayerAttribution.interpolate(expected, (96, 96), interpolate_mode="bilinear")
    torch.testing.assert_close(enlarged(heat, 96), larger[:, 0].detach().float(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("of_class", [0, 1, 2])
def test_of_several_classes_the_heat_is_of_the_one_asked_for(of_class: int) -> None:
    network, images = network_of("resnet18", classes=3, loss="cross_entropy"), pictures()
    heat = grad_cam(network, "layer4", images, class_index=of_class, positive_index=1)
    captum = pytest.importorskip("captum.attr", reason="captum is not installed: Grad-CAM is compared with nothing")
    expected = captum.LayerGradCam(network, network.get_submodule("layer4")).attribute(
        images, target=of_class, relu_attributions=True
    )
    torch.testing.assert_close(heat, expected[:, 0].detach().float(), rtol=1e-4, atol=1e-7)


def test_one_logit_speaks_for_the_positive_class_and_against_the_other() -> None:
    network, images = network_of("resnet18"), pictures()
    for_it = grad_cam(network, "layer4", images, class_index=1, positive_index=1)
    against = grad_cam(network, "layer4", images, class_index=0, positive_index=1)
    assert (for_it * against == 0).all() and (for_it + against > 0).any()
    torch.testing.assert_close(grad_cam(network, "layer4", images, class_index=0, positive_index=0), for_it)


def test_by_hand_on_a_network_whose_gradient_is_known() -> None:
    class Toy(Network):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = torch.nn.Conv2d(1, 2, 1, bias=False)
            self.feature_dim, self.dropout, self.fc = 2, torch.nn.Dropout(0.9), torch.nn.Linear(2, 1)
            self.convolution.weight.data = torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1)
            self.fc.weight.data = torch.tensor([[3.0, 1.0]])

        def features(self, x: Tensor) -> Tensor:
            return self.convolution(x).mean((2, 3))

    image = torch.tensor([[[[1.0, -2.0], [4.0, 0.0]]]])
    heat = grad_cam(Toy().train(), "convolution", image, class_index=1, positive_index=1)
    # d score / d map = fc / 4 positions, and the mean over the positions of that; the maps are x and -x
    torch.testing.assert_close(heat, torch.relu((3 - 1) / 4 * image[:, 0]))


def test_frozen_layers_are_no_hindrance_and_the_network_is_left_as_it_was() -> None:
    network, images = network_of("resnet18"), pictures()
    expected = grad_cam(network, "layer4", images, class_index=1, positive_index=1)
    network.freeze(["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"])
    network.train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    torch.testing.assert_close(grad_cam(network, "layer4", images, class_index=1, positive_index=1), expected)
    assert last_map(network, images) is not None
    assert network.training and all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert not network.layer4._forward_hooks  # type: ignore[union-attr]


@pytest.mark.parametrize("model", ["vit_b_16", "cnn_vit"])
def test_a_transformer_has_no_feature_map(model: str) -> None:
    network = network_of(model, size=32)
    assert last_map(network, pictures(size=32)) is None
    assert (
        HeatMaps.of(network, lambda rows: pictures(len(rows), 32), files=[], recipe=recipe(32), positive_index=1)
        is None
    )


def test_small_images_are_looked_at_where_there_is_more_than_one_position() -> None:
    assert last_map(network_of("resnet18", size=28), pictures(size=28)) == ("layer3", (2, 2))


def test_heat_on_the_lesion_is_the_share_of_all_heat() -> None:
    mask = np.zeros((4, 4), np.float32)
    mask[:2, :2] = 1
    even = np.ones((4, 4), np.float32)
    assert heat_inside(even, mask) == mask.mean() == 0.25
    assert heat_inside(mask, mask) == 1.0
    assert heat_inside(even - mask, mask) == 0.0
    assert heat_inside(3 * mask + even, mask) == pytest.approx((3 * 4 + 4) / (3 * 4 + 16))
    assert heat_inside(np.zeros((4, 4), np.float32), mask) is None


def test_an_overlay_leaves_cold_places_as_they_are_and_does_not_depend_on_the_heats_scale() -> None:
    pixels = np.full((1, 2, 2), 0.5)
    heat = np.array([[0, 1], [0.5, 0]], np.float32)
    warm = overlaid(pixels, heat)
    assert warm.shape == (3, 2, 2) and warm.min() >= 0 and warm.max() <= 1
    assert (warm[:, 0, 0] == 0.5).all() and (warm[0] >= warm[2])[heat > 0].all() and (warm[:, 0, 1] != 0.5).any()
    np.testing.assert_allclose(overlaid(pixels, 7 * heat), warm)
    np.testing.assert_array_equal(overlaid(pixels, 0 * heat), np.full((3, 2, 2), 0.5))


def recipe(size: int) -> Preprocessing:
    return Preprocessing(region="whole", size=size, channels=3)


class Blobs(Network):
    """Its heat is the image's brightness, or nothing in an image whose first pixel is black."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 1, 1, bias=False)
        self.feature_dim, self.dropout, self.fc = 1, torch.nn.Dropout(0.0), torch.nn.Linear(1, 1)
        self.convolution.weight.data.fill_(1 / 3)
        self.fc.weight.data.fill_(1.0)

    def features(self, x: Tensor) -> Tensor:
        return self.convolution(x).mean((2, 3))


def saved(path: Path, array: np.ndarray) -> Path:
    Image.fromarray(array.astype(np.uint8)).save(path)
    return path


def heat_maps(tmp_path: Path, *, bright: list[tuple[slice, slice] | None], masks: list[tuple[slice, slice] | None]):  # type: ignore[no-untyped-def]
    """Images of 16 pixels that are bright in one place, and masks on them."""
    images, files = [], []
    for index, (place, marked) in enumerate(zip(bright, masks, strict=True)):
        image = np.zeros((16, 16))
        if place is not None:
            image[place] = 255
        one = [saved(tmp_path / f"{index}.png", image)]
        if marked is not None:
            mask = np.zeros((16, 16))
            mask[marked] = 255
            one.append(saved(tmp_path / f"{index}_mask.png", mask))
        images.append(torch.from_numpy(image / 255).float().expand(3, -1, -1))
        files.append(one)
    stack = torch.stack(images)
    found = HeatMaps.of(Blobs(), lambda rows: stack[list(rows)], files=files, recipe=recipe(16), positive_index=1)
    assert found is not None and (found.layer, found.cells) == ("convolution", (16, 16))
    return found


LEFT, TOP, ALL = (slice(0, 16), slice(0, 8)), (slice(0, 8), slice(0, 16)), (slice(0, 16), slice(0, 16))


def test_heat_on_lesions_is_the_mean_over_images_with_masks_and_heat(tmp_path: Path) -> None:
    heat = heat_maps(tmp_path, bright=[LEFT, LEFT, ALL, None, LEFT], masks=[LEFT, TOP, TOP, LEFT, None])
    on = heat.on_lesions(seed=1)
    assert on is not None
    assert (on.images, on.without_heat) == (3, 1)
    assert on.inside == pytest.approx((1 + 0.5 + 0.5) / 3) and on.area == pytest.approx(0.5)
    assert heat_maps(tmp_path, bright=[LEFT], masks=[None]).on_lesions(seed=1) is None
    assert heat_maps(tmp_path, bright=[None], masks=[LEFT]).on_lesions(seed=1) is None


def test_a_mask_that_can_not_be_read_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    heat = heat_maps(tmp_path, bright=[LEFT, LEFT], masks=[LEFT, LEFT])
    (tmp_path / "1_mask.png").write_bytes(b"no image")
    on = heat.on_lesions(seed=1)
    assert on is not None and on.images == 1 and "1_mask.png" in caplog.text


def test_no_more_is_read_than_the_bounds_allow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heat = heat_maps(tmp_path, bright=[LEFT] * 5, masks=[LEFT] * 5)
    monkeypatch.setattr("client.lesion_heat.MOST_IMAGES", 3)
    assert heat.on_lesions(seed=1).images == 3
    monkeypatch.setattr("client.lesion_heat.MOST_BYTES", 1)
    assert heat.on_lesions(seed=1).images == 1
