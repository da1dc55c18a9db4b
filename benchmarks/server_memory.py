"""The coordinator's memory does not grow with the number of sites: one global model, one update at a time, chunks of the mean.

A whole run in this process (Flower's messages and serialisation, no network): peak of what Python and NumPy hold, less the model, for
3, 10 and 30 sites with weights of ResNet-34's size. The sites' own share is the same for each: one site works at a time.

    python -m benchmarks.server_memory
"""

from __future__ import annotations

import argparse
import tempfile
import time
import tracemalloc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from rich.console import Console
from rich.table import Table

from benchmarks.bare_run import (
    bare_folder,
    bare_registry,
    bare_study,
    evaluated_answer,
    new_key,
    prepared_answer,
    resnet34_sized,
    trained_answer,
)
from benchmarks.in_process_grid import InProcessGrid
from server.rounds import Coordinator
from shared.messages import ANSWER, BODY, FLAT, INSTRUCTION, UPDATE, Answer, read_instruction, sign_answer
from shared.results import SiteHello
from shared.signing import PublicKey
from shared.wire import Flat, flat_digest

#: Growth from the fewest to the most sites that passes, as a share of the model.
ALLOWED = 0.05


@dataclass(frozen=True, slots=True)
class Peak:
    """Peak memory of one run, in bytes."""

    sites: int
    model: int
    peak: int
    seconds: float

    @property
    def above(self) -> int:
        return self.peak - self.model


class ConstantSite:
    """Answers with one update that all sites share, so that sites add nothing to what is measured."""

    def __init__(self, name: str, update: Flat, digest: str, *, coordinator: PublicKey) -> None:
        self._hello = SiteHello(site=name, code_digest="0" * 64, versions={})
        self._update, self._digest = update, digest
        self._coordinator, self.key = coordinator, new_key()

    def __call__(self, message: Message) -> Message:
        text = str(message.content.config_records[INSTRUCTION][BODY])
        instruction, digest = read_instruction(text, self._coordinator)
        answers = Answer(hello=self._hello, instruction=digest, round=instruction.round)
        records = {}
        if instruction.kind == "train":
            answered = answers.model_copy(update={"trained": trained_answer(), "update_digest": self._digest})
            records = {UPDATE: ArrayRecord({FLAT: Array(self._update)})}
        elif instruction.kind == "prepare":
            answered = answers.model_copy(update={"prepared": prepared_answer()})
        else:
            answered = answers.model_copy(update={"evaluated": evaluated_answer()})
        content = RecordDict({ANSWER: ConfigRecord({BODY: sign_answer(answered, self.key)}), **records})
        return Message(content, reply_to=message)


def peak_of_run(folder: Path, arrays: Mapping[str, Flat], sites: int) -> Peak:
    """Peak memory of a run of one round with `sites` sites."""
    names = [f"site-{number:02d}" for number in range(sites)]
    run = bare_folder(folder, bare_study(rounds=1, quorum=sites), arrays, names)
    size = sum(array.size for array in arrays.values())
    update = np.full(size, 0.001, dtype=np.float32)
    digest = flat_digest(update)
    key = new_key()
    fakes = {name: ConstantSite(name, update, digest, coordinator=key.public) for name in names}
    registry = bare_registry(folder / "coordinator", {name: fake.key for name, fake in fakes.items()})
    grid = InProcessGrid(fakes)
    begun = time.monotonic()
    tracemalloc.start()
    try:
        Coordinator(grid, run, registry=registry, key=key).conduct()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(run.rounds()[1].trained) == sites
    return Peak(sites, size * 4, peak, time.monotonic() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, nargs="+", default=[3, 10, 30])
    given = parser.parse_args()
    arrays = resnet34_sized()
    peaks: list[Peak] = []
    with tempfile.TemporaryDirectory(prefix="consilium-memory-") as place:
        for sites in given.sites:
            peaks.append(peak_of_run(Path(place) / str(sites), arrays, sites))
    table = Table(title=f"Coordinator's peak memory, model of {peaks[0].model / 1e6:.0f} MB")
    for column in ("sites", "peak above the model (MB)", "models", "run (s)"):
        table.add_column(column, justify="right")
    for one in peaks:
        table.add_row(str(one.sites), f"{one.above / 1e6:.1f}", f"{one.above / one.model:.2f}", f"{one.seconds:.1f}")
    Console().print(table)
    if peaks[-1].above > peaks[0].above + ALLOWED * peaks[0].model:
        raise SystemExit("the coordinator's memory grows with the number of sites")


if __name__ == "__main__":
    main()
