"""The sum of the clipped gradients of a step's patients, by Opacus' hooks.

`PatientGradients` computes; what it can't compute soundly it refuses in `client.private.requirements`. Two ways give the same sum:

- `hooks` (Opacus' GradSampleModule): each patient's gradient is held in memory, clipped, and added.
- `ghost` (Li et al., "Large Language Models Can Be Strong Differentially Private Learners", ICLR 2022; Opacus'
  GradSampleModuleFastGradientClipping): only the norms are held, and a second backward pass gives the sum of the weighted losses'
  gradients. Less memory, more time. The bound on one patient's share rests on both passes computing the same gradient up to rounding.

A gradient that is not finite counts as zero, whoever's it is: a NaN in the sum would tell that this patient was there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal

import torch
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from torch import Tensor, nn

from shared.errors import PrivacyError

Mode = Literal["hooks", "ghost"]
#: Logits (B, K) and class indices (B,), or (B, 1 + descriptors), or logits of masks and masks, both (B, 1, H, W), to the loss of each
#: image (B,), each from its own row alone.
Losses = Callable[[Tensor, Tensor], Tensor]
#: What Opacus leaves on parameters and on modules; an interrupted pass leaves it half done.
_ON_PARAMETERS = ("_current_grad_sample", "_norm_sample")
_ON_MODULES = ("activations", "max_batch_len")


def trained_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that need a gradient, by name, each once, in the network's order."""
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}


def clip_factors(norms: Tensor, clipping_norm: float, dtype: torch.dtype) -> Tensor:
    """min(1, C / norm) for each norm, in `dtype`; 0 where the norm is not finite, or so large that C / norm is no normal number.

    A few units in the last place below the exact value, so that rounding doesn't carry the clipped gradient over C.
    """
    norms, limits = norms.double(), torch.finfo(dtype)
    factors = (clipping_norm / norms.clamp(min=clipping_norm)) * (1.0 - 4.0 * limits.eps)
    return torch.where(torch.isfinite(norms) & (factors >= limits.tiny), factors, 0.0).to(dtype)


class PatientGradients:
    """Per-patient gradients of `network` in training mode, clipped to the L2 norm `clipping_norm` over all trained parameters together.

    Opacus' hooks are on the network from here to `close` (or the end of a `with`). `augmentations` K: each patient comes as K
    consecutive images, whose gradients are averaged before clipping (De et al., "Unlocking High-Accuracy Differentially Private Image
    Classification through Scale", 2022). Raises PrivacyError where Opacus does not accept the network, and for K > 1 in ghost mode.
    """

    def __init__(
        self, network: nn.Module, *, losses: Losses, clipping_norm: float, mode: Mode = "hooks", augmentations: int = 1
    ) -> None:
        if augmentations < 1:
            raise ValueError(f"expected at least 1 augmentation of an image, but got {augmentations}")
        if augmentations > 1 and mode == "ghost":
            raise PrivacyError(
                "ghost mode can't average several augmentations of an image; use hooks, or one augmentation"
            )
        self.network, self.parameters = network, trained_parameters(network)
        self._losses, self._clipping_norm, self._augmentations = losses, clipping_norm, augmentations
        self._ghost = mode == "ghost"
        try:
            self._wrapped: Any = (
                GradSampleModuleFastGradientClipping(
                    network, loss_reduction="sum", strict=True, max_grad_norm=clipping_norm, use_ghost_clipping=True
                )
                if self._ghost
                else GradSampleModule(network, loss_reduction="sum", strict=True)
            )
        except (NotImplementedError, ValueError, RuntimeError) as problem:
            raise PrivacyError(f"Opacus does not accept the network: {first_line(problem)}") from None

    def __enter__(self) -> PatientGradients:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take Opacus' hooks and attributes off the network."""
        self.forget()
        self._wrapped.to_standard_module()

    def forget(self) -> None:
        """Drop gradients and whatever an interrupted pass left behind."""
        for parameter in self.parameters.values():
            parameter.grad = None
            parameter.grad_sample = None  # type: ignore[attr-defined]
            parameter._forward_counter = 0  # type: ignore[attr-defined]
            for name in _ON_PARAMETERS:
                if hasattr(parameter, name):
                    delattr(parameter, name)
        for module in self.network.modules():
            for name in _ON_MODULES:
                if name in module.__dict__:
                    delattr(module, name)

    def clipped_sum(self, images: Tensor, labels: Tensor) -> list[Tensor]:
        """Sum over the patients of their clipped gradients, one tensor for each of `parameters`.

        `images` `(B * K, C, H, W)` and `labels` as many rows: K consecutive rows are one patient's. Raises PrivacyError where a
        parameter's gradient came without one for each patient, or Opacus can't compute one.
        """
        if len(labels) % self._augmentations:
            raise ValueError(f"expected {self._augmentations} images of each patient, but got {len(labels)} in all")
        if len(labels) == 0:
            return [torch.zeros_like(parameter) for parameter in self.parameters.values()]
        self.forget()
        try:
            return self._by_ghost(images, labels) if self._ghost else self._by_hooks(images, labels)
        finally:
            self.forget()

    def per_sample(self, images: Tensor, labels: Tensor) -> Iterator[tuple[str, Tensor | None, Tensor | None]]:
        """Name, unclipped gradients of each image `(B, ...)` and their sum by autograd, of each parameter; for checks, hooks mode only."""
        self.forget()
        self._backward(images, labels)
        for name, parameter in self.parameters.items():
            yield name, parameter.grad_sample, parameter.grad  # type: ignore[attr-defined]
        self.forget()

    def _backward(self, images: Tensor, labels: Tensor, *, retain: bool = False) -> Tensor:
        with _without_hook_warning():
            losses = self._losses(self._wrapped(images), labels)
            torch.autograd.backward(losses.sum(), retain_graph=retain)
        return losses

    def _by_hooks(self, images: Tensor, labels: Tensor) -> list[Tensor]:
        self._backward(images, labels)
        found = [self._gradients_of(name, parameter, len(labels)) for name, parameter in self.parameters.items()]
        # In double precision, so that the square of no finite gradient overflows.
        norms = _joint(
            [torch.linalg.vector_norm(g.flatten(1), dim=1, dtype=torch.float64) for g in found if g is not None]
        )
        dtype = next(iter(self.parameters.values())).dtype
        factors = clip_factors(norms, self._clipping_norm, dtype)
        lost = factors == 0.0
        sums = []
        for gradients, parameter in zip(found, self.parameters.values(), strict=True):
            if gradients is None:
                sums.append(torch.zeros_like(parameter))
                continue
            if bool(lost.any()):
                gradients[lost] = 0.0
            # Element by element, because matrix products may be computed in a coarser format (TF32).
            sums.append(gradients.mul_(factors.view(-1, *[1] * (gradients.dim() - 1))).sum(0))
        return sums

    def _gradients_of(self, name: str, parameter: nn.Parameter, images: int) -> Tensor | None:
        """`(patients, ...)`; None for a parameter that the loss does not depend on."""
        gradients: Any = parameter.grad_sample  # type: ignore[attr-defined]
        if gradients is None:
            if parameter.grad is not None:
                raise _no_gradient(name)
            return None
        if not isinstance(gradients, Tensor) or gradients.shape != (images, *parameter.shape):
            raise _no_gradient(name)
        return (
            gradients if self._augmentations == 1 else gradients.view(-1, self._augmentations, *parameter.shape).mean(1)
        )

    def _by_ghost(self, images: Tensor, labels: Tensor) -> list[Tensor]:
        # TF32 would let the second pass's gradients differ from those whose norms the first pass found.
        with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
            losses = self._backward(images, labels, retain=True)
            norms = []
            for name, parameter in self.parameters.items():
                if hasattr(parameter, "_norm_sample"):
                    norms.append(parameter._norm_sample.double())
                elif parameter.grad is not None:
                    raise _no_gradient(name)
                parameter.grad = None
            factors = clip_factors(_joint(norms), self._clipping_norm, losses.dtype)
            kept = factors > 0.0
            if not bool(kept.all()):
                # Zero times a gradient that is not finite is not zero: those images must not be in the pass at all.
                del losses
                return self.clipped_sum(images[kept], labels[kept])
            self._wrapped.disable_hooks()
            try:
                with _without_hook_warning():
                    torch.autograd.backward((factors * losses).sum())
            finally:
                self._wrapped.enable_hooks()
        return [
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for parameter in self.parameters.values()
        ]


@contextmanager
def _without_hook_warning() -> Iterator[None]:
    """torch warns that images need no gradient, which is as it should be."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        yield


def _joint(norms: Sequence[Tensor]) -> Tensor:
    if not norms:
        raise PrivacyError("no trained parameter has a gradient: the loss does not depend on the network")
    joint: Tensor = torch.linalg.vector_norm(torch.stack(list(norms)), dim=0)
    return joint


def _no_gradient(name: str) -> PrivacyError:
    return PrivacyError(
        f"'{name}' is trained, but Opacus gives no gradient of it for each patient, so it can't be clipped; is its layer in eval mode?"
    )


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether an error of torch, on a GPU or a CPU, says that there was no memory left."""
    return isinstance(problem, torch.OutOfMemoryError | MemoryError) or (
        isinstance(problem, RuntimeError) and "can't allocate memory" in str(problem)
    )


def first_line(problem: Exception) -> str:
    """The first line of what an exception says, at most 300 characters."""
    return (str(problem).strip() or type(problem).__name__).splitlines()[0][:300]
