"""The privacy statement of a run, in the terms of NIST SP 800-226, Guidelines for Evaluating Differential Privacy Guarantees (2025)."""

from __future__ import annotations

from importlib.metadata import version

from server.documents.no_privacy import without_privacy
from server.documents.parts import Bullets, Document, Facts, Fill, Paragraph, Section, Table
from server.documents.trust import checking, trust
from server.report.schema import Report
from server.report.schema_privacy import PrivacyReport
from server.report.words import moment
from shared.audit.epsilon import check_epsilon
from shared.exact import as_float
from shared.study import Study
from shared.study_cost import study_events
from shared.study_mask import PredictedMask

TITLE = "Privacy statement"


def privacy_statement(report: Report, study: Study) -> Document:
    """For a plain run it says plainly that there is no bound."""
    run = report.run
    made = f"Run {run.name} of study {study.name} ({report.study['title']}), {moment(run.started)}, {run.state}"
    if report.privacy is None:
        return Document(
            "privacy-statement", TITLE, made, without_privacy(report, study),
            warning="This run has no differential privacy: there is no bound on what its releases say about a patient.",
        )  # fmt: skip
    return Document(
        "privacy-statement", TITLE, made, _private(report, report.privacy, study), warning=_unfinished(report)
    )


def _unfinished(report: Report) -> str | None:
    if report.run.state == "finished":
        return None
    return "The run has not finished. Everything that was reserved for it counts until each hospital closes it."


def _private(report: Report, privacy: PrivacyReport, study: Study) -> list[Section]:
    return [
        Section(
            "The guarantee",
            [
                Paragraph(
                    f"For each hospital by itself, everything that left it in this run is differentially private with epsilon "
                    f"{_most(privacy):.4f} and delta {privacy.delta}, for one patient with all images, added or removed. Whoever "
                    "sees all of it, "
                    "and knows everything else about all other patients, can change the odds of a guess about that patient by no more than "
                    "the factor e to the power of epsilon, but for a failure of probability delta."
                )
            ],
        ),
        Section("Unit of privacy and neighbouring relation", [_unit(report)]),
        Section("Privacy parameters", _parameters(privacy)),
        Section("Every release", _releases(report, privacy, study)),
        Section("Accounting", _accounting(privacy, study)),
        Section("Trust model", trust(private=True)),
        Section("Assumptions", _assumptions(study)),
        Section("What is not covered", _not_covered()),
        Section("Data before and after", _around(study)),
        Section("Checking this statement", checking(report)),
        Section("Responsible", _responsible()),
    ]


def _most(privacy: PrivacyReport) -> float:
    return max([privacy.epsilon_pld, *(one.epsilon_begun_again or one.epsilon for one in privacy.sites.values())])


def _unit(report: Report) -> Facts:
    stand_ins = [f"{site}: one {id_}, which stands in for the patient" for site, id_ in report.stand_ins.items()]
    return Facts(
        [
            ("Unit of privacy", "one patient of one hospital, with all images and records of that patient there"),
            ("Where an id stands in", "; ".join(stand_ins) if stand_ins else "nowhere: the hospitals have ids of patients"),
            ("Neighbouring datasets", "differ by one such patient added or removed (unbounded differential privacy)"),
            ("Replacing a patient", "is a removal and an addition: a group of two"),
            ("Groups", "of k patients (a family, one person under k ids): k times the epsilon, and delta times "
                       "(exp(k epsilon) - 1) / (exp(epsilon) - 1)"),
        ]
    )  # fmt: skip


def _parameters(privacy: PrivacyReport) -> list[Facts | Table | Paragraph]:
    rows = []
    for site, one in privacy.sites.items():
        again = "–"
        if one.begun_again:
            again = str(one.begun_again)
            again += f", epsilon {one.epsilon_begun_again:.4f} with them" if one.epsilon_begun_again is not None else ""
        elif one.source == "ledger":
            again = "none"
        charged = "–"
        if one.charged is not None and one.lifetime_epsilon is not None:
            charged = f"{one.charged:.4f} of {one.lifetime_epsilon} at delta {one.lifetime_delta}"
        says = "its signed RESERVE entry" if one.source == "ledger" else "the study; no signed entry is at hand"
        rows.append([site, f"{one.epsilon:.4f}", one.delta, says, again, charged])
    return [
        Facts(
            [
                ("The whole run", f"epsilon {privacy.epsilon_pld:.4f} (PLD) at delta {privacy.delta}, as the study asks for it"),
                ("Charged to a lifetime", f"epsilon {privacy.epsilon_rdp:.4f} (RDP), an upper bound that adds up over studies"),
            ]
        ),
        Table(
            "By hospital. Budget for life: what whichever patient of the cohort had most was charged, this run included (RDP).",
            ["Hospital", "Epsilon", "Delta", "According to", "Rounds begun again", "Budget for life"],
            rows,
        ),
        Paragraph(
            "Epsilons of hospitals are not added: each is about its own patients. A patient of two hospitals is charged at each, and what "
            "both cost together is at most the sum (of epsilons, and of deltas), which no ledger sees."
        ),
    ]  # fmt: skip


def _releases(report: Report, privacy: PrivacyReport, study: Study) -> list[Table | Bullets]:
    rows = []
    for one in privacy.releases:
        rows.append([one.what, str(one.times), one.mechanism, f"{one.epsilon_rdp:.4f}"])
    clipping = study.privacy.clipping_norm if study.privacy is not None else ""
    return [
        Table("Of each hospital, one by one.", ["Release", "Times", "Mechanism and its constants", "Alone, epsilon (RDP)"], rows),
        Bullets(
            [
                f"Sensitivity of an update: each drawn patient adds one image's gradient, clipped to L2 norm {clipping} over all trained "
                "parameters together; the sum is noised and divided by the normaliser, a public constant.",
                "Sensitivity of the counts: each test patient has one vote, chosen by the patient's own record keys, so one "
                "patient changes one "
                "cell by one. All figures and intervals are computed from the noised counts.",
                "Every patient of a hospital is charged with every release, in whichever part (train, validation, test) the "
                "patient stands: an "
                "upper bound.",
                "Everything else about the rounds (losses, counts, validation, times of single hospitals) stayed in the "
                "hospitals. The mean of "
                "the updates, every global model and the final model are computed from these releases and cost nothing more.",
                f"Updates in the mean: {', '.join(f'{site} {one.updates}' for site, one in privacy.sites.items())} of "
                f"{report.run.rounds_done} rounds.",
            ]
        ),
    ]  # fmt: skip


def _accounting(privacy: PrivacyReport, study: Study) -> list[Facts]:
    check = check_epsilon(study_events(study), as_float(privacy.delta))
    library = f"dp-accounting {version('dp-accounting')}"
    return [
        Facts(
            [
                ("Claimed by", f"privacy loss distributions (PLD), {library}, pessimistic estimate: {check.pld:.4f}"),
                ("Checked by", f"an implementation that shares no code with it (shared/audit/privacy_loss.py): {check.independent:.4f}"),
                ("Charged by", f"Rényi differential privacy (RDP), {library}, at fixed orders: {check.rdp:.4f}"),
                ("They agree", check.sentence()),
                ("Composition", "all releases of the run, whose constants were all fixed before the first of them; a round that was begun "
                                "again is another release"),
                ("Versions", "those installed where this statement was written; each hospital reckoned with its own"),
            ]
        )
    ]  # fmt: skip


def _assumptions(study: Study) -> list[Bullets]:
    rate = study.privacy.sampling_rate if study.privacy is not None else ""
    weights = study.model.weights
    start = {"none": "random values from the study's seed", "torchvision": "torchvision's published weights"}
    source = start[weights] if isinstance(weights, str) else f"{weights.file}, said to be public: {weights.source}"
    mask = study.preprocessing.mask
    masks = [
        f"Masks: each image's was predicted from it alone by {mask.weights.file}, said to be public: {mask.weights.source}; it is taken "
        "not to depend on the patients."
    ] if isinstance(mask, PredictedMask) else []  # fmt: skip
    return [
        Bullets(
            [
                f"Sampling: in each step every train patient is drawn by Poisson sampling, independently with probability {rate}, a public "
                "constant, by a cryptographic generator; who was drawn, and how many, is told to nobody. Batches of a fixed "
                "size, or shuffled, "
                "would be another mechanism.",
                "Public constants: rate, steps, clipping norm, normaliser, noise and weights of the mean were fixed before the "
                "run and do not "
                "depend on the patients.",
                "Parts: each patient's part is a keyed hash of the patient's id alone, so no patient decides about another.",
                f"Start: the model began from {source}; it is taken not to depend on the patients.",
                *masks,
                "Floating point: noise is drawn and added in double precision, which is near an exact Gaussian and not equal to "
                "it; its lowest "
                "bits are no proof against the attack of Mironov (CCS 2012). Geometric noise is exact: it is drawn with whole "
                "numbers only.",
                "Randomness: each draw takes a fresh key from the hospital's operating system.",
                Fill(
                    "the coordinator",
                    "whether the study's constants - architecture, learning rate, clipping norm, rounds - were tuned on these "
                    "patients before; "
                    "if so, that cost is not in any figure here",
                ),
            ]
        )
    ]


def _not_covered() -> list[Bullets]:
    return [
        Bullets(
            [
                "That a hospital takes part, and whether and when it refuses.",
                "When answers come and how long they take.",
                "The ledger entries that travel with answers: the hospital's budget for life, what the patient with most was charged, and "
                "whether two runs were of the very same patients. They name no number of patients.",
                "Files that a hospital itself shows to somebody: its own page of exact figures, above all.",
                "What is true of patients in general: that a finding goes with a disease can be learned with any one patient left out.",
                "A person under two ids, at one hospital or at two, beyond what is said of groups above.",
                "A hospital's or an attacker's machine that does not run the code that its digest names.",
            ]
        )
    ]


def _around(study: Study) -> list[Facts]:
    return [
        Facts(
            [
                ("Data collection", "images and tables stay in the hospital; nothing is copied elsewhere for the run"),
                ("Kept", "by the coordinator: every hospital's noised update, so that an auditor can add them up again"
                         if study.keeps_updates else "by the coordinator: the mean models; single updates are not asked to be kept"),
                ("Retention", study.governance.retention),
                ("Access control", Fill("each hospital and the coordinator", "who can read data, the hospital's page, the run's folder")),
                ("Breach", Fill("each hospital's data protection officer", "whom to tell, and what follows")),
            ]
        )
    ]  # fmt: skip


def _responsible() -> list[Facts]:
    return [
        Facts(
            [
                ("Responsible for this statement", Fill("the coordinator", "name, role, date")),
                ("Data protection officers", Fill("each hospital", "name, contact, and whether they agree")),
                ("Why this epsilon", Fill("the coordinator", "why this epsilon and delta are acceptable for this purpose")),
            ]
        )
    ]  # fmt: skip
