"""What is refused because the guarantee would not hold for it, or nobody could say whether it does. Each refusal says why.

Layers that are known to mix patients are refused by their type. Because anybody can write such a layer, the network is tried as well, on
random images: what one image gives must not depend on the other, no buffer may change, and Opacus' gradients of each image must add up
to autograd's gradient. A network that behaves otherwise on real images than on random ones would not be found out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from opacus.validators import ModuleValidator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from client.private.gradients import Losses, Mode, PatientGradients, first_line, is_out_of_memory, trained_parameters
from client.training import seeded
from shared.errors import NonFiniteUpdateError, PrivacyError
from shared.study_training import Training

#: Largest difference between two ways to the same gradient or output, relative to its norm: TF32 on a GPU differs by 1e-3.
_AGREEMENT = 0.02
_SEED = 20
#: A norm that no gradient of a probe reaches.
_NEVER_CLIPPED = 1e30


def require_private_training(training: Training) -> None:
    """Raises PrivacyError where the study's recipe has no private form."""
    if training.precision == "bf16":
        raise PrivacyError("training.precision: private training needs fp32: in bf16 clipping and noise are too coarse")
    if training.class_weights == "balanced":
        raise PrivacyError(
            "training.class_weights: balanced takes its weights from the private class counts, which the noise does not cover; use none"
        )
    if training.focal is not None and training.focal.alpha == "balanced":
        raise PrivacyError(
            "training.focal.alpha: balanced takes its weights from the private class counts; use none, or public weights by class"
        )


def require_no_autocast(device: torch.device) -> None:
    """Raises PrivacyError inside torch.autocast for `device`."""
    if torch.is_autocast_enabled(device.type):
        raise PrivacyError(
            "private training inside torch.autocast: in half precision clipping and noise are too coarse"
        )


def require_noise_on_all(
    network: nn.Module, noised: dict[str, nn.Parameter], optimiser: torch.optim.Optimizer | None = None
) -> None:
    """Raises PrivacyError where the network trains, or the optimiser changes, a parameter that is not among `noised`."""
    known = {id(parameter) for parameter in noised.values()}
    for name, parameter in trained_parameters(network).items():
        if id(parameter) not in known:
            raise PrivacyError(
                f"'{name}' is trained, but would get no noise: it was frozen when private training began"
            )
    for name, parameter in noised.items():
        if not parameter.requires_grad:
            raise PrivacyError(f"'{name}' was frozen after private training began")
    groups = [] if optimiser is None else optimiser.param_groups
    for parameter in (one for group in groups for one in group["params"]):
        if id(parameter) not in known:
            raise PrivacyError(
                f"the optimiser changes a parameter of shape {tuple(parameter.shape)} that would get no noise"
            )


def require_private_network(
    network: nn.Module,
    *,
    losses: Losses,
    image_shape: tuple[int, int, int],
    mode: Mode = "hooks",
    target_shape: tuple[int, ...] = (),
) -> None:
    """Raises PrivacyError where DP-SGD by patient can't be done soundly with `network`, in the mode in which it stands.

    Raises NonFiniteUpdateError where the network's output is not finite. `image_shape` is (C, H, W), `target_shape` that of what the
    losses are told of one image: (), a class index, or (1, H, W), a mask. The network is run a few times on pairs of random images; it is
    the same afterwards.
    """
    parameters = trained_parameters(network)
    if not parameters:
        raise PrivacyError("the network has no parameter to train")
    first = next(iter(parameters.values()))
    for name, parameter in parameters.items():
        if parameter.dtype not in (torch.float32, torch.float64) or parameter.dtype != first.dtype:
            raise PrivacyError(
                f"'{name}' is {parameter.dtype}: private training needs float32 (or float64) for all of the network"
            )
    require_no_autocast(first.device)
    _require_known_layers(network)
    generator = torch.Generator().manual_seed(_SEED)
    images = torch.rand((2, *image_shape), generator=generator, dtype=torch.float64).to(first)
    other = images.clone()
    other[1] = 3.0 - 5.0 * other[1]
    _require_separate_images(network, images, other)
    labels = torch.zeros((len(images), *target_shape), dtype=torch.int64, device=images.device)
    _require_sound_gradients(network, losses, images, labels, mode)


def _require_known_layers(network: nn.Module) -> None:
    if not network.training:
        raise PrivacyError("the network is in eval mode: Opacus gives no gradients of each patient there")
    for name, module in network.named_modules():
        kind = type(module).__name__
        trained = any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        if isinstance(module, _BatchNorm) and (module.training or trained or module.running_mean is None):
            raise PrivacyError(
                f"'{name}' is a {kind}: it normalises each patient by the others in the batch, so that clipping bounds nothing; "
                "use norm: group, or freeze it"
            )
        if isinstance(module, _InstanceNorm) and module.training and module.track_running_stats:
            raise PrivacyError(f"'{name}' is a {kind} that keeps running statistics of the patients without noise")
        if trained and not module.training:
            raise PrivacyError(f"'{name}' is trained but in eval mode: Opacus gives no gradients of each patient there")
    problems = ModuleValidator.validate(network)
    if problems:
        raise PrivacyError(f"Opacus does not support the network: {first_line(problems[0])}")


def _require_separate_images(network: nn.Module, images: Tensor, other: Tensor) -> None:
    """`images` and `other` have the same first and different second images."""
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    outputs = []
    try:
        for batch in (images, other):
            with torch.no_grad(), seeded(_SEED, images.device):
                outputs.append(network(batch)[0].double())
        changed = [
            name
            for name, buffer in network.named_buffers()
            if name not in before or not torch.equal(buffer, before[name])
        ]
    finally:
        with torch.no_grad():
            for name, buffer in network.named_buffers():
                if name in before:
                    buffer.copy_(before[name])
    if changed:
        raise PrivacyError(
            f"the buffer '{changed[0]}' changes in training: it would carry something of the patients without noise"
        )
    if not all(bool(torch.isfinite(output).all()) for output in outputs):
        raise NonFiniteUpdateError("the network's output is not finite on random images")
    if not _agree(outputs[0], outputs[1]):
        raise PrivacyError(
            "what the network says of one image depends on the other images in the batch, so that clipping bounds nothing"
        )


def _require_sound_gradients(network: nn.Module, losses: Losses, images: Tensor, labels: Tensor, mode: Mode) -> None:
    with (
        _opacus_errors(),
        PatientGradients(network, losses=losses, clipping_norm=_NEVER_CLIPPED) as hooks,
        seeded(_SEED, images.device),
    ):
        squares = torch.zeros(len(images), dtype=torch.float64, device=images.device)
        found = list(hooks.per_sample(images, labels))
        # A bias before a norm has no gradient but rounding errors, which agree with nothing.
        rounding = 1e-4 * math.sqrt(
            sum(float(whole.double().square().sum()) for _, _, whole in found if whole is not None)
        )
        for name, each, whole in found:
            if (each is None) != (whole is None):
                raise PrivacyError(f"'{name}' is trained, but Opacus gives no gradient of it for each patient")
            if each is not None and whole is not None:
                if each.shape[0] != len(images) or not _agree(each.sum(0), whole, rounding):
                    raise PrivacyError(
                        f"'{name}': Opacus' gradients of the patients don't add up to the gradient, so clipping bounds nothing"
                    )
                squares += each.double().flatten(1).square().sum(1)
    if mode == "hooks":
        return
    clipping_norm = float(squares.sqrt().mean()) / 2.0
    if clipping_norm == 0.0:
        return
    sums = []
    for way in ("hooks", "ghost"):
        with (
            _opacus_errors(),
            PatientGradients(network, losses=losses, clipping_norm=clipping_norm, mode=way) as gradients,
            seeded(_SEED, images.device),
        ):
            sums.append(torch.cat([one.flatten() for one in gradients.clipped_sum(images, labels)]))
    if not _agree(sums[0], sums[1]):
        raise PrivacyError("ghost mode clips this network otherwise than hooks mode: use hooks")


def _agree(one: Tensor, other: Tensor, rounding: float = 1e-6) -> bool:
    one, other = one.double(), other.double()
    scale = max(float(torch.linalg.vector_norm(one)), float(torch.linalg.vector_norm(other)))
    return float(torch.linalg.vector_norm(one - other)) <= _AGREEMENT * scale + rounding


@contextmanager
def _opacus_errors() -> Iterator[None]:
    """PrivacyError for a layer that Opacus' hooks can't work with; out of memory stays what it is."""
    try:
        yield
    except (RuntimeError, NotImplementedError, ValueError, AttributeError) as problem:
        if is_out_of_memory(problem):
            raise
        raise PrivacyError(f"Opacus can't compute each patient's gradient: {first_line(problem)}") from None
