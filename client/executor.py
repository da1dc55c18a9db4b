"""Runs each of Flower's client tasks in a fork of a process that has already imported everything.

Flower starts a fresh Python for every message, which imports PyTorch each time: 2 to 4 s a round and site, measured. Here one process
imports it once and forks. CUDA must not be initialised before the fork, so nothing here touches a device.

`python -m client.executor RUNTIME_ADDRESS SECRET_FILE`; the SuperNode process starts it (`client.node`).
"""

from __future__ import annotations

import gc
import logging
import os
import sys
from pathlib import Path

from flwr.supercore.constant import TaskType
from flwr.supercore.exit import exit_handler
from flwr.supercore.superexec import run_superexec as superexec
from flwr.supercore.superexec.executor.types import ExecutionSpec, LaunchResult
from flwr.supernode.runtime.run_clientapp import run_clientapp

from shared.errors import ProcessError
from shared.flower_settings import quieten_logs, shorten_back_off
from shared.processes import die_with_parent


class ForkingExecutor:
    """Flower's `Executor` protocol, with a fork in place of a new interpreter."""

    def __init__(self) -> None:
        self._children: set[int] = set()

    def get_eligible_capacity(
        self, supported_task_types: set[TaskType], *, insecure: bool = False, root_certificates_path: str | None = None
    ) -> tuple[set[TaskType], set[str]]:
        del insecure, root_certificates_path
        return supported_task_types & {TaskType.CLIENT_APP}, set()

    def wait_for_capacity(
        self,
        task_type: TaskType | None = None,
        *,
        fab_hash: str | None = None,
        insecure: bool = False,
        root_certificates_path: str | None = None,
    ) -> None:
        del task_type, fab_hash, insecure, root_certificates_path

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        parent = os.getpid()
        child = os.fork()
        if child:
            self._children.add(child)
            return LaunchResult.accepted()
        status = 1
        try:
            exit_handler.registered_exit_handlers.clear()  # the parent's: they would close its connections
            die_with_parent()
            run_clientapp(spec.runtime_api_address, spec.token, spec.insecure, parent_pid=parent)
            status = 0
        except SystemExit as ending:
            status = ending.code if isinstance(ending.code, int) else 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def reconcile(self) -> None:
        """Reap children that have ended."""
        for child in list(self._children):
            if os.waitpid(child, os.WNOHANG)[0]:
                self._children.discard(child)

    def close(self) -> None:
        """Children end with this process."""


def main() -> None:
    """Import what the tasks will need, then take tasks until the SuperNode ends."""
    die_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    quieten_logs()
    shorten_back_off()
    import client.app  # noqa: F401  (its imports are what the forks share)

    gc.collect()
    gc.freeze()  # the imported modules are never collected in a fork: their pages stay shared
    if not hasattr(superexec, "get_executor"):
        raise ProcessError("Flower's SuperExec has no get_executor: this release was made for flwr 1.41.0")
    superexec.get_executor = lambda *_args, **_kwargs: ForkingExecutor()
    superexec.run_superexec(
        sys.argv[1], insecure=True, superexec_auth_secret=Path(sys.argv[2]).read_bytes(), parent_pid=os.getppid()
    )


if __name__ == "__main__":
    main()
