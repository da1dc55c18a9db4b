"""What the record of a run with noise may hold, and whether its figures are what the noised counts give."""

from __future__ import annotations

from fractions import Fraction

from shared.audit.records import RunFiles
from shared.audit.verdict import Check, Findings
from shared.errors import MechanismError
from shared.metrics.noised import figures_from_noised
from shared.noised_answers import differing_masks, exact_in_evaluation, exact_in_preparation, exact_in_training
from shared.results import METRICS, ClassRow, Estimate, HeadResult
from shared.study_privacy import obstacles

EXACT = "the record holds nothing of a hospital's patients that no noise covers"
NOISED = "the figures are those that the noised counts give"


def check_private_record(files: RunFiles) -> list[Check]:
    """No question where the study asks for no noise."""
    if files.study.privacy is None and files.study.evaluation.release is None:
        return []
    return [_nothing_exact(files), _figures(files)]


def _nothing_exact(files: RunFiles) -> Check:
    findings, study, count = Findings(EXACT), files.study, 0
    private = study.privacy
    if private is not None:
        findings.violated += list(obstacles(study))
    for record in files.rounds if private is not None else ():
        held = {site: exact_in_preparation(one) for site, one in record.prepared.items()}
        for site, trained in record.trained.items():
            held[site] = held.get(site, []) + exact_in_training(trained)
            if private is not None and trained.steps != private.steps_per_round:
                findings.violated.append(
                    f"{site}, round {record.round}: {trained.steps} steps, not the study's {private.steps_per_round}"
                )
        count += len(held)
        findings.violated += [
            f"{site}, round {record.round}: {', '.join(names)}" for site, names in held.items() if names
        ]
        if record.sites:
            findings.violated.append(f"round {record.round}: how long {', '.join(record.sites)} took")
    for site, evaluated in files.final.sites.items() if files.final is not None else ():
        count += 1
        if names := exact_in_evaluation(evaluated, study):
            findings.violated.append(f"{site}, evaluation: {', '.join(names)}")
    if private is None:
        findings.notes.append("of the evaluation alone: the rounds of this study have no noise")
    return findings.check(f"{count} sets of figures without counts, losses or times")


def _figures(files: RunFiles) -> Check:
    findings, study, count = Findings(NOISED), files.study, 0
    release = study.evaluation.release
    if files.final is None or release is None:
        findings.absent.append("there is no final evaluation with noise")
        return findings.check("")
    for site, evaluated in sorted(files.final.sites.items()):
        heads = {
            name: head for name, head in (("network", evaluated.network), ("svm", evaluated.svm)) if head is not None
        }
        if evaluated.masks is not None:
            findings.violated.append(f"{site}: figures of masks, which no noise covers")
        if evaluated.noised_masks is not None:
            count += 1
            if (wrong := differing_masks(evaluated.noised_masks, study)) is not None:
                findings.violated.append(f"{site}, masks: {wrong}")
        spent = sum((Fraction(head.noise) for head in heads.values() if head.noise is not None), Fraction(0))
        if spent > Fraction(release.epsilon):
            findings.violated.append(f"{site}: noise of epsilon {spent} in all, the study allows {release.epsilon}")
        for name, head in heads.items():
            count += 1
            if head.noise is None:
                findings.violated.append(f"{site}, {name}: counts without noise")
            elif (wrong := _differs(head, study.task.positive_index, study.evaluation.confidence)) is not None:
                findings.violated.append(f"{site}, {name}: {wrong}")
    return findings.check(f"{count} tables of counts, every figure computed again")


def _differs(head: HeadResult, positive: int, confidence: float) -> str | None:
    """Which figure is another than its counts give. Figures by class that a hospital's policy kept back are undefined, all of them."""
    try:
        overall, rows = figures_from_noised(
            head.confusion, positive=positive, epsilon=float(Fraction(head.noise or "0")), confidence=confidence
        )
    except (ValueError, MechanismError) as problem:
        return f"its counts give no figures: {problem}"
    for name in METRICS:
        if getattr(head, name) != overall[name]:
            return f"{name} is {getattr(head, name).value}, its counts give {overall[name].value}"
    if head.gain is not None or head.histogram is not None:
        return "holds a gain or a histogram, which no noised counts give"
    if len(head.classes) != len(rows) or any(
        found not in (row, _kept_back(row)) for found, row in zip(head.classes, rows, strict=True)
    ):
        return "the figures by class are others than its counts give"
    return None


def _kept_back(row: ClassRow) -> ClassRow:
    undefined = Estimate(value=None)
    return ClassRow(
        images=row.images, precision=undefined, recall=undefined, specificity=undefined, f1=undefined, auc=undefined
    )
