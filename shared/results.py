"""What a hospital reports of a model: counts and metrics, nothing of a single patient. These schemas are part of the egress contract."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from shared.exact import Exact
from shared.profile import ArtificialPart
from shared.schema import Name, Sha256, Strict

Head = Literal["network", "svm"]
Count = Annotated[int, Field(ge=0)]
#: Length of one tag of an image, by which the coordinator counts images that two sites both hold (`client.duplicate_tags`).
TAG_BYTES = 8
Tags = Annotated[
    str, Field(pattern=r"^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$", max_length=20_000_000)
]

#: Metrics of one head, in the order of the tables. For two classes sensitivity, specificity, precision and F1 are of the positive
#: class; for more classes so too (one against the rest), and `auc` is the mean of the one-against-rest AUCs.
METRICS = ("accuracy", "balanced_accuracy", "sensitivity", "specificity", "precision", "f1", "auc")
#: Of one descriptor of lesions.
DESCRIPTOR_METRICS = ("accuracy", "balanced_accuracy", "macro_f1")


class Estimate(Strict):
    """A figure with its bootstrap interval, resampled by patient. None where it is undefined (no image of a class, say)."""

    value: float | None
    low: float | None = None
    high: float | None = None


class Difference(Strict):
    """Final minus round-0 model on the same test images: paired by patient. `standard_error` lets sites be pooled."""

    value: float
    low: float
    high: float
    standard_error: Annotated[float, Field(ge=0)]


class ClassRow(Strict):
    """One class against the rest."""

    images: Count | None = Field(description="None where the count is private")
    precision: Estimate
    recall: Estimate
    specificity: Estimate
    f1: Estimate
    auc: Estimate


class ScoreHistogram(Strict):
    """Counts of the positive-class score in bins of [0, 1], apart for images of the positive class and of the rest.

    `edges` are public bin edges; neighbours were merged until no cell is above 0 and below the minimum cell.
    """

    edges: list[Annotated[float, Field(ge=0, le=1)]]
    positive: list[Count]
    negative: list[Count]
    minimum_cell: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _check(self) -> ScoreHistogram:
        cells = len(self.edges) - 1
        if cells < 1 or len(self.positive) != cells or len(self.negative) != cells:
            raise ValueError(
                f"{len(self.edges)} edges need one positive and one negative count between each two, "
                f"but there are {len(self.positive)} and {len(self.negative)}"
            )
        if any(low >= high for low, high in pairwise(self.edges)):
            raise ValueError("edges must ascend")
        if any(0 < count < self.minimum_cell for count in (*self.positive, *self.negative)):
            raise ValueError(f"a cell counts fewer than {self.minimum_cell} images but not none")
        return self


class HeadResult(Strict):
    """One head (the network's own, or the SVM) on the hospital's test images."""

    accuracy: Estimate
    balanced_accuracy: Estimate
    sensitivity: Estimate
    specificity: Estimate
    precision: Estimate
    f1: Estimate
    auc: Estimate
    #: confusion[true][predicted]; with noise a count can be below 0
    confusion: list[list[int]]
    #: by class, in the study's order
    classes: list[ClassRow]
    histogram: ScoreHistogram | None = Field(default=None, description="None where the cells are too small to leave")
    gain: dict[Literal["auc", "balanced_accuracy"], Difference] | None = Field(
        default=None, description="final minus round 0; None without a baseline"
    )
    noise: Exact | None = Field(
        default=None,
        description="epsilon of the geometric noise on `confusion`, from which all other figures are computed; None: exact counts",
    )

    @model_validator(mode="after")
    def _check(self) -> HeadResult:
        if self.noise is None and any(count < 0 for row in self.confusion for count in row):
            raise ValueError("a confusion count below 0 without noise")
        return self


class DescriptorResult(Strict):
    """One descriptor of lesions, on the test images that have it. Left out where these are fewer than the minimum cell."""

    images: Count
    patients: Count
    by_value: list[Count] | None = Field(
        description="images of each value, in the study's order; None where a value has some, but fewer than the minimum cell"
    )
    accuracy: Estimate
    balanced_accuracy: Estimate
    macro_f1: Estimate
    minimum_cell: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _check(self) -> DescriptorResult:
        if self.images < self.minimum_cell:
            raise ValueError(f"figures of {self.images} images, fewer than the minimum cell {self.minimum_cell}")
        if self.by_value is not None:
            if any(0 < count < self.minimum_cell for count in self.by_value):
                raise ValueError(f"a value counts fewer than {self.minimum_cell} images but not none")
            if sum(self.by_value) != self.images:
                raise ValueError(f"the values count {sum(self.by_value)} images, but there are {self.images}")
        return self


#: Figures of masks, each a mean over the test images (`shared.metrics.segmentation`), in the order of the tables.
MASK_METRICS = ("iou", "dice", "thresholded_iou", "pixel_accuracy", "sensitivity", "specificity")
MaskGain = Literal["iou", "dice"]


class MaskClassRow(Strict):
    """Figures of the masks of one class's images."""

    images: Count
    iou: Estimate
    dice: Estimate


class DiceHistogram(Strict):
    """Counts of test images by their Dice coefficient.

    `edges` are public bin edges; neighbours were merged until no cell is above 0 and below the minimum cell.
    """

    edges: list[Annotated[float, Field(ge=0, le=1)]]
    images: list[Count]
    minimum_cell: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _check(self) -> DiceHistogram:
        cells = len(self.edges) - 1
        if cells < 1 or len(self.images) != cells:
            raise ValueError(
                f"{len(self.edges)} edges need one count between each two, but there are {len(self.images)}"
            )
        if any(low >= high for low, high in pairwise(self.edges)):
            raise ValueError("edges must ascend")
        if any(0 < count < self.minimum_cell for count in self.images):
            raise ValueError(f"a cell counts fewer than {self.minimum_cell} images but not none")
        return self


class MaskResult(Strict):
    """Figures of the masks that the network finds on the hospital's test images: means over the images.

    A pixel is found where the chance of a lesion is at least one half.
    """

    iou: Estimate
    dice: Estimate
    thresholded_iou: Estimate = Field(description="IoU, or 0 where it is below 0.65")
    pixel_accuracy: Estimate
    sensitivity: Estimate = Field(description="of the lesion's pixels; over the images with a lesion")
    specificity: Estimate = Field(description="of the other pixels")
    #: by class, in the study's order
    classes: list[MaskClassRow]
    histogram: DiceHistogram | None = Field(default=None, description="None where the cells are too small to leave")
    gain: dict[MaskGain, Difference] | None = Field(
        default=None, description="final minus round 0; None without a baseline"
    )


class SvmChoice(Strict):
    """What the grid search chose."""

    C: float
    gamma: float
    cross_validation_score: float | None
    support_vectors: Count


class Evaluated(Strict):
    """One hospital's evaluation of one global model: of a segmentation study `masks`, of any other `network` and what may go with it.

    Counts are None where only noised ones leave.
    """

    patients: Count | None
    images: Count | None
    train_patients: Count | None
    train_images: Count | None
    network: HeadResult | None = None
    masks: MaskResult | None = None
    svm: HeadResult | None = None
    svm_paper: HeadResult | None = Field(
        default=None, description="the SVM with the study's C and gamma as given, where a grid was searched"
    )
    svm_choice: SvmChoice | None = None
    descriptors: dict[Name, DescriptorResult] | None = Field(
        default=None, description="by name; None in a study without descriptors, and where only noised counts leave"
    )
    seconds: dict[Literal["features", "svm", "metrics", "total"], float]

    @model_validator(mode="after")
    def _check(self) -> Evaluated:
        if (self.network is None) == (self.masks is None):
            raise ValueError("an evaluation is of classes, network, or of masks: one of the two must be given")
        if self.masks is not None and (self.svm, self.svm_paper, self.svm_choice) != (None, None, None):
            raise ValueError("an evaluation of masks has no SVM")
        return self


class PartCounts(Strict):
    """Patients and images of one part, images by class in the study's order."""

    patients: Count
    images: Count
    by_class: list[Count]


class CopiesLeftOut(Strict):
    """How many images take no part because another of the hospital's images shows the same."""

    copies: Count = Field(description="of which another copy takes part")
    contradicting: Count = Field(description="of which none does, as the copies' classes differ")


class Prepared(Strict):
    """A site's answer to PREPARE (round 0): how much it has, and that it holds the same model."""

    parts: dict[Literal["train", "validation", "test"], PartCounts] = Field(description="none in a private run")
    left_out: Count | None = Field(
        description="records whose label is in no class, or that select leaves out; None in a private run"
    )
    unreadable: Count | None = Field(description="None in a private run")
    copies: CopiesLeftOut | None = Field(
        default=None, description="None where the study does not ask (data.duplicates), and in a private run"
    )
    tags: dict[Name, Tags] = Field(
        default={},
        description="by other site: keyed tags of this site's images, for the count of images that both hold; none unless the study asks "
        "(data.duplicates.across)",
    )
    synthetic: bool
    patient_stand_in: str | None
    external: bool = Field(default=False, description="the site never trains: it tests the final model, by its profile")
    artificial_part: ArtificialPart | None = Field(
        default=None, description="its data is one part of a published set that was cut up to stand for several sites"
    )
    device: str
    precision: Literal["fp32", "bf16"]
    memory_format: Literal["contiguous", "channels_last"]
    #: digest of everything in the model that does not travel (frozen tensors), after loading the study's weights
    frozen_digest: Sha256
    baseline: Evaluated | None = None
    seconds: dict[Literal["read", "cache", "baseline", "total"], float]


class Epoch(Strict):
    """Mean training loss (with the descriptors' share) and accuracy over one local epoch. Of a segmentation study accuracy is of pixels."""

    loss: float
    accuracy: float


class Validation(Strict):
    """The incoming global model on the site's validation part, before training. Of a segmentation study accuracy is that of pixels."""

    loss: float | None
    accuracy: float | None
    auc: float | None
    dice: float | None = Field(default=None, description="mean over the images; of a segmentation study only")
    images: Count


class Trained(Strict):
    """A site's answer to TRAIN, beside its update. In a private run nothing of it says more than the update."""

    images: Count | None = Field(description="None in a private run")
    patients: Count | None = Field(description="None in a private run")
    steps: Count
    epochs: list[Epoch] = Field(description="none in a private run")
    validation: Validation | None = Field(description="None in a private run")
    update_norm: float
    seconds: dict[Literal["load", "validate", "train", "reply", "total"], float]


class Refused(Strict):
    """A site's answer where it can't or won't do what was asked: a code of docs/errors.md, never a text."""

    code: Annotated[str, Field(pattern=r"^CONS-\d{3}$")]


class SiteHello(Strict):
    """Who answers."""

    site: Name
    code_digest: str
    versions: dict[Literal["consilium", "flwr", "torch", "python"], str]
    any_release: bool = Field(
        default=False, description="development override: the site works for a coordinator with other code"
    )
