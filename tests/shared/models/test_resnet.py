"""ResNets against torchvision's own, and where attention stands in them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shared.models import build_network
from shared.models.attention import CBAM, Attention
from shared.models.network import Network
from shared.study import Study
from shared.torchvision_cpu import import_torchvision

MakeStudy = Callable[..., Study]
tv: Any = import_torchvision().models


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_without_options_it_is_torchvisions_network(name: str, make_study: MakeStudy) -> None:
    ours = build_network(make_study(name=name, classes=10))
    theirs = getattr(tv, name)(num_classes=10)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    x = images(2, 3, 64, 64)
    for training in (True, False):  # training first: it moves the running statistics of both
        ours.train(training)
        theirs.train(training)
        with torch.no_grad():
            torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)


def test_gradients_are_torchvisions_too(make_study: MakeStudy) -> None:
    ours = build_network(make_study(classes=3)).double()
    theirs = tv.resnet18(num_classes=3).double()
    theirs.load_state_dict(ours.state_dict())
    x = images(3, 3, 32, 32).double()
    for network in (ours, theirs):
        network(x).square().sum().backward()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-9, atol=1e-12, msg=name)


def test_group_norm_equals_opacus_replacement(make_study: MakeStudy) -> None:
    from opacus.validators import ModuleValidator

    ours = build_network(make_study(norm="group"))
    theirs = ModuleValidator.fix(tv.resnet18(num_classes=2))
    theirs.load_state_dict(ours.state_dict())
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)
    groups = [module.num_groups for module in ours.modules() if isinstance(module, nn.GroupNorm)]
    assert set(groups) == {32}
    assert len(groups) == 20


@pytest.mark.parametrize(("name", "width"), [("resnet18", 512), ("resnet34", 512), ("resnet50", 2048)])
def test_features_are_the_pooled_last_stage(name: str, width: int, make_study: MakeStudy) -> None:
    network = build_network(make_study(name=name, dropout=0.5)).eval()
    x = images(2, 3, 64, 64)
    seen: list[Tensor] = []
    network.get_submodule("layer4").register_forward_hook(lambda _module, _inputs, out: seen.append(out))
    with torch.no_grad():
        features = network.features(x)
        assert features.shape == (2, width) == (2, network.feature_dim)
        torch.testing.assert_close(features, seen[0].mean((2, 3)))
        torch.testing.assert_close(network(x), nn.functional.linear(features, network.fc.weight, network.fc.bias))


def test_dropout_acts_on_the_features_in_training_only(make_study: MakeStudy) -> None:
    network = build_network(make_study(dropout=0.5, norm="group"))
    x = images(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(network.features(x), network.features(x))
        assert not torch.equal(network(x), network(x))
        network.eval()
        assert torch.equal(network(x), network(x))


def test_one_channel_images_have_a_one_channel_stem(make_study: MakeStudy) -> None:
    network = build_network(make_study(channels=1))
    assert network.get_parameter("conv1.weight").shape == (64, 1, 7, 7)
    assert network(images(2, 1, 32, 32)).shape == (2, 2)


def attention_of(network: Network) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, Attention)]


def test_attention_stands_in_every_block_or_after_every_stage(make_study: MakeStudy) -> None:
    blocks = [f"layer{stage}.{block}.attention" for stage in (1, 2, 3, 4) for block in (0, 1)]
    assert attention_of(build_network(make_study())) == []
    assert attention_of(build_network(make_study(attention="se"))) == blocks
    for place in ("after_block", "before_add"):
        assert attention_of(build_network(make_study(attention="cbam", cbam_at=place))) == blocks
    stages = build_network(make_study(attention="cbam", cbam_at="stage_outputs"))
    assert attention_of(stages) == ["attention1", "attention2", "attention3", "attention4"]


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("options", [{"attention": "se"}, {"attention": "cbam", "cbam_at": "before_add"}])
def test_before_add_scales_the_branch_and_not_the_shortcut(
    name: str, options: dict[str, str], make_study: MakeStudy
) -> None:
    block: Any = build_network(make_study(name=name, **options)).eval().get_submodule("layer2.0")
    x = images(2, 64 if name == "resnet18" else 256, 8, 8)
    with torch.no_grad():
        expected = torch.relu(block.attention(block.residual(x)) + block.downsample(x))
        torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_after_block_scales_the_blocks_output(name: str, make_study: MakeStudy) -> None:
    block: Any = build_network(make_study(name=name, attention="cbam", cbam_at="after_block")).eval()
    block = block.get_submodule("layer2.0")
    x = images(2, 64 if name == "resnet18" else 256, 8, 8)
    with torch.no_grad():
        expected = block.attention(torch.relu(block.residual(x) + block.downsample(x)))
        torch.testing.assert_close(block(x), expected)


def test_stage_outputs_scale_what_the_next_stage_gets(make_study: MakeStudy) -> None:
    network = build_network(make_study(attention="cbam", cbam_at="stage_outputs")).eval()
    seen: dict[str, Tensor] = {}
    for stage in (1, 2, 3):
        module = network.get_submodule(f"layer{stage}")
        module.register_forward_hook(lambda _m, _i, out, key=f"out{stage}": seen.update({key: out}))
        following = network.get_submodule(f"layer{stage + 1}")
        following.register_forward_hook(lambda _m, inputs, _o, key=f"in{stage}": seen.update({key: inputs[0]}))
    with torch.no_grad():
        network(images(2, 3, 64, 64))
        for stage in (1, 2, 3):
            attention = network.get_submodule(f"attention{stage}")
            torch.testing.assert_close(seen[f"in{stage}"], attention(seen[f"out{stage}"]))


def test_the_three_places_give_three_functions(make_study: MakeStudy) -> None:
    x = images(2, 3, 64, 64)
    outputs = []
    for place in ("after_block", "before_add", "stage_outputs"):
        with torch.no_grad():
            outputs.append(build_network(make_study(attention="cbam", cbam_at=place)).eval()(x))
    assert not torch.allclose(outputs[0], outputs[1])
    assert not torch.allclose(outputs[1], outputs[2])
    assert not torch.allclose(outputs[0], outputs[2])


def test_with_group_norm_there_is_no_batch_norm_left(make_study: MakeStudy) -> None:
    network = build_network(make_study(attention="cbam", cbam_at="after_block", norm="group"))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    gates = [module for module in network.modules() if isinstance(module, CBAM)]
    assert all(isinstance(gate.spatial.norm, nn.GroupNorm) for gate in gates)


@pytest.mark.parametrize("place", ["after_block", "before_add", "stage_outputs"])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_signal_and_gradient_reach_both_ends_of_an_untrained_network(
    place: str, norm: str, make_study: MakeStudy
) -> None:
    network = build_network(make_study(name="resnet34", attention="cbam", cbam_at=place, norm=norm))
    network(images(8, 3, 64, 64)).square().sum().backward()
    stem, last = network.get_parameter("conv1.weight").grad, network.get_parameter("layer4.2.conv2.weight").grad
    assert stem is not None and last is not None
    ratio = float(stem.norm() / last.norm())
    assert 1e-2 < ratio < 1e3
