"""What docs/results.md says of one run."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from server.report.paper import figure_text
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
PARTS: tuple[Literal["train", "validation", "test"], ...] = ("train", "validation", "test")
#: With fewer test images of a class than this the page says that the hospital's own figures can't be relied on.
FEW = 10


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


def what_was_run(report: Report, machine: str | None) -> str:
    run, study = report.run, report.study
    seconds = _seconds(run.started, run.ended)
    rounds = [one.timing.total for one in report.rounds if one.round > 0]
    training, model = study["training"], study["model"]
    machines = [site.machine for site in report.sites.values()]
    kinds = {" ".join(filter(None, (one.device, one.precision, one.memory_format))) for one in machines}
    attention = "" if model["attention"] == "none" else f" with {model['attention'].upper()}"
    preprocessing, size = study["preprocessing"], study["preprocessing"]["size"]
    beside = [
        *([f"mask of the lesion ({preprocessing['mask']['from']})"] if preprocessing.get("mask") else []),
        *(one["name"] for one in study.get("metadata", [])),
    ]
    region = "whole images" if preprocessing["region"] == "whole" else "the square around the lesion"
    recipe = [
        f"{training['optimiser']}, learning rate {training['learning_rate']:g} ({training.get('schedule', 'constant')})",
        *([f"batches of {training['batch_size']}"] if training["batch_size"] is not None else []),
        _loss(training),
        *(
            f"{stage['rounds']} rounds with {', '.join(stage['freeze']) or 'nothing'} held"
            for stage in training.get("stages", [])
        ),
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
        ("input", f"{region}, {size} x {size} pixels" + (f"; {', '.join(beside)}" if beside else "")),
        ("recipe", ", ".join(recipe)),
        ("time", time),
        ("machine", "; ".join([*([machine] if machine else []), "sites computed on " + ", ".join(sorted(kinds))])),
        ("versions", ", ".join(f"{name} {version}" for name, version in sorted(run.versions.items()))),
        ("code", f"digest `{run.code_digest[:16]}`"),
    ]
    return "### What was run\n\n" + table(("", ""), rows)


def _loss(training: Mapping[str, Any]) -> str:
    words = str(training["loss"]).replace("_", " ")
    if training.get("focal"):
        alpha = training["focal"]["alpha"]
        words += f" (gamma {training['focal']['gamma']:g}, alpha {alpha if isinstance(alpha, str) else 'by class'})"
    return f"loss {words}, class weights {training['class_weights']}"


def _weights(model: Mapping[str, Any]) -> str:
    weights = model["weights"]
    return "none (random)" if weights == "none" else weights if isinstance(weights, str) else str(weights["source"])


def data(report: Report) -> str:
    positive = report.classes.index(report.positive_class)
    rows = []
    for site, one in report.sites.items():
        if one.data is not None:
            held = [one.data.parts[part] for part in PARTS if part in one.data.parts]
            cells = [f"{part.images} ({part.by_class[positive]} {report.positive_class})" for part in held]
            rows.append((site, *cells, sum(part.patients for part in one.data.parts.values())))
    held = next((one.data.parts for one in report.sites.values() if one.data is not None), {})
    parts = [part for part in PARTS if part in held]
    stand_in = sorted(set(report.stand_ins.values()))
    unit = f"patients ({', '.join(stand_in)})" if stand_in else "patients"
    return "Images of each part, and how many of them are of the positive class:\n\n" + table(
        ("hospital", *parts, unit), rows
    )


def by_hospital(report: Report) -> str:
    rows = [
        (named(site, report), words, *_cells(found))
        for site, one in report.sites.items()
        for key, words in HEADS
        if (found := getattr(one, key)) is not None
    ]
    if not rows:
        return ""
    missing = "".join(f"\n\n{miss.site} is missing: {miss.reason}." for miss in report.not_evaluated)
    about = f"Sensitivity and specificity are about {report.positive_class}."
    return (
        f"### Each hospital's own test part\n\n{about}\n\n"
        + table(("hospital", "model", *_titles(report)), rows)
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
                rows.append((named(site, report), words, f"{hit} of {hit + missed}", f"{alarm} of {alarm + passed}"))
    name, other = report.positive_class, report.classes[1 - positive]
    return "In counts:\n\n" + table(("hospital", "model", f"{name} found", f"{other} wrongly called {name}"), rows)


def pooled(run: Run) -> str:
    heads: list[tuple[HeadKey, str, PooledHead]] = [
        (key, words, head) for key, words in HEADS if (head := getattr(run.report.pooled, key)) is not None
    ]
    if not heads:
        return ""
    scarce = run.scarce()
    rows = [
        ("all" if len(head.sites) > 1 else head.sites[0], words, head.images, *_cells(head)) for _, words, head in heads
    ]
    for key, words, _ in heads:
        rest = run.pooled_without(scarce, key)
        if rest is not None:
            name = f"without {', '.join(scarce)}"
            rows.append((name, words, rest.images, *_cells(rest)))
    how = "\n".join(f"- {TITLES[name]}: {getattr(heads[0][2], name).how}" for name in ("auc", "balanced_accuracy"))
    titles = ("hospitals", "model", "images", *_titles(run.report))
    errors = "\n".join(line for _, words, head in heads for line in _errors(words, head))
    return f"### All hospitals together\n\n{table(titles, rows)}\n\n{how}" + (f"\n\n{errors}" if errors else "")


def named(site: str, report: Report) -> str:
    return f"{site} (external test)" if site in report.external_sites else site


def _titles(report: Report) -> list[str]:
    more = [] if len(report.classes) == 2 else ["weighted F1"]
    return [*(TITLES[name] for name in COLUMNS), *more]


def _cells(head: HeadReport | PooledHead | pooling.PooledHead) -> list[str]:
    """The figures of COLUMNS, and for more than two classes the weighted F1, where it is known."""
    cells = [figure_text(getattr(head, name)) for name in COLUMNS]
    if len(head.classes) > 2:
        over = getattr(head, "over_classes", None)
        cells.append("–" if over is None else figure_text(over.weighted.f1))
    return cells


def _errors(words: str, head: PooledHead) -> list[str]:
    over = head.over_classes
    if over is None or len(head.classes) == 2:
        return []
    rare = "" if over.rare_errors is None else f", {over.rare_errors.value} of them over the rare classes"
    return [
        f"- {words}: FP + FN over all classes {over.errors.value}{rare}; weighted specificity {figure_text(over.weighted.specificity)}, "
        f"precision {figure_text(over.weighted.precision)}"
    ]


def gain(run: Run) -> str:
    rows, sentences = [], []
    scarce = run.scarce()
    for key, words in HEADS:
        together = getattr(run.report.pooled, key)
        places = [(site, getattr(one, key)) for site, one in run.report.sites.items()]
        if len(run.report.sites) > 1:
            places.append(("all", together))
        places += [(f"without {', '.join(scarce)}", run.pooled_without(scarce, key))]
        for place, head in places:
            if head is None or head.gain is None:
                continue
            shown_as = named(place, run.report)
            rows.append((shown_as, words, *(signed(head.gain.get(name)) for name in ("auc", "balanced_accuracy"))))
            if (place not in run.report.sites or len(run.report.sites) == 1) and "auc" in head.gain:
                shown = "is shown" if head.gain["auc"].low > 0 else "is not shown"
                sentences.append(f"- {words}, {place}: training {shown} to have helped: {signed(head.gain['auc'])}")
    if not rows:
        return ""
    return (
        "### What training gained: final less round-0 model, on the same test images\n\n"
        + _round_0(run.report)
        + table(("hospital", "model", "AUC", "balanced accuracy"), rows)
        + "\n\nBy the interval of the gain in AUC:\n\n"
        + "\n".join(sentences)
    )


def _round_0(report: Report) -> str:
    if report.study["head"] is None:
        return ""
    return (
        "The round-0 model has random weights, but its SVM is fitted just the same: what it reaches is what an SVM makes of "
        "untrained features.\n\n"
    )


def beside_others(report: Report, alone: Mapping[str, Report], at_one_site: Sequence[Report]) -> str:
    """Beside each hospital alone, and beside the same study on all images at one site."""
    hospitals = [site for site in report.sites if site not in report.external_sites]
    if len(hospitals) == 1:
        return ""
    title = "### Beside training apart, and on all images at one site\n\n"
    absent = sorted(set(hospitals) - set(alone))
    not_run = []
    if absent:
        how = "`consilium-server local` with that profile only, and quorum 1"
        not_run.append(f"Not run: {', '.join(absent)} alone with the same study ({how}).")
    if not at_one_site:
        not_run.append("Not run: training on all hospitals' images pooled, the upper bound that no federation has.")
    if absent and not at_one_site:
        not_run.append("So this page can't say whether federating was worth it for any hospital.")
    blocks = [_apart(report, alone), _at_one_site(report, at_one_site), " ".join(not_run)]
    return title + "\n\n".join(block for block in blocks if block)


def _apart(report: Report, alone: Mapping[str, Report]) -> str:
    rows = []
    for site, other in sorted(alone.items()):
        for key, words in HEADS:
            ours: HeadReport | None = getattr(report.sites[site], key)
            own: HeadReport | None = getattr(other.sites[site], key)
            if ours is not None and own is not None:
                rows.append((site, words, figure_text(ours.auc), figure_text(own.auc), figure_text(ours.balanced_accuracy),
                             figure_text(own.balanced_accuracy)))  # fmt: skip
    if not rows:
        return ""
    steps = "The same study, seed, split and number of rounds; alone, a hospital's network sees its own images only."
    titles = (
        "hospital",
        "model",
        "AUC, federated",
        "AUC, alone",
        "balanced accuracy, federated",
        "balanced accuracy, alone",
    )
    return (
        f"{steps} Both columns are of the same test images, but the intervals are not paired: overlap is no proof of equality.\n\n"
        + table(titles, rows)
    )


def _at_one_site(report: Report, others: Sequence[Report]) -> str:
    if not others:
        return ""
    rows = [
        ("several sites", words, head.images, *_cells(head))
        for key, words in HEADS
        if (head := getattr(report.pooled, key)) is not None
    ]
    for other in others:
        rows += [
            (f"one site ({site})", words, head.images, *_cells(head))
            for site, one in other.sites.items()
            for key, words in HEADS
            if (head := getattr(one, key)) is not None
        ]
    return (
        "The same study on all images at one site, whose test part is another one, so that nothing here is paired:\n\n"
        + table(("training", "model", "test images", *_titles(report)), rows)
    )


def recomputed(told: Mapping[str, Any] | None) -> str:
    title = "### Recomputed\n\n"
    if told is None:
        return title + "Not done for this run."
    verdict = "all agree" if told["disagreeing"] == 0 else f"**{told['disagreeing']} disagree**"
    return (
        f"{title}`benchmarks/recompute.py` reads the saved weights and the hospitals' files with other code and computes the figures with "
        f"scikit-learn: {told['counts']} counts, {told['figures']} figures (largest difference {told['largest_difference']:.1g}, "
        f"allowed {told['tolerance']:g}) and {told['interval_ends']} ends of intervals; {verdict}."
    )


def meaning(run: Run) -> str:
    report, study = run.report, run.report.study
    lines = [
        "One run with one seed. Another seed gives another split, other starting weights and other figures, and on a processor that rounds "
        "otherwise the same seed does so too (on one machine a run is the same to the byte). Intervals are about which patients were "
        "tested, and do not hold that: differences of less than a tenth between models say little.",
        f"{study['preprocessing']['size']} pixels and {report.run.rounds_done} round(s) were chosen so that two processor cores finish "
        f"in minutes (starting weights: {_weights(study['model'])}). These are no one's best figures.",
    ]
    if study["head"] is not None:
        lines.append(
            "An SVM is fitted at each hospital on its own training part, the images that the network has been trained on too."
        )
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
            f"{report.positive_class} images differ, which may be why (not tested here)."
        )
    for site in [] if report.pooled.masks is not None else run.scarce():
        if few := _test_positives(report.sites[site], positive):
            lines.append(
                f"{site} has {few} {report.positive_class} test images, on which its sensitivity, balanced accuracy and AUC rest: one "
                f"of them moves its sensitivity by {1 / few:.2f}, and intervals bootstrapped from {few} are too narrow."
                + (" Rows without this hospital are given beside those of all." if len(report.sites) > 1 else ""),
            )
    if report.stand_ins:
        names = ", ".join(sorted(set(report.stand_ins.values())))
        lines.append(
            f"The data names no patients; {names} stands in for the patient in splits and intervals. One patient's images may be in train "
            "and in test, so intervals may be too narrow and figures too high."
        )
    if report.artificial_sites:
        lines.append(
            f"The division among {', '.join(report.artificial_sites)} is artificial: they are parts of one hospital's images, so that they "
            "differ less than hospitals do"
            + (", and the external test is easier than a real one." if report.external_sites else ".")
        )
    elif len(report.sites) > 1:
        lines.append(
            "The hospitals differ in cameras, referral and mix of diagnoses. "
            + (
                "Figures of all together are means over all test images, of which the largest hospital has most."
                if report.pooled.masks is not None
                else "The pooled AUC says how well images are ranked inside a hospital: it is weighted by test images, so a hospital with "
                "few positives counts for as much as it has images."
            )
        )
    return "### What these figures mean and don't\n\n" + "\n".join(f"- {line}" for line in lines)


def _test_positives(site: SiteReport, positive: int) -> int | None:
    return None if site.data is None else site.data.parts["test"].by_class[positive]


def signed(difference: Any) -> str:
    if difference is None:
        return "–"
    return f"{difference.value:+.3f} ({difference.low:+.2f} to {difference.high:+.2f})"


def _seconds(started: str, ended: str | None) -> float | None:
    if ended is None:
        return None
    return (datetime.fromisoformat(ended) - datetime.fromisoformat(started)).total_seconds()


def table(titles: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    head = list(titles)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
