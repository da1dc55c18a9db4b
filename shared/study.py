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
from shared.study_ensemble import of_no_use
from shared.study_evaluation import Evaluation
from shared.study_federation import Federation
from shared.study_head import SvmHead
from shared.study_mask import PredictedMask
from shared.study_metadata import Metadatum, width_of
from shared.study_model import Model, WeightsFile
from shared.study_pixels import Preprocessing
from shared.study_privacy import Privacy, obstacles
from shared.study_segmentation import contradictions
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
    metadata: list[Metadatum] = Field(
        default_factory=list, description="what the network is told besides the image, e.g. age; SkinNet takes some"
    )
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
        weighed = self.training.descriptor_weight is not None
        if not self.model.members and bool(self.task.descriptors) != weighed:
            raise ValueError("training.descriptor_weight must be given with task.descriptors, and only then")
        if found := list(contradictions(self)):
            raise ValueError(f"task.kind is {self.task.kind}: " + "; ".join(found))
        self.augmentation.require_fits(self.preprocessing.size)
        self._check_metadata()
        self._check_stages()
        self._check_weight_files()
        focal = self.training.focal
        if focal is not None and not isinstance(focal.alpha, str) and set(focal.alpha) != set(self.task.classes):
            raise ValueError(
                f"training.focal.alpha must have a weight for each of the classes {', '.join(self.task.classes)}"
            )
        if self.model.members:
            if odd := list(of_no_use(self)):
                raise ValueError("an ensemble trains nothing: " + "; ".join(odd))
        else:
            needed = ("optimiser", "learning_rate", *(("local_epochs", "batch_size") if self.privacy is None else ()))
            for key in needed:
                if getattr(self.training, key) is None:
                    raise ValueError(f"training.{key} must be given")
        if self.privacy is not None and (found := list(obstacles(self))):
            raise ValueError("this study can't be private: " + "; ".join(found))
        return self

    def _check_metadata(self) -> None:
        names = [one.name for one in self.metadata]
        if len(set(names)) < len(names):
            raise ValueError("metadata: one name stands there twice")
        width, room = width_of(self.metadata), self.preprocessing.size**2
        if width > room:
            raise ValueError(f"metadata: they are {width} inputs, but images of this size have room for {room}")

    def _check_stages(self) -> None:
        lengths = [stage.rounds for stage in self.training.stages]
        if lengths and sum(lengths) != self.federation.rounds:
            raise ValueError(
                f"training.stages: their rounds must add up to federation.rounds, {self.federation.rounds}, "
                f"but add up to {sum(lengths)}"
            )

    def _check_weight_files(self) -> None:
        digests: dict[str, str] = {}
        for weights in self.weight_files.values():
            if digests.setdefault(weights.file, weights.sha256) != weights.sha256:
                raise ValueError(f"{weights.file} is named twice with different SHA-256: give two files two names")

    @property
    def weight_files(self) -> dict[str, WeightsFile]:
        """Every file of weights that the study names, by the key that names it. Hospitals need all of them."""
        named = {"model.weights": self.model.weights}
        if isinstance(mask := self.preprocessing.mask, PredictedMask):
            named["preprocessing.mask.weights"] = mask.weights
        members = {f"model.members.{number}": member for number, member in enumerate(self.model.members)}
        return {key: weights for key, weights in named.items() if isinstance(weights, WeightsFile)} | members

    @property
    def mask_is_input(self) -> bool:
        """Whether the network gets the mask as one more plane of its input."""
        return self.preprocessing.mask is not None and self.task.kind == "classification"

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(planes, S, S) of one image as the network gets it: its channels, the mask where it gets one, one plane of metadata where any."""
        pixels = self.preprocessing
        return pixels.channels + self.mask_is_input + bool(self.metadata), pixels.size, pixels.size

    @property
    def outputs(self) -> int:
        """Outputs of the network: one logit for binary cross-entropy (of the positive class) and for a mask (a pixel), else one a class."""
        return 1 if self.training.loss in ("binary_cross_entropy", "cross_entropy_dice") else len(self.task.classes)

    @property
    def split_seed(self) -> int | str:
        """What the drawing of the split depends on, besides the patients: the split's id, or else the seed. No id reads as a seed."""
        return f"id/{self.data.split.id}" if self.data.split.id is not None else self.seed

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
