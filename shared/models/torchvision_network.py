"""What the networks built on torchvision's classes share: its state_dict names, nothing in place, other input channels."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from shared.models.network import Network


class TorchvisionNetwork(Network):
    """A Network whose head has a name of torchvision's, `head_name`, instead of `fc`.

    torchvision calls the convolutional part `features`, which is a method here; attribute access finds the method, and `get_submodule`
    the child.
    """

    @property
    def fc(self) -> nn.Linear:  # type: ignore[override]
        """The last linear layer, under the name that every Network has."""
        head = self.get_submodule(self.head_name)
        assert isinstance(head, nn.Linear)
        return head

    def get_submodule(self, target: str) -> nn.Module:
        """As nn.Module.get_submodule, also where a child and a method share a name."""
        first, _, rest = target.partition(".")
        child = self._modules.get(first)
        return super().get_submodule(target) if child is None else child.get_submodule(rest)


class PooledNetwork(TorchvisionNetwork):
    """Convolutions in the child `features`, global average pooling, and `classifier` of a dropout and a linear layer."""

    head_name = "classifier.1"

    def finish(self, *, channels: int, dropout: float) -> None:
        """What a subclass does after torchvision's `__init__`: input channels, dropout, and no operation in place."""
        self.feature_dim = self.fc.in_features
        self.dropout = nn.Dropout(dropout)
        out_of_place(self)
        first = self.get_submodule("features.0")
        assert isinstance(first, nn.Sequential)
        first[0] = with_channels(first[0], channels)

    def features(self, x: Tensor) -> Tensor:
        """Global average pooling of the last convolution: `(N, channels, H, W)` to `(N, feature_dim)`."""
        maps = self.get_submodule("features")(x)
        return nn.functional.adaptive_avg_pool2d(maps, 1).flatten(1)


def out_of_place(network: nn.Module) -> None:
    """Switch activations and dropouts to their form out of place: Opacus' backward hooks refuse tensors that were changed."""
    for module in network.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]


def with_channels(layer: nn.Module, channels: int) -> nn.Conv2d:
    """The first convolution `layer`, or one like it for another number of input channels, freshly initialised."""
    assert isinstance(layer, nn.Conv2d)
    if layer.in_channels == channels:
        return layer
    options: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding, "bias": layer.bias is not None}
    size = (layer.kernel_size[0], layer.kernel_size[1])
    fresh = nn.Conv2d(channels, layer.out_channels, size, **options)
    nn.init.kaiming_normal_(fresh.weight, mode="fan_out", nonlinearity="relu")
    if fresh.bias is not None:
        nn.init.zeros_(fresh.bias)
    return fresh
