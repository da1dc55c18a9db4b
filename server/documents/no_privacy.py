"""The privacy statement of a run that has no differential privacy: plainly that there is no bound."""

from __future__ import annotations

from server.documents.parts import Facts, Fill, Paragraph, Section, Table
from server.documents.trust import checking, trust
from server.report.schema import Report
from shared.study import Study
from shared.study_segmentation import released_counts


def without_privacy(report: Report, study: Study) -> list[Section]:
    """The sections of a run without differential privacy."""
    counts = "exact, and with them metrics, intervals and histograms of scores (small cells merged)"
    release = study.evaluation.release
    if release is not None:
        counts = f"{released_counts(study)} with two-sided geometric noise of epsilon {release.epsilon}, for test patients only"
    rows = [
        ["counts of the preparation", "1", "unbounded: no noise"],
        ["update of a round", str(study.federation.rounds), "unbounded: no noise, no clipping by patient"],
        ["losses, counts and times of a round", str(study.federation.rounds), "unbounded: no noise"],
        ["figures of the evaluation", "1" if release is not None else "1 or more", counts],
    ]
    bounded = (
        [
            Paragraph(
                f"The noise on the test counts (epsilon {release.epsilon}) bounds what these counts say of a test patient, as far as the "
                "model is taken as given. It bounds nothing of what updates and model say of patients who trained."
            )
        ]
        if release is not None
        else []
    )
    return [
        Section(
            "The guarantee",
            [
                Paragraph(
                    "There is none: epsilon is infinite. Updates left the hospitals without noise, so nothing bounds what they, "
                    "or the models "
                    "made from them, say about a patient. That images stay in the hospitals is no such bound: whoever holds a hospital's "
                    "updates may be able to tell whether a patient took part, or to rebuild parts of an image."
                ),
                *bounded,
            ],
        ),
        Section("Unit of privacy and neighbouring relation", [Paragraph("None, since there is no guarantee.")]),
        Section("Every release", [Table("Of each hospital.", ["Release", "Times", "Mechanism"], rows)]),
        Section("Trust model", trust(private=False)),
        Section(
            "Data before and after",
            [
                Facts(
                    [
                        ("Retention", study.governance.retention),
                        (
                            "Access control",
                            Fill("each hospital and the coordinator", "who can read updates, models and records"),
                        ),
                    ]
                )
            ],
        ),
        Section("Checking this statement", checking(report)),
        Section(
            "Responsible",
            [
                Facts(
                    [
                        ("Responsible for this statement", Fill("the coordinator", "name, role, date")),
                        ("Why no privacy", Fill("the coordinator", "why training without differential privacy is acceptable here")),
                    ]
                )
            ],
        ),
    ]  # fmt: skip
