"""The report's sentences, computed from its figures, and how a figure is written."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from server.report.schema import Figure, HeadReport, PooledDifference, PooledHead, PooledMasks, Report
from shared.results import Difference

#: What an interval lets one say. `plain` is a statement that no interval is about.
Proof = Literal["shown", "not shown", "worse", "plain"]

#: Fewer test images than this of either side, and an interval by resampling them says little.
FEWEST_FOR_A_VERDICT = 10

HEADS = {"svm": "SVM", "svm_paper": "SVM, the study's own C and gamma", "network": "network"}
HeadName = Literal["network", "svm"]
BOTH: tuple[HeadName, ...] = ("svm", "network")

#: The metrics in plain words, in the order of the tables.
GLOSSARY = {
    "AUC": "Take one image of the positive class and one other at random: how often does the model rank the positive one higher? 0.5 is "
    "chance, 1 is perfect. It needs no threshold. For more than two classes it is the mean over the classes, each against the rest.",
    "Balanced accuracy": "For each class, the share of its images that were recognised; then the mean over the classes. Unlike accuracy it "
    "can't be raised by always answering with the commonest class; always giving one answer scores 1 divided by the number of classes.",
    "Sensitivity": "Of the images of the positive class, the share that was called positive (also: recall, true-positive rate).",
    "Specificity": "Of all other images, the share that was not called positive.",
    "Precision": "Of the images called positive, the share that is (also: positive predictive value). It depends on how common the "
    "positive class is in the test part.",
    "F1": "One figure for precision and sensitivity together: their harmonic mean.",
    "Accuracy": "The share of all images given their true class.",
    "Interval": "Had other patients come, the figures would be others. The interval says how far they might be off for that reason: "
    "patients (not images) are drawn anew many times and the figure is computed each time. It does not cover other hospitals, "
    "other scanners, or another training run.",
    "Loss": "What training makes small: how wrong the predicted probabilities are, on average. Only its course matters here.",
    "Round": "The coordinator sends the common model to every hospital, each trains it on its own images, and the coordinator puts the "
    "results together into the next common model. Round 0 is the model before any training.",
    "Network and SVM": "Two ways to answer from the same common network: its own last layer, trained in the rounds like the rest; and a "
    "support vector machine that each hospital fits afterwards on its own training images, and that never leaves it.",
}


@dataclass(frozen=True, slots=True)
class Statement:
    """A sentence of the summary and what the intervals let it claim."""

    text: str
    proof: Proof
    label: str = ""


@dataclass(frozen=True, slots=True)
class Headline:
    """One of the large figures: `value` of 100 with its interval in words, and what it counts."""

    value: str
    interval: str
    meaning: str


def summary(report: Report) -> list[Statement]:
    """The report in a few sentences."""
    said = [course(report)]
    head = main_head(report)
    if head is None:
        return [*said, no_evaluation(report), *external_test(report)]
    pooled: PooledHead | None = getattr(report.pooled, head)
    if pooled is not None:
        said += [_found(report, head, pooled), _ranked(report, head, pooled)]
        if report.run.rounds_planned > 0:
            said += [_learned(report, name) for name in BOTH if getattr(report.pooled, name) is not None]
        said.append(_each_site(report, head))
    said += external_test(report)
    said.append(
        Statement(
            "Whether a hospital would have done as well with its own images alone was not measured in this run"
            + (": the gain above is of training, not of sharing." if report.run.rounds_planned > 0 else "."),
            "plain",
            "not measured",
        )
    )
    return said


def headlines(report: Report) -> list[Headline]:
    """The large figures over all hospitals: found, cleared, ranked. Empty without an evaluation."""
    head = main_head(report)
    if head is None:
        return []
    pooled: PooledHead = getattr(report.pooled, head)
    positive, many = class_words(report.positive_class), units(report)
    two = len(report.classes) == 2
    wanted = (
        (pooled.sensitivity, f"of every 100 {positive} {many} were found"),
        (pooled.specificity, f"of every 100 other {many} were {'cleared' if two else f'not called {positive}'}"),
        (
            pooled.auc,
            f"of 100 pairs ({f'one {positive}, one other' if two else 'two classes'}) were ranked rightly; chance is 50",
        ),
        (
            pooled.balanced_accuracy,
            f"of 100 {many} were given their class, each class counting alike; chance is {100 / len(report.classes):.0f}",
        ),
    )
    return [
        Headline(f"{figure.value * 100:.0f}", interval_of_hundred(report, figure), meaning)
        for figure, meaning in wanted
        if figure.value is not None
    ]


def interval_of_hundred(report: Report, figure: Figure) -> str:
    """`79 to 92 (95 % interval)`."""
    if figure.low is None or figure.high is None:
        return "no interval"
    return f"{figure.low * 100:.0f} to {figure.high * 100:.0f} ({_percent(report)} interval)"


def main_head(report: Report) -> HeadName | None:
    """The SVM where the study has one, else the network: chosen by the study, never by its figures."""
    if report.pooled.svm is not None:
        return "svm"
    return "network" if report.pooled.network is not None else None


def all_hospitals(report: Report) -> str:
    """What the pooled rows are called; says so where a hospital is not part of them."""
    head, masks = main_head(report), report.pooled.masks
    part = len(getattr(report.pooled, head).sites) if head else len(masks.sites) if masks is not None else 0
    every = len(report.sites.keys() - set(report.external_sites))
    whose = "that trained" if report.external_sites else "hospitals"
    return f"All {whose}" if part == every else f"{part} of {every} {whose}"


def external_test(report: Report) -> list[Statement]:
    """What hospitals that never trained found; a statement for each."""
    said = []
    for site in report.external_sites:
        head = report.sites[site].network
        if head is None:
            text = f"{site} was to test the final network as an outsider, and sent no evaluation."
            said.append(Statement(text, "plain", "not measured"))
            continue
        figure, name = (head.balanced_accuracy, "balanced accuracy") if head.auc.value is None else (head.auc, "AUC")
        on = (
            f"{head.images} {units(report)} of {head.patients} patients"
            if head.images is not None
            else "counts with noise"
        )
        text = (
            f"External test: at {site}, which never trained, the network has {name} {number(figure.value)} ({_percent(report)} interval "
            f"{span(figure) or 'not known'}) on {on}; sensitivity {number(head.sensitivity.value)}, specificity "
            f"{number(head.specificity.value)}."
        )
        said.append(Statement(text, "plain", "external test"))
    return said


def name_of(report: Report, site: str) -> str:
    """The site, with what must be known of it wherever it stands beside others."""
    return f"{site} (external test)" if site in report.external_sites else site


def moment(text: str) -> str:
    """`2 March 2026, 08:04 UTC` for an ISO 8601 time; anything else as it is."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{when.day} {when:%B %Y, %H:%M} {when.tzname() or ''}".rstrip()


def units(report: Report, count: int | None = None) -> str:
    """`finding` or `findings`, by the study's unit."""
    return report.unit if count == 1 else f"{report.unit}s"


def class_words(name: str) -> str:
    """A class name for reading."""
    return name.replace("_", " ")


def too_few(head: HeadReport | PooledHead) -> bool:
    """Whether the test part holds so few images of the positive class, or of the others, that a bootstrap can't be believed."""
    return min(head.sensitivity.images, head.specificity.images) < FEWEST_FOR_A_VERDICT


def above_chance(head: HeadReport | PooledHead) -> Proof:
    """Whether the AUC's interval lies above 0.5; nothing is called shown on too few images."""
    if head.auc.low is None:
        return "plain"
    return "shown" if head.auc.low > 0.5 and not too_few(head) else "not shown"


def improvement(gain: Difference | PooledDifference) -> Proof:
    """Whether a difference's interval lies on one side of 0."""
    return "shown" if gain.low > 0 else "worse" if gain.high < 0 else "not shown"


def number(value: float | None, digits: int = 2) -> str:
    """`0.86`, or a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def signed_number(value: float, digits: int = 2) -> str:
    """`+0.31`, `−0.02`."""
    return f"{value:+.{digits}f}".replace("-", "−")


def span(figure: Figure) -> str:
    """`0.79 to 0.92`, or empty where there is no interval."""
    return "" if figure.low is None or figure.high is None else f"{figure.low:.2f} to {figure.high:.2f}"


def with_interval(figure: Figure) -> str:
    """`0.85 (0.79 to 0.92)`, or the figure alone."""
    interval = span(figure)
    return f"{number(figure.value)} ({interval})" if interval else number(figure.value)


def joined(names: list[str]) -> str:
    """`north, harbour and hill`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "none"


def course(report: Report) -> Statement:
    """Who trained, and how it ended."""
    sites = [site for site in report.sites if site not in report.external_sites]
    hospitals = f"{len(sites)} hospitals ({joined(sites)})" if len(sites) != 1 else f"One hospital ({sites[0]})"
    run = report.run
    if run.rounds_planned == 0 and run.state == "finished":
        members = len(report.study["model"].get("members", []))
        what = f"the mean answer of {members} earlier runs' models" if members else "the starting model"
        return Statement(f"{hospitals} tested {what}. Nothing was trained.", "plain", "the run")
    rounds = "1 round" if run.rounds_done == 1 else f"{run.rounds_done} rounds"
    if run.state == "finished":
        return Statement(
            f"{hospitals} trained one common network in {rounds}, without sharing an image.", "plain", "the run"
        )
    ending = {"stopped": "was stopped", "failed": "failed"}.get(run.state, "has not ended")
    reason = f": {run.reason.rstrip('.')}" if run.reason else ""
    return Statement(
        f"{hospitals} took part. The run {ending} after {rounds} of {run.rounds_planned}{reason}.", "plain", "the run"
    )


def no_evaluation(report: Report) -> Statement:
    """That there are no test figures."""
    if report.run.state == "finished":
        return Statement(
            "No hospital sent an evaluation of the final model, so there are no test figures.", "plain", "not measured"
        )
    return Statement(
        "The final model was not evaluated, so there are no test figures in this report. What the rounds did is below.",
        "plain",
        "not measured",
    )


def _percent(report: Report) -> str:
    return f"{report.confidence * 100:g} %"


def of_hundred(report: Report, figure: Figure, *, first: bool) -> str:
    """The figure as so many of a hundred, with its interval; `first` names the interval."""
    if figure.value is None:
        return "an unknown number"
    if figure.low is None or figure.high is None:
        return f"{figure.value * 100:.0f}"
    interval = f"{_percent(report)} interval " if first else ""
    return f"{figure.value * 100:.0f} ({interval}{figure.low * 100:.0f} to {figure.high * 100:.0f})"


def kept_apart(report: Report, pooled: PooledHead | PooledMasks) -> str:
    """That no test patient was trained on, as far as the data can say."""
    ids = sorted({report.stand_ins[site] for site in pooled.sites if site in report.stand_ins})
    if not ids:
        return "none of whom was trained on"
    one = joined(ids)
    return f"where {one} stands in for the patient: nothing of one {one} is both in training and in test, but a patient may be"


def found_text(report: Report, head: HeadName, pooled: PooledHead) -> str:
    """How many of a hundred were found, and how many cleared."""
    positive, many = class_words(report.positive_class), units(report)
    passed = "did not call so" if len(report.classes) > 2 else "rightly cleared"
    return (
        f"Of every 100 {positive} {many}, the {HEADS[head]} found {of_hundred(report, pooled.sensitivity, first=True)}; of every 100 "
        f"others it {passed} {of_hundred(report, pooled.specificity, first=False)}."
    )


def _found(report: Report, head: HeadName, pooled: PooledHead) -> Statement:
    text = (
        f"{found_text(report, head, pooled)} This was counted on {pooled.sensitivity.images} {class_words(report.positive_class)} and "
        f"{pooled.specificity.images} other test {units(report)} of {pooled.patients} patients at {len(pooled.sites)} "
        f"{'hospital' if len(pooled.sites) == 1 else 'hospitals'}, {kept_apart(report, pooled)}."
    )
    return Statement(text, "plain", "counted")


def _ranked(report: Report, head: HeadName, pooled: PooledHead) -> Statement:
    auc = pooled.auc
    kind = class_words(report.positive_class)
    pair = (
        f"a {kind} and another {report.unit} of the same hospital, it ranks the {kind} one"
        if len(report.classes) == 2
        else f"one {report.unit} of a class and one of another at the same hospital, it ranks (on average over the classes) the right one"
    )
    text = (
        f"Shown {pair} higher in {of_hundred(report, auc, first=True)} of 100 pairs (AUC {number(auc.value)}); chance would be 50. "
        + {
            "shown": "The interval lies above chance.",
            "not shown": "The interval includes chance: it is not shown to be better than a coin.",
            "plain": "There is no interval, so nothing is shown.",
            "worse": "",
        }[above_chance(pooled)]
    )
    return Statement(text, above_chance(pooled) if auc.low is not None else "not shown")


def _learned(report: Report, head: HeadName) -> Statement:
    pooled: PooledHead = getattr(report.pooled, head)
    gain = pooled.gain.get("auc") if pooled.gain else None
    return taught(report, gain, whom=f"the {HEADS[head]}", what=f"the {HEADS[head]}'s AUC")


def taught(report: Report, gain: PooledDifference | None, *, whom: str, what: str) -> Statement:
    """What the rounds changed: `what`, a figure of `whom`, by `gain`; None where there is no evaluation of round 0."""
    if gain is None:
        return Statement(f"What the rounds taught {whom} is not known: there is no evaluation of round 0.", "plain")
    start = "untrained" if report.study["model"]["weights"] == "none" else "starting"
    proof = improvement(gain)
    text = (
        f"The rounds changed {what} by {signed_number(gain.value)} ({signed_number(gain.low)} to {signed_number(gain.high)}) "
        f"against the {start} network of round 0, on the same images. "
        + {
            "shown": "The interval lies above 0: the improvement is shown.",
            "not shown": "The interval includes 0: no improvement is shown.",
            "worse": "The interval lies below 0: training made it worse.",
            "plain": "",
        }[proof]
    )
    return Statement(text, proof)


def _each_site(report: Report, head: HeadName) -> Statement:
    results = {
        site: result
        for site, one in report.sites.items()
        if site not in report.external_sites and (result := getattr(one, head)) is not None
    }
    shown = [site for site, result in results.items() if above_chance(result) == "shown"]
    open_ = [site for site in results if site not in shown]
    if not open_:
        text = f"At each hospital taken alone, the {HEADS[head]}'s AUC is above chance ({joined(shown)})."
        return Statement(text, "shown")
    few = [site for site in open_ if too_few(results[site])]
    text = f"Taken alone, the {HEADS[head]}'s AUC is not shown to be above chance at {joined(open_)}"
    text += f"; at {joined(shown)} it is." if shown else "."
    if few:
        text += f" The test part of {joined(few)} holds fewer than {FEWEST_FOR_A_VERDICT} {units(report)} of a class: too few to say."
    return Statement(text, "not shown")
