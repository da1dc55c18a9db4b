"""The hospital's own page about one run: written into its own folder, mode 0600, sent to nobody.

It shows what must not leave: the exact ROC curve, single images that were got wrong, where the network looks in them,
and a map of the features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from client.data.records import Part
from client.features import PartFeatures
from client.kept_scores import KeptScores
from client.lesion_heat import HeatMaps
from client.page_figures import (
    ImageOf,
    brier_score,
    calibration,
    confident_errors,
    feature_map,
    polyline,
    roc_points,
)
from client.page_heat import Pictures, looks
from client.page_template import MACROS, PAGE
from client.page_words import cell, gain_cell, interval, number
from client.page_writing import about, write
from shared.metrics.classification import Predictions
from shared.metrics.over_classes import Counted, OverClasses, over_classes
from shared.profile import Profile
from shared.results import METRICS, Evaluated, HeadResult
from shared.study import Study

_SIDE = 280.0
_TITLES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "precision": "Precision",
    "f1": "F1",
    "auc": "AUC",
}
_HEADS = {"network": "Network", "svm": "SVM", "svm_paper": "SVM, study's own setting"}
_ERRORS = {"missed": "Missed: is {}, said something else", "false alarm": "False alarms: said {}, is something else"}


def write_page(
    folder: Path,
    *,
    run: str,
    profile: Profile,
    study: Study,
    evaluated: Evaluated,
    parts: Mapping[Part, PartFeatures],
    scores: KeptScores,
    seed: int,
    image_of: ImageOf | None = None,
    heat: HeatMaps | None = None,
    errors_shown: int = 6,
    sections: Sequence[Markup] = (),
) -> Path:
    """Write `folder`/evaluation.html, one self-contained file, and return its path.

    `scores` are the exact scores of the test part (`client.kept_scores.load_scores` of what `evaluate` kept);
    `image_of(i)` gives the prepared pixels of test image i, and is asked for the shown images only; `heat` is of this
    model (None: its network has no feature map); `sections` are further ones, in HTML that is escaped already. The same
    input and seed give the same bytes. Raises StorageError where the file can't be written, ValueError where `scores`
    are of other images than the test part.
    """
    test = parts["test"]
    if scores.keys != test.keys:
        raise ValueError("Expected argument `scores` to be of the test part's images, but got other keys")
    results = {name: result for name in _HEADS if (result := getattr(evaluated, name)) is not None}
    best = "svm" if "svm" in results else "network"
    head = scores.heads[best]
    classes = study.task.class_names
    frame = about(run, profile, study)
    positive = study.task.positive_class
    points = feature_map(parts["train"], test, head.predicted != head.truth, seed=seed)
    pictures = Pictures(image_of, heat)
    prevalence = float((head.truth == head.positive).mean())
    shown = [name for name in ("network", "svm") if name in results]
    values: dict[str, Any] = {
        "side": _SIDE,
        **frame,
        "classes": classes,
        "positive": positive,
        "many": len(classes) > 2,
        "argmax": study.outputs > 1,
        "headline": _headline(evaluated, results[best], best, positive, frame["percent"]),
        "boxes": _boxes(results, shown, evaluated),
        "heads": [
            {
                "title": _HEADS[name],
                "kind": name,
                "confusion": _confusion(result) if name in shown else None,
            }
            for name, result in results.items()
        ],
        "metric_rows": _metric_rows(list(results.values())),
        "has_svm": "svm" in results,
        "has_gain": any(result.gain for result in results.values()),
        "rocs": [
            {"kind": name, "title": _HEADS[name], "points": polyline(curve, _SIDE), "auc": _area(results[name], study)}
            for name in shown
            if (curve := roc_points(scores.heads[name])) is not None
        ],
        "calibrations": [_calibration(name, scores.heads[name], study.evaluation.confidence) for name in shown],
        "group_images": calibration(head, confidence=study.evaluation.confidence)[0].images,
        "prevalence": f"{100 * prevalence:.0f} %",
        "prevalence_brier": f"{prevalence * (1 - prevalence):.3f}",
        "best_title": _HEADS[best],
        "best_name": "SVM" if best == "svm" else "network",
        "class_rows": [
            {
                "name": name,
                "images": row.images,
                "cells": [cell(one) for one in (row.precision, row.recall, row.specificity, row.f1, row.auc)],
            }
            for name, row in zip(classes, results[best].classes, strict=True)
        ],
        "over_rows": _over_rows(results[best], evaluated, study),
        "points": [
            {
                "x": round(point.x * 640, 1),
                "y": round((1 - point.y) * 480, 1),
                "colour": point.label % 8,
                "shape": point.label % 4,
                "test": point.is_test,
                "wrong": point.is_wrong,
            }
            for point in points
        ],
        "errors": _errors(scores, test, study, best, pictures, errors_shown),
        "looks": looks(heat, scores.heads["network"], test.keys, classes, pictures, seed=seed),
        "part_rows": [
            _part_row(name, parts[name], len(classes)) for name in ("train", "validation", "test") if name in parts
        ],
        "choice": _choice(evaluated, study),
        "mask": study.preprocessing.mask_in_words(),
        "sections": list(sections),
    }
    return write(folder, MACROS + PAGE, values)


def _metric_rows(results: Sequence[HeadResult]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"title": _TITLES[name], "cells": [cell(getattr(result, name)) for result in results]} for name in METRICS
    ]
    for name in ("auc", "balanced_accuracy"):
        gains = [(result.gain or {}).get(name) for result in results]
        if any(gain is not None for gain in gains):
            title = f"Gain in {'AUC' if name == 'auc' else 'balanced accuracy'} over round 0"
            rows.append({"title": title, "cells": [gain_cell(gain) for gain in gains]})
    return rows


def _over_rows(result: HeadResult, evaluated: Evaluated, study: Study) -> list[dict[str, Any]]:
    """Over all classes at once: the figures that the run's report has of this hospital, by the same draws."""
    found: OverClasses = over_classes(
        [(result.confusion, evaluated.patients or 0)],
        study.task.rare_indices,
        confidence=study.evaluation.confidence,
        resamples=study.evaluation.resamples,
        seed=study.seed,
    )
    titles = {
        "precision": "precision",
        "recall": "sensitivity (the accuracy)",
        "specificity": "specificity",
        "f1": "F1",
    }
    rows = [{"title": f"Weighted {titles[name]}", **cell(one)} for name, one in found.weighted.items()]
    rows.append({"title": "FP + FN over all classes: twice the wrong images", **_count_cell(found.errors)})
    if found.rare_errors is not None:
        title = f"FP + FN over the rare classes {', '.join(study.task.rare_classes)}"
        rows.append({"title": title, **_count_cell(found.rare_errors)})
    return rows


def _count_cell(count: Counted) -> dict[str, str]:
    interval = "" if count.low is None or count.high is None else f"{count.low:.0f} to {count.high:.0f}"
    return {"value": str(count.value), "interval": interval}


def _headline(evaluated: Evaluated, result: HeadResult, best: str, positive: str, percent: str) -> str:
    auc = result.auc
    what = f"{evaluated.images} test images of {evaluated.patients} patients, none of whom is in the training part"
    name = "SVM on the network's features" if best == "svm" else "network"
    if auc.value is None:
        return f"On {what}, the AUC of the {name} is not defined: the test part lacks a class."
    if len(result.classes) == 2:
        meaning = f"ranks a random {positive} image above a random other one in {100 * auc.value:.0f} % of cases"
    else:
        meaning = f"ranks an image of a class above one of the rest in {100 * auc.value:.0f} % of cases, on the mean over the classes"
    between = ""
    if auc.low is not None and auc.high is not None:
        between = f" ({percent} % interval {100 * auc.low:.0f} to {100 * auc.high:.0f} %)"
    verdict = ""
    if auc.low is not None and auc.low <= 0.5:
        verdict = " That can't be told from chance, which is 50 %."
    return f"On {what}, the {name} {meaning}{between}.{verdict}"


def _boxes(results: Mapping[str, HeadResult], shown: Sequence[str], evaluated: Evaluated) -> list[dict[str, str]]:
    boxes = [
        {
            "title": f"AUC, {_HEADS[name]}",
            "value": number(results[name].auc.value),
            "detail": interval(results[name].auc),
        }
        for name in shown
    ]
    last = results[shown[-1]]
    for key, title in (("sensitivity", "Sensitivity"), ("specificity", "Specificity")):
        estimate = getattr(last, key)
        boxes.append(
            {"title": f"{title}, {_HEADS[shown[-1]]}", "value": number(estimate.value), "detail": interval(estimate)}
        )
    return boxes


def _area(result: HeadResult, study: Study) -> str:
    """AUC of the drawn curve, which is the positive class's."""
    return number(result.classes[study.task.positive_index].auc.value)


def _confusion(result: HeadResult) -> list[list[dict[str, Any]]]:
    rows = []
    for row in result.confusion:
        total = sum(row)
        rows.append(
            [
                {
                    "count": count,
                    "share": f"{100 * count / total:.0f} %" if total else "–",
                    "shade": round(45 * count / total) if total else 0,
                }
                for count in row
            ]
        )
    return rows


def _calibration(name: str, head: Predictions, confidence: float) -> dict[str, Any]:
    groups = calibration(head, confidence=confidence)
    return {
        "kind": name,
        "title": _HEADS[name],
        "brier": f"{brier_score(head):.3f}",
        "points": polyline([(group.predicted, group.observed) for group in groups], _SIDE),
        "groups": [
            {
                "x": round(group.predicted * _SIDE, 1),
                "y": round((1 - group.observed) * _SIDE, 1),
                "low": round((1 - group.low) * _SIDE, 1),
                "high": round((1 - group.high) * _SIDE, 1),
                "images": group.images,
            }
            for group in groups
        ],
    }


def _errors(
    scores: KeptScores, test: PartFeatures, study: Study, best: str, pictures: Pictures, most: int
) -> list[dict[str, Any]]:
    classes, positive = study.task.class_names, study.task.positive_class
    groups = []
    for kind, cards in confident_errors(scores.heads[best], most=most):
        shown = []
        images = pictures.of([card.index for card in cards])
        for card, (image, warm) in zip(cards, images, strict=True):
            network = scores.heads["network"].scores[card.index, card.said]
            shown.append(
                {
                    "key": test.keys[card.index],
                    "patient": str(test.patients[card.index]),
                    "truth": classes[card.truth],
                    "said": classes[card.said],
                    "probability": f"{'SVM' if best == 'svm' else 'network'}: {100 * card.probability:.0f} %",
                    "other": f"network: {100 * network:.0f} %" if best == "svm" else "",
                    "image": image,
                    "heat": warm,
                }
            )
        title = _ERRORS[kind].format(positive) if kind in _ERRORS else "Mixed up among the other classes"
        groups.append({"title": title, "cards": shown})
    return groups


def _part_row(name: str, part: PartFeatures, classes: int) -> dict[str, Any]:
    return {
        "name": name,
        "patients": part.patient_count,
        "images": part.images,
        "by_class": np.bincount(part.labels, minlength=classes).tolist(),
    }


def _choice(evaluated: Evaluated, study: Study) -> dict[str, Any] | None:
    choice = evaluated.svm_choice
    if choice is None:
        return None
    score = choice.cross_validation_score
    grid = study.head.grid if study.head is not None else None
    return {
        "c": f"{choice.C:g}",
        "gamma": f"{choice.gamma:g}",
        "score": None if score is None else f"{score:.3f}",
        "measure": "AUC" if grid is not None and grid.score == "auc" else "balanced accuracy",
        "vectors": choice.support_vectors,
    }
