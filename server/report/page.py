"""`report.html`: one file that needs nothing else, made from a `Report`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from server.report import charts, noised_mask_words, noised_words, words
from server.report.charts import Bar, Interval, Series
from server.report.figure_chart import figure_chart, figure_row
from server.report.gain_chart import Change, gain_chart
from server.report.mask_page import mask_values
from server.report.paper import paper_table
from server.report.schema import HeadReport, PooledDifference, PooledHead, Report, SiteReport
from shared.exact import as_float
from shared.metrics.over_classes import NOISED
from shared.privacy.mechanisms import Geometric
from shared.results import Difference
from shared.run_records import Miss

HeadKey = Literal["network", "svm", "svm_paper"]

#: Columns of the tables of figures: field and title.
COLUMNS = (
    ("auc", "AUC"),
    ("balanced_accuracy", "Balanced accuracy"),
    ("sensitivity", "Sensitivity"),
    ("specificity", "Specificity"),
    ("precision", "Precision"),
    ("f1", "F1"),
    ("accuracy", "Accuracy"),
)
CLASS_COLUMNS = (
    ("precision", "Precision"),
    ("recall", "Recall"),
    ("specificity", "Specificity"),
    ("f1", "F1"),
    ("auc", "AUC"),
)
WEIGHTED_COLUMNS = (
    ("precision", "Weighted precision"),
    ("recall", "Weighted recall"),
    ("specificity", "Weighted specificity"),
    ("f1", "Weighted F1"),
)
SITE_PHASES = (
    ("load", "load the model"),
    ("validate", "validate"),
    ("train", "train"),
    ("reply", "build the answer"),
    ("transfer", "transfer"),
    ("wait", "wait for the others"),
)
ROUND_PHASES = (("push", "send"), ("wait", "wait for hospitals"), ("aggregate", "aggregate"), ("checkpoint", "save"))
#: Rounds drawn one bar each; longer runs show their mean only.
MOST_BARS = 24

_REASONS = {
    "no answer": "gave no answer before the deadline",
    "refused": "refused",
    "invalid": "sent an answer that can't be used",
    "offline": "was not online",
}


def render(report: Report) -> str:
    """The page. Everything that comes from the run is escaped; charts are inline SVG; there is no script and no link out."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": words.number,
        "signed": words.signed_number,
        "span": words.span,
        "joined": words.joined,
        "words": words.class_words,
        "short": lambda text: text[:12] if text else "–",
        "thousands": lambda value: f"{value:,}".replace(",", "\u202f"),
        "mib": lambda value: f"{value / 2**20:.1f} MiB",
        "moment": words.moment,
    }
    segmentation = report.kind == "segmentation"
    told = noised_mask_words if segmentation else noised_words
    page = environment.get_template("report.html.j2").render(
        report=report,
        run=report.run,
        summary=told.summary(report),
        headlines=told.headlines(report),
        counted_on=told.counted_on(report),
        noised=noised_words.noised(report),
        private=report.privacy is not None,
        judged=noised_words.judged(report),
        count_noise=_count_noise(report),
        all_name=words.all_hospitals(report),
        name_of=lambda site: words.name_of(report, site),
        main=words.main_head(report),
        heads=_heads(report),
        head_names=words.HEADS,
        columns=_columns(report, COLUMNS),
        class_columns=_columns(report, CLASS_COLUMNS),
        weighted_columns=WEIGHTED_COLUMNS,
        rare_names=[words.class_words(name) for name in report.study["task"].get("rare_classes", [])],
        over_classes_noised=NOISED,
        site_phases=SITE_PHASES,
        round_phases=ROUND_PHASES,
        glossary=told.glossary(report),
        paper=paper_table(report),
        segmentation=segmentation,
        **mask_values(report),
        percent=f"{report.confidence * 100:g} %",
        unit=words.units(report),
        styles={site: index for index, site in enumerate(report.sites)},
        above_chance=lambda head: noised_words.above_chance(report, head),
        too_few=words.too_few,
        improvement=words.improvement,
        swatch=charts.swatch,
        hatch_swatch=charts.hatch_swatch,
        hatchings=charts.hatchings(),
        judged_chart=_judged_chart(report),
        gain_chart=_gain_chart(report),
        curves=_curves(report),
        rocs=_rocs(report),
        confusions=_confusions(report),
        site_bars=_site_bars(report),
        round_bars=_round_bars(report),
        site_means={site: _means(one) for site, one in report.sites.items() if one.timing},
        absences=_absences(report),
        study_text=yaml.safe_dump(report.study, sort_keys=False, allow_unicode=True, width=110),
    )
    return "\n".join(line.rstrip() for line in page.splitlines() if line.strip()) + "\n"


def _heads(report: Report) -> list[HeadKey]:
    """The heads that there are figures for, main one first."""
    order: tuple[HeadKey, ...] = ("svm", "network")
    return [head for head in order if getattr(report.pooled, head) is not None]


def _head_of(site: SiteReport, head: str) -> HeadReport | None:
    found: HeadReport | None = getattr(site, head)
    return found


def _columns(report: Report, columns: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Without the AUC where no score has left."""
    return [one for one in columns if one[0] != "auc" or not noised_words.noised(report)]


def _judged_chart(report: Report) -> Markup | None:
    """The figure that is compared with chance, by hospital and for all."""
    judged, chance = noised_words.judged(report), noised_words.chance(report)
    figure_title = dict(COLUMNS)[judged]
    rows: list[Interval] = []
    for style, (name, site) in enumerate(report.sites.items()):
        for head in _heads(report):
            result = _head_of(site, head)
            if result is not None:
                title = f"{words.name_of(report, name)}, {words.HEADS[head]}"
                rows.append(figure_row(title, style, getattr(result, judged), filled=head == "svm"))
    for head in _heads(report):
        pooled: PooledHead = getattr(report.pooled, head)
        name = f"{words.all_hospitals(report).lower()}, {words.HEADS[head]}"
        rows.append(figure_row(name, 0, getattr(pooled, judged), filled=head == "svm", pooled=True))
    return figure_chart(report, rows, title=figure_title, chance=chance)


def _count_noise(report: Report) -> tuple[str, float] | None:
    """Epsilon of the noise on each table of counts, and its standard deviation; None for exact counts."""
    found = {
        head.noise
        for site in report.sites.values()
        for head in (site.network, site.svm, site.masks)
        if head is not None and head.noise is not None
    }
    if not found:
        return None
    epsilon = min(found, key=as_float)
    return epsilon, math.sqrt(Geometric(as_float(epsilon)).variance)


def _gain_chart(report: Report) -> Markup | None:
    sites = [
        Change(
            f"{words.name_of(report, name)}, {words.HEADS[head]}",
            style,
            _auc_gain(_head_of(site, head)),
            head == "svm",
            False,
        )
        for style, (name, site) in enumerate(report.sites.items())
        for head in _heads(report)
    ]
    name = words.all_hospitals(report).lower()
    together = [
        Change(f"{name}, {words.HEADS[head]}", 0, _auc_gain(getattr(report.pooled, head)), head == "svm", True)
        for head in _heads(report)
    ]
    return gain_chart([*sites, *together], of="AUC")


def _auc_gain(head: HeadReport | PooledHead | None) -> Difference | PooledDifference | None:
    return head.gain.get("auc") if head is not None and head.gain else None


def _curves(report: Report) -> list[tuple[str, str, Markup]]:
    """Title, explanation and chart of every course over the rounds that has a point."""
    sites = list(report.sites.items())
    if not any(site.curve for _, site in sites):
        return []

    numbers = [one.round for one in report.rounds if one.round > 0]

    def training(field: str) -> list[Series]:
        return [Series(name, style, _training_points(site, field, numbers)) for style, (name, site) in enumerate(sites)]

    def validation(field: str) -> list[Series]:
        return [
            Series(name, style, [(number - 1, getattr(points.get(number), field, None)) for number in numbers])
            for style, (name, site) in enumerate(sites)
            for points in [{point.round: point for point in site.curve}]
        ]

    losses = [
        value
        for _, site in sites
        for point in site.curve
        for value in (*point.train_loss, point.validation_loss)
        if value is not None
    ]
    loss_range = (0.0, max(losses, default=1.0))
    on_training = "each hospital's own training images, by local epoch"
    on_validation = "the common model after each round, on each hospital's validation part"
    wanted = (
        ("Training loss", on_training, training("train_loss"), "loss", loss_range),
        ("Validation loss", on_validation, validation("validation_loss"), "loss", loss_range),
        ("Training accuracy", on_training, training("train_accuracy"), "accuracy", (0.0, 1.0)),
        ("Validation accuracy", on_validation, validation("validation_accuracy"), "accuracy", (0.0, 1.0)),
        ("Validation Dice", on_validation, validation("validation_dice"), "mean Dice", (0.0, 1.0)),
        ("Validation AUC", on_validation, validation("validation_auc"), "AUC", (0.0, 1.0)),
    )
    return [
        (title, told, charts.line_chart(series, label=f"{title} by round and hospital", x_label="round", y_label=y, y_range=span))
        for title, told, series, y, span in wanted
        if any(value is not None for one in series for _, value in one.points)
    ]  # fmt: skip


def _training_points(site: SiteReport, field: str, numbers: Sequence[int]) -> list[tuple[float, float | None]]:
    """A point for each local epoch at its place within the round; a gap for a round that the site is no part of."""
    points = {point.round: point for point in site.curve}
    course: list[tuple[float, float | None]] = []
    for number in numbers:
        values: list[float] = getattr(points[number], field) if number in points else []
        course += [(number - 1 + (epoch + 1) / len(values), value) for epoch, value in enumerate(values)] or [
            (number, None)
        ]
    return course


def _rocs(report: Report) -> list[tuple[str, Markup]]:
    drawn: list[tuple[str, Markup]] = []
    for head in _heads(report):
        curves = [
            Series(name, style, [(p.false_positive_rate, p.true_positive_rate) for p in result.roc])
            for style, (name, site) in enumerate(report.sites.items())
            if (result := _head_of(site, head)) is not None and result.roc is not None
        ]
        pooled: PooledHead = getattr(report.pooled, head)
        if pooled.roc is not None and len(curves) > 1:
            points = [(p.false_positive_rate, p.true_positive_rate) for p in pooled.roc.points]
            curves.append(Series("all", charts.ALL, points))
        if curves:
            title = words.HEADS[head]
            drawn.append((title, charts.roc_chart(curves, label=f"ROC curves of the {title} by hospital")))
    return drawn


def _confusions(report: Report) -> list[tuple[str, list[tuple[str, list[list[tuple[int, float]]]]]]]:
    """By hospital (then all): head and its rows of (count, share of the row)."""

    def shares(confusion: Sequence[Sequence[int]]) -> list[list[tuple[int, float]]]:
        """With noise a count, or a whole row, can be below 0."""
        return [
            [(count, min(1.0, max(0.0, count / sum(row))) if sum(row) > 0 else 0.0) for count in row]
            for row in confusion
        ]

    heads = _heads(report)
    found = [
        (
            words.name_of(report, name),
            [
                (words.HEADS[head], shares(result.confusion))
                for head in heads
                if (result := _head_of(site, head)) is not None
            ],
        )
        for name, site in report.sites.items()
    ]
    if heads:
        found.append(
            (
                words.all_hospitals(report),
                [(words.HEADS[head], shares(getattr(report.pooled, head).confusion)) for head in heads],
            )
        )
    return [(name, matrices) for name, matrices in found if matrices]


def _means(site: SiteReport) -> dict[str, float]:
    fields = {phase: "validate_" if phase == "validate" else phase for phase, _ in SITE_PHASES}
    count = len(site.timing)
    return {phase: sum(getattr(one, field) for one in site.timing) / count for phase, field in fields.items()}


def _site_bars(report: Report) -> Markup | None:
    bars = [Bar(name, list(_means(site).values())) for name, site in report.sites.items() if site.timing]
    names = [name for _, name in SITE_PHASES]
    return (
        charts.bar_chart(
            bars, names, label="Mean seconds a round by hospital and phase", x_label="seconds a round, mean"
        )
        if bars
        else None
    )


def _round_bars(report: Report) -> Markup | None:
    timed = [one for one in report.rounds if one.round > 0]
    bars = [Bar(f"round {one.round}", [getattr(one.timing, phase) for phase, _ in ROUND_PHASES]) for one in timed]
    if not bars:
        return None
    if len(bars) > MOST_BARS:
        bars = [Bar("mean", [sum(bar.lengths[i] for bar in bars) / len(bars) for i in range(len(ROUND_PHASES))])]
    names = [name for _, name in ROUND_PHASES]
    return charts.bar_chart(bars, names, label="Seconds by round and phase, coordinator's clock", x_label="seconds")


def _absences(report: Report) -> list[tuple[str, str, str]]:
    """When, who, and why: misses and late answers in order."""

    def told(miss: Miss) -> str:
        return _REASONS[miss.reason] + (f" ({miss.code})" if miss.code else "")

    found = []
    for one in report.rounds:
        when = f"round {one.round}" if one.round else "round 0 (preparation)"
        found += [(when, miss.site, told(miss)) for miss in one.missing]
        found += [(when, site, "its answer to an earlier round came late and was ignored") for site in one.late]
    return found + [("final evaluation", miss.site, told(miss)) for miss in report.not_evaluated]
