"""The schema of a study: WHAT is trained. One YAML in `configs/`; no key is optional by accident, none does nothing.

A study is data (law 1 of the design): a hospital approves its digest, which is SHA-256 over the RFC 8785 form of the validated
study with all defaults filled in, so that a default that changes in a later release changes the digest too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from shared.canonical import digest
from shared.errors import StudyError
from shared.schema import Name, Strict
from shared.study_augmentation import Augmentation
from shared.study_data import Data
from shared.study_evaluation import Evaluation
from shared.study_federation import Federation
from shared.study_head import SvmHead
from shared.study_model import Model
from shared.study_pixels import Preprocessing
from shared.study_privacy import Privacy, obstacles
from shared.study_task import Task
from shared.study_training import Training
from shared.yaml_source import read_yaml, validate


class Governance(Strict):
    """What a hospital's reviewer asks first."""

    purpose: str
    ethics: str = Field(description="reference of the ethics vote, or why none is needed")
    retention: str = Field(description="how long models and reports are kept")


class Study(Strict):
    """A whole study. See docs/studies.md for every key."""

    format: Literal["consilium/study/1"] = Field(alias="schema")
    name: Name
    title: str
    description: str = ""
    governance: Governance
    seed: int = Field(ge=0, lt=2**31)
    task: Task
    data: Data = Data()
    preprocessing: Preprocessing
    augmentation: Augmentation = Augmentation()
    model: Model
    head: SvmHead | None = Field(default=None, description="None: the network's own head only")
    training: Training
    federation: Federation
    evaluation: Evaluation = Evaluation()
    privacy: Privacy | None = Field(default=None, description="None: updates leave without noise")

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)

    @field_validator("title")
    @classmethod
    def _one_line(cls, value: str) -> str:
        if "\n" in value.strip():
            raise ValueError("the title must be one line")
        return value.strip()

    @model_validator(mode="after")
    def _check(self) -> Study:
        if self.training.loss == "binary_cross_entropy" and len(self.task.classes) != 2:
            raise ValueError(f"binary_cross_entropy needs two classes, but the study has {len(self.task.classes)}")
        self.augmentation.require_fits(self.preprocessing.size)
        focal = self.training.focal
        if focal is not None and not isinstance(focal.alpha, str) and set(focal.alpha) != set(self.task.classes):
            raise ValueError(
                f"training.focal.alpha must have a weight for each of the classes {', '.join(self.task.classes)}"
            )
        if self.privacy is None:
            for key in ("local_epochs", "batch_size"):
                if getattr(self.training, key) is None:
                    raise ValueError(f"training.{key} must be given")
        elif found := list(obstacles(self)):
            raise ValueError("this study can't be private: " + "; ".join(found))
        return self

    @property
    def outputs(self) -> int:
        """Outputs of the network: one logit (of the positive class) for binary cross-entropy, else one a class."""
        return 1 if self.training.loss == "binary_cross_entropy" else len(self.task.classes)

    @property
    def keeps_updates(self) -> bool:
        """Whether the coordinator keeps every site's update."""
        kept = self.federation.keep_updates
        return kept if kept is not None else self.privacy is not None

    @property
    def counts_shared_images(self) -> bool:
        """Whether it asks how many images two hospitals both hold."""
        return self.data.duplicates is not None and self.data.duplicates.across == "report"

    def to_data(self) -> dict[str, Any]:
        """The study as plain JSON values, defaults filled in."""
        return self.model_dump(mode="json", by_alias=True)

    def digest(self) -> str:
        """SHA-256 over the RFC 8785 form."""
        return digest(self.to_data())


def load_study(path: Path) -> Study:
    """Read a study YAML. Raises StudyError, one sentence a mistake, with file, line and the nearest known key.

    A private study's noise multiplier is solved for where only epsilon is given, which takes some seconds (CalibrationError).
    """
    study = validate(read_yaml(path, StudyError), Study, StudyError)
    if study.privacy is None or study.privacy.noise_multiplier is not None:
        return study
    from shared.study_cost import solved  # the accountants take a second to import

    return solved(study)


def study_from_data(data: Any) -> Study:
    """A study out of the JSON values that travelled or lie in a run folder. Raises StudyError."""
    try:
        study = Study.model_validate(data)
    except ValueError as problem:
        raise StudyError(f"the study that was received is not valid: {problem}") from None
    if study.privacy is not None and study.privacy.noise_multiplier is None:
        raise StudyError("the study that was received states an epsilon, but no noise multiplier that gives it")
    return study
