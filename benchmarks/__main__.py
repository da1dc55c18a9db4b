"""`python -m benchmarks` prints all tables in turn; `python -m benchmarks NAME...` those named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

#: In the order in which they are printed: short ones first.
NAMES = (
    "server_memory",
    "input_pipeline",
    "training_step",
    "private_training",
    "phantom_shortcuts",
    "audit_time",
    "round_overhead",
)


def main() -> int:
    """Run each benchmark in its own process, so that none measures another's memory; 1 where one fails."""
    chosen = sys.argv[1:] or [name for name in NAMES if (Path(__file__).parent / f"{name}.py").exists()]
    unknown = sorted(set(chosen) - set(NAMES))
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    failed = [name for name in chosen if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"]).returncode]
    for name in failed:
        print(f"benchmarks.{name} failed", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
