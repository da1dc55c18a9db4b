"""docs/report.md out of the schema's own descriptions: `python -m server.report.document > docs/report.md`."""

from __future__ import annotations

from server.report.schema import Report
from shared.schema_page import tables

_INTRODUCTION = """# The run's report

`consilium-server report runs/NAME` writes two files into the run's folder, from its records alone and for a run that failed or was
stopped too:

- `report.html` for people: one file that needs nothing else, for screen, phone and paper;
- `report.json` for programs: every figure of the page, and more.

This page describes `report.json`. It is made from the schema by `python -m server.report.document > docs/report.md`; a test holds the
two together. A field may be null only where its type says so.

Paths asked for most: `sites.<site>.svm.auc.value` (and `.low`, `.high`, `.images`), `sites.<site>.network.auc.value`,
`pooled.svm.auc.value`, `pooled.svm.gain.auc.low` (above 0: training is shown to have helped), `run.state`, `evaluated`, `synthetic`;
of a private run, where no AUC is known, `pooled.network.balanced_accuracy.value` and `privacy.sites.<site>.epsilon`.
"""


def markdown() -> str:
    """The page: a table of fields for each model, in the order in which they are first met."""
    return _INTRODUCTION + "\n" + tables(Report)


if __name__ == "__main__":
    print(markdown(), end="")
