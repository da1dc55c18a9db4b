"""Part of a study: the SVM that each hospital fits on the global network's features."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from shared.schema import Strict


class Grid(Strict):
    """Values searched by cross-validation grouped by patient."""

    C: list[Annotated[float, Field(gt=0)]] = Field(min_length=1)
    gamma: list[Annotated[float, Field(gt=0)]] = Field(min_length=1)
    folds: int = Field(default=5, ge=2, le=20)
    score: Literal["balanced_accuracy", "auc"] = "balanced_accuracy"


class SvmHead(Strict):
    """RBF SVM on the standardised features of the global backbone, fitted at each hospital (scikit-learn's SVC)."""

    C: float = Field(default=10.0, gt=0)
    gamma: float = Field(default=0.001, gt=0)
    class_weight: Literal["balanced", "none"] = "balanced"
    grid: Grid | None = Field(
        default=None, description="None uses C and gamma as given; they are otherwise one more candidate"
    )
    calibration_folds: int = Field(
        default=5, ge=2, le=20, description="folds of the probability calibration (Platt, grouped by patient)"
    )
