"""What `consilium-server cross-validated` prints."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from server.cross_validation import CrossValidation, HeadKey, MasksOverFolds, figure_of
from server.report.schema import ErrorCount, Figure

_HEADS: Mapping[HeadKey, str] = {"network": "network", "svm": "SVM", "svm_paper": "SVM as given"}
#: Figures whose title is not their name with spaces.
_TITLES = {
    "f1": "F1", "auc": "AUC", "weighted_f1": "weighted F1", "errors": "FP + FN", "rare_errors": "FP + FN, rare",
    "macro_f1": "macro F1", "iou": "IoU", "thresholded_iou": "thresholded IoU", "dice": "Dice",
}  # fmt: skip


def tables(found: CrossValidation) -> list[Table]:
    """One table of figures, then one of classes for each head, and one of the descriptors of lesions where there are any."""
    figures = _over_folds(found, f"Cross-validation, {len(found.runs)} of {found.of} folds", "head")
    drawn = [figures]
    if found.masks is not None:
        drawn += _mask_tables(found.masks, figures)
    for key, head in found.heads.items():
        for name, over in head.figures.items():
            digits = 0 if name in ("errors", "rare_errors") else 3
            cells = [_number(value, digits) for value in over.by_fold]
            cells += [_number(over.mean, digits or 1), _number(over.standard_deviation, digits or 1)]
            figures.add_row(_HEADS[key], _title(name), *cells, _together(figure_of(head.together, name)))
        classes = Table(title=f"{_HEADS[key]}: each class, all folds together", title_justify="left")
        for heading in ("class", "images", "precision", "recall", "specificity", "F1"):
            classes.add_column(heading, justify="left" if heading == "class" else "right")
        for row in head.together.classes:
            cells = [_figure(one) for one in (row.precision, row.recall, row.specificity, row.f1)]
            classes.add_row(row.name, "–" if row.images is None else str(row.images), *cells)
        drawn.append(classes)
    if found.descriptors:
        described = _over_folds(found, "Descriptors of lesions", "descriptor")
        for descriptor, one in found.descriptors.items():
            for name, over in one.figures.items():
                cells = [_number(value, 3) for value in (*over.by_fold, over.mean, over.standard_deviation)]
                described.add_row(descriptor, _title(name), *cells, _figure(getattr(one.together, name)))
        drawn.append(described)
    return drawn


def _over_folds(found: CrossValidation, title: str, of: str) -> Table:
    """An empty table with a column for each fold; `of` heads the first one."""
    table = Table(title=title, title_justify="left")
    for heading in (of, "figure", *(f"fold {fold}" for fold in found.runs), "mean", "sd", "all together"):
        table.add_column(heading, justify="left" if heading in (of, "figure") else "right")
    return table


def _mask_tables(masks: MasksOverFolds, figures: Table) -> list[Table]:
    """Fill in the table of figures; the table of classes, none where no figure of a class has left."""
    for name, over in masks.figures.items():
        cells = [_number(value, 3) for value in (*over.by_fold, over.mean, over.standard_deviation)]
        figures.add_row("network", _title(name), *cells, _figure(getattr(masks.together, name)))
    if not masks.together.classes:
        return []
    classes = Table(title="Masks of each class's images, all folds together", title_justify="left")
    for heading in ("class", "images", "IoU", "Dice"):
        classes.add_column(heading, justify="left" if heading == "class" else "right")
    for row in masks.together.classes:
        classes.add_row(row.name, str(row.images), _figure(row.iou), _figure(row.dice))
    return [classes]


def _title(name: str) -> str:
    return _TITLES.get(name, name.replace("_", " "))


def _together(found: Figure | ErrorCount | None) -> str:
    if found is None or isinstance(found, Figure):
        return "–" if found is None else _figure(found)
    ends = f" ({found.low:.0f} to {found.high:.0f})" if found.low is not None and found.high is not None else ""
    return f"{found.value}{ends}"


def _figure(figure: Figure) -> str:
    ends = f" ({figure.low:.3f} to {figure.high:.3f})" if figure.low is not None and figure.high is not None else ""
    return _number(figure.value, 3) + ends


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
