"""What the statements of private and of plain runs both say: who sees what, and how it can be checked."""

from __future__ import annotations

from server.documents.parts import Facts, Paragraph
from server.report.schema import Report
from server.report.words import joined


def trust(*, private: bool) -> list[Facts | Paragraph]:
    """Who sees what, and is trusted with it."""
    noised = "noised " if private else ""
    rows: list[tuple[str, str]] = [
        ("Each hospital", "is trusted with its own patients' data, "
                          + ("adds the noise itself before anything leaves, and is trusted to do so" if private else "adds no noise")),
        ("The coordinator", f"is central: it sees each hospital's {noised}update of each round and each hospital's "
                            + ("noised counts" if private else "figures")
                            + ("; the guarantee holds against it" if private else "")),
        ("Other hospitals", "see the global model of each round, and no single update"),
        ("Whoever gets the model or the report", "sees what is computed from the above"
                                                 + ("; the guarantee holds against all of them together" if private else "")),
        ("The network", "sees encrypted messages, their sizes and times"),
    ]  # fmt: skip
    return [
        Facts(rows),
        Paragraph(
            "There is no secure aggregation, and it is not local differential privacy of single patients: the hospital is the curator."
        ),
    ]


def checking(report: Report) -> list[Paragraph | Facts]:
    """How somebody else can check what is said."""
    run = report.run
    return [
        Paragraph(
            "consilium-audit verify, with fingerprints that came by another way, checks signatures, entries, sums and epsilons "
            "from the run's "
            "files alone. consilium-site conformance measures the mechanism on a hospital's machine."
        ),
        Facts(
            [
                ("Study digest", run.study_digest),
                ("Code digest", run.code_digest),
                ("Final model", run.final_model or "not evaluated"),
                ("Hospitals", joined(list(report.sites))),
            ]
        ),
    ]
