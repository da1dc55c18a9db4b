"""What an answer of a private run may hold: the rules are `shared.noised_answers`, which the auditor asks too."""

from __future__ import annotations

from shared.errors import EgressError
from shared.messages import Answer
from shared.noised_answers import exact_in_evaluation, exact_in_preparation, exact_in_training
from shared.study import Study


def require_nothing_exact(answer: Answer, study: Study) -> None:
    """Raises EgressError where a figure would leave that the study's noise does not cover. A plain study's answers pass."""
    if answer.evaluated is not None and study.evaluation.release is not None:
        _require(exact_in_evaluation(answer.evaluated, study), "the evaluation")
    if study.privacy is None:
        return
    if answer.prepared is not None:
        _require(exact_in_preparation(answer.prepared), "the preparation")
    if answer.trained is not None:
        _require(exact_in_training(answer.trained), "the round's answer")


def _require(exact: list[str], what: str) -> None:
    if exact:
        raise EgressError(f"{what} of a study with noise holds figures without: {', '.join(exact)}")
