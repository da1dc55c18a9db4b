"""docs/results.md from the reports of runs: what was run, what came out, and what it means and doesn't.

    python -m benchmarks.results runs/ham10000 [runs/ham10000_SITE_alone ...] --out docs/results.md

A run of one site is taken as that hospital on its own, and stands beside the run of several sites that has the same
study (but for its name, title, description and quorum). `recomputed.json` in a run's folder, from `python -m
benchmarks.recompute`, is told too.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from server.report.schema import HeadReport, PooledHead, Report, SiteReport
from shared.metrics import pooling
from shared.metrics.pooling import HeadKey
from shared.run_records import FinalRecord

HEADS: tuple[tuple[HeadKey, str], ...] = (
    ("network", "network"),
    ("svm", "SVM, C and gamma searched"),
    ("svm_paper", "SVM, C and gamma of the paper"),
)
COLUMNS = ("auc", "balanced_accuracy", "sensitivity", "specificity", "accuracy")
TITLES = {"auc": "AUC", "balanced_accuracy": "balanced accuracy", "sensitivity": "sensitivity", "specificity": "specificity",
          "accuracy": "accuracy"}  # fmt: skip
#: With fewer test images of a class than this the page says that the hospital's own figures can't be relied on.
FEW = 10

PUBLISHED: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    (
        "Fed-ISIC2019 (FLamby): six centres, three of them these; balanced accuracy, mean over the six centres' own test sets, 5 seeds",
        (
            ("pooled training", ".708"),
            ("each centre's own local model", ".645"),
            ("FedAdam", ".584"),
            ("FedProx", ".544"),
            ("FedAvg", ".539"),
        ),
    ),
    (
        "DermaMNIST 64 px (MedMNIST+, arXiv 2404.15786): the same images without their hospitals, seven classes, another split",
        (("ResNet-18", "AUC .917, accuracy .764"),),
    ),
)


@dataclass(frozen=True)
class Run:
    """A report, the hospitals' evaluations, and what an independent recomputation said (None: not done)."""

    report: Report
    final: FinalRecord | None
    recomputed: Mapping[str, Any] | None

    def scarce(self) -> list[str]:
        """Hospitals with fewer than `FEW` test images of the positive class."""
        positive = self.report.classes.index(self.report.positive_class)
        counts = {site: _test_positives(one, positive) for site, one in self.report.sites.items()}
        return [site for site, count in counts.items() if count is not None and count < FEW]

    def pooled_without(self, sites: Sequence[str], head: HeadKey) -> pooling.PooledHead | None:
        """The report's own pooling, of the other hospitals."""
        if self.final is None or not sites:
            return None
        aside = {*sites, *self.report.external_sites}
        rest = [evaluated for site, evaluated in sorted(self.final.sites.items()) if site not in aside]
        positive = self.report.classes.index(self.report.positive_class)
        return pooling.pool(rest, head, positive=positive, confidence=self.report.confidence) if rest else None


def read_run(folder: Path) -> Run:
    """Raises OSError, ValueError where the folder has no valid report."""
    report = Report.model_validate_json((folder / "report.json").read_text())
    final, other = folder / "evaluation.json", folder / "recomputed.json"
    return Run(
        report,
        FinalRecord.model_validate_json(final.read_text()) if final.exists() else None,
        json.loads(other.read_text()) if other.exists() else None,
    )


def page(runs: Sequence[Run], *, command: str, machine: str | None = None) -> str:
    """The page in Markdown. `command` is what made it, `machine` words for where the runs ran."""
    alone = [run for run in runs if len(run.report.sites) == 1]
    together = [run for run in runs if len(run.report.sites) > 1]
    parts = [_head_of_page(command)]
    for run in together:
        mine = {next(iter(one.report.sites)): one.report for one in alone if _same_study(one.report, run.report)}
        parts += [
            f"## {run.report.study['title']}",
            _what_was_run(run.report, machine),
            _data(run.report),
            _by_hospital(run.report),
            _pooled(run),
            _gain(run),
            _beside_alone(run.report, mine),
            _recomputed(run.recomputed),
            _meaning(run),
        ]
    parts.append(_published())
    return "\n\n".join(part for part in parts if part) + "\n"


def _head_of_page(command: str) -> str:
    return f"""# Results on real hospitals' images

This page was made by

    {command}

from the runs' own reports; no figure of ours was typed. The hospitals are the three sources of HAM10000 (Tschandl, Rosendahl and
Kittler, Scientific Data 5:180161, 2018; CC BY-NC 4.0), each as one site with its own process and folder. To run a study again, point
`FEDERATION_DATA` at the folder that holds `ham10000/` and call

    consilium-server local configs/ham10000_resnet34_cbam_svm.yaml sites/ham10000/* --run-dir runs/ham10000
    python -m benchmarks.recompute runs/ham10000

Brackets are intervals, bootstrapped by lesion. The models are not for diagnosis, and are not given away: the licence of the images
excludes commercial use."""


def _what_was_run(report: Report, machine: str | None) -> str:
    run, study = report.run, report.study
    seconds = _seconds(run.started, run.ended)
    rounds = [one.timing.total for one in report.rounds if one.round > 0]
    training, model = study["training"], study["model"]
    machines = [site.machine for site in report.sites.values()]
    kinds = {" ".join(filter(None, (one.device, one.precision, one.memory_format))) for one in machines}
    attention = "" if model["attention"] == "none" else f" with {model['attention'].upper()}"
    preprocessing, size = study["preprocessing"], study["preprocessing"]["size"]
    region = "whole images" if preprocessing["region"] == "whole" else "the square around the lesion"
    recipe = [
        f"{training['optimiser']}, learning rate {training['learning_rate']:g} ({training.get('schedule', 'constant')})",
        *([f"batches of {training['batch_size']}"] if training["batch_size"] is not None else []),
        f"class weights {training['class_weights']}",
        f"updates weighed by {study['federation']['weighting']}",
        f"seed {study['seed']}",
    ]
    time = f"{seconds:,.0f} s in all" if seconds is not None else "did not end"
    if rounds:
        time += f"; a round took {statistics.median(rounds):.0f} s (median)"
    rows = [
        ("study", f"`{study['name']}`, digest `{run.study_digest[:16]}`"),
        (
            "state",
            f"{run.state}, {run.rounds_done} of {run.rounds_planned} rounds"
            + (f" of {training['local_epochs']} epoch(s)" if training["local_epochs"] is not None else ""),
        ),
        ("network", f"{model['name']}{attention}, {run.trained_parameters:,} trained parameters"),
        ("starting weights", _weights(model)),
        ("input", f"{region}, {size} x {size} pixels"),
        ("recipe", ", ".join(recipe)),
        ("time", time),
        ("machine", "; ".join([*([machine] if machine else []), "sites computed on " + ", ".join(sorted(kinds))])),
        ("versions", ", ".join(f"{name} {version}" for name, version in sorted(run.versions.items()))),
        ("code", f"digest `{run.code_digest[:16]}`"),
    ]
    return "### What was run\n\n" + _table(("", ""), rows)


def _weights(model: Mapping[str, Any]) -> str:
    weights = model["weights"]
    return "none (random)" if weights == "none" else weights if isinstance(weights, str) else str(weights["source"])


def _data(report: Report) -> str:
    positive = report.classes.index(report.positive_class)
    rows = []
    for site, one in report.sites.items():
        if one.data is not None:
            cells = [
                f"{part.images} ({part.by_class[positive]} {report.positive_class})" for part in one.data.parts.values()
            ]
            rows.append((site, *cells, sum(part.patients for part in one.data.parts.values())))
    parts = next((tuple(one.data.parts) for one in report.sites.values() if one.data is not None), ())
    stand_in = sorted(set(report.stand_ins.values()))
    unit = f"patients ({', '.join(stand_in)})" if stand_in else "patients"
    return "Images of each part, and how many of them are of the positive class:\n\n" + _table(
        ("hospital", *parts, unit), rows
    )


def _by_hospital(report: Report) -> str:
    rows = [
        (site, words, *(_figure(getattr(found, name)) for name in COLUMNS))
        for site, one in report.sites.items()
        for key, words in HEADS
        if (found := getattr(one, key)) is not None
    ]
    missing = "".join(f"\n\n{miss.site} is missing: {miss.reason}." for miss in report.not_evaluated)
    about = f"Sensitivity and specificity are about {report.positive_class}."
    return (
        f"### Each hospital's own test part\n\n{about}\n\n"
        + _table(("hospital", "model", *(TITLES[c] for c in COLUMNS)), rows)
        + missing
        + "\n\n"
        + _confusions(report)
    )


def _confusions(report: Report) -> str:
    """Counts, which say more than rates where few images are of a class; for two classes only."""
    if len(report.classes) != 2:
        return ""
    positive = report.classes.index(report.positive_class)
    rows = []
    for site, one in report.sites.items():
        for key, words in HEADS:
            found = getattr(one, key)
            if found is not None:
                hit, missed = found.confusion[positive][positive], found.confusion[positive][1 - positive]
                alarm, passed = found.confusion[1 - positive][positive], found.confusion[1 - positive][1 - positive]
                rows.append((site, words, f"{hit} of {hit + missed}", f"{alarm} of {alarm + passed}"))
    name, other = report.positive_class, report.classes[1 - positive]
    return "In counts:\n\n" + _table(("hospital", "model", f"{name} found", f"{other} wrongly called {name}"), rows)


def _pooled(run: Run) -> str:
    heads: list[tuple[HeadKey, str, PooledHead]] = [
        (key, words, head) for key, words in HEADS if (head := getattr(run.report.pooled, key)) is not None
    ]
    if not heads:
        return ""
    scarce = run.scarce()
    rows = [
        ("all", words, head.images, *(_figure(getattr(head, name)) for name in COLUMNS)) for _, words, head in heads
    ]
    for key, words, _ in heads:
        rest = run.pooled_without(scarce, key)
        if rest is not None:
            name = f"without {', '.join(scarce)}"
            rows.append((name, words, rest.images, *(_figure(getattr(rest, column)) for column in COLUMNS)))
    how = "\n".join(f"- {TITLES[name]}: {getattr(heads[0][2], name).how}" for name in ("auc", "balanced_accuracy"))
    titles = ("hospitals", "model", "images", *(TITLES[c] for c in COLUMNS))
    return f"### All hospitals together\n\n{_table(titles, rows)}\n\n{how}"


def _gain(run: Run) -> str:
    rows, sentences = [], []
    scarce = run.scarce()
    for key, words in HEADS:
        pooled = getattr(run.report.pooled, key)
        places = [(site, getattr(one, key)) for site, one in run.report.sites.items()]
        places += [("all", pooled), (f"without {', '.join(scarce)}", run.pooled_without(scarce, key))]
        for place, head in places:
            if head is None or head.gain is None:
                continue
            rows.append((place, words, *(_signed(head.gain.get(name)) for name in ("auc", "balanced_accuracy"))))
            if place not in run.report.sites and "auc" in head.gain:
                shown = "is shown" if head.gain["auc"].low > 0 else "is not shown"
                sentences.append(f"- {words}, {place}: training {shown} to have helped: {_signed(head.gain['auc'])}")
    if not rows:
        return ""
    return (
        "### What training gained: final less round-0 model, on the same test images\n\n"
        "The round-0 model has random weights, but its SVM is fitted just the same: what it reaches is what an SVM makes of "
        "untrained features.\n\n"
        + _table(("hospital", "model", "AUC", "balanced accuracy"), rows)
        + "\n\nBy the interval of the gain in AUC:\n\n"
        + "\n".join(sentences)
    )


def _beside_alone(report: Report, alone: Mapping[str, Report]) -> str:
    title = "### Beside each hospital on its own\n\n"
    absent = sorted(set(report.sites) - set(alone))
    not_run = (
        f"Not run: {', '.join(absent)} alone with the same study (`consilium-server local` with that profile only, and quorum 1). "
        if absent
        else ""
    )
    not_run += "Not run: training on all hospitals' images pooled, the upper bound that no federation has."
    rows = []
    for site, other in sorted(alone.items()):
        if site not in report.sites:
            continue
        for key, words in HEADS:
            ours: HeadReport | None = getattr(report.sites[site], key)
            own: HeadReport | None = getattr(other.sites[site], key)
            if ours is not None and own is not None:
                rows.append((site, words, _figure(ours.auc), _figure(own.auc), _figure(ours.balanced_accuracy),
                             _figure(own.balanced_accuracy)))  # fmt: skip
    if not rows:
        return title + not_run + " So this page can't say whether federating was worth it for any hospital."
    steps = "The same study, seed, split and number of rounds; alone, a hospital's network sees its own images only."
    return (
        f"{title}{steps} Both columns are of the same test images, but the intervals are not paired: overlap is no proof of equality.\n\n"
        + _table(("hospital", "model", "AUC, federated", "AUC, alone", "balanced accuracy, federated", "balanced accuracy, alone"), rows)
        + f"\n\n{not_run}"
    )  # fmt: skip


def _recomputed(told: Mapping[str, Any] | None) -> str:
    title = "### Recomputed\n\n"
    if told is None:
        return title + "Not done for this run."
    verdict = "all agree" if told["disagreeing"] == 0 else f"**{told['disagreeing']} disagree**"
    return (
        f"{title}`benchmarks/recompute.py` reads the saved weights and the hospitals' files with other code and computes the figures with "
        f"scikit-learn: {told['counts']} counts, {told['figures']} figures (largest difference {told['largest_difference']:.1g}, "
        f"allowed {told['tolerance']:g}) and {told['interval_ends']} ends of intervals; {verdict}."
    )


def _meaning(run: Run) -> str:
    report, study = run.report, run.report.study
    lines = [
        "One run with one seed. Another seed gives another split, other starting weights and other figures; differences of a few "
        "hundredths are noise.",
        f"{study['preprocessing']['size']} pixels and {report.run.rounds_done} round(s) were chosen so that two processor cores finish "
        f"in minutes (starting weights: {_weights(study['model'])}). These are no one's best figures.",
        "An SVM is fitted at each hospital on its own training part, the images that the network has been trained on too.",
    ]
    positive = report.classes.index(report.positive_class)
    chance = 1 / len(report.classes)
    failing = [
        site
        for site, one in report.sites.items()
        if one.network is not None and (low := one.network.balanced_accuracy.low) is not None and low <= chance
    ]
    if failing:
        lines.append(
            f"The common network's own answer is not shown to be better than chance ({chance:.2f}) in balanced accuracy at "
            f"{', '.join(failing)}. One threshold and one set of norm statistics serve hospitals whose images and shares of "
            f"{report.positive_class} images differ, which may be why (not tested here); the SVM is fitted anew at each hospital."
        )
    for site in run.scarce():
        if few := _test_positives(report.sites[site], positive):
            lines.append(
                f"{site} has {few} {report.positive_class} test images, on which its sensitivity, balanced accuracy and AUC rest: one "
                f"of them moves its sensitivity by {1 / few:.2f}, and intervals bootstrapped from {few} are too narrow. "
                "Its accuracy is high for a model that finds none of them. Rows without this hospital are given beside those of all.",
            )
    if report.stand_ins:
        names = ", ".join(sorted(set(report.stand_ins.values())))
        lines.append(
            f"The data names no patients; {names} stands in for the patient in splits and intervals. A patient with two lesions may "
            "be in train and in test, so intervals may be too narrow and figures too high."
        )
    lines += [
        "The hospitals differ in cameras, referral and mix of diagnoses. The pooled AUC says how well images are ranked inside a "
        "hospital: it is weighted by test images, so a hospital with few positives counts for as much as it has images.",
        "The published figures below are of other tasks, classes and splits of related data: they say what is usual, and are no target.",
    ]
    return "### What these figures mean and don't\n\n" + "\n".join(f"- {line}" for line in lines)


def _test_positives(site: SiteReport, positive: int) -> int | None:
    return None if site.data is None else site.data.parts["test"].by_class[positive]


def _published() -> str:
    blocks = [f"{source}:\n\n" + _table(("method", "figure"), rows) for source, rows in PUBLISHED]
    closing = (
        "On Fed-ISIC2019 no published federated strategy beats the centres' own local models. That is the bar for federating, and why "
        "each hospital on its own is the comparison that counts."
    )
    return "## Published figures, for orientation\n\n" + "\n\n".join([*blocks, closing])


def _same_study(one: Report, other: Report) -> bool:
    def rest(study: Mapping[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in study.items() if key not in ("name", "title", "description")}
        kept["federation"] = {key: value for key, value in study["federation"].items() if key != "quorum"}
        return kept

    return rest(one.study) == rest(other.study)


def _figure(figure: Any) -> str:
    """A figure of any of the schemas: they have value, low and high."""
    if figure.value is None:
        return "-"
    ends = "" if figure.low is None or figure.high is None else f" ({figure.low:.2f} to {figure.high:.2f})"
    return f"{figure.value:.3f}{ends}"


def _signed(difference: Any) -> str:
    if difference is None:
        return "-"
    return f"{difference.value:+.3f} ({difference.low:+.2f} to {difference.high:+.2f})"


def _seconds(started: str, ended: str | None) -> float | None:
    if ended is None:
        return None
    return (datetime.fromisoformat(ended) - datetime.fromisoformat(started)).total_seconds()


def _table(titles: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    head = list(titles)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


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
    if all(len(run.report.sites) == 1 for run in runs):
        sys.exit("expected at least one run of several sites")
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
