"""Seconds of one training step of ResNet-34, with and without CBAM, by number format and memory format.

    python benchmarks/training_step.py [--size 64] [--batch 32] [--steps 5] [--device cpu]

The middle of the measured steps is shown, after two that are not measured. Adam's update is part of a step.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table

from client.training import optimiser_of
from shared.models.resnet import BasicBlock, ResNet
from shared.study_training import Training

Attention = Literal["none", "cbam"]


def seconds_per_step(attention: Attention, precision: str, memory_format: str, options: argparse.Namespace) -> float:
    """Median seconds of a forward, backward and optimiser step on random images."""
    device = torch.device(options.device)
    torch.manual_seed(0)
    layout = torch.channels_last if memory_format == "channels_last" else torch.contiguous_format
    network = ResNet(BasicBlock, (3, 4, 6, 3), outputs=1, attention=attention).to(device)
    network = network.to(memory_format=layout).train()
    x = torch.rand((options.batch, 3, options.size, options.size), device=device).contiguous(memory_format=layout)
    y = (torch.arange(options.batch, device=device) % 2).float()
    training = Training(
        local_epochs=1, batch_size=options.batch, optimiser="adam", learning_rate=1e-4, loss="binary_cross_entropy"
    )
    optimiser = optimiser_of(network, training)
    seconds = []
    for _ in range(options.steps + 2):
        begun = time.perf_counter()
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = network(x)
        torch.nn.functional.binary_cross_entropy_with_logits(logits.float().squeeze(1), y).backward()
        optimiser.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", type=int, default=64, help="side of the images")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    table = Table(title=f"Training step: {options.size} px, batch {options.batch}, {torch.get_num_threads()} threads")
    for heading in ("model", "numbers", "memory", "s per step", "images/s", "against fp32 contiguous"):
        table.add_column(heading, justify="left" if heading in ("model", "numbers", "memory") else "right")
    attentions: tuple[Attention, ...] = ("none", "cbam")
    for attention in attentions:
        first = 0.0
        for precision in ("fp32", "bf16"):
            for memory_format in ("contiguous", "channels_last"):
                seconds = seconds_per_step(attention, precision, memory_format, options)
                first = first or seconds
                model = "ResNet-34" if attention == "none" else "ResNet-34 + CBAM"
                table.add_row(
                    model,
                    precision,
                    memory_format,
                    f"{seconds:.3f}",
                    f"{options.batch / seconds:.0f}",
                    f"{first / seconds:.2f}x",
                )
    Console().print(table)


if __name__ == "__main__":
    main()
