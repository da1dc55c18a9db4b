"""SkinNet: shapes at 64 and 224 pixels, what is fused, what its stages hold, and that torchvision's files load."""

from typing import Any, Literal

import pytest
import torch
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from shared.errors import StudyError
from shared.models.inputs import metadata_in, with_metadata
from shared.models.skinnet import LESION_LAYERS, METADATA_WIDTHS, MetadataBranch, ParallelCnn, SkinNet
from shared.models.state import travelling
from shared.models.weights import fit_weights
from shared.torchvision_cpu import import_torchvision

tv: Any = import_torchvision().models
Norm = Literal["batch", "group"]

#: mask seen, lesion looked at, fused values
VERSIONS: dict[str, tuple[bool, Any, int]] = {
    "v1": (False, "none", 1280 + 256),
    "v2": (True, "none", 1280 + 256),
    "v3": (False, "parallel_cnn", 1280 + 64 + 256),
    "v4": (True, "efficientnet_b3", 1280 + 64 + 256),
}


def network(version: str, *, norm: Norm = "group", metadata: int = 5, outputs: int = 3) -> SkinNet:
    torch.manual_seed(0)
    mask, lesion, _ = VERSIONS[version]
    return SkinNet(outputs=outputs, metadata=metadata, mask=mask, lesion=lesion, norm=norm)


def planes(image: Tensor, metadata: Tensor, mask: Tensor | None = None) -> Tensor:
    return with_metadata(image if mask is None else torch.cat((image, mask), 1), metadata)


def half(count: int, size: int) -> Tensor:
    """Masks whose upper half is marked."""
    mask = torch.zeros(count, 1, size, size)
    mask[:, :, : size // 2] = 1
    return mask


def test_metadata_travel_in_one_plane() -> None:
    metadata = torch.rand(3, 20)
    joined = with_metadata(torch.rand(3, 4, 8, 8), metadata)
    assert joined.shape == (3, 5, 8, 8)
    assert torch.equal(metadata_in(joined, 20), metadata)
    assert float(joined[:, -1].flatten(1)[:, 20:].abs().sum()) == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_every_input_reaches_the_output_and_opacus_accepts_it(version: str) -> None:
    """The mask only outside of which v3 and v4's second network, and only as a channel v2 and v4's first, take notice."""
    one = network(version).eval()
    last = one.metadata.layers[-1]
    assert isinstance(last, nn.Linear)
    nn.init.normal_(last.weight)
    assert ModuleValidator.validate(one.train()) == []
    one.eval()
    image, metadata, mask = torch.rand(2, 3, 64, 64), torch.rand(2, 5), half(2, 64)
    x = planes(image, metadata, None if version == "v1" else mask)
    with torch.no_grad():
        whole = one.features(x)
        assert whole.shape == (2, VERSIONS[version][2]) and one(x).shape == (2, 3)
        told = planes(image, metadata + 1, None if version == "v1" else mask)
        assert (one.features(told) != whole).any(0).tolist() == [False] * (whole.shape[1] - 256) + [True] * 256
        if version != "v1":
            masked = one.features(planes(image, metadata, 1 - mask))
            changed = (masked != whole).any(0)
            assert bool(changed[:1280].any()) == (version in ("v2", "v4"))
            assert bool(changed[1280:-256].any()) == (version in ("v3", "v4"))


@pytest.mark.parametrize("size", [64, 224])
def test_batch_norm_and_both_sizes(size: int) -> None:
    one = network("v3", norm="batch")
    assert one(planes(torch.rand(2, 3, size, size), torch.rand(2, 5), half(2, size))).shape == (2, 3)


def test_norm_relu_and_dropout_stand_in_the_first_three_of_four_layers() -> None:
    kinds = [type(layer) for layer in MetadataBranch(5).layers]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout] * 3 + [nn.Linear]
    assert {layer.p for layer in MetadataBranch(5).modules() if isinstance(layer, nn.Dropout)} == {0.2}
    assert METADATA_WIDTHS[-1] + 1280 == 1536


@pytest.mark.parametrize("version", ["v1", "v4"])
def test_a_trained_efficientnet_loads_into_the_image_branch(version: str) -> None:
    one = network(version, norm="batch").eval()
    trained = tv.efficientnet_b0(num_classes=7).eval()
    filled = fit_weights(one, trained.state_dict())
    assert {name.split(".")[0] for name in filled} == {"features"}
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = trained.features(image)
        seen = torch.cat((image, half(2, 64)), 1) if version == "v4" else image
        torch.testing.assert_close(one.get_submodule("features")(seen), expected)


def test_a_stage_holds_its_children_and_the_rest_learns() -> None:
    """First the CNN alone, since an unlearned metadata branch says nothing; then the metadata branch, with the CNN held."""
    x = planes(torch.rand(4, 3, 32, 32), torch.rand(4, 5))
    first, second = network("v1", norm="batch"), network("v1", norm="batch")
    names = [name for name, _ in travelling(first)]
    first.hold(["metadata"])
    second.hold(["features"])
    assert [name for name, _ in travelling(first)] == [name for name, _ in travelling(second)] == names
    assert float(first.features(x)[:, 1280:].abs().sum().detach()) == 0
    for one, held in ((first, "metadata"), (second, "features")):
        one.train()
        assert not any(module.training for module in one.get_submodule(held).modules())
        before = {name: tensor.clone() for name, tensor in one.state_dict().items()}
        optimiser = torch.optim.AdamW([p for p in one.parameters() if p.requires_grad], lr=0.1)
        for _ in range(
            2
        ):  # the branch's last layer starts at zero, so that what is before it learns from the second step on
            optimiser.zero_grad()
            one(x).square().sum().backward()
            optimiser.step()
        changed = {
            name.split(".")[0] for name, tensor in one.state_dict().items() if not torch.equal(tensor, before[name])
        }
        assert changed == {"features", "metadata", "fc"} - {held}


def test_a_stage_names_layers_that_are_there() -> None:
    with pytest.raises(StudyError, match="did you mean 'metadata'"):
        network("v1").hold(["metadat"])
    with pytest.raises(StudyError, match="nothing is left to train"):
        network("v1").hold(["features", "metadata", "fc"])


@pytest.mark.parametrize(("size", "sides"), [(224, [112, 56, 28, 14, 7, 4, 2, 1]), (64, [32, 16, 8, 4, 2, 1, 1, 1])])
def test_the_parallel_cnn_ends_at_one_pixel(size: int, sides: list[int]) -> None:
    one = ParallelCnn(channels=4)
    seen: list[int] = []
    for layer in one.layers:
        if isinstance(layer, nn.MaxPool2d):
            layer.register_forward_hook(lambda _module, _inputs, out: seen.append(out.shape[-1]))
    x = torch.rand(2, 4, size, size)
    assert one.lesion(x).shape == (2, 1024)
    assert seen == sides
    assert one(x).shape == (2, 64)
    assert [layer.kernel_size[0] for layer in one.layers if isinstance(layer, nn.Conv2d)] == [
        k for k, _ in LESION_LAYERS
    ]
    assert [kernel for kernel, _ in LESION_LAYERS] == [7, 7, 5, 5, 3, 3, 3, 3]
