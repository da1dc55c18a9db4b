"""Seconds and peak memory of one private step of ResNet-34 + CBAM against a plain one, by mode and physical batch.

    python -m benchmarks.private_training [--size 64] [--batch 32] [--steps 2] [--device cpu]

Group norm and fp32 in all of them, Adam's update is part of a step. Each row runs in a process of its own. Memory is what the steps add
to the process (GPU: to what torch has allocated at most); the middle of the measured steps is shown, after one that is not measured.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import sys
import time

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from client.losses import losses_of
from client.private.dp_sgd import DpSgd, PrivateConstants
from client.private.gradients import Mode
from client.private.noise import standard_normals
from client.private.sampling import PatientSampler
from client.training import optimiser_of
from shared.models.resnet import BasicBlock, ResNet
from shared.study_training import Training

Row = tuple[str, Mode | None, int]


def peak_mb(device: torch.device) -> float:
    """The most memory that this process has held so far, in 10^6 bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def measure(mode: Mode | None, physical: int, options: argparse.Namespace) -> tuple[float, float]:
    """Median seconds of a step, and megabytes that the steps added. `mode` None is plain training."""
    device = torch.device(options.device)
    torch.manual_seed(0)
    network = ResNet(BasicBlock, (3, 4, 6, 3), outputs=1, attention="cbam", norm="group").to(device).train()
    rows = np.arange(options.batch)
    x, y = (
        torch.rand((options.batch, 3, options.size, options.size), device=device),
        torch.from_numpy(rows % 2).to(device),
    )
    training = Training(
        local_epochs=1, batch_size=options.batch, optimiser="adam", learning_rate=1e-4, loss="binary_cross_entropy"
    )
    optimiser = optimiser_of(network, training)
    if device.type == "cpu":
        # Adam's moments are the same in all rows; one step of zeros allocates them.
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    before = peak_mb(device)

    def plain() -> None:
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(losses_of(network(x), y, positive_index=1).mean())
        optimiser.step()

    step = plain
    if mode is not None:
        # Every patient is drawn, so that all rows have the same work.
        constants = PrivateConstants(
            sampling_rate=1.0, clipping_norm=1.0, noise_multiplier=1.0, normaliser=options.batch
        )
        mechanism = DpSgd(
            network, PatientSampler(rows, rows, rate=1.0), lambda some: (x[some], y[some]), constants=constants,
            losses=lambda logits, labels: losses_of(logits, labels, positive_index=1),
            image_shape=(3, options.size, options.size), mode=mode, physical_batch=physical,
        )  # fmt: skip

        def step() -> None:
            mechanism.step(optimiser)

    seconds = []
    for _ in range(options.steps + 1):
        begun = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds[1:]), peak_mb(device) - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", type=int, default=64, help="side of the images")
    parser.add_argument("--batch", type=int, default=32, help="patients of a step")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    table = Table(title=f"ResNet-34 + CBAM, {options.size} px, {options.batch} patients a step, {options.device}")
    for heading in ("step", "physical batch", "s per step", "against plain", "peak MB added", "against plain"):
        table.add_column(heading, justify="left" if heading == "step" else "right")
    sizes = sorted({size for size in (options.batch, 16, 8, 4) if size <= options.batch}, reverse=True)
    modes: tuple[Mode, ...] = ("hooks", "ghost")
    rows: list[Row] = [("plain", None, options.batch), *((mode, mode, size) for mode in modes for size in sizes)]
    first = (0.0, 0.0)
    for name, mode, size in rows:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            seconds, memory = pool.apply(measure, (mode, size, options))
        first = first if first[0] else (seconds, memory)
        table.add_row(
            name, str(size), f"{seconds:.2f}", f"{seconds / first[0]:.1f}x", f"{memory:.0f}", f"{memory / first[1]:.1f}x"
        )  # fmt: skip
    Console().print(table)
    begun = time.perf_counter()
    standard_normals(10**7)
    Console().print(f"noise: {(time.perf_counter() - begun) / 10:.3f} s for 10^6 values on the CPU", highlight=False)


if __name__ == "__main__":
    main()
