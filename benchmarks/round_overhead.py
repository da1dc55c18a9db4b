"""What a round costs beside the training: ours beside a plain Flower app, same weights, same TLS, same node authentication, same state.

Round overhead = wall time of a round less the slowest site's training. Weights are of ResNet-34's size (218 tensors, 21.8 M values,
87 MB), three sites, training adds a constant. The plain app is FedAvg of `flwr.serverapp.strategy` over `ArrayRecord(state_dict)`
with Flower's own commands and subprocess isolation. Both keep the SuperLink's state in a database file (`--memory`: in memory).
The CPU column is what all processes of the federation used in a round, whatever else the machine did meanwhile.

    python -m benchmarks.round_overhead --rounds 3
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.bare_run import bare_folder, bare_study, resnet34_sized
from benchmarks.processes_of_a_federation import ROOT, CpuClock, approve_everywhere, federation
from server.run_folder import RunFolder
from shared.wire import Flat

SITES = ["anna", "berta", "clara"]
DEADLINE_S = 3600.0


@dataclass(frozen=True, slots=True)
class Rounds:
    """Overhead and CPU of each round in seconds, and what was sent each way for each site."""

    name: str
    overheads: list[float]
    cpu: list[float]
    megabytes: float
    tensors: int
    load: float

    @property
    def median(self) -> float:
        return statistics.median(self.overheads)


def plain(folder: Path, arrays: dict[str, Flat], rounds: int, *, memory: bool) -> Rounds:
    """FedAvg over state_dicts, Flower's own way."""
    weights, notes = folder / "weights.pt", folder / "notes.jsonl"
    folder.mkdir(parents=True)
    torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, weights)
    with (
        CpuClock() as clock,
        federation(folder, plain=True, database=None if memory else folder / "state.db") as running,
    ):
        for name in SITES:
            running.start_plain_node(name)
        config = {"weights": str(weights), "notes": str(notes), "rounds": rounds, "sites": len(SITES)}
        number = running.control.start_run(plain_bundle(), config)
        running.wait(lambda: notes.exists() and '"done"' in notes.read_text(), number, DEADLINE_S)
    lines = [json.loads(line) for line in notes.read_text().splitlines()]
    ends = [line["at"] for line in lines if "round" in line]
    training = [line["train"] for line in lines if "train" in line]
    walls = [after - before for before, after in pairwise(ends)]
    overheads = [wall - train for wall, train in zip(walls, training, strict=True)]
    cpu = [clock.between(before, after) for before, after in pairwise(ends)]
    return Rounds("plain Flower app, fp32", overheads, cpu, _megabytes(arrays, 4), len(arrays), os.getloadavg()[0])


def plain_bundle() -> bytes:
    """The FAB of `benchmarks/plain_app`."""
    from flwr.cli.build import build_fab_from_files

    declaration = """[project]
name = "plain"
version = "1.0.0"

[tool.flwr.app]
publisher = "benchmark"
fab-include = ["/plain/*.py"]

[tool.flwr.app.components]
serverapp = "plain.server_app:app"
clientapp = "plain.client_app:app"

[tool.flwr.app.config]
weights = ""
notes = ""
rounds = 1
sites = 1
"""
    files: dict[str, bytes | Path] = {"pyproject.toml": declaration.encode()}
    for name in ("__init__", "server_app", "client_app"):
        files[f"plain/{name}.py"] = ROOT / "benchmarks" / "plain_app" / f"{name}.py"
    bundle: bytes = build_fab_from_files(files)[0]
    return bundle


def ours(folder: Path, arrays: dict[str, Flat], rounds: int, wire: Literal["fp32", "bf16"], *, memory: bool) -> Rounds:
    """The product's own processes; the training alone is replaced."""
    study = bare_study(rounds=rounds, quorum=len(SITES), wire=wire)
    run = bare_folder(folder / "run", study, arrays, SITES)
    with CpuClock() as clock, federation(folder, database=None if memory else folder / "state.db") as running:
        approve_everywhere(running, SITES, run)
        for name in SITES:
            running.start_node(name)
        running.run_ours(run, DEADLINE_S)
    trained = {
        record.round: max(one.seconds["train"] for one in record.trained.values()) for record in run.rounds()[1:]
    }
    spans = spans_of(run)
    overheads = [end - begin - trained[number] for number, (begin, end) in spans.items()]
    cpu = [clock.between(begin, end) for begin, end in spans.values()]
    size = 4 if wire == "fp32" else 2
    return Rounds(f"Consilium, {wire}", overheads, cpu, _megabytes(arrays, size), 1, os.getloadavg()[0])


def spans_of(run: RunFolder) -> dict[int, tuple[float, float]]:
    """Begin and end (Unix time) of each training round."""
    begun: dict[int, float] = {}
    ended: dict[int, float] = {}
    for event in run.events():
        if event.kind == "round" and event.round is not None and event.phase in ("train", "done"):
            (begun if event.phase == "train" else ended)[event.round] = event.at
    return {number: (begun[number], ended[number]) for number in begun}


def phases_of(run: RunFolder) -> str:
    """Medians of what the coordinator's clock says of a round."""
    timings = [record.timing for record in run.rounds()[1:]]
    parts = ("push", "wait", "aggregate", "checkpoint")
    return ", ".join(f"{part} {statistics.median(getattr(one, part) for one in timings):.1f}" for part in parts)


def _megabytes(arrays: dict[str, Flat], size: int) -> float:
    return sum(array.size for array in arrays.values()) * size / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="the SuperLink's state in memory on both sides")
    parser.add_argument("--only", choices=["plain", "fp32", "bf16"], action="append", help="leave the others out")
    given = parser.parse_args()
    chosen = given.only or ["plain", "fp32", "bf16"]
    arrays = resnet34_sized()
    console = Console(width=140)
    results: list[Rounds] = []
    phases: list[str] = []
    with tempfile.TemporaryDirectory(prefix="consilium-overhead-") as place:
        for name in chosen:
            begun = time.monotonic()
            folder = Path(place) / name
            if name == "plain":
                results.append(plain(folder, arrays, given.rounds, memory=given.memory))
            else:
                wire: Literal["fp32", "bf16"] = "fp32" if name == "fp32" else "bf16"
                results.append(ours(folder, arrays, given.rounds, wire, memory=given.memory))
                phases.append(f"{results[-1].name}: {phases_of(RunFolder(folder / 'run'))} s")
            console.print(f"{results[-1].name}: {time.monotonic() - begun:.0f} s in all", style="dim")
    state = "in memory" if given.memory else "in a database file"
    table = Table(
        title=f"Round overhead, 3 sites, {given.rounds} rounds, SuperLink state {state}, {os.cpu_count()} cores"
    )
    for column in (
        "",
        "tensors",
        "MB each way and site",
        "overhead, median (s)",
        "each round (s)",
        "times less",
        "CPU, median (s)",
        "load",
    ):
        table.add_column(column, justify="left" if not column else "right")
    for one in results:
        ratio = f"{results[0].median / one.median:.1f}" if chosen[0] == "plain" else "-"
        table.add_row(
            one.name, str(one.tensors), f"{one.megabytes:.0f}", f"{one.median:.1f}",
            " ".join(f"{value:.1f}" for value in one.overheads), ratio, f"{statistics.median(one.cpu):.1f}", f"{one.load:.1f}",
        )  # fmt: skip
    console.print(table)
    for line in phases:
        console.print(f"Where the coordinator's time goes, {line}")


if __name__ == "__main__":
    main()
