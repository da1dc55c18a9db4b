"""Runs each of Flower's client tasks in a fork of a process that has already imported everything.

Flower starts a fresh Python for every message, which imports PyTorch each time: 2 to 4 s a round and site, measured. Here one process
imports it once and forks. CUDA must not be initialised before the fork, so nothing here touches a device.

A fork runs the installed `client.app` that this process imported: Flower's own unpacking and loading of a bundle are replaced. Before
each fork the installed files are hashed; where they are no longer those that were imported, the task is refused (CONS-245).

`python -m client.executor RUNTIME_ADDRESS SECRET_FILE SITE_FOLDER`; the SuperNode process starts it (`client.node`).
"""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.supercore.constant import TaskType
from flwr.supercore.exit import exit_handler
from flwr.supercore.superexec import run_superexec as superexec
from flwr.supercore.superexec.executor.types import ExecutionSpec, LaunchResult
from flwr.supernode.runtime import run_clientapp as runtime

from client.own_code import CodeWatch
from client.site_folder import SiteFolder
from shared.errors import ConsiliumError, ProcessError
from shared.flower_settings import require_parameters, shorten_back_off
from shared.logs import set_up_logs
from shared.processes import die_with_parent

log = logging.getLogger("consilium.executor")


class ForkingExecutor:
    """Flower's `Executor` protocol, with a fork in place of a new interpreter; `code_problem` is asked before each."""

    def __init__(self, app: ClientApp, code_problem: Callable[[], ConsiliumError | None], folder: SiteFolder) -> None:
        self._app, self._code_problem, self._folder = app, code_problem, folder
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
        problem = self._code_problem()
        app = self._app if problem is None else refusing_app(problem, self._folder)
        child = os.fork()
        if child:
            self._children.add(child)
            return LaunchResult.accepted()
        status = 1
        try:
            exit_handler.registered_exit_handlers.clear()  # the parent's: they would close its connections
            die_with_parent()
            run_only(app)
            runtime.run_clientapp(spec.runtime_api_address, spec.token, spec.insecure, parent_pid=parent)
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
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                self._children.discard(child)
                if os.WIFSIGNALED(status):
                    log.error("a task was ended by signal %d; out of memory, perhaps", os.WTERMSIG(status))

    def close(self) -> None:
        """Children end with this process."""


def run_only(app: ClientApp) -> None:
    """Let Flower's `run_clientapp` run this app, and neither unpack nor load anything. Raises ProcessError where it can't be told so."""
    require_parameters(runtime, "install_from_fab", "fab_file", "install_dir", "skip_prompt")
    require_parameters(runtime, "get_load_client_app_fn", "default_app_ref", "app_path", "multi_app")

    def unpack_nothing(fab_file: object, install_dir: object = None, skip_prompt: bool = False) -> None:
        del fab_file, install_dir, skip_prompt

    def load_ours(default_app_ref: str, app_path: str | None, multi_app: bool) -> Callable[[str, str, str], ClientApp]:
        del default_app_ref, app_path, multi_app
        return lambda *_names: app

    vars(runtime).update(install_from_fab=unpack_nothing, get_load_client_app_fn=load_ours)


def refusing_app(problem: ConsiliumError, folder: SiteFolder) -> Any:
    """An app that refuses every message with the problem's code, made of what is loaded already."""
    from client.gate import refusal_message

    def refuse(message: Message, context: Context) -> Message:
        del context
        log.error("%s: %s", problem.code, problem)
        return refusal_message(message, folder, problem.code)

    return refuse


def code_problem(watch: CodeWatch) -> ConsiliumError | None:
    """What `watch` has to say, if anything."""
    try:
        watch.check()
    except ConsiliumError as problem:
        return problem
    return None


def main() -> None:
    """Import what the tasks will need, then take tasks until the SuperNode ends."""
    die_with_parent()
    address, secret, folder = sys.argv[1], Path(sys.argv[2]), SiteFolder(Path(sys.argv[3]))
    set_up_logs(folder.path / "logs", house="site", site=folder.profile().site)
    shorten_back_off()
    watch = CodeWatch(folder.path / "flwr" / "apps")
    from client.app import app  # its imports are what the forks share

    gc.collect()
    gc.freeze()  # the imported modules are never collected in a fork: their pages stay shared
    if not hasattr(superexec, "get_executor"):
        raise ProcessError("Flower's SuperExec has no get_executor: this release was made for flwr 1.41.0")
    executor = ForkingExecutor(app, lambda: code_problem(watch), folder)
    superexec.get_executor = lambda *_args, **_kwargs: executor
    superexec.run_superexec(address, insecure=True, superexec_auth_secret=secret.read_bytes(), parent_pid=os.getppid())


if __name__ == "__main__":
    main()
