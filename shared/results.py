"""What a hospital reports of a model: counts and metrics, nothing of a single patient. These schemas are part of the egress contract."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal, get_args

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


def _require_cells(edges: Sequence[float], minimum_cell: int, *counts: Sequence[int], needed: str) -> None:
    """Raises ValueError where edges and cells are not those of a histogram that may leave; `needed` says what each cell counts."""
    if len(edges) < 2 or any(len(one) != len(edges) - 1 for one in counts):
        found = " and ".join(str(len(one)) for one in counts)
        raise ValueError(f"{len(edges)} edges need {needed} between each two, but there are {found}")
    if any(low >= high for low, high in pairwise(edges)):
        raise ValueError("edges must ascend")
    if any(0 < count < minimum_cell for one in counts for count in one):
        raise ValueError(f"a cell counts fewer than {minimum_cell} images but not none")


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
        counts = (self.positive, self.negative)
        _require_cells(self.edges, self.minimum_cell, *counts, needed="one positive and one negative count")
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


MaskMetric = Literal["iou", "dice", "thresholded_iou", "pixel_accuracy", "sensitivity", "specificity"]
MaskGain = Literal["iou", "dice"]
#: Figures of masks, each a mean over the test images (`shared.metrics.segmentation`), in the order of the tables.
MASK_METRICS: tuple[MaskMetric, ...] = get_args(MaskMetric)
#: Those that are divided by class, and that a paired difference is given of.
MASK_GAINS: tuple[MaskGain, ...] = get_args(MaskGain)
NoisedMaskMetric = Literal["iou", "dice", "thresholded_iou"]
#: Those that follow from noised counts of patients by IoU (`shared.metrics.noised_masks`).
NOISED_MASK_METRICS: tuple[NoisedMaskMetric, ...] = get_args(NoisedMaskMetric)
#: Equal bins of IoU in which these are counted: public, and the threshold 0.65 is an edge.
IOU_BINS = 20


class MaskClassRow(Strict):
    """Figures of the masks of one class's images; undefined where they are withheld, the images being too few."""

    images: Count
    iou: Estimate
    dice: Estimate

    @property
    def withheld(self) -> bool:
        """Whether there are images, but no figure of them."""
        return self.images > 0 and self.iou.value is None and self.dice.value is None


class DiceHistogram(Strict):
    """Counts of test images by their Dice coefficient.

    `edges` are public bin edges; neighbours were merged until no cell is above 0 and below the minimum cell.
    """

    edges: list[Annotated[float, Field(ge=0, le=1)]]
    images: list[Count]
    minimum_cell: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _check(self) -> DiceHistogram:
        _require_cells(self.edges, self.minimum_cell, self.images, needed="one count")
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
    minimum_cell: Annotated[int, Field(ge=1)] = Field(
        default=1,
        description="fewest images of a class whose figures leave, and of all classes together whose figures are withheld beside others': "
        "they follow from the others and the mean over all",
    )
    histogram: DiceHistogram | None = Field(default=None, description="None where the cells are too small to leave")
    gain: dict[MaskGain, Difference] | None = Field(
        default=None, description="final minus round 0; None without a baseline"
    )

    @model_validator(mode="after")
    def _check(self) -> MaskResult:
        told = [row.images for row in self.classes if row.images and not row.withheld]
        withheld = sum(row.images for row in self.classes if row.withheld)
        if any(images < self.minimum_cell for images in told):
            raise ValueError(f"figures of a class with fewer than {self.minimum_cell} images")
        if told and 0 < withheld < self.minimum_cell:
            raise ValueError(
                f"the classes without figures have {withheld} images together, fewer than {self.minimum_cell}, so their "
                "figures follow from the other classes' and the mean over all"
            )
        return self


class NoisedMasks(Strict):
    """Test patients by the IoU of one image each, counted with noise, and the means over the patients that follow from these counts."""

    counts: Annotated[list[int], Field(min_length=IOU_BINS, max_length=IOU_BINS)] = Field(
        description="patients by bin of IoU, [0, 0.05) first, [0.95, 1] last; with noise a count can be below 0"
    )
    noise: Exact = Field(
        description="epsilon of the geometric noise on `counts`, from which all other figures are computed"
    )
    iou: Estimate
    dice: Estimate
    thresholded_iou: Estimate = Field(description="IoU, or 0 where it is below 0.65")


class SvmChoice(Strict):
    """What the grid search chose."""

    C: float
    gamma: float
    cross_validation_score: float | None
    support_vectors: Count


class Evaluated(Strict):
    """One hospital's evaluation of one global model: of a segmentation study `masks`, or `noised_masks` where it asks for noise; of any
    other `network` and what may go with it.

    Counts are None where only noised ones leave.
    """

    patients: Count | None
    images: Count | None
    train_patients: Count | None
    train_images: Count | None
    network: HeadResult | None = None
    masks: MaskResult | None = None
    noised_masks: NoisedMasks | None = Field(
        default=None, description="in place of masks, where only noised counts leave"
    )
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
        given = [one for one in (self.network, self.masks, self.noised_masks) if one is not None]
        if len(given) != 1:
            raise ValueError(
                "an evaluation is of classes, network, or of masks, masks or noised_masks: one of the three must be given"
            )
        if self.of_masks and (self.svm, self.svm_paper, self.svm_choice) != (None, None, None):
            raise ValueError("an evaluation of masks has no SVM")
        return self

    @property
    def of_masks(self) -> bool:
        """Whether it is of what a network for masks finds, with noise or without."""
        return self.network is None


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
