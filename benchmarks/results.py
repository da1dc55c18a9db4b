"""docs/results.md from the reports of runs: what was run, what came out, and what it means and doesn't.

    python -m benchmarks.results runs/ham10000 [runs/ham10000_SITE_alone ...] runs/busi_rcdnet --out docs/results.md

A run of one site stands beside the run of several sites that has the same study (but for its name, title, description and quorum): as
that hospital on its own, or as all images at one site where it is none of the several. Without such a partner it has a chapter of its own.
`recomputed.json` in a run's folder, from `python -m benchmarks.recompute`, is told too. At the end stand the papers' tables with ours.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import paper_tables
from benchmarks.results_of_a_run import (
    Run,
    beside_others,
    by_hospital,
    data,
    gain,
    meaning,
    pooled,
    read_run,
    recomputed,
    table,
    what_was_run,
)
from benchmarks.results_of_masks import masks
from server.report.published import papers
from server.report.schema import Report

#: What a study's images are, by the beginning of its name, and the profiles that it ran with.
DATA = {
    ("ham10000", "skinnet"): (
        "HAM10000: dermoscopy of three sources (Tschandl, Rosendahl and Kittler, Scientific Data 5:180161, 2018; CC BY-NC 4.0) at "
        "200 x 150 pixels, each as one site with its own process and folder: `sites/ham10000/*`. The licence excludes commercial use"
    ),
    ("busi",): (
        "BUSI: breast ultrasound of one hospital (Al-Dhabyani et al., Data in Brief 28:104863, 2020; CC BY 4.0), cut by near-duplicate "
        "group into parts that stand for sites: `sites/busi_divided/*`, or whole: `sites/busi/*`"
    ),
    ("breastmnist",): (
        "BreastMNIST: BUSI's 780 images at 28 pixels in their published division (Yang et al., Scientific Data 10:41, 2023; CC BY 4.0): "
        "`sites/breastmnist/*`"
    ),
}

PUBLISHED: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    (
        "Fed-ISIC2019 (FLamby): six centres, three of them those of HAM10000; balanced accuracy, mean over the six centres' own test sets, "
        "5 seeds",
        (
            ("pooled training", ".708"),
            ("each centre's own local model", ".645"),
            ("FedAdam", ".584"),
            ("FedProx", ".544"),
            ("FedAvg", ".539"),
        ),
    ),
    (
        "DermaMNIST 64 px (MedMNIST+, arXiv 2404.15786): HAM10000 without its hospitals, seven classes, another split",
        (("ResNet-18", "AUC .917, accuracy .764"),),
    ),
    (
        "BreastMNIST 28 px, the published division; normal and benign against malignant",
        (
            ("ResNet-18 (MedMNIST v2)", "AUC .901, accuracy .863"),
            ("ResNet-18, 3 seeds (MedMNIST+, arXiv 2404.15786)", "AUC .876, accuracy .840"),
        ),
    ),
)


def page(runs: Sequence[Run], *, command: str, machine: str | None = None) -> str:
    """The page in Markdown. `command` is what made it, `machine` words for where the runs ran."""
    single = [run for run in runs if len(run.report.sites) == 1]
    several = [run for run in runs if len(run.report.sites) > 1]
    partners = [run for run in single if any(_same_study(run.report, other.report) for other in several)]
    parts = [_head_of_page(runs, command)]
    for run in (one for one in runs if one not in partners):
        others = [one for one in partners if _same_study(one.report, run.report)]
        alone = {site: one.report for one in others for site in one.report.sites if site in run.report.sites}
        elsewhere = [one.report for one in others if not set(one.report.sites) & set(run.report.sites)]
        parts += [
            f"## {run.report.study['title']}",
            what_was_run(run.report, machine),
            data(run.report),
            by_hospital(run.report),
            masks(run.report),
            pooled(run) if len(run.report.sites) > 1 else "",
            gain(run),
            beside_others(run.report, alone, elsewhere),
            recomputed(run.recomputed),
            meaning(run),
        ]
    parts += [_papers(runs), _published()]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head_of_page(runs: Sequence[Run], command: str) -> str:
    names = [str(run.report.study["name"]) for run in runs]
    shown = "\n".join(f"- {words}." for starts, words in DATA.items() if any(name.startswith(starts) for name in names))
    return f"""# Results on real images

This page was made by

    {command}

from the runs' own reports; no figure of ours was typed. ResNet-34 + CBAM + SVM on the three hospitals of HAM10000, run with an earlier
release, has [a page of its own](results_resnet34.md). The images:

{shown}

To run a study again, point `FEDERATION_DATA` at the folder that holds them and call, for instance,

    consilium-server local configs/skinnet_v1_small.yaml sites/ham10000/* --run-dir runs/skinnet_v1_small
    python -m benchmarks.recompute runs/skinnet_v1_small

Brackets are intervals, bootstrapped by patient or what stands in for one. The models are not for diagnosis, and are not given away."""


def _papers(runs: Sequence[Run]) -> str:
    """The tables of the papers that some run is of."""
    ours = {
        name: paper_tables.Ours(run.report.run.name, run.report, name.endswith("_small"))
        for run in runs
        if run.report.evaluated and len(run.report.sites) > 1
        for name in [str(run.report.study["name"])]
    }
    known = papers()
    wanted = [
        paper
        for paper in known.values()
        if any(name in ours for row in paper.rows for name in (row.study, row.small) if name is not None)
    ]
    if not wanted:
        return ""
    told = (
        "Quoted beside ours and never used as a threshold; those that contradict themselves are marked. Images, their size, epochs and "
        "starting weights differ, as each row says."
    )
    tables = "\n".join(paper_tables.page(paper, ours).replace("## ", "### ", 1) for paper in wanted)
    return f"## Papers' tables beside ours\n\n{told}\n\n{tables.rstrip()}"


def _published() -> str:
    blocks = [f"{source}:\n\n" + table(("method", "figure"), rows) for source, rows in PUBLISHED]
    closing = (
        "They are of other tasks, classes and splits of related data: they say what is usual, and are no target. On Fed-ISIC2019 no "
        "published federated strategy beats the centres' own local models. That is the bar for federating, and why each hospital on its "
        "own is the comparison that counts."
    )
    return "## Published figures, for orientation\n\n" + "\n\n".join([*blocks, closing])


def _same_study(one: Report, other: Report) -> bool:
    def rest(study: Mapping[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in study.items() if key not in ("name", "title", "description")}
        kept["federation"] = {key: value for key, value in study["federation"].items() if key != "quorum"}
        return kept

    return rest(one.study) == rest(other.study)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument("--machine", help="words for the machine, e.g. 'two shared CPU cores'")
    parser.add_argument("--out", type=Path, help="file to write; without it the page is printed")
    arguments = parser.parse_args()
    try:
        runs = [read_run(folder) for folder in arguments.runs]
    except (OSError, ValueError) as problem:
        sys.exit(f"a report can't be read: {problem}")
    # Folders by name only: where they lay is nobody's business.
    shown = " ".join(["python -m benchmarks.results", *(f"runs/{folder.resolve().name}" for folder in arguments.runs)])
    shown += f" --machine {shlex.quote(arguments.machine)}" if arguments.machine else ""
    text = page(runs, command=f"{shown} --out docs/results.md", machine=arguments.machine)
    if arguments.out is None:
        print(text, end="")
    else:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
