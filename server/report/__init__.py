"""The run's report: `report.json` for programs, `report.html` for people, both made from the run folder alone."""

from __future__ import annotations

from pathlib import Path

from server.report.build import build_report
from server.report.page import render
from server.run_folder import RunFolder, write_atomic


def write_report(folder: RunFolder) -> tuple[Path, Path]:
    """Write report.json and report.html into the run folder, each all or not at all; returns their paths.

    Works for a run that was stopped or failed. Raises RunFolderError, StudyError, StorageError.
    """
    report = build_report(folder)
    page = render(report)
    json_path, html_path = folder.path / "report.json", folder.path / "report.html"
    write_atomic(json_path, report.model_dump_json(indent=2, by_alias=True).encode() + b"\n")
    write_atomic(html_path, page.encode())
    return json_path, html_path


__all__ = ["build_report", "render", "write_report"]
