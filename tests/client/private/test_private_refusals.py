"""Everything that DP-SGD refuses, and that each refusal says why."""

from typing import Any

import numpy as np
import pytest
import torch
from private_network import Small, constants, images, mechanism, small
from torch import Tensor, nn

from client.private.dp_sgd import DpSgd
from client.private.requirements import require_private_training
from shared.errors import PrivacyError
from shared.study_training import Training


class Centred(nn.Module):
    """Takes the mean over the batch off, without any parameter or buffer."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)


class Counting(nn.Module):
    """Keeps a running mean of what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += x.mean().detach()
        return x


class Tied(Small):
    """The head's input passes one Linear layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(32, 32)

    def features(self, x: Tensor) -> Tensor:
        return self.twice(self.twice(self.body(x)))


class Recurrent(Small):
    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.LSTM(32, 32, batch_first=True)

    def features(self, x: Tensor) -> Tensor:
        return self.memory(self.body(x)[:, None])[0][:, 0]


def with_layer(layer: nn.Module, at: int = 2) -> Small:
    network = small()
    network.body.insert(at, layer.double())
    network.train()
    return network


def of(kind: type[Small]) -> Small:
    torch.manual_seed(1)
    network = kind()
    network.double().train()
    return network


def in_place() -> Small:
    return with_layer(nn.Hardswish(inplace=True))


def frozen_norm_in_training() -> Small:
    network = with_layer(nn.BatchNorm2d(8))
    network.body[2].requires_grad_(False)
    return network


def trained_in_eval() -> Small:
    network = small()
    network.body[1].eval()
    return network


def half() -> Small:
    network = small()
    network.fc.to(torch.bfloat16)
    return network


def nothing_trained() -> Small:
    network = small()
    network.requires_grad_(False)
    return network


@pytest.mark.parametrize(
    ("network", "why"),
    [
        (lambda: with_layer(nn.BatchNorm2d(8)), "BatchNorm2d: it normalises each patient by the others"),
        (frozen_norm_in_training, "BatchNorm2d: it normalises each patient by the others"),
        (lambda: with_layer(nn.InstanceNorm2d(8, track_running_stats=True)), "keeps running statistics"),
        (lambda: with_layer(Centred()), "depends on the other images in the batch"),
        (lambda: with_layer(Counting()), "buffer 'body.2.seen' changes in training"),
        (lambda: of(Recurrent), "Opacus does not support the network"),
        (in_place, "Opacus can't compute each patient's gradient"),
        (trained_in_eval, "'body.1' is trained but in eval mode"),
        (lambda: small().eval(), "eval mode"),
        (half, "torch.bfloat16: private training needs float32"),
        (nothing_trained, "no parameter to train"),
    ],
)
def test_networks(network: Any, why: str) -> None:
    with pytest.raises(PrivacyError, match=why):
        mechanism(network(), *images(3))


def test_a_refused_network_keeps_its_buffers_and_no_hooks() -> None:
    network = with_layer(Counting())
    with pytest.raises(PrivacyError):
        mechanism(network, *images(3))
    assert float(network.body[2].seen) == 0.0
    network = in_place()
    with pytest.raises(PrivacyError):
        mechanism(network, *images(3))
    assert not any(module._forward_hooks for module in network.modules())


def test_a_frozen_batch_norm_with_public_statistics_is_accepted() -> None:
    network = with_layer(nn.BatchNorm2d(8))
    network.body[2].requires_grad_(False).eval()
    mechanism(network, *images(3))


def test_a_linear_layer_called_twice_is_refused_in_ghost_mode_only() -> None:
    mechanism(of(Tied), *images(3), mode="hooks")
    with pytest.raises(PrivacyError, match="tying"):
        mechanism(of(Tied), *images(3), mode="ghost")


def test_ghost_mode_can_not_average_augmentations() -> None:
    with pytest.raises(PrivacyError, match="augmentations"):
        mechanism(small(), *images(4), mode="ghost", augmentations=2)


def test_autocast_is_refused_before_and_in_a_step() -> None:
    one = mechanism(small(), *images(3))
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(PrivacyError, match="autocast"):
            one.release(np.arange(3))
        with pytest.raises(PrivacyError, match="autocast"):
            mechanism(small(), *images(3))


def recipe(**changes: Any) -> Training:
    values = {"local_epochs": 1, "batch_size": 2, "optimiser": "sgd", "learning_rate": 0.1, "loss": "cross_entropy"}
    return Training.model_validate(values | changes)


def test_recipes() -> None:
    require_private_training(recipe())
    with pytest.raises(PrivacyError, match=r"training\.precision"):
        require_private_training(recipe(precision="bf16"))
    with pytest.raises(PrivacyError, match=r"training\.class_weights"):
        require_private_training(recipe(class_weights="balanced"))


def test_a_parameter_that_is_thawed_later_would_get_no_noise() -> None:
    network, (x, y) = small(), images(3)
    network.body[0].requires_grad_(False)
    one = mechanism(network, x, y)
    network.body[0].requires_grad_(True)
    with pytest.raises(PrivacyError, match=r"'body\.0\.weight' is trained, but would get no noise"):
        one.release(np.arange(3))


def test_a_parameter_that_is_frozen_later_is_refused() -> None:
    network, (x, y) = small(), images(3)
    one = mechanism(network, x, y)
    network.body[0].requires_grad_(False)
    with pytest.raises(PrivacyError, match="was frozen after"):
        one.release(np.arange(3))


def test_an_optimiser_with_a_parameter_of_its_own_is_refused_before_anything_is_drawn() -> None:
    network, (x, y) = small(), images(3)
    one = mechanism(network, x, y)
    one.sample = lambda: pytest.fail("drawn")  # type: ignore[method-assign]
    extra = nn.Parameter(torch.zeros(5))
    with pytest.raises(PrivacyError, match=r"shape \(5,\) that would get no noise"):
        one.step(torch.optim.SGD([*network.parameters(), extra], lr=0.1))


@pytest.mark.parametrize("name", ["sampling_rate", "clipping_norm", "noise_multiplier", "normaliser"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_constants_out_of_range(name: str, value: float) -> None:
    with pytest.raises(PrivacyError, match=name):
        constants(**{name: value})


def test_a_gradient_without_its_patients_is_refused_when_it_comes_up_in_a_step() -> None:
    """A layer set to eval after the mechanism was made: Opacus' hooks skip it, autograd does not."""
    for mode in ("hooks", "ghost"):
        network, (x, y) = small(), images(3)
        one: DpSgd = mechanism(network, x, y, mode=mode)
        network.body[1].eval()
        with pytest.raises((PrivacyError, ValueError), match=r"(eval mode|No activations)"):
            one.clipped_sum(np.arange(3))
