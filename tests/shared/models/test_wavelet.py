"""The Haar transform against PyWavelets, and what a ResNet's stem makes of it."""

from collections.abc import Callable

import numpy as np
import pytest
import pywt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from shared.errors import StudyError, WeightsError
from shared.models import build_network
from shared.models.attention import group_norm
from shared.models.wavelet import HaarAttention, HaarBands, HaarPooling, haar_bands
from shared.models.weights import fit_weights
from shared.study import Study

MakeStudy = Callable[..., Study]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**31 - 1), height=st.integers(1, 17), width=st.integers(1, 17))
def test_the_bands_are_pywavelets(seed: int, height: int, width: int) -> None:
    x = random(2, 3, height, width, seed=seed)
    low, (horizontal, vertical, diagonal) = pywt.dwt2(x.numpy(), "haar")
    for ours, theirs in zip(haar_bands(x), (low, horizontal, vertical, diagonal), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=1e-14)


def test_a_horizontal_edge_stands_in_lh_and_energy_is_kept() -> None:
    edge = torch.zeros((1, 1, 4, 4), dtype=torch.float64)
    edge[:, :, 1:] = 1
    bands = haar_bands(edge)
    assert bands.lh.abs().sum() > 0
    assert bands.hl.abs().sum() == bands.hh.abs().sum() == 0
    x = random(1, 2, 8, 6)
    torch.testing.assert_close(sum(band.square().sum() for band in haar_bands(x)), x.square().sum())


def test_bands_are_stacked_by_band_and_not_by_channel() -> None:
    x = random(2, 3, 6, 6)
    assert torch.equal(HaarBands()(x)[:, 3:6], haar_bands(x).lh)


def test_attention_keeps_the_low_band_where_there_is_no_detail() -> None:
    module = HaarAttention(3).double()
    flat = torch.full((2, 3, 8, 8), 0.7, dtype=torch.float64)
    gate = 1 / (1 + np.exp(-module.conv.bias.detach().numpy()))
    with torch.no_grad():
        np.testing.assert_allclose(
            module(flat).numpy(), np.broadcast_to((1.4 * (1 + gate))[:, None, None], (2, 3, 4, 4))
        )
        x = random(2, 3, 8, 8)
        ratio = module(x) / haar_bands(x).ll
    assert float(ratio.min()) > 1 and float(ratio.max()) < 2


def test_pooling_halves_and_keeps_the_channels() -> None:
    module = HaarPooling(8, norm_layer=group_norm).double()
    assert module(random(2, 8, 9, 6)).shape == (2, 8, 5, 3)


@pytest.mark.parametrize("stem", ["haar", "haar_attention", "haar_features"])
def test_a_stem_adds_its_own_layers_and_nothing_else(stem: str, make_study: MakeStudy) -> None:
    plain, ours = build_network(make_study()), build_network(make_study(stem=stem))
    added = {name.split(".")[0] for name in set(ours.state_dict()) ^ set(plain.state_dict())}
    assert added == (set() if stem == "haar" else {"wavelet"})
    assert ours.get_parameter("conv1.weight").shape == (64, 12 if stem == "haar" else 3, 7, 7)


@pytest.mark.parametrize(("stem", "side"), [("plain", 16), ("haar", 8), ("haar_attention", 8), ("haar_features", 16)])
def test_on_the_input_the_transform_halves_it_and_on_features_it_stands_for_max_pooling(
    stem: str, side: int, make_study: MakeStudy
) -> None:
    network = build_network(make_study(stem=stem, channels=1, size=64)).eval()
    seen: list[torch.Size] = []
    network.get_submodule("layer1").register_forward_hook(lambda _module, _inputs, out: seen.append(out.shape))
    assert network(torch.rand(2, 1, 64, 64)).shape == (2, 2)
    assert seen == [(2, 64, side, side)]


def test_haar_features_take_the_bands_of_the_first_norms_output(make_study: MakeStudy) -> None:
    network = build_network(make_study(stem="haar_features")).eval().double()
    seen: dict[str, Tensor] = {}
    network.get_submodule("bn1").register_forward_hook(lambda _m, _i, out: seen.update(norm=out))
    network.get_submodule("wavelet").register_forward_pre_hook(lambda _m, inputs: seen.update(wavelet=inputs[0]))
    with torch.no_grad():
        network(random(2, 3, 32, 32))
    assert torch.equal(nn.functional.relu(seen["norm"]), seen["wavelet"])


@pytest.mark.parametrize(("stem", "fresh"), [("haar", "conv1"), ("haar_attention", "wavelet")])
def test_published_weights_fill_all_but_what_the_stem_adds(stem: str, fresh: str, make_study: MakeStudy) -> None:
    published = build_network(make_study(seed=9)).state_dict()
    network = build_network(make_study(stem=stem))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    filled = fit_weights(network, published)
    for name, tensor in network.state_dict().items():
        left = name.startswith(f"{fresh}.")
        assert (name not in filled) == left
        assert torch.equal(tensor, before[name] if left else published[name])


def test_without_a_stem_a_first_convolution_of_another_shape_is_refused(make_study: MakeStudy) -> None:
    with pytest.raises(WeightsError, match=r"1 of another shape: conv1\.weight"):
        fit_weights(build_network(make_study(channels=1)), build_network(make_study()).state_dict())


def test_a_frozen_layer_that_the_weights_do_not_hold_is_refused(
    make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = build_network(make_study()).state_dict()
    monkeypatch.setattr("shared.models.build.torchvision_weights", lambda _name: published)
    build_network(make_study(stem="haar", weights="torchvision", freeze=["layer1"]))
    with pytest.raises(StudyError, match="'conv1' is frozen, but the weights hold no 'conv1' of this shape"):
        build_network(make_study(stem="haar", weights="torchvision", freeze=["conv1", "layer1"]))
