"""The FAB of this installation: what a coordinator submits, and the only one that a hospital accepts.

Both houses build it from their own installed files; equal releases give equal bytes, on every machine, in every folder, at any time.
"""

from __future__ import annotations

from pathlib import Path

from shared.release import source_files, source_root, versions


def app_bundle() -> bytes:
    """The three packages' Python files and the app's declaration, and nothing else."""
    from flwr.cli.build import build_fab_from_files

    files: dict[str, bytes | Path] = {"pyproject.toml": app_declaration().encode()}
    files.update({path.relative_to(source_root()).as_posix(): path for path in source_files()})
    bundle: bytes = build_fab_from_files(files)[0]
    return bundle


def app_declaration() -> str:
    """The part of pyproject.toml that Flower reads, rebuilt so that an installation from a wheel has it too."""
    return f"""[project]
name = "consilium"
version = "{versions()["consilium"]}"

[tool.flwr.app]
publisher = "consilium"
fab-include = ["/server/**/*.py", "/client/**/*.py", "/shared/**/*.py"]

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"

[tool.flwr.app.config]
home = ""
run-dir = ""
"""
