"""A command that ends, run in this process: as in one of its own, without the seconds that importing PyTorch takes there."""

from __future__ import annotations

import contextlib
from pathlib import Path

import typer
from typer.testing import CliRunner

from shared.errors import ConsiliumError


def ended(app: typer.Typer, words: list[str], *, cwd: Path) -> tuple[int, str]:
    """Exit status and everything that was said, as `shared.command.run_command` has it. What it did not foresee is raised."""
    with contextlib.chdir(cwd):
        result = CliRunner().invoke(app, words)
    problem = result.exception
    if isinstance(problem, ConsiliumError):
        return problem.exit_code, f"{result.output}{problem.code} {problem}\n"
    if problem is not None and not isinstance(problem, SystemExit):
        raise problem
    return result.exit_code, result.output
