"""The case-description tables of CBIS-DDSM, with the columns and cell quirks of the published files.

Quirks kept on purpose (seen in `calc_case_description_*.csv`): `breast density` has a space in the calcification
tables; the cell of the cropped image ends in a line break and is therefore quoted; the paths name `000000.dcm` and
`000001.dcm` where a download from TCIA holds `1-1.dcm` and `1-2.dcm`; `N/A` stands for an absent descriptor.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass

from client.phantom.cases import Case, Finding, View

COLUMNS = (
    "patient_id",
    "breast density",
    "left or right breast",
    "image view",
    "abnormality id",
    "abnormality type",
    "calc type",
    "calc distribution",
    "assessment",
    "pathology",
    "subtlety",
    "image file path",
    "cropped image file path",
    "ROI mask file path",
)
"""Column names of the published calcification tables, in their order."""

TRAIN_TABLE = "calc_case_description_train_set.csv"
TEST_TABLE = "calc_case_description_test_set.csv"


@dataclass(frozen=True)
class Row:
    """One finding in one view and the three paths that the table gives for it, as POSIX strings."""

    case: Case
    view: View
    finding: Finding
    image: str
    cropped: str
    mask: str

    def cells(self) -> tuple[str, ...]:
        """The cells in the order of `COLUMNS`."""
        return (
            self.case.patient_id,
            str(self.case.density),
            str(self.view.side),
            str(self.view.projection),
            str(self.finding.abnormality),
            "calcification",
            self.finding.calc_type,
            self.finding.calc_distribution,
            str(self.finding.assessment),
            self.finding.pathology,
            str(self.finding.subtlety),
            self.image,
            f"{self.cropped}\n",
            self.mask,
        )


def table_text(rows: Iterable[Row]) -> str:
    """The CSV of `rows`: lines end in LF, only cells that need it are quoted."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(row.cells() for row in rows)
    return buffer.getvalue()
