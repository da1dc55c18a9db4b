"""Every command that the documentation shows is one that the installed commands understand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import typer

from client.cli import app as site
from server.cli import app as server
from shared.audit.cli import app as audit

DOCS = Path(__file__).resolve().parents[2] / "docs"
GROUPS = {
    "consilium-server": typer.main.get_command(server),
    "consilium-site": typer.main.get_command(site),
    "consilium-audit": typer.main.get_command(audit),
}


def commands(page: str) -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("consilium-")]


def parse(line: str) -> None:
    program, name, *arguments = shlex.split(line)
    group = GROUPS[program]
    assert isinstance(group, click.Group)
    assert name in group.commands, f"{program} has no command {name}"
    group.commands[name].make_context(name, arguments)


@pytest.mark.parametrize(
    "line",
    sorted({line for page in ("joining.md", "coordinating.md", "auditing.md", "budget.md") for line in commands(page)}),
)
def test_a_command_in_the_documentation_is_understood(line: str) -> None:
    parse(line)


def test_the_page_of_the_budget_shows_its_commands() -> None:
    shown = {line.split()[1] for line in commands("budget.md")}
    assert {"budget", "close", "rotate-key", "revoke-key"} <= shown


def test_the_pages_show_the_commands_of_joining() -> None:
    shown = {tuple(line.split()[:2]) for line in commands("joining.md")}
    for name in (
        "check",
        "init",
        "request",
        "join",
        "doctor",
        "review",
        "approve",
        "decline",
        "up",
        "service",
        "gateway",
    ):
        assert ("consilium-site", name) in shown
    for name in ("init", "gateway", "service", "admit", "up", "revoke"):
        assert ("consilium-server", name) in shown


@pytest.mark.parametrize(
    "line", ["consilium-site doctor", "consilium-site doctor site --colour", "consilium-site cure site"]
)
def test_a_wrong_command_is_noticed(line: str) -> None:
    with pytest.raises((click.UsageError, AssertionError)):
        parse(line)
