"""A paper's table beside ours: run its studies, or take runs that are there, and print both.

    python -m benchmarks.paper_tables resnet34 --small --sites sites/demo/* --out runs/paper     # runs the three models
    python -m benchmarks.paper_tables all --runs runs/*                                          # prints whatever is there

The first form calls `consilium-server local` for each study of the paper that has a file in configs/ (`--small`: its version for two
cores) and whose folder is not there yet, one after the other, then prints. The published figures are server/report/published.yaml; those
that contradict themselves are marked and told. Beside them stands what our runs reached, with intervals, on whatever data they ran on: it
is no contest, and no published figure is a threshold. Exit status 1 where a run failed, 2 for a mistake in the call.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from server.report.paper import figure_in, figures_of, head_of, whose
from server.report.published import TITLES, Paper, PublishedRow, contradictions, papers
from server.report.schema import Report

ROOT = Path(__file__).resolve().parents[1]
CONTRAST = {
    "local_contrast": "mean local contrast",
    "visibility": "calcification visibility",
    "snr": "signal-to-noise ratio",
}


@dataclass(frozen=True)
class Ours:
    """A finished run of the row's study."""

    name: str
    report: Report
    small: bool


def found_runs(folders: Sequence[Path]) -> dict[str, Ours]:
    """Finished runs by their study's name; of several the last in the order given. Folders without a report are passed over."""
    found: dict[str, Ours] = {}
    for folder in folders:
        path = folder / "report.json"
        if not path.is_file():
            continue
        report = Report.model_validate_json(path.read_text(encoding="utf-8"))
        if report.evaluated:
            name = str(report.study["name"])
            found[name] = Ours(folder.resolve().name, report, name.endswith("_small"))
    return found


def page(paper: Paper, runs: dict[str, Ours]) -> str:
    """The paper's table with a row of ours under each of its rows, in Markdown."""
    names = figures_of(paper)
    marks = {row.model: list(contradictions(row)) for row in paper.rows}
    lines = [["model", "figures of", *(TITLES[name] for name in names)], ["---"] * (2 + len(names))]
    notes: list[str] = []
    for row in paper.rows:
        mark = " (!)" if marks[row.model] else ""
        lines.append([row.model, f"the paper{mark}", *(row.published.get(name, "–") for name in names)])
        ours = _run_of(row, runs)
        if ours is None:
            lines.append(["", "ours: not run" if row.study else "ours: no study", *("–" for _ in names)])
            continue
        head = head_of(ours.report, row, paper)
        lines.append(["", f"ours: {ours.name}", *(figure_in(head, name) for name in names)])
        notes.append(_what_it_is(row, ours, paper))
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    told = [f"- (!) {model}: {text}." for model, texts in marks.items() for text in texts]
    parts = [
        f"## {paper.title}",
        f"{paper.data}. Published: {paper.source}. The figures are of {paper.positive}, where one class is meant.",
        table,
        "\n".join(told),
        "\n".join(notes),
        _contrast(paper),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _run_of(row: PublishedRow, runs: dict[str, Ours]) -> Ours | None:
    """The full study's run where there is one, else the small one's."""
    return next((runs[name] for name in (row.study, row.small) if name is not None and name in runs), None)


def _what_it_is(row: PublishedRow, ours: Ours, paper: Paper) -> str:
    report = ours.report
    study = report.study
    images = [one.images for one in (head_of(report, row, paper),) if one is not None and one.images is not None]
    synthetic = [site for site, one in report.sites.items() if one.data is not None and one.data.synthetic]
    words = [
        f"{whose(report, paper)} of {len(report.sites)}" if len(report.sites) > 1 else "one hospital",
        f"{images[0]} test images" if images else "no exact count of test images",
        f"{study['preprocessing']['size']} pixels",
        f"{report.run.rounds_done} round(s) of {study['training']['local_epochs'] or 'no'} epoch(s)",
        f"starting weights: {study['model']['weights'] if isinstance(study['model']['weights'], str) else 'a file'}",
    ]
    if synthetic:
        words.append(
            "SYNTHETIC images" + ("" if len(synthetic) == len(report.sites) else f" at {', '.join(synthetic)}")
        )
    if ours.small:
        words.append("the small study, not the paper's")
    return f"- {ours.name} (`{study['name']}`, digest `{report.run.study_digest[:16]}`): {', '.join(words)}."


def _contrast(paper: Paper) -> str:
    if paper.contrast is None:
        return ""
    before, after = paper.contrast["before"], paper.contrast["after"]
    told = ", ".join(f"{CONTRAST[name]} {before[name]} to {value}" for name, value in after.items())
    return f"What the preprocessing did, published: {told}; ours: `consilium-site contrast PROFILE --study STUDY`, by our own formulas."


def run_all(paper: Paper, sites: Sequence[Path], out: Path, *, small: bool) -> tuple[list[Path], list[str]]:
    """Run what is not there yet. Returns the folders, and the studies that failed."""
    folders, failed = [], []
    for row in paper.rows:
        name = row.small if small else row.study
        path = ROOT / "configs" / f"{name}.yaml"
        if name is None or not path.is_file():
            print(f"{row.model}: no {'small ' if small else ''}study in configs/", file=sys.stderr)
            continue
        folder = out / name
        folders.append(folder)
        if (folder / "report.json").is_file():
            continue
        command = [
            sys.executable,
            "-m",
            "server.cli",
            "local",
            str(path),
            *(str(site) for site in sites),
            "--run-dir",
            str(folder),
        ]
        if subprocess.run(command, stdout=sys.stderr).returncode:
            failed.append(name)
    return folders, failed


def main() -> None:
    known = papers()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("paper", choices=[*known, "all"])
    parser.add_argument("--runs", nargs="+", type=Path, default=[], help="folders of runs that are there")
    parser.add_argument("--sites", nargs="+", type=Path, help="site profiles to run the paper's studies on")
    parser.add_argument("--out", type=Path, help="folder for the runs, with --sites")
    parser.add_argument("--small", action="store_true", help="the versions for two cores, with --sites")
    arguments = parser.parse_args()
    folders, failed = list(arguments.runs), []
    if arguments.sites is not None:
        if arguments.out is None or arguments.paper == "all":
            parser.error("--sites needs --out FOLDER, and one paper")
        made, failed = run_all(known[arguments.paper], arguments.sites, arguments.out, small=arguments.small)
        folders += made
    elif arguments.small or arguments.out is not None:
        parser.error("--small and --out belong to --sites")
    try:
        runs = found_runs(folders)
    except (OSError, ValueError) as problem:
        sys.exit(f"a report can't be read: {problem}")
    chosen = known if arguments.paper == "all" else {arguments.paper: known[arguments.paper]}
    print("\n".join(page(paper, runs) for paper in chosen.values()), end="")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
