"""What an answer of a private run may hold: nothing that one patient changes and no noise covers (laws 3 and 4 of the design)."""

from __future__ import annotations

from shared.errors import EgressError
from shared.messages import Answer
from shared.results import Evaluated, HeadResult, Prepared, Trained
from shared.study import Study


def require_nothing_exact(answer: Answer, study: Study) -> None:
    """Raises EgressError where a figure would leave that the study's noise does not cover. A plain study's answers pass."""
    if answer.evaluated is not None and study.evaluation.release is not None:
        _require_noised(answer.evaluated, study)
    if study.privacy is None:
        return
    if answer.prepared is not None:
        _require(_exact_in_preparation(answer.prepared), "the preparation")
    if answer.trained is not None:
        _require(_exact_in_training(answer.trained), "the round's answer")


def _exact_in_preparation(prepared: Prepared) -> list[str]:
    held = {
        "parts": prepared.parts,
        "left_out": prepared.left_out is not None,
        "unreadable": prepared.unreadable is not None,
        "baseline": prepared.baseline,
        "seconds": prepared.seconds,
    }
    return [name for name, value in held.items() if value]


def _exact_in_training(trained: Trained) -> list[str]:
    held = {
        "images": trained.images is not None,
        "patients": trained.patients is not None,
        "epochs": trained.epochs,
        "validation": trained.validation is not None,
        "seconds": trained.seconds,
    }
    return [name for name, value in held.items() if value]


def _require_noised(evaluated: Evaluated, study: Study) -> None:
    names = ("patients", "images", "train_patients", "train_images")
    exact = [name for name in names if getattr(evaluated, name) is not None]
    exact += ["seconds"] if evaluated.seconds else []
    exact += ["svm_choice"] if evaluated.svm_choice is not None else []
    exact += ["svm_paper"] if evaluated.svm_paper is not None else []
    if study.privacy is not None and study.privacy.svm is None and evaluated.svm is not None:
        exact.append("svm")
    for name in ("network", "svm"):
        head: HeadResult | None = getattr(evaluated, name)
        if head is not None and (head.noise is None or head.histogram is not None or head.auc.value is not None):
            exact.append(name)
    _require(exact, "the evaluation")


def _require(exact: list[str], what: str) -> None:
    if exact:
        raise EgressError(f"{what} of a study with noise holds figures without: {', '.join(exact)}")
