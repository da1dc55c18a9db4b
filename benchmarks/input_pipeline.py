"""A training epoch from the image cache beside the same epoch from tensors that lie ready in memory.

Both feed the same ResNet-18 with the same images in the same order. The reference holds float32 tensors, normalised and with
channels repeated, and only picks rows: nothing can be left to do for it. The two take turns in one process, so that
whatever else the machine does meets both; shown are the medians, and the median of the turns' own ratios.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from client.data.batches import Batches
from client.data.cache import ImageStore, prepare_store
from client.data.records import Record
from shared.study_augmentation import Augmentation
from shared.study_pixels import Normalise, Preprocessing
from shared.torchvision_cpu import import_torchvision

SIZE, BATCH = 64, 32
RECIPE = Preprocessing(region="whole", size=SIZE, channels=3, normalise=Normalise(mean=[0.485], std=[0.229]))
AUGMENTATION = Augmentation(
    horizontal_flip=0.5, vertical_flip=0.5, rotation_degrees=20, translate=0.05, scale=0.1, brightness=0.1, contrast=0.1
)
GOAL = 1.10

Epoch = Callable[[int], Iterator[tuple[Tensor, Tensor]]]


def synthetic_records(folder: Path, count: int) -> list[Record]:
    """`count` 16-bit grey pictures of noise: what they show does not matter here."""
    generator = np.random.default_rng(0)
    records = []
    for index in range(count):
        path = folder / f"{index}.png"
        Image.fromarray(generator.integers(0, 65536, (2 * SIZE, 2 * SIZE)).astype(np.uint16)).save(path)
        records.append(Record(key=str(index), image=path, label="any", patient=str(index)))
    return records


def timed_steps(network: nn.Module | None, batches: Iterator[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """(seconds, loss of the last step) of one epoch; without a network the batches are only fetched."""
    began, loss = time.perf_counter(), torch.zeros(())
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-4) if network is not None else None
    for images, labels in batches:
        if network is None or optimiser is None:
            continue
        optimiser.zero_grad(set_to_none=True)
        loss = nn.functional.binary_cross_entropy_with_logits(network(images)[:, 0], labels.float())
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return time.perf_counter() - began, float(loss.detach())


def measure(store: ImageStore, repeats: int) -> dict[str, list[float]]:
    """Seconds of each epoch, by way of input; the first, warming round is left out."""
    count = len(store)
    labels = np.arange(count) % 2

    def from_cache(seed: int, augmentation: Augmentation | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        return iter(
            Batches(
                store,
                labels,
                range(count),
                recipe=RECIPE,
                batch_size=BATCH,
                generator=generator,
                augmentation=augmentation,
            )
        )

    (all_images, all_labels), *_ = Batches(store, labels, range(count), recipe=RECIPE, batch_size=count)

    def from_memory(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        for start in range(0, count, BATCH):
            rows = order[start : start + BATCH]
            yield all_images[rows], all_labels[rows]

    models = import_torchvision().models
    torch.manual_seed(0)
    networks = [models.resnet18(num_classes=1) for _ in range(3)]
    for network in networks[1:]:
        network.load_state_dict(networks[0].state_dict())
    ways: list[tuple[str, Epoch, nn.Module | None]] = [
        ("tensors in memory", from_memory, networks[0]),
        ("cache", from_cache, networks[1]),
        ("cache, augmented", lambda seed: from_cache(seed, AUGMENTATION), networks[2]),
        ("cache, batches only", from_cache, None),
        ("cache, augmented, batches only", lambda seed: from_cache(seed, AUGMENTATION), None),
    ]
    seconds: dict[str, list[float]] = {name: [] for name, _, _ in ways}
    for turn in range(repeats + 1):
        losses = {}
        # The order alternates, so that neither always runs just after the other.
        for name, epoch, network in ways if turn % 2 else ways[::-1]:
            took, losses[name] = timed_steps(network, epoch(turn))
            if turn:
                seconds[name].append(took)
        if losses["cache"] != losses["tensors in memory"]:
            raise RuntimeError(f"the two epochs are not the same: last losses {losses}")
    return seconds


def paired_ratio(values: list[float], reference: list[float]) -> float:
    """The median of the ratios of epochs that ran next to each other, which other load on the machine spoils least."""
    return statistics.median(value / other for value, other in zip(values, reference, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args([] if __name__ != "__main__" else None)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        records = synthetic_records(folder, options.images)
        fresh = time.perf_counter()
        prepare_store(records, RECIPE, folder / "cache", unreadable="stop")
        again = time.perf_counter()
        store = prepare_store(records, RECIPE, folder / "cache", unreadable="stop")
        opened = time.perf_counter()
        seconds = measure(store, options.repeats)
    reference = statistics.median(seconds["tensors in memory"])
    table = Table(title=f"Input pipeline: one epoch of {options.images} images at {SIZE} px, ResNet-18, batch {BATCH}, "
                        f"{torch.get_num_threads()} thread(s), {options.repeats} turns")  # fmt: skip
    for heading in ("input", "median s", "fastest s", "of medians", "by turn"):
        table.add_column(heading, justify="left" if heading == "input" else "right")
    for name, values in seconds.items():
        median = statistics.median(values)
        paired = paired_ratio(values, seconds["tensors in memory"])
        table.add_row(name, f"{median:.3f}", f"{min(values):.3f}", f"{median / reference:.3f}", f"{paired:.3f}")
    console = Console()
    console.print(table)
    console.print(f"Filling the cache took {again - fresh:.2f} s, opening it again {opened - again:.2f} s.")
    ratio = paired_ratio(seconds["cache"], seconds["tensors in memory"])
    console.print(
        f"Cache against memory: {ratio:.3f} (goal: at most {GOAL:.2f}): {'met' if ratio <= GOAL else 'MISSED'}"
    )


if __name__ == "__main__":
    main()
