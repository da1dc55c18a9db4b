"""The report's sentences where only noised counts have left: no score, so no AUC and no gain; balanced accuracy takes their place."""

from __future__ import annotations

from server.report.schema import Figure, HeadReport, PooledHead, Report
from server.report.words import (
    GLOSSARY,
    HEADS,
    Headline,
    HeadName,
    Proof,
    Statement,
    all_hospitals,
    class_words,
    course,
    external_test,
    found_text,
    joined,
    kept_apart,
    main_head,
    number,
    too_few,
    units,
)
from server.report.words import headlines as plain_headlines
from server.report.words import summary as plain_summary

INTERVAL = (
    "Had other patients come, or had the noise fallen otherwise, the figures would be others. The interval says how far they "
    "might be off for both reasons. It does not cover other hospitals, other scanners, or another training run."
)
EPSILON = (
    "How much the presence of one patient can change what leaves a hospital: no outcome becomes more likely by more than the "
    "factor e to the power of epsilon, but for a failure of probability delta. Smaller is more private; 0 tells nothing."
)


def noised(report: Report) -> bool:
    """Whether the figures come from counts with noise."""
    return any(
        one is not None and one.noise is not None
        for site in report.sites.values()
        for one in (site.network, site.masks)
    )


def summary(report: Report) -> list[Statement]:
    """The report in a few sentences."""
    head = main_head(report)
    if head is None or not noised(report):
        said = plain_summary(report)
        return [said[0], *privacy(report), *said[1:]]
    pooled: PooledHead = getattr(report.pooled, head)
    counted = (
        f"{found_text(report, head, pooled)} The hospitals' counts left with noise: they add up to about "
        f"{pooled.sensitivity.images} {class_words(report.positive_class)} and {pooled.specificity.images} other test patients at "
        f"{len(pooled.sites)} {'hospital' if len(pooled.sites) == 1 else 'hospitals'}, {kept_apart(report, pooled)}; each has one vote. "
        "The intervals account for the noise."
    )
    return [
        course(report),
        *privacy(report),
        Statement(counted, "plain", "counted"),
        _balanced(report, head, pooled),
        _each_site(report, head),
        *external_test(report),
        Statement(
            "What the rounds taught is not known: figures leave once, of the final model, so there is none of round 0. No AUC is known, "
            "since no score leaves. Whether a hospital would have done as well alone was not measured either.",
            "plain",
            "not measured",
        ),
    ]


def headlines(report: Report) -> list[Headline]:
    """The large figures over all hospitals."""
    found = plain_headlines(report)
    if not noised(report):
        return found
    return [with_noise(one) for one in found]


def with_noise(one: Headline) -> Headline:
    """A large figure whose interval says that it knows of the noise."""
    return Headline(one.value, one.interval.replace(" interval)", " interval, noise included)"), one.meaning)


def counted_on(report: Report) -> str:
    """Below the large figures: whom they are about."""
    head = main_head(report)
    if head is None:
        return ""
    pooled: PooledHead = getattr(report.pooled, head)
    about = "counts with noise" if pooled.patients is None else f"{pooled.patients} test patients"
    return f"{HEADS[head]}, {all_hospitals(report).lower()} together, {about}."


def judged(report: Report) -> str:
    """The figure that is compared with chance."""
    return "balanced_accuracy" if noised(report) else "auc"


def chance(report: Report) -> float:
    """What always giving one answer reaches, of the figure that is judged."""
    return 1.0 / len(report.classes) if noised(report) else 0.5


def above_chance(report: Report, head: HeadReport | PooledHead) -> Proof:
    """Whether the judged figure's interval lies above chance; nothing is called shown on too few images."""
    figure: Figure = getattr(head, judged(report))
    if figure.low is None:
        return "plain"
    return "shown" if figure.low > chance(report) and not too_few(head) else "not shown"


def glossary(report: Report) -> dict[str, str]:
    """The terms that this page uses."""
    terms = dict(GLOSSARY)
    if noised(report):
        terms = {term: meaning for term, meaning in terms.items() if term != "AUC"}
        terms["Interval"] = INTERVAL
    if report.privacy is not None:
        terms = {term: meaning for term, meaning in terms.items() if term not in ("Loss", "Network and SVM")}
        if report.study["privacy"]["svm"] is not None:
            terms["Network and SVM"] = (
                "Two ways to answer from the same common network: its own last layer, and a linear support vector machine on random "
                "Fourier features that each hospital fits with noise on its own training images, and that never leaves it."
            )
        terms["Epsilon, delta"] = EPSILON
    return terms


def privacy(report: Report) -> list[Statement]:
    """What a private run costs a patient; none of a plain one."""
    found = report.privacy
    if found is None:
        return []
    again = [site.epsilon_begun_again or site.epsilon for site in found.sites.values()]
    text = (
        f"Each patient is protected by differential privacy with epsilon {max([found.epsilon_pld, *again]):.2f} at delta {found.delta}: "
        "with or without one patient of a hospital, and all images of that patient, anything that left the hospital is about as likely, "
        "up to the factor e to the power of epsilon. “Privacy” below says what is covered."
    )
    return [Statement(text, "plain", "privacy")]


def _balanced(report: Report, head: HeadName, pooled: PooledHead) -> Statement:
    figure, level = pooled.balanced_accuracy, chance(report)
    proof = above_chance(report, pooled)
    text = (
        f"Of 100 {units(report)}, each class counting alike, the {HEADS[head]} gives {_hundred(figure)} their class; chance would be "
        f"{100 * level:.0f}. "
        + {
            "shown": "The interval lies above chance.",
            "not shown": "It is not shown to be better than chance"
            + (": too few were counted." if too_few(pooled) else ": the interval includes it."),
            "plain": "There is no interval, so nothing is shown.",
            "worse": "",
        }[proof]
    )
    return Statement(text, proof if figure.low is not None else "not shown")


def _each_site(report: Report, head: HeadName) -> Statement:
    results = {
        site: result
        for site, one in report.sites.items()
        if site not in report.external_sites and (result := getattr(one, head)) is not None
    }
    shown = [site for site, result in results.items() if above_chance(report, result) == "shown"]
    open_ = [site for site in results if site not in shown]
    if not open_:
        return Statement(
            f"At each hospital taken alone, the {HEADS[head]}'s balanced accuracy is above chance ({joined(shown)}).",
            "shown",
        )
    text = f"Taken alone, the {HEADS[head]}'s balanced accuracy is not shown to be above chance at {joined(open_)}"
    text += f"; at {joined(shown)} it is." if shown else "."
    return Statement(text, "not shown")


def _hundred(figure: Figure) -> str:
    if figure.value is None:
        return "an unknown number"
    text = number(100 * figure.value, 0)
    return (
        f"{text} ({100 * figure.low:.0f} to {100 * figure.high:.0f})"
        if figure.low is not None and figure.high is not None
        else text
    )
