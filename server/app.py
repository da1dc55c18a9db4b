"""Flower's ServerApp. It leads the run whose folder the run configuration names; everything else is in that folder."""

from __future__ import annotations

import gc
import logging
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.rounds import Coordinator
from server.run_folder import RunFolder
from shared.errors import ConsiliumError
from shared.processes import die_with_parent

app = ServerApp()
log = logging.getLogger("consilium.server")


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Conduct the run; a mistake that has a name ends in run.json as a sentence, any other with its traceback in the log."""
    die_with_parent()  # Flower's own way of ending it waits for a SuperLink that may be gone
    folder = RunFolder(Path(str(context.run_config["run-dir"])))
    gc.collect()
    gc.freeze()  # what is imported stays: each answer's collection need not look at it again
    try:
        Coordinator(grid, folder).conduct()
    except ConsiliumError as problem:
        folder.end("failed", str(problem), problem.code)
        log.error("%s: %s", problem.code, problem)
    except Exception:
        folder.end("failed", "the coordinator met an unexpected error; see logs/superlink.log", "CONS-999")
        raise
