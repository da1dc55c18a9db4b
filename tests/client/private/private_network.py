"""A small network of the project's layers, constants, and a mechanism on random images; and the plain loop that it is compared with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from client.losses import losses_of
from client.private.dp_sgd import DpSgd, PrivateConstants
from client.private.sampling import PatientSampler
from shared.models.attention import CBAM, group_norm
from shared.models.network import Network

SIDE = 8


class Small(Network):
    """Convolution, group norm, CBAM and a head of two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.GroupNorm(2, 8),
            nn.ReLU(),
            CBAM(8, norm_layer=group_norm, reduction=4),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )
        self.feature_dim = 32
        self.dropout = nn.Dropout(0.0)
        self.fc = nn.Linear(32, 2)

    def features(self, x: Tensor) -> Tensor:
        return self.body(x)


def small(seed: int = 1) -> Small:
    torch.manual_seed(seed)
    network = Small()
    network.double().train()
    return network


def losses(logits: Tensor, labels: Tensor) -> Tensor:
    return losses_of(logits, labels, positive_index=1)


def images(count: int, side: int = SIDE) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.rand((count, 3, side, side), generator=generator, dtype=torch.float64), torch.arange(count) % 2


def constants(**changes: float) -> PrivateConstants:
    values = {"sampling_rate": 0.5, "clipping_norm": 0.4, "noise_multiplier": 1.0, "normaliser": 3.0} | changes
    return PrivateConstants(**values)


def mechanism(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    kind: type[DpSgd] = DpSgd,
    public: PrivateConstants | None = None,
    **options: Any,
) -> DpSgd:
    """One patient for each image."""
    public = public or constants()
    repeated = options.get("augmentations", 1)
    rows = np.arange(len(x) // repeated)

    def load(some: np.ndarray) -> tuple[Tensor, Tensor]:
        every = (some[:, None] * repeated + np.arange(repeated)).ravel()
        return x[every], y[every]

    return kind(
        network, PatientSampler(rows, rows, rate=public.sampling_rate), load, constants=public, losses=losses,
        image_shape=(x.shape[1], x.shape[2], x.shape[3]), **options,
    )  # fmt: skip


def looped(network: nn.Module, x: Tensor, y: Tensor, clipping_norm: float, repeated: int = 1) -> dict[str, Tensor]:
    """The clipped sum by one backward pass for each image."""
    names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    total = {name: torch.zeros_like(network.get_parameter(name)) for name in names}
    for start in range(0, len(x), repeated):
        mean = {name: torch.zeros_like(one) for name, one in total.items()}
        for index in range(start, start + repeated):
            network.zero_grad(set_to_none=True)
            losses(network(x[index : index + 1]), y[index : index + 1]).sum().backward()
            for name in names:
                gradient = network.get_parameter(name).grad
                mean[name] += 0.0 if gradient is None else gradient / repeated
        norm = float(torch.cat([one.flatten() for one in mean.values()]).norm())
        for name in names:
            total[name] += mean[name] * min(1.0, clipping_norm / norm)
    network.zero_grad(set_to_none=True)
    return total


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    assert list(found) == list(expected)
    for name in found:
        torch.testing.assert_close(
            found[name], expected[name], rtol=0.0, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}"
        )
