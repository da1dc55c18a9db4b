"""DP-SGD by patient (Abadi et al., "Deep Learning with Differential Privacy", CCS 2016), with a public normaliser.

One step: every patient is drawn with probability q and gives one image; the patient's gradient is clipped to C; the sum of them gets
Gaussian noise of standard deviation sigma * C in every coordinate of every trained parameter; what comes out is divided by a public
constant, and the optimiser takes it for the gradient. A step that drew nobody is a step of noise.

What would invalidate the guarantee: constants computed from this hospital's data (how many patients it has, a median of gradient
norms), layers or losses that mix patients (`client.private.requirements` refuses those it can find), telling anybody which or how many
patients were drawn or what their losses were, using a step's sum without its noise, and the limits of `client.private.noise`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client import optimiser_file
from client.losses import image_losses
from client.private.gradients import Losses, Mode, PatientGradients, is_out_of_memory, trained_parameters
from client.private.noise import standard_normals
from client.private.requirements import (
    require_no_autocast,
    require_noise_on_all,
    require_private_network,
    require_private_training,
)
from client.private.sampling import PatientSampler
from client.training import TrainingStopped, optimiser_of, seeded
from shared.errors import NonFiniteUpdateError, PrivacyError
from shared.models.network import EveryHead, FederatedNetwork
from shared.models.state import travelling
from shared.study_training import Training

log = logging.getLogger("consilium.site")

#: Rows (B,) to images (B * K, C, H, W) on the device, K augmentations of each consecutive, and what each is: class indices (B * K,), with
#: descriptors (B * K, 1 + descriptors), or masks (B * K, 1, H, W).
Load = Callable[[NDArray[np.int64]], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateConstants:
    """The mechanism's public constants. They come from the study or the profile, never from the data.

    sampling_rate: q, a patient's probability to take part in a step, in (0, 1].
    clipping_norm: C, the largest L2 norm of one patient's share of a sum.
    noise_multiplier: sigma; the noise has standard deviation sigma * C.
    normaliser: what a noised sum is divided by, whoever was drawn; usually q times a public number of patients.

    Raises PrivacyError for a value outside its range.
    """

    sampling_rate: float
    clipping_norm: float
    noise_multiplier: float
    normaliser: float

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value > 0.0):
                raise PrivacyError(f"{field.name}: expected a finite number above 0, but got {value}")
        if self.sampling_rate > 1.0:
            raise PrivacyError(f"sampling_rate: expected at most 1, but got {self.sampling_rate}")

    @property
    def noise_standard_deviation(self) -> float:
        """sigma * C, of each coordinate of a sum before it is divided."""
        return self.noise_multiplier * self.clipping_norm


class DpSgd:
    """The mechanism on one network and one hospital's patients. Opacus' hooks are on the network until `close`.

    At most `physical_batch` patients are in memory at a time; after an out-of-memory the number is halved for good, and only the part of
    the step that was not finished is computed again: patients and noise of a step are drawn once. `image_shape` is (C, H, W),
    `target_shape` that of what `load` says of one image: () for a class index.

    Raises PrivacyError (see `client.private.requirements`) before any image is loaded.
    """

    def __init__(
        self,
        network: nn.Module,
        sampler: PatientSampler,
        load: Load,
        *,
        constants: PrivateConstants,
        losses: Losses,
        image_shape: tuple[int, int, int],
        mode: Mode = "hooks",
        physical_batch: int = 16,
        augmentations: int = 1,
        target_shape: tuple[int, ...] = (),
    ) -> None:
        if physical_batch < 1:
            raise ValueError(f"expected a physical batch of at least 1, but got {physical_batch}")
        if sampler.rate != constants.sampling_rate:
            raise PrivacyError(f"patients are sampled at {sampler.rate}, not at the study's {constants.sampling_rate}")
        require_private_network(network, losses=losses, image_shape=image_shape, mode=mode, target_shape=target_shape)
        self.network, self.constants, self.physical_batch = network, constants, physical_batch
        self.parameters = trained_parameters(network)
        self._sampler, self._load = sampler, load
        self._device = next(iter(self.parameters.values())).device
        self._gradients = PatientGradients(
            network, losses=losses, clipping_norm=constants.clipping_norm, mode=mode, augmentations=augmentations
        )

    def close(self) -> None:
        """Take Opacus' hooks off the network, which can then be used as any other."""
        self._gradients.close()

    def sample(self) -> NDArray[np.int64]:
        """Rows of one step, one of each sampled patient."""
        return self._sampler.draw()

    def clipped_sum(self, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        """Sum of the clipped gradients of `rows`, by parameter: NOT private, it must not leave the mechanism.

        Raises OutOfMemoryError where even one patient at a time is too much.
        """
        total = [torch.zeros_like(parameter) for parameter in self.parameters.values()]
        done = 0
        while done < len(rows):
            part = self._part(rows[done : done + self.physical_batch])
            if part is None:
                self.physical_batch = max(1, min(self.physical_batch, len(rows) - done) // 2)
                log.warning("out of memory: %d patients at a time from here on", self.physical_batch)
                if self._device.type == "cuda":
                    torch.cuda.empty_cache()
                continue
            torch._foreach_add_(total, part)
            done += self.physical_batch
        return dict(zip(self.parameters, total, strict=True))

    def _part(self, rows: NDArray[np.int64]) -> list[Tensor] | None:
        """None where memory did not suffice. The exception is gone by then: it holds on to the tensors of the failed pass."""
        try:
            return self._gradients.clipped_sum(*self._load(rows))
        except (RuntimeError, MemoryError) as problem:
            if not is_out_of_memory(problem) or len(rows) == 1:
                raise
            return None

    def noise(self, count: int) -> Tensor:
        """`(count,)` values of standard deviation sigma * C in double precision on the CPU, fresh at each call."""
        return standard_normals(count).mul_(self.constants.noise_standard_deviation)

    def release(self, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        """(Clipped sum + noise) / normaliser of every trained parameter: what the optimiser may see, and anybody else.

        Raises PrivacyError where the network now trains a parameter that would get no noise, or inside autocast.
        """
        require_no_autocast(self._device)
        require_noise_on_all(self.network, self.parameters)
        released = self.clipped_sum(rows)
        for name, clipped in released.items():
            noise = self.noise(clipped.numel()).view(clipped.shape).to(self._device)
            released[name] = noise.add_(clipped).div_(self.constants.normaliser).to(clipped.dtype)
        return released

    def step(self, optimiser: torch.optim.Optimizer) -> None:
        """One step of training. Raises PrivacyError where the optimiser changes a parameter that would get no noise."""
        require_noise_on_all(self.network, self.parameters, optimiser)
        for name, gradient in self.release(self.sample()).items():
            self.parameters[name].grad = gradient
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)


@dataclass(frozen=True, slots=True)
class PrivateTrainingResult:
    """What one private round was. Nothing in it depends on patients but `physical_batch`, which stays at the hospital."""

    steps: int
    seconds: float
    physical_batch: int


def train_private_round(
    network: FederatedNetwork,
    sampler: PatientSampler,
    load: Load,
    *,
    steps: int,
    constants: PrivateConstants,
    training: Training,
    positive_index: int,
    image_shape: tuple[int, int, int],
    seed: int,
    device: torch.device,
    mode: Mode = "hooks",
    physical_batch: int = 16,
    augmentations: int = 1,
    optimiser_state: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    stop: Callable[[], bool] | None = None,
    descriptor_sizes: Sequence[int] = (),
) -> PrivateTrainingResult:
    """Train `network` in place for `steps` steps of DP-SGD with the study's optimiser. `local_epochs` and `batch_size` play no part.

    `seed` fixes dropout and nothing else; patients and noise are drawn afresh whatever it is, so that a round done again is
    another release. `optimiser_state` is as in `client.training.train_round`: it is made of released gradients only.
    `progress(step, steps)` is called after each step. `descriptor_sizes` are the numbers of values of the study's descriptors, whose losses
    are part of each image's own: what is clipped is the gradient of all heads together.

    Raises PrivacyError, NonFiniteUpdateError, TrainingStopped, WeightsError for a damaged `optimiser_state`.
    """
    begun = time.perf_counter()
    require_private_training(training)
    if steps < 1:
        raise PrivacyError(f"steps: expected at least 1, but got {steps}")
    network.to(device).train()
    mechanism = DpSgd(
        EveryHead(network) if descriptor_sizes else network, sampler, load,
        constants=constants, image_shape=image_shape, mode=mode,
        losses=image_losses(
            training, positive_index=positive_index, class_counts=None, descriptor_sizes=descriptor_sizes
        ),
        physical_batch=physical_batch, augmentations=augmentations,
        target_shape=_target_shape(training, image_shape, len(descriptor_sizes)),
    )  # fmt: skip
    try:
        optimiser = optimiser_of(network, training)
        keep = optimiser_state if training.optimiser_state == "keep" else None
        if keep is not None and keep.exists():
            optimiser_file.load(optimiser, keep)
        with seeded(seed, device):
            for number in range(1, steps + 1):
                if stop is not None and stop():
                    raise TrainingStopped
                mechanism.step(optimiser)
                if progress is not None:
                    progress(number, steps)
    finally:
        mechanism.close()
    for name, tensor in travelling(network):
        if not bool(torch.isfinite(tensor).all()):
            raise NonFiniteUpdateError(f"'{name}' is not finite after training; lower the learning rate")
    if keep is not None:
        optimiser_file.save(optimiser, keep)
    return PrivateTrainingResult(steps, time.perf_counter() - begun, mechanism.physical_batch)


def _target_shape(training: Training, image_shape: tuple[int, int, int], descriptors: int) -> tuple[int, ...]:
    """Of what an image is trained to be: a mask, a class index, or one with the descriptors' behind it."""
    if training.loss == "cross_entropy_dice":
        return (1, *image_shape[1:])
    return (1 + descriptors,) if descriptors else ()
