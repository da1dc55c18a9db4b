"""RcdNet and CNN-ViT: that they are what their pages say."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from shared.errors import StudyError
from shared.models import build_network
from shared.models.attention import CBAM, group_norm
from shared.models.rcdnet import ResidualCbamBlock
from shared.models.separable import SeparableConvolution
from shared.study import Study

MakeStudy = Callable[..., Study]


def test_a_separable_convolution_is_a_convolution_whose_kernel_is_a_product() -> None:
    layer = SeparableConvolution(4, 6, kernel=5, stride=2, norm_layer=lambda _: nn.Identity(), activate=False).double()
    x = torch.rand((2, 4, 9, 8), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        layer.depthwise.weight.abs_()  # of positive pixels the inner ReLU takes nothing away
        kernel = layer.pointwise.weight * layer.depthwise.weight.permute(1, 0, 2, 3)
        expected = nn.functional.conv2d(x, kernel, stride=2, padding=2)
        torch.testing.assert_close(layer(x), expected)


def test_every_block_has_cbam_on_its_branch_before_the_add(make_study: MakeStudy) -> None:
    network = build_network(make_study(name="rcdnet"))
    gates = [name for name, module in network.named_modules() if isinstance(module, CBAM)]
    assert gates == [f"stage{stage}.{block}.attention" for stage in (1, 2, 3, 4) for block in (0, 1)]
    block = ResidualCbamBlock(8, 8, stride=1, norm_layer=group_norm).double()
    x = torch.rand((2, 8, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        branch = block.attention(block.convolution2(block.convolution1(x)))
        torch.testing.assert_close(block(x), torch.relu(branch + x))


def test_all_of_rcdnets_3x3_convolutions_but_the_stem_are_depthwise(make_study: MakeStudy) -> None:
    network = build_network(make_study(name="rcdnet"))
    wide = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) and m.groups == 1]
    assert len(wide) == 1
    count = sum(p.numel() for p in network.parameters())
    assert count < sum(p.numel() for p in build_network(make_study(name="resnet18")).parameters()) / 5


@pytest.mark.parametrize("name", ["rcdnet", "cnn_vit"])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_signal_and_gradient_reach_both_ends(name: str, norm: str, make_study: MakeStudy) -> None:
    network = build_network(make_study(name=name, norm=norm, size=64))
    x = torch.rand((8, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    outputs = network(x)
    assert float(outputs.detach().std(0).min()) > 1e-3
    outputs.square().sum().backward()
    stem, head = network.get_parameter("stem.0.weight").grad, network.fc.weight.grad
    assert stem is not None and head is not None
    assert 1e-3 < float(stem.norm() / head.norm()) < 1e3


def test_cnn_vit_has_a_token_for_16_pixels(make_study: MakeStudy) -> None:
    network = build_network(make_study(name="cnn_vit", size=96))
    assert network.state_dict()["encoder.pos_embedding"].shape == (1, 37, 256)
    with pytest.raises(StudyError, match="one token of 16 x 16 pixels, but the side is 100"):
        build_network(make_study(name="cnn_vit", size=100))
