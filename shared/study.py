"""The schema of a study: WHAT is trained. One YAML in `configs/`; no key is optional by accident, none does nothing.

A study is data (law 1 of the design): a hospital approves its digest, which is SHA-256 over the RFC 8785 form of the validated
study with all defaults filled in, so that a default that changes in a later release changes the digest too.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from shared.canonical import digest
from shared.errors import StudyError
from shared.exact import WrittenExact
from shared.schema import Name, Sha256, Strict
from shared.study_privacy import Privacy, obstacles
from shared.yaml_source import read_yaml, validate

Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class Task(Strict):
    """What is told apart. `classes` maps each class to the labels of the data layouts that mean it (case does not matter).

    A record whose label stands in no class is left out and counted. The outputs are in the order of the classes' names, whatever their
    order in the file: the digest is over JSON with sorted keys, and must not leave two meanings to one approval.
    """

    classes: dict[Name, list[str]] = Field(min_length=2)
    positive_class: str = Field(description="the class that sensitivity, specificity, precision, F1 and ROC are about")
    unit: Literal["finding", "view", "image"] = Field(
        description="what one label belongs to: a finding, a whole view (positive if any finding is), or an image"
    )

    @field_validator("classes")
    @classmethod
    def _by_name(cls, value: dict[str, list[str]]) -> dict[str, list[str]]:
        return dict(sorted(value.items()))

    @model_validator(mode="after")
    def _check(self) -> Task:
        if self.positive_class not in self.classes:
            raise ValueError(
                f"positive_class '{self.positive_class}' is not one of the classes {', '.join(self.classes)}"
            )
        seen: dict[str, str] = {}
        for name, labels in self.classes.items():
            for label in labels or [name]:
                other = seen.setdefault(label.lower(), name)
                if other != name:
                    raise ValueError(f"label '{label}' stands in two classes, {other} and {name}")
        return self

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.classes)

    @property
    def positive_index(self) -> int:
        return self.class_names.index(self.positive_class)

    def class_of(self, label: str) -> int | None:
        """Index of the class that `label` means, or None where no class lists it."""
        wanted = label.strip().lower()
        for index, (name, labels) in enumerate(self.classes.items()):
            if wanted in {entry.lower() for entry in (labels or [name])}:
                return index
        return None


class Balanced(Strict):
    """Balanced subsample drawn at each site, by seed: `per_class` units of every class."""

    per_class: int = Field(ge=2)
    if_fewer: Literal["refuse", "equalise"] = Field(
        description="refuse the study, or draw as many of each class as the smallest has"
    )


class Split(Strict):
    """Division into train, validation and test, always by patient (law 8)."""

    division: Literal["by_patient", "official"] = "by_patient"
    train: float = Field(default=0.70, gt=0, lt=1)
    validation: float = Field(default=0.15, gt=0, lt=1)
    test: float = Field(default=0.15, gt=0, lt=1, description="ignored share where the division is official")

    @model_validator(mode="after")
    def _check(self) -> Split:
        total = self.train + self.validation + self.test
        if abs(total - 1.0) > 1e-9:
            raise ValueError(f"train, validation and test must add up to 1, but add up to {total:g}")
        return self


class Data(Strict):
    """Which records of a hospital's holding take part."""

    select: dict[str, list[str]] = Field(
        default_factory=dict,
        description="keep records whose attribute has one of these values, e.g. abnormality: [calcification]",
    )
    balanced: Balanced | None = None
    scarce_classes: Literal["refuse", "leave_out"] = Field(
        default="refuse",
        description="at a site where a class has too few patients for every part and the SVM's folds: refuse the study, or leave "
        "that class out there and say so (never the positive class)",
    )
    split: Split = Split()


class Normalise(Strict):
    """(x - mean) / std for each channel, on pixels in [0, 1]."""

    mean: list[float] = Field(min_length=1, max_length=3)
    std: list[Annotated[float, Field(gt=0)]] = Field(min_length=1, max_length=3)


class Preprocessing(Strict):
    """From an image file to a (channels, size, size) array in [0, 1]; done once, into the cache."""

    region: Literal["finding", "whole"] = Field(description="a square around the finding's mask, or the whole image")
    margin: float = Field(
        default=0.25, ge=0, le=4, description="added around the finding's box, as a share of its longer side"
    )
    size: int = Field(ge=16, le=1024)
    channels: Literal[1, 3] = Field(description="channels of the network's input; grey images are repeated")
    intensity: Literal["region_percentiles", "bit_depth"] = Field(
        default="bit_depth",
        description="what maps pixels to [0, 1]: the region's 0.5th and 99.5th percentiles, or the stored bit depth",
    )
    normalise: Normalise | None = Field(default=None, description="public constants; None leaves [0, 1]")

    @model_validator(mode="after")
    def _check(self) -> Preprocessing:
        if self.normalise is not None:
            for key in ("mean", "std"):
                count = len(getattr(self.normalise, key))
                if count not in (1, self.channels):
                    raise ValueError(f"normalise.{key} must have 1 or {self.channels} values, but has {count}")
        return self


class Augmentation(Strict):
    """Random changes of a training batch, on the device. A value of 0 switches one off."""

    horizontal_flip: Probability = 0.0
    vertical_flip: Probability = 0.0
    quarter_turns: bool = Field(default=False, description="rotate by 0, 90, 180 or 270 degrees")
    rotation_degrees: float = Field(default=0.0, ge=0, le=180)
    translate: float = Field(default=0.0, ge=0, le=0.5, description="share of the image's side")
    scale: float = Field(default=0.0, ge=0, le=0.5, description="factor drawn from 1-scale to 1+scale")
    brightness: float = Field(default=0.0, ge=0, le=1, description="added, drawn from -brightness to +brightness")
    contrast: float = Field(default=0.0, ge=0, le=1, description="factor drawn from 1-contrast to 1+contrast")


class WeightsFile(Strict):
    """Starting weights in a local file (.safetensors, or a PyTorch state_dict); torchvision's key names."""

    file: str
    sha256: Sha256
    source: str = Field(description="where the weights were published and what they were trained on")
    origin: Literal["public", "federation"] = Field(
        default="public",
        description="federation: trained on hospitals' patients, so no starting point of a private study",
    )


class Model(Strict):
    """Backbone and its options. `freeze` names the children whose parameters and statistics stay as loaded."""

    name: Name
    attention: Literal["none", "se", "cbam"] = "none"
    cbam_at: Literal["after_block", "before_add", "stage_outputs"] | None = None
    se_at: Literal["after_block", "before_add", "stage_outputs"] | None = Field(
        default=None, description="None: before_add, as in SE's own paper"
    )
    stem: Literal["plain", "haar", "haar_attention", "haar_features"] = Field(
        default="plain",
        description="ResNets: Haar bands of the input, wavelet attention on the input, or Haar bands in place of max pooling",
    )
    norm: Literal["batch", "group", "none"] = Field(
        default="batch", description="none: a network that has neither, as vgg16 and vit_b_16"
    )
    weights: Literal["none", "torchvision"] | WeightsFile = "none"
    freeze: list[str] = Field(default_factory=list, description="e.g. [conv1, bn1, layer1]")
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="before the last linear layer; of VGG, before its last two"
    )

    @model_validator(mode="after")
    def _check(self) -> Model:
        if (self.attention == "cbam") != (self.cbam_at is not None):
            raise ValueError("cbam_at must be given with attention: cbam, and only then")
        if self.se_at is not None and self.attention != "se":
            raise ValueError("se_at is a setting of attention: se")
        if self.freeze and self.weights == "none":
            raise ValueError("freeze needs starting weights: frozen layers of an untrained network learn nothing")
        return self


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


class Training(Strict):
    """What each hospital does in one round."""

    local_epochs: int | None = Field(
        default=None, ge=1, le=1000, description="passes over the train part; must be given unless the study is private"
    )
    batch_size: int | None = Field(
        default=None, ge=1, le=4096, description="images; must be given unless the study is private"
    )
    optimiser: Literal["adam", "adamw", "sgd"]
    learning_rate: float = Field(gt=0)
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="how the learning rate falls from round to round, towards 0 after the last"
    )
    weight_decay: float = Field(default=0.0, ge=0)
    momentum: float = Field(default=0.0, ge=0, lt=1, description="sgd only")
    optimiser_state: Literal["reset", "keep"] = Field(
        default="reset", description="whether a site's optimiser starts anew each round or goes on"
    )
    loss: Literal["binary_cross_entropy", "cross_entropy"]
    class_weights: Literal["none", "balanced"] = Field(
        default="none", description="balanced: weights from the site's own class counts"
    )
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"

    @model_validator(mode="after")
    def _check(self) -> Training:
        if self.momentum and self.optimiser != "sgd":
            raise ValueError(f"momentum is a setting of sgd, but the optimiser is {self.optimiser}")
        return self

    def in_round(self, number: int, rounds: int) -> Training:
        """These settings with the learning rate of round `number` (from 1) of `rounds`."""
        passed = (number - 1) / rounds
        factor = {"constant": 1.0, "linear": 1.0 - passed, "cosine": 0.5 * (1.0 + math.cos(math.pi * passed))}
        return self.model_copy(update={"learning_rate": self.learning_rate * factor[self.schedule]})


class ServerOptimiser(Strict):
    """What the coordinator does with the mean update (Reddi et al., Adaptive Federated Optimization, 2021)."""

    name: Literal["fedavg", "fedavgm", "fedadam", "fedyogi"] = "fedavg"
    learning_rate: float = Field(default=1.0, gt=0)
    beta1: float = Field(default=0.9, ge=0, lt=1, description="momentum of fedavgm, fedadam and fedyogi")
    beta2: float = Field(default=0.99, ge=0, lt=1, description="fedadam and fedyogi")
    tau: float = Field(default=1e-3, gt=0, description="adaptivity of fedadam and fedyogi")


class Federation(Strict):
    """Rounds, quorum, deadlines, and how updates are weighed and sent."""

    rounds: int = Field(ge=0, le=100_000)
    quorum: int = Field(ge=1, description="fewest updates that make a round")
    join_deadline_s: float = Field(default=600, gt=0, description="how long to wait for the sites before round 0")
    prepare_deadline_s: float = Field(default=7200, gt=0, description="round 0: reading the data, filling the cache")
    round_deadline_s: float = Field(default=7200, gt=0)
    evaluation_deadline_s: float = Field(default=7200, gt=0)
    weighting: Literal["counts", "uniform"] | dict[Name, Annotated[float, Field(gt=0)]] = Field(
        description="by each site's training images, all equal, or public weights by site name"
    )
    optimiser: ServerOptimiser = ServerOptimiser()
    wire: Literal["fp32", "bf16"] = Field(
        default="fp32", description="number format of weights and updates in transport"
    )
    keep_updates: bool | None = Field(
        default=None,
        description="keep every site's update, so that an auditor can aggregate again; null: where the study is private",
    )


class NoisedCounts(Strict):
    """Of the evaluation only confusion counts leave, once, with two-sided geometric noise; one test image of each patient counts."""

    epsilon: WrittenExact = Field(description="of each hospital's counts of all heads together, for one test patient")


class Evaluation(Strict):
    """How figures are obtained and what of them leaves."""

    resamples: int = Field(default=1000, ge=100, le=20_000, description="bootstrap resamples, drawn by patient")
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    histogram_bins: int = Field(default=100, ge=10, le=1000, description="public equal bins of [0, 1] for the scores")
    minimum_cell: int = Field(
        default=5, ge=1, description="smallest count of a histogram cell that leaves; neighbours are merged"
    )
    baseline: bool = Field(
        default=True, description="evaluate the round-0 model too, so that what was learned is a paired figure"
    )
    release: NoisedCounts | None = Field(
        default=None, description="None: exact figures leave; must be given in a private study, with baseline: false"
    )

    @model_validator(mode="after")
    def _check(self) -> Evaluation:
        if self.release is not None and self.baseline:
            raise ValueError("with release the counts leave once, of the final model: set baseline to false")
        return self


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
