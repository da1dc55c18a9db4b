"""Flower's ServerApp. The run configuration names the run's folder and the coordinator's; everything else is in these two."""

from __future__ import annotations

import gc
import logging
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.home import Home
from server.rounds import Coordinator
from server.run_folder import RunFolder
from server.run_lock import hold_run_lock
from shared.errors import ConsiliumError
from shared.logs import log_context, set_up_logs
from shared.processes import die_with_parent

app = ServerApp()
log = logging.getLogger("consilium.server")


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Conduct the run; a mistake that has a name ends in run.json as a sentence, any other with its traceback in the log."""
    die_with_parent()  # Flower's own way of ending it waits for a SuperLink that may be gone
    folder = RunFolder(Path(str(context.run_config["run-dir"])))
    hold_run_lock(folder)
    gc.collect()
    gc.freeze()  # what is imported stays: each answer's collection need not look at it again
    home = Home(Path(str(context.run_config["home"])))
    set_up_logs(home.path / "logs", house="coordinator", site=None)
    try:
        with log_context(run=folder.run_id()):
            Coordinator(grid, folder, registry=home.registry, receipts=home.receipts, key=home.signing_key()).conduct()
    except ConsiliumError as problem:
        folder.end("failed", str(problem), problem.code)
        log.error("%s: %s", problem.code, problem)
    except Exception:
        folder.end("failed", "the coordinator met an unexpected error; see logs/superlink.log", "CONS-999")
        raise
