"""Every model of the registry: torchvision's function where it is torchvision's, its options, its features, freezing, weights."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from shared.errors import StudyError
from shared.models import build_network
from shared.models.network import Network
from shared.models.registry import MODELS, builder_of
from shared.models.weights import TORCHVISION_WEIGHTS, fit_weights
from shared.study import Study
from shared.study_pixels import LayerNormalise
from shared.torchvision_cpu import import_torchvision

MakeStudy = Callable[..., Study]
tv: Any = import_torchvision().models

#: Torchvision's models and their widths; `googlenet` there has auxiliary classifiers unless told otherwise.
WIDTHS = {
    "resnext50_32x4d": 2048,
    "vgg16": 4096,
    "vgg16_bn": 4096,
    "googlenet": 1024,
    "mobilenet_v2": 1280,
    "regnet_y_400mf": 440,
    "efficientnet_b0": 1280,
    "efficientnet_b3": 1536,
    "vit_b_16": 768,
}
CLASSIFIERS = [name for name, entry in MODELS.items() if entry.task == "classification"]
NORMED = [name for name in CLASSIFIERS if "group" in MODELS[name].norm]


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def inputs_of(name: str, channels: int = 3) -> Tensor:
    """Two images of 32 pixels, and mask and metadata behind them where the model takes them."""
    return images(2, channels + (MODELS[name].mask == "needed") + MODELS[name].metadata, 32, 32)


def theirs_of(name: str, *, classes: int, size: int) -> nn.Module:
    options: dict[str, Any] = {"num_classes": classes}
    if name == "googlenet":
        options |= {"aux_logits": False, "init_weights": False}
    if name == "vit_b_16":
        options["image_size"] = size
    network: nn.Module = getattr(tv, name)(**options)
    return network


def build(make_study: MakeStudy, name: str, **options: Any) -> Network:
    norms = MODELS[name].norm
    return build_network(make_study(name=name, **({"norm": norms[0]} | options)))


@pytest.mark.parametrize("name", WIDTHS)
def test_without_options_it_is_torchvisions_network(name: str, make_study: MakeStudy) -> None:
    ours = build(make_study, name, classes=10, size=48)
    theirs = theirs_of(name, classes=10, size=48)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    shapes = {key: tensor.shape for key, tensor in theirs.state_dict().items()}
    assert {key: tensor.shape for key, tensor in ours.state_dict().items()} == shapes
    theirs.load_state_dict(ours.state_dict())
    x = images(2, 3, 48, 48)
    for training in (True, False):  # training first: it moves the running statistics of both
        ours.train(training)
        theirs.train(training)
        for module in (*ours.modules(), *theirs.modules()):
            if isinstance(module, nn.Dropout):
                module.eval()
        outputs = []
        for network in (ours, theirs):
            torch.manual_seed(7)  # stochastic depth
            with torch.no_grad():
                outputs.append(network(x))
        torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-6)
    assert float(outputs[0].std()) > 0


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_features_dropout_and_head_are_the_network(name: str, make_study: MakeStudy) -> None:
    network = build(make_study, name, size=32, dropout=0.5).eval()
    x = inputs_of(name)
    with torch.no_grad():
        features = network.features(x)
        assert features.shape == (2, network.feature_dim)
        assert network.feature_dim == WIDTHS.get(name, network.feature_dim)
        expected = nn.functional.linear(features, network.fc.weight, network.fc.bias)
        torch.testing.assert_close(network(x), expected)
        network.dropout.train()
        ones = torch.ones_like(features)
        assert not torch.equal(network.head(ones), network.head(ones))
    heads = [key for key in network.state_dict() if key.startswith(f"{network.head_name}.")]
    assert heads == [f"{network.head_name}.weight", f"{network.head_name}.bias"]
    assert network.state_dict()[heads[0]].data_ptr() == network.fc.weight.data_ptr()


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_one_channel_and_one_logit(name: str, make_study: MakeStudy) -> None:
    network = build(make_study, name, size=32, channels=1, loss="binary_cross_entropy")
    assert network(inputs_of(name, channels=1)).shape == (2, 1)


@pytest.mark.parametrize("name", NORMED)
def test_with_group_norm_there_is_no_batch_norm_and_nothing_else_changes(name: str, make_study: MakeStudy) -> None:
    batch, group = build(make_study, name, norm="batch"), build(make_study, name, norm="group")
    assert not any(isinstance(module, _BatchNorm) for module in group.modules())
    assert {key: p.shape for key, p in batch.named_parameters()} == {
        key: p.shape for key, p in group.named_parameters()
    }
    assert list(group.buffers()) == []


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_freezing_by_a_childs_name_and_training_go_together(name: str, make_study: MakeStudy) -> None:
    network = build(make_study, name, size=32)
    children = [child for child, module in network.named_children() if any(True for _ in module.parameters())]
    head = network.head_name.split(".")[0]
    network.freeze([child for child in children if child != head])
    trained = [key for key, parameter in network.named_parameters() if parameter.requires_grad]
    assert trained and all(key.startswith(f"{head}.") for key in trained)
    assert not any(module.training for module in network.modules() if isinstance(module, _BatchNorm))
    with pytest.raises(StudyError, match=f"no layer 'nothing_of_this_name'; layers are {children[0]}"):
        network.freeze(["nothing_of_this_name"])


@pytest.mark.parametrize("name", WIDTHS)
def test_a_file_of_torchvisions_weights_for_a_thousand_classes_fits(name: str, make_study: MakeStudy) -> None:
    network = build(make_study, name, size=32)
    published = theirs_of(name, classes=1000, size=32).state_dict()
    if name == "googlenet":
        published |= tv.googlenet(init_weights=False).state_dict()
    filled = fit_weights(network, published)
    own = network.state_dict()
    assert set(own) - filled == {f"{network.head_name}.weight", f"{network.head_name}.bias"}
    for key in filled:
        assert torch.equal(own[key], published[key])


def test_every_model_of_torchvision_has_weights_of_that_name() -> None:
    for name, weights in TORCHVISION_WEIGHTS.items():
        assert name in MODELS
        theirs = "efficientnet_b0" if name.startswith("skinnet") else name
        tv.get_model_weights(theirs)[weights.split(".")[1]]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"name": "vgg16"}, "model.norm: expected none, which is what vgg16 has, but got batch"),
        ({"name": "vit_b_16", "norm": "group"}, "model.norm: expected none, which is what vit_b_16 has, but got group"),
        ({"name": "resnet18", "norm": "none"}, "model.norm: expected batch or group, which is what resnet18 has"),
        ({"name": "googlenet", "attention": "se"}, "model.attention: expected none, which is what googlenet has"),
        ({"name": "mobilenet_v2", "stem": "haar"}, "model.stem: expected plain, which is what mobilenet_v2 has"),
        ({"name": "vit_b_16", "norm": "none", "size": 40}, "divides the image into patches of 16, but the side is 40"),
        ({"name": "googlenet", "weights": "torchvision"}, r"trained on \(x - 0.5\) / 0.5; set preprocessing.normalise"),
    ],
)
def test_what_a_model_has_not_is_refused_in_a_sentence(
    options: dict[str, Any], sentence: str, make_study: MakeStudy
) -> None:
    with pytest.raises(StudyError, match=sentence):
        build_network(make_study(**options))


def test_position_embeddings_are_interpolated_to_another_size(make_study: MakeStudy) -> None:
    published = theirs_of("vit_b_16", classes=2, size=64).state_dict()
    grid = torch.linspace(0, 1, 4)[:, None].expand(4, 4) * torch.ones(768, 1, 1)
    published["encoder.pos_embedding"][0, 1:] = grid.flatten(1).T
    network = build(make_study, "vit_b_16", size=96)
    assert len(fit_weights(network, published)) == len(published)
    found = network.state_dict()["encoder.pos_embedding"]
    assert torch.equal(found[0, 0], published["encoder.pos_embedding"][0, 0])
    columns = found[0, 1:].reshape(6, 6, 768)
    torch.testing.assert_close(columns, columns[:, :1].expand(6, 6, 768))
    assert bool((columns[1:, 0, 0] > columns[:-1, 0, 0]).all())
    torch.testing.assert_close(columns[[0, -1], 0, 0], torch.tensor([0.0, 1.0]))


def test_googlenets_convolutions_do_not_start_so_small_that_adam_overturns_them(make_study: MakeStudy) -> None:
    """torchvision starts them with a deviation of 0.01, and with group norm the network then stops learning."""
    network = build(make_study, "googlenet", norm="group")
    layer = network.get_submodule("inception5b.branch1.conv")
    assert isinstance(layer, nn.Conv2d)
    assert float(layer.weight.detach().std()) == pytest.approx((2 / layer.out_channels) ** 0.5, rel=0.05)


def test_googlenets_published_weights_may_see_an_input_that_is_layer_normalised(make_study: MakeStudy) -> None:
    """As in the study of the diagnosis system, where each image has a scale of its own."""
    study = make_study(name="googlenet", weights="torchvision")
    recipe = study.preprocessing.model_copy(update={"layer_normalise": LayerNormalise(gamma=1.2, beta=0.1)})
    assert builder_of("googlenet")(study.model_copy(update={"preprocessing": recipe})).feature_dim == 1024
