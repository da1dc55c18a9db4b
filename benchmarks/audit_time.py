"""How long `consilium-audit verify` takes: a private run of 5 sites and 200 rounds, every entry, instruction and answer really signed.

The hospitals are real but for their data (`benchmarks.ledgered_run`): gate, ledger, noised counts. The model is small, so that what is
measured is the checks and not the reading of updates; `--values` makes it larger. Making the run takes some minutes and is not measured.
"Command" is a process of its own, imports and all; the parts below are of one process in which nothing was computed before.

    python -m benchmarks.audit_time --sites 5 --rounds 200
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.ledgered_run import LedgeredFederation, private_study
from shared.audit.budgets import check_budgets
from shared.audit.completeness import check_completeness
from shared.audit.entries import check_entries, read_entries
from shared.audit.exchanges import SignedTexts
from shared.audit.private_record import check_private_record
from shared.audit.records import read_run
from shared.audit.run import audit_run
from shared.audit.signatures import check_signatures
from shared.audit.spending import check_spending
from shared.audit.trust import COORDINATOR, read_trust, trust_lines
from shared.audit.verdict import exit_status
from shared.wire import Flat

SITES = ("anna", "berta", "clara", "dora", "emma", "frida", "greta", "hanna")
#: 200 rounds cost 11.8 by PLD and more by RDP.
LIFETIME = {"epsilon": 40.0, "delta": 1e-5}

Result = TypeVar("Result")


def made(folder: Path, sites: int, rounds: int, values: int) -> tuple[Path, Path]:
    """The run's folder, and a file of fingerprints."""
    arrays: dict[str, Flat] = {"w": np.linspace(-1, 1, values, dtype=np.float32)}
    federation = LedgeredFederation.make(
        folder,
        private_study(rounds=rounds, svm=True, epsilon=12),
        sites=SITES[:sites],
        arrays=arrays,
        lifetime=LIFETIME,
    )
    run = federation.conduct()
    keys = [
        (COORDINATOR, federation.key.public),
        *((site, one.key.public) for site, one in federation.hospitals.items()),
    ]
    trust = folder / "trust"
    trust.write_text(trust_lines(keys))
    return run, trust


@dataclass(frozen=True, slots=True)
class Part:
    """Seconds by the clock, and of processor time: the second is the same on a busy machine."""

    what: str
    wall: float
    cpu: float


def timed(parts: list[Part], what: str, look: Callable[[], Result]) -> Result:
    begun, spent = time.perf_counter(), time.process_time()
    result = look()
    parts.append(Part(what, time.perf_counter() - begun, time.process_time() - spent))
    return result


def measured(run: Path, trust: Path, repeats: int) -> list[Part]:
    """Each part, and the command (best of `repeats`)."""
    parts: list[Part] = []
    trusted = read_trust([str(trust)])
    files = timed(parts, "records read", lambda: read_run(run))
    signed = SignedTexts(files)
    timed(parts, "signatures of instructions and answers", lambda: check_signatures(files, trusted, signed))
    shown = timed(parts, "ledger entries read, verified, put in order", lambda: read_entries(signed, {}))
    timed(parts, "ledger entries asked", lambda: [*check_entries(shown.values()), *check_completeness(signed, shown)])
    timed(parts, "epsilons by three accountants", lambda: check_spending(files, shown))
    timed(parts, "budgets", lambda: check_budgets(shown))
    timed(parts, "figures computed again", lambda: check_private_record(files))
    audit = timed(parts, "all again, epsilons known (with re-aggregation)", lambda: audit_run(files, trusted))
    if exit_status(audit.checks) != 0:
        raise SystemExit(f"not all is proven: {[check for check in audit.checks if check.outcome != 'proven']}")
    command = [sys.executable, "-m", "shared.audit.cli", "verify", str(run), "--trust", str(trust), "--json"]
    whole: list[Part] = []
    for _ in range(repeats):
        begun, spent = time.perf_counter(), _children()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        whole.append(
            Part(
                f"command `consilium-audit verify`, best of {repeats}", time.perf_counter() - begun, _children() - spent
            )
        )
    return [*parts, min(whole, key=lambda one: one.wall)]


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Make the run, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=5, choices=range(2, len(SITES) + 1))
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--values", type=int, default=1000, help="values of the model")
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="audit-time-") as name:
        begun = time.perf_counter()
        run, trust = made(Path(name), chosen.sites, chosen.rounds, chosen.values)
        making = time.perf_counter() - begun
        size = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
        table = Table(
            title=f"Audit of {chosen.sites} sites x {chosen.rounds} rounds ({size / 1e6:.0f} MB of files, made in {making:.0f} s)",
            title_justify="left",
        )
        table.add_column("what")
        table.add_column("seconds", justify="right")
        table.add_column("CPU seconds", justify="right")
        for one in measured(run, trust, chosen.repeats):
            table.add_row(one.what, f"{one.wall:.2f}", f"{one.cpu:.2f}")
        Console().print(table)


if __name__ == "__main__":
    main()
