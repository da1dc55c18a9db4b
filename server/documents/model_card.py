"""The model card of a run: Mitchell et al., "Model Cards for Model Reporting", FAT* 2019, under the headings of its section 4."""

from __future__ import annotations

from typing import Any

from server.documents.mask_analyses import mask_metrics, mask_tables
from server.documents.parts import Block, Bullets, Document, Facts, Fill, Paragraph, Section, Table, Text
from server.report.noised_words import above_chance, chance, noised
from server.report.page import CLASS_COLUMNS, COLUMNS
from server.report.schema import ClassFigures, HeadReport, PooledHead, Report
from server.report.words import (
    HEADS,
    all_hospitals,
    class_words,
    joined,
    moment,
    name_of,
    units,
    with_interval,
)


def model_card(report: Report) -> Document:
    """Of the run's final model, as far as its records tell."""
    run = report.run
    warning = None
    if report.synthetic:
        warning = f"Synthetic data at {joined(report.synthetic_sites)}: no figure here says anything about patients."
    elif not report.evaluated:
        warning = "The final model was not evaluated: there are no test figures."
    return Document(
        "model-card",
        f"Model card: {report.study['title']}",
        f"Run {run.name}, {moment(run.started)}, {run.state}",
        [
            Section("Model details", [_details(report), Paragraph("Training:"), _training(report)]),
            Section("Intended use", [_use(report)]),
            Section("Factors", _factors(report)),
            Section("Metrics", _metrics(report)),
            Section("Evaluation data", _data(report, ("test",))),
            Section("Training data", _data(report, ("train", "validation"))),
            Section("Quantitative analyses", _analyses(report)),
            Section("Ethical considerations", [_ethics(report)]),
            Section("Caveats and recommendations", [_caveats(report)]),
            Section("Privacy", [_privacy(report)]),
        ],
        warning,
    )


def _details(report: Report) -> Facts:
    run, model = report.run, report.study["model"]
    weights = model["weights"]
    starts = {"none": "random values from the study's seed", "torchvision": "torchvision's published weights"}
    start = starts[weights] if isinstance(weights, str) else f"{weights['file']}: {weights['source']}"
    if model.get("members"):
        start = "its members, as they were (below)"
    options = [f"{model['norm']} norm"] + ([f"{model['attention']} attention"] if model["attention"] != "none" else [])
    rows: list[tuple[str, Text]] = [
        ("Owner", Fill("the coordinator", "person or organisation that develops and answers for the model")),
        ("Date", moment(run.ended or run.started)),
        ("Version", f"run {run.name}, digest {run.final_model}" if run.final_model else f"run {run.name}, not evaluated"),
        ("Type", f"{_kind(report)}: {model['name']}, {', '.join(options)}; {run.parameters:,} parameters, "
                 f"{run.trained_parameters:,} trained"),
        ("Starting point", start),
        ("Frozen", "everything" if model.get("members") else ", ".join(model["freeze"]) or "nothing"),
        ("Answers with", "a mask of the lesion") if report.kind == "segmentation" else ("Classes", _classes(report)),
        ("Software", ", ".join(f"{name} {value}" for name, value in run.versions.items()) + f"; code digest {run.code_digest}"),
        ("Study", f"{report.study['name']}, digest {run.study_digest}"),
        ("Licence", Fill("the owner", "licence of the model and its weights")),
        ("Contact", Fill("the owner", "where questions and reports of errors go")),
        ("Citation", Fill("the owner", "paper or other source, if there is one")),
    ]  # fmt: skip
    return Facts(rows)


def _kind(report: Report) -> str:
    return "segmentation network" if report.kind == "segmentation" else "image classifier"


def _classes(report: Report) -> str:
    return f"{joined([class_words(one) for one in report.classes])}; positive: {class_words(report.positive_class)}"


def _training(report: Report) -> Facts:
    study, run = report.study, report.run
    training, federation, privacy = study["training"], study["federation"], study["privacy"]
    pixels = study["preprocessing"]
    if members := study["model"].get("members", []):
        named = "; ".join(f"{one['file']}: {one['source']}" for one in members)
        return Facts([
            ("Hospitals", joined(list(report.sites))),
            ("Training", "none in this run: the members' probabilities are averaged, each counting alike"),
            ("Members", named),
            ("Input", f"{pixels['size']} x {pixels['size']} pixels, {pixels['channels']} channel(s), {pixels['region']} region"),
        ])  # fmt: skip
    rows: list[tuple[str, Text]] = [
        ("Hospitals", joined(list(report.sites))),
        ("Rounds", f"{run.rounds_done} of {run.rounds_planned}"),
        ("In a round", _round(training, privacy)),
        ("Optimiser", f"{training['optimiser']}, learning rate {training['learning_rate']:g} ({training['schedule']}), loss "
                      f"{training['loss'].replace('_', ' ')}"),
        ("Mean", f"weights {federation['weighting'] if isinstance(federation['weighting'], str) else 'as the study gives them'}, "
                 f"{federation['optimiser']['name']}"),
        ("Input", f"{pixels['size']} x {pixels['size']} pixels, {pixels['channels']} channel(s), {pixels['region']} region"
                  f"{_mask(pixels.get('mask')) if report.kind == 'classification' else ''}"),
        ("Augmentation", _augmentation(study["augmentation"])),
        ("Seed", f"{study['seed']}, one run"),
    ]  # fmt: skip
    return Facts(rows)


def _mask(mask: dict[str, Any] | None) -> str:
    if mask is None:
        return ""
    if mask["from"] == "annotated":
        return ", and the lesion's mask from each hospital's own files"
    return f", and the lesion's mask, predicted by {mask['weights']['file']}: {mask['weights']['source']}"


def _round(training: dict[str, Any], privacy: dict[str, Any] | None) -> str:
    if privacy is None:
        return (
            f"{training['local_epochs']} pass(es) over each hospital's train part, batches of {training['batch_size']}"
        )
    return f"{privacy['steps_per_round']} steps of DP-SGD, each on Poisson-sampled patients (q = {privacy['sampling_rate']})"


def _augmentation(values: dict[str, Any]) -> str:
    """Numbers after their names; of a part with settings of its own the probability."""
    on = [
        f"{name.replace('_', ' ')}{'' if value is True else f' {strength:g}'}"
        for name, value in values.items()
        if value
        for strength in [value["probability"] if isinstance(value, dict) else value]
    ]
    return ", ".join(on) if on else "none"


def _use(report: Report) -> Facts:
    return Facts(
        [
            ("Purpose of the study", report.study["governance"]["purpose"]),
            ("Clinical intended use", Fill("the owner, with the physicians responsible", "for what, in whom, at which step of care")),
            ("Intended users", Fill("the owner", "who uses it, and what they must know")),
            ("Out of scope", "care of patients: this is research software and not a medical device. Other images than those of the layouts "
                             "and the preprocessing above; other hospitals, scanners and populations than those that took part"),
        ]
    )  # fmt: skip


def _factors(report: Report) -> list[Block]:
    devices = sorted({site.machine.device for site in report.sites.values() if site.machine.device})
    return [
        Facts(
            [
                ("Evaluated by", f"hospital, and class of {report.unit}"),
                ("Computed on", joined(devices) if devices else "not known"),
                ("Groups of patients", Fill("each hospital", "age, sex, origin, and whatever else matters; no record of the run holds it")),
                ("Scanners and acquisition", Fill("each hospital", "makers, models, settings")),
            ]
        )
    ]  # fmt: skip


def _metrics(report: Report) -> list[Block]:
    confidence = f"{100 * report.confidence:g} %"
    if report.kind == "segmentation":
        return mask_metrics(report)
    if noised(report):
        how = (
            "All figures are computed from confusion counts with two-sided geometric noise, one vote a test patient. The "
            f"{confidence} intervals "
            "account for the choice of patients and for the noise. There is no AUC, since no score leaves a hospital."
        )
    else:
        how = f"{confidence} intervals by bootstrap, resampled by patient at each hospital; over all hospitals as the report says."
    return [
        Paragraph(how),
        Paragraph(
            f"Sensitivity, specificity, precision and F1 are of the positive class ({class_words(report.positive_class)}). The "
            "network answers "
            "at the threshold of one half, or with the likeliest class; no threshold was tuned."
        ),
        Paragraph(
            Fill("the owner", "which errors matter most for the intended use, and what would be good enough")
        ),
    ]  # fmt: skip


def _data(report: Report, parts: tuple[str, ...]) -> list[Block]:
    rows: list[list[str]] = []
    for name, site in report.sites.items():
        if site.data is None or not site.data.parts:
            rows.append([name, ", ".join(parts), *(["not told"] * (2 + len(report.classes)))])
            continue
        for part, counts in site.data.parts.items():
            if part in parts:
                by_class = [str(one) for one in counts.by_class]
                rows.append([name, part, str(counts.patients), str(counts.images), *by_class])
    header = ["Hospital", "Part", "Patients", units(report).capitalize(), *(class_words(one) for one in report.classes)]
    caption = (
        "In a private run how many patients a hospital has is private too."
        if report.privacy is not None
        else "Divided by patient: no patient is in two parts."
    )
    facts: list[tuple[str, Text]] = [
        ("Synthetic", joined(report.synthetic_sites) if report.synthetic else "none, as the hospitals declare"),
        (
            "Patients",
            "; ".join(f"{site}: {one} stands in for the patient" for site, one in report.stand_ins.items())
            if report.stand_ins
            else "by the hospitals' own ids",
        ),
        (
            "Artificial division",
            joined(report.artificial_sites) if report.artificial_sites else "none, as the hospitals declare",
        ),
        ("Selected", _selected(report.study["data"]["select"])),
    ]
    if "train" in parts:
        facts.append(("Origin", Fill("each hospital", "how, when and from whom the images and labels were collected")))
    return [Table(caption, header, rows), Facts(facts)]


def _selected(select: dict[str, list[str]]) -> str:
    return "; ".join(f"{name} is {' or '.join(values)}" for name, values in select.items()) if select else "all records"


def _analyses(report: Report) -> list[Block]:
    if report.pooled.masks is not None:
        return mask_tables(report, report.pooled.masks)
    heads = [head for head in ("svm", "network") if getattr(report.pooled, head) is not None]
    if not heads:
        return [Paragraph("None: no hospital sent an evaluation of the final model.")]
    blocks: list[Block] = []
    for head in heads:
        pooled: PooledHead = getattr(report.pooled, head)
        columns = [one for one in COLUMNS if one[0] != "auc" or not noised(report)]
        rows = [
            [name, *(with_interval(getattr(result, field)) for field, _ in columns)]
            for name, site in report.sites.items()
            if (result := getattr(site, head)) is not None and name not in report.external_sites
        ]
        rows.append([all_hospitals(report), *(with_interval(getattr(pooled, field)) for field, _ in columns)])
        rows += [
            [name_of(report, name), *(with_interval(getattr(result, field)) for field, _ in columns)]
            for name in report.external_sites
            if (result := getattr(report.sites[name], head)) is not None
        ]
        blocks.append(
            Table(
                f"{_head_name(report, head)}, final model, by hospital.",
                ["Hospital", *(title for _, title in columns)],
                rows,
            )
        )
        blocks.append(_by_class(report, head, pooled.classes))
        blocks.append(Paragraph(_verdict(report, head, pooled)))
    return blocks


def _head_name(report: Report, head: str) -> str:
    if head == "network":
        return "The network"
    return (
        "Private linear SVM, fitted at each hospital" if report.privacy is not None else "SVM, fitted at each hospital"
    )


def _by_class(report: Report, head: str, classes: list[ClassFigures]) -> Table:
    columns = [one for one in CLASS_COLUMNS if one[0] != "auc" or not noised(report)]
    return Table(
        f"{_head_name(report, head)}, {all_hospitals(report).lower()}, each class against all others.",
        ["Class", *(title for _, title in columns)],
        [[class_words(one.name), *(with_interval(getattr(one, field)) for field, _ in columns)] for one in classes],
    )


def _verdict(report: Report, head: str, pooled: HeadReport | PooledHead) -> str:
    figure = "balanced accuracy" if noised(report) else "AUC"
    shown = above_chance(report, pooled) == "shown"
    said = "is shown to be above chance" if shown else "is not shown to be above chance"
    gain = pooled.gain.get("auc") if pooled.gain else None
    learned = (
        f" Against the model of round 0 the AUC changed by {gain.value:+.2f} ({gain.low:+.2f} to {gain.high:+.2f})."
        if gain is not None
        else " What the rounds taught is not known: there is no evaluation of round 0."
    )
    return f"Over {all_hospitals(report).lower()} the {figure} of the {HEADS[head]} {said} ({chance(report):.2f}).{learned}"


def _ethics(report: Report) -> Facts:
    governance = report.study["governance"]
    return Facts(
        [
            ("Ethics, as the study says", governance["ethics"]),
            ("Ethics approval beyond that", Fill("each hospital", "vote, date, conditions")),
            ("Retention", governance["retention"]),
            ("Data", "images of patients; they never left the hospitals. See Privacy for what did"),
            ("Risks and harms", Fill("the owner, with the physicians responsible", "what a wrong answer does, and how it is caught")),
        ]
    )  # fmt: skip


def _caveats(report: Report) -> Bullets:
    items: list[Text] = []
    if report.synthetic:
        items.append(f"Synthetic data ({joined(report.synthetic_sites)}): the figures say nothing about patients.")
    for site, stand_in in report.stand_ins.items():
        items.append(
            f"{site} has no patient id; {stand_in} stands in for it, so one person's images may lie in several parts."
        )
    if report.not_evaluated:
        items.append(f"Not evaluated at {joined([one.site for one in report.not_evaluated])}.")
    if report.artificial_sites:
        items.append(
            f"Artificial division ({joined(report.artificial_sites)}): parts of a published set stand for hospitals that do not exist."
        )
    outside = joined(report.external_sites)
    items += [
        f"{outside} never trained and tested the model as an outsider; all other test patients come from the hospitals that trained."
        if report.external_sites
        else "The test patients come from the hospitals that trained. How the model does at another hospital is not known.",
        "It is one training run with one seed; the intervals do not cover another run.",
        "The true masks are what one way of drawing gave; how far two experts' masks differ was not measured."
        if report.kind == "segmentation"
        else "Precision depends on how common the positive class is in these test parts.",
        "Whether federating was worth it for a hospital, against training alone, was not measured.",
    ]
    if report.privacy is not None:
        items.append("The noise of training costs accuracy, and costs rare classes most; by how much was not measured.")
    items.append(Fill("the owner", "what must be done before anybody relies on it: validation elsewhere, monitoring"))
    return Bullets(items)


def _privacy(report: Report) -> Paragraph:
    found = report.privacy
    if found is None:
        return Paragraph(
            "Trained without differential privacy: there is no bound on what the model says about a patient it was trained on. See the "
            "privacy statement."
        )
    again = [one.epsilon_begun_again or one.epsilon for one in found.sites.values()]
    return Paragraph(
        f"Trained and evaluated with differential privacy by patient: epsilon {max([found.epsilon_pld, *again]):.3f} at delta "
        f"{found.delta} for "
        "each patient of each hospital, all releases together. See the privacy statement."
    )
