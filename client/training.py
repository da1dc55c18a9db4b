"""Local training at a hospital, and what a network says of its images.

On a CPU the same seed, batches and number of threads give the same weights bit for bit, in whatever process. On a GPU they do not:
some of cuDNN's kernels add in an order that varies.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client import optimiser_file
from client.losses import image_losses
from shared.errors import DataError, NonFiniteUpdateError
from shared.models.network import FederatedNetwork, Network
from shared.models.state import travelling
from shared.results import Epoch
from shared.study_training import Training

Precision = Literal["fp32", "bf16"]
MemoryFormat = Literal["contiguous", "channels_last"]
#: One epoch each time it is iterated: images (B, C, H, W), and class indices (B,) or masks (B, 1, H, W), both on the device; in a study
#: with descriptors (B, 1 + descriptors), the class first.
Batches = Iterable[tuple[Tensor, Tensor]]


class TrainingStopped(Exception):
    """`stop` said so in the middle of training: the network is half trained and must not be sent."""


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What one round of training was. `images` are all that passed, over all epochs."""

    epochs: tuple[Epoch, ...]
    steps: int
    images: int
    seconds: float


def resolve_auto(training: Training, device: torch.device, network: nn.Module) -> tuple[Precision, MemoryFormat]:
    """What `precision: auto` and `memory_format: auto` mean here. A rule, not a measurement: a machine always answers alike.

    bf16 where the hardware multiplies bfloat16 (a CUDA GPU that supports it; a CPU with AVX512-BF16, AMX or Arm's bf16), except for
    networks with depthwise convolutions on a CPU, which are slower so. channels_last on a GPU, with bf16, and for depthwise
    convolutions; contiguous otherwise. benchmarks/training_step.py has the figures.
    """
    depthwise = any(isinstance(one, nn.Conv2d) and one.groups == one.in_channels > 1 for one in network.modules())
    cuda = device.type == "cuda"
    precision: Precision
    if training.precision != "auto":
        precision = training.precision
    elif cuda:
        precision = "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    else:
        precision = "bf16" if _cpu_multiplies_bf16() and not depthwise else "fp32"
    memory_format: MemoryFormat
    if training.memory_format != "auto":
        memory_format = training.memory_format
    else:
        memory_format = "channels_last" if cuda or precision == "bf16" or depthwise else "contiguous"
    return precision, memory_format


def _cpu_multiplies_bf16() -> bool:
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is not None:
        found = capabilities()
        return any(bool(found.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
    # torch before 2.10
    return any(
        bool(getattr(torch.cpu, name, bool)()) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )


def optimiser_of(network: nn.Module, training: Training) -> torch.optim.Optimizer:
    """The study's optimiser on the network's trained parameters, with PyTorch's defaults for what the study does not name.

    `weight_decay` is L2 for adam and sgd and decoupled for adamw (Loshchilov, Hutter, 2019), on every trained parameter.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    rate, decay = training.learning_rate, training.weight_decay
    if rate is None:
        raise ValueError("the study gives no learning rate: it trains nothing")
    # One fused kernel instead of a loop over 100 tensors, each a dozen operations.
    if training.optimiser == "sgd":
        return torch.optim.SGD(
            parameters, lr=rate, momentum=training.momentum, nesterov=training.nesterov, weight_decay=decay, fused=True
        )
    if training.optimiser == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True)
    return torch.optim.Adam(parameters, lr=rate, weight_decay=decay, fused=True)


def _correct(logits: Tensor, targets: Tensor, positive_index: int, described: int) -> Tensor:
    """Images that were given their class, or, of masks, the sum of the images' shares of pixels that were.

    The last `described` logits and all but the first target are of the descriptors.
    """
    if logits.dim() == 4:
        return ((logits >= 0) == (targets > 0.5)).flatten(1).double().mean(1).sum()
    labels = targets if targets.ndim == 1 else targets[:, 0]
    logits = logits[:, : logits.shape[1] - described]
    if logits.shape[1] == 1:
        return ((logits.squeeze(1) > 0) == (labels == positive_index)).sum()
    return (logits.argmax(1) == labels).sum()


def train_round(
    network: FederatedNetwork,
    batches: Batches,
    *,
    training: Training,
    class_counts: Sequence[int],
    positive_index: int,
    seed: int,
    device: torch.device,
    precision: Precision = "fp32",
    memory_format: MemoryFormat = "contiguous",
    epochs: int | None = None,
    optimiser_state: Path | None = None,
    progress: Callable[[int, int, float], None] | None = None,
    stop: Callable[[], bool] | None = None,
    descriptor_sizes: Sequence[int] = (),
) -> TrainingResult:
    """Train `network` in place for `epochs` (the study's `local_epochs` where None) passes over `batches`.

    `class_counts` are the images of each class in the training part, in the study's order. `seed` fixes dropout; torch's global
    generators are left as they were. With `optimiser_state: keep` in the study the optimiser goes on from the file `optimiser_state`
    where it exists, and is written to it at the end. `progress(step, steps, loss)` is called after each step (`steps` is 0 where
    `batches` has no length). `descriptor_sizes` are the numbers of values of the study's descriptors. A batch of a single image is left
    out where batch norm is trained: it has no variance.

    Raises NonFiniteUpdateError where the loss or the weights end in NaN or infinity, DataError where there was no batch to train on,
    TrainingStopped where `stop` returned True, WeightsError for a damaged `optimiser_state`; only after the last check is that file
    written.
    """
    begun = time.perf_counter()
    layout = torch.channels_last if memory_format == "channels_last" else torch.contiguous_format
    network.to(device=device).to(memory_format=layout).train()  # type: ignore[call-overload]
    optimiser = optimiser_of(network, training)
    keep = optimiser_state if training.optimiser_state == "keep" else None
    if keep is not None and keep.exists():
        optimiser_file.load(optimiser, keep)
    losses = image_losses(
        training, positive_index=positive_index, class_counts=class_counts, descriptor_sizes=descriptor_sizes
    )
    count = training.local_epochs if epochs is None else epochs
    if count is None:
        raise ValueError("the study gives no local_epochs, so epochs must be given")
    total = len(batches) * count if isinstance(batches, Sized) else 0
    single_image_fails = _trains_batch_norm(network)
    finished: list[Epoch] = []
    steps = images = 0
    with seeded(seed, device):
        for epoch in range(1, count + 1):
            loss_sum = torch.zeros((), dtype=torch.float64, device=device)
            correct = torch.zeros((), dtype=torch.float64, device=device)
            seen = 0
            for x, y in batches:
                if stop is not None and stop():
                    raise TrainingStopped
                if len(y) == 1 and single_image_fails:
                    continue
                optimiser.zero_grad(set_to_none=True)
                with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                    logits = network.every_head(x.to(device, non_blocking=True).contiguous(memory_format=layout))
                y = y.to(device, non_blocking=True)
                # By the number of images, not by the sum of class weights, which would undo them in a batch of one class.
                loss = losses(logits, y).mean()
                torch.autograd.backward(loss)
                optimiser.step()
                with torch.no_grad():
                    loss_sum += loss.double() * len(y)
                    correct += _correct(logits, y, positive_index, sum(descriptor_sizes))
                seen += len(y)
                steps += 1
                if progress is not None:
                    progress(steps, total, loss.item())
            if seen == 0:
                raise DataError("there is no batch of at least two images to train on")
            images += seen
            mean = loss_sum.item() / seen
            if not math.isfinite(mean):
                raise NonFiniteUpdateError(
                    f"the training loss is not finite in epoch {epoch}; lower the learning rate, or use precision: fp32"
                )
            finished.append(Epoch(loss=mean, accuracy=correct.item() / seen))
    for name, tensor in travelling(network):
        if not bool(torch.isfinite(tensor).all()):
            raise NonFiniteUpdateError(f"'{name}' is not finite after training; lower the learning rate")
    network.zero_grad(set_to_none=True)
    if keep is not None:
        optimiser_file.save(optimiser, keep)
    return TrainingResult(tuple(finished), steps, images, time.perf_counter() - begun)


def _trains_batch_norm(network: nn.Module) -> bool:
    return any(isinstance(one, nn.modules.batchnorm._BatchNorm) and one.training for one in network.modules())


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """torch's global generators start from `seed` inside, and go on afterwards as if nothing had been."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def predict(
    network: Network, batches: Batches, *, device: torch.device, precision: Precision = "fp32"
) -> NDArray[np.float32]:
    """Logits `(N, outputs)` of all images, in the order of the batches, in eval mode."""
    return extract_features(network, batches, device=device, precision=precision)[1]


def extract_features(
    network: Network, batches: Batches, *, device: torch.device, precision: Precision = "fp32"
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Features `(N, feature_dim)` and logits `(N, outputs)` of all images in one pass, in the order of the batches, in eval mode.

    The network's mode is put back afterwards.
    """
    features: list[Tensor] = []
    logits: list[Tensor] = []
    mode = network.training
    network.to(device).eval()
    try:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            for x, _ in batches:
                found = network.features(x.to(device, non_blocking=True))
                features.append(found.float())
                logits.append(network.head(found).float())
    finally:
        network.train(mode)
    if not features:
        empty = np.empty((0, network.feature_dim), np.float32)
        return empty, np.empty((0, network.outputs), np.float32)
    return torch.cat(features).cpu().numpy(), torch.cat(logits).cpu().numpy()
