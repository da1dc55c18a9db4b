"""The schema of `report.json`. docs/report.md is made from the descriptions below by `python -m server.report.document`.

The report adds nothing to what the hospitals sent: it arranges, pools and explains it. Every figure is here with its
interval and with the number of images it rests on; a figure that could not be had is null and the page says why.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from server.report.schema_privacy import PrivacyReport
from shared.profile import ArtificialPart
from shared.results import CopiesLeftOut, Count, Difference, Estimate, MaskGain, PartCounts, SvmChoice
from shared.run_records import Miss, RoundTiming, State
from shared.schema import Strict
from shared.study_task import Kind

Part = Literal["train", "validation", "test"]
GainMetric = Literal["auc", "balanced_accuracy"]
Seconds = Annotated[float, Field(ge=0)]


class Figure(Strict):
    """One figure of one head. The interval is bootstrapped by patient at the hospital, at the study's confidence.

    Of noised counts both are computed from the counts as they came out of the noise, and the interval accounts for it.
    """

    value: float | None = Field(
        description="the figure, from 0 to 1; null where it is undefined (no image of a class, say)"
    )
    low: float | None = Field(description="lower end of the interval")
    high: float | None = Field(description="upper end of the interval")
    images: Count = Field(
        description="test images the figure rests on: those of the positive class for sensitivity, the others for specificity, "
        "those called positive for precision, else all; of noised counts what these add up to, one vote a patient"
    )

    @classmethod
    def of(cls, estimate: Estimate, images: int) -> Figure:
        return Figure(value=estimate.value, low=estimate.low, high=estimate.high, images=images)


class PooledFigure(Figure):
    """One figure over all hospitals that sent an evaluation."""

    how: str = Field(description="how value and interval were obtained from what the hospitals sent, in words")

    @classmethod
    def pooled(cls, estimate: Estimate, images: int, how: str) -> PooledFigure:
        return PooledFigure(value=estimate.value, low=estimate.low, high=estimate.high, images=images, how=how)


class RocPoint(Strict):
    """One operating point."""

    false_positive_rate: Annotated[float, Field(ge=0, le=1)]
    true_positive_rate: Annotated[float, Field(ge=0, le=1)]


class ClassFigures(Strict):
    """One class against all the others."""

    name: str
    images: Count | None = Field(
        description="test images whose true class is this one; with noise as it came out of it"
    )
    precision: Figure
    recall: Figure
    specificity: Figure
    f1: Figure
    auc: Figure


class WeightedFigures(Strict):
    """Means of the classes' figures, each against the rest, weighted by the classes' test images."""

    precision: Figure = Field(description="a class that has images and is never said counts with 0")
    recall: Figure = Field(description="equal to the accuracy")
    specificity: Figure
    f1: Figure


class ErrorCount(Strict):
    """False positives and false negatives, each class against the rest, added up."""

    value: Count
    low: float | None = Field(description="lower end of the interval: among as many images of other patients")
    high: float | None = Field(description="upper end of the interval")


class OverClasses(Strict):
    """Figures over all classes at once, made from the confusion counts."""

    weighted: WeightedFigures
    errors: ErrorCount = Field(
        description="over all classes: twice the wrong images, since each is missed in one class and a false alarm in another"
    )
    rare_errors: ErrorCount | None = Field(
        description="over the classes that the study calls rare (`task.rare_classes`); null where it calls none so"
    )


class HeadReport(Strict):
    """One head (the network's own output, or the SVM on its features) on one hospital's test part."""

    patients: Count | None = Field(description="test patients; null where only noised counts left")
    images: Count | None = Field(description="test images; null where only noised counts left")
    noise: str | None = Field(description="epsilon of the noise on the counts; null for exact ones")
    accuracy: Figure = Field(description="share of images given their true class")
    balanced_accuracy: Figure = Field(
        description="mean over the classes of the share of their images given their true class"
    )
    sensitivity: Figure = Field(description="share of the positive class's images that were called positive")
    specificity: Figure = Field(description="share of the other images that were not called positive")
    precision: Figure = Field(description="share of the images called positive that are")
    f1: Figure = Field(description="harmonic mean of precision and sensitivity")
    auc: Figure = Field(
        description="area under the ROC curve; for more than two classes the mean of the one-against-the-rest areas"
    )
    confusion: list[list[int]] = Field(
        description="confusion[true][predicted], classes in the study's order; with noise a count can be below 0"
    )
    classes: list[ClassFigures] = Field(description="by class, in the study's order")
    over_classes: OverClasses | None = Field(
        default=None,
        description="from the confusion counts; intervals from drawing these anew, as many images as there are patients; null where the "
        "counts carry noise, which hides the single cells that it rests on",
    )
    roc: list[RocPoint] | None = Field(
        description="ROC curve of the positive class from the hospital's score histogram; null where its cells were too small to leave"
    )
    gain: dict[GainMetric, Difference] | None = Field(
        description="final minus round-0 model on the same test images, paired by patient; null without a baseline"
    )


class PooledDifference(Strict):
    """Final minus round-0 model over all hospitals."""

    value: float
    low: float
    high: float
    how: str = Field(description="how it was pooled, in words")

    @classmethod
    def of(cls, difference: Difference, how: str) -> PooledDifference:
        return PooledDifference(value=difference.value, low=difference.low, high=difference.high, how=how)


class PooledRoc(Strict):
    """ROC curve of the positive class over all hospitals' images together, from their score histograms."""

    points: list[RocPoint]
    auc: PooledFigure = Field(description="area under this curve; it compares images across hospitals too")
    auc_least: float = Field(
        description="what the exact area is at the least, whatever the scores inside the histograms' cells"
    )
    auc_most: float = Field(description="what the exact area is at the most")


class PooledHead(Strict):
    """One head over the test parts of all hospitals that sent an evaluation."""

    patients: Count | None = Field(description="test patients; null where only noised counts left")
    images: Count | None = Field(description="test images; null where only noised counts left")
    sites: list[str] = Field(description="the hospitals that are part of it")
    accuracy: PooledFigure
    balanced_accuracy: PooledFigure
    sensitivity: PooledFigure
    specificity: PooledFigure
    precision: PooledFigure
    f1: PooledFigure
    auc: PooledFigure
    confusion: list[list[int]] = Field(description="the hospitals' confusion counts, added up")
    classes: list[ClassFigures] = Field(description="by class, in the study's order; pooled as the figures above")
    over_classes: OverClasses | None = Field(
        default=None, description="from the hospitals' confusion counts added up; null where they carry noise"
    )
    roc: PooledRoc | None = Field(description="null where a hospital's histogram could not leave")
    gain: dict[GainMetric, PooledDifference] | None = Field(
        description="final minus round-0 model; null where no hospital has a baseline"
    )


class ReachingPoint(Strict):
    """A point of the distribution of Dice over the test images."""

    dice: Annotated[float, Field(ge=0, le=1)]
    share: Annotated[float, Field(ge=0, le=1)] = Field(description="of the test images, whose Dice is at least that")


class MaskClassFigures(Strict):
    """The masks of one class's images."""

    name: str
    images: Count = Field(description="also those of hospitals that withhold their figures")
    iou: Figure = Field(
        description="no value without an image, and where too few are of the class for its figures to leave"
    )
    dice: Figure = Field(description="as iou")


class MaskReport(Strict):
    """The masks that the network finds on one hospital's test part; every figure is a mean over its images.

    Of noised counts it is a mean over its test patients, one image of each; then pixel figures have no value, and there are no classes.
    """

    patients: Count | None = Field(description="test patients; null where only noised counts left")
    images: Count | None = Field(description="test images; null where only noised counts left")
    noise: str | None = Field(default=None, description="epsilon of the noise on `counts`; null for exact figures")
    counts: list[int] | None = Field(
        default=None,
        description="test patients by the IoU of one image each, in 20 equal bins of [0, 1], as they came out of the noise; a count can be "
        "below 0; null for exact figures",
    )
    iou: Figure = Field(description="Jaccard index: pixels in both masks, of those in either; 1 where both are empty")
    dice: Figure = Field(
        description="twice the pixels in both masks, over those of one and of the other; 1 where both are empty"
    )
    thresholded_iou: Figure = Field(description="IoU, with an image below 0.65 counted as 0 (ISIC 2018)")
    pixel_accuracy: Figure = Field(description="share of the pixels that are told rightly")
    sensitivity: Figure = Field(description="share of the lesion's pixels that are found")
    specificity: Figure = Field(description="share of the other pixels that are left out")
    classes: list[MaskClassFigures] = Field(description="by class, in the study's order")
    reaching: list[ReachingPoint] | None = Field(
        description="distribution of Dice, from the hospital's histogram; null where its cells were too small to leave"
    )
    quartiles: list[float] | None = Field(
        description="the Dice that a quarter, a half and three quarters of the images stay below, from the histogram, the images of a "
        "cell taken as spread evenly; null without one"
    )
    gain: dict[MaskGain, Difference] | None = Field(
        description="final minus round-0 model on the same test images, paired by patient; null without a baseline"
    )


class PooledMasks(Strict):
    """Masks over the test parts of all hospitals that sent an evaluation."""

    patients: Count | None = Field(description="test patients; null where only noised counts left")
    images: Count | None = Field(description="test images; null where only noised counts left")
    counts: list[int] | None = Field(
        default=None, description="the hospitals' noised counts by IoU, added up; null for exact figures"
    )
    sites: list[str] = Field(description="the hospitals that are part of it")
    iou: PooledFigure
    dice: PooledFigure
    thresholded_iou: PooledFigure
    pixel_accuracy: PooledFigure
    sensitivity: PooledFigure
    specificity: PooledFigure
    classes: list[MaskClassFigures] = Field(description="by class, in the study's order; pooled as the figures above")
    gain: dict[MaskGain, PooledDifference] | None = Field(
        description="final minus round-0 model; null where no hospital has a baseline"
    )


class Pooled(Strict):
    """All hospitals together: of a segmentation study `masks`, of any other the heads."""

    network: PooledHead | None = None
    svm: PooledHead | None = None
    svm_paper: PooledHead | None = None
    masks: PooledMasks | None = None


class DescriptorFigures(Strict):
    """One descriptor of lesions at one hospital, on the test images that have it."""

    patients: Count
    images: Count
    by_value: list[Count] | None = Field(
        description="images of each value, in the order of `values`; null where a value's count is too small to leave"
    )
    accuracy: Figure = Field(description="share of images given their true value")
    balanced_accuracy: Figure = Field(
        description="mean over the values of the share of their images given their true value"
    )
    macro_f1: Figure = Field(description="mean of the F1 of the values that occur or were said")


class PooledDescriptor(Strict):
    """One descriptor over all hospitals that trained and reported it."""

    patients: Count
    images: Count
    sites: list[str] = Field(description="the hospitals that are part of it")
    accuracy: PooledFigure
    balanced_accuracy: PooledFigure
    macro_f1: PooledFigure


class DescriptorReport(Strict):
    """One descriptor of lesions."""

    values: list[str] = Field(description="in the order of every list by value")
    sites: dict[str, DescriptorFigures]
    not_reported: list[str] = Field(
        description="hospitals that sent an evaluation without this descriptor: too few of their test images have it, or they keep it"
    )
    pooled: PooledDescriptor | None


class Baseline(Strict):
    """The round-0 model (before any training) at one hospital, on the same test part."""

    network: HeadReport | None
    svm: HeadReport | None
    masks: MaskReport | None = None


class SharedImages(Strict):
    """How many images two hospitals both hold: such with equal 64-bit perceptual hashes, among those that take part."""

    sites: tuple[str, str]
    images: Count | None = Field(description="null where there are some, but fewer than may be told")
    fewer_than: int | None = Field(description="the study's minimum cell, where the count is below it and not 0")


class DataReport(Strict):
    """What a hospital brought."""

    parts: dict[Part, PartCounts] = Field(
        description="patients, images, and images by class, by part; none in a private run"
    )
    left_out: Count | None = Field(
        description="records whose label is in no class of the study, or that its selection leaves out; null in a private run"
    )
    unreadable: Count | None = Field(description="image files that could not be read; null in a private run")
    copies: CopiesLeftOut | None = Field(
        default=None,
        description="images that take no part because the hospital holds them more than once; null where the study does not ask",
    )
    synthetic: bool = Field(description="whether the hospital declared its data synthetic")
    patient_stand_in: str | None = Field(
        description="the id that stands in for the patient, where the data has no patient id; null where it has"
    )
    external: bool = Field(
        default=False, description="whether the hospital never trained and tested the final model as an outsider"
    )
    artificial_part: ArtificialPart | None = Field(
        default=None,
        description="which part of a published set that was cut up to stand for several hospitals; null for a hospital's own data",
    )


class Machine(Strict):
    """What a hospital computed on; null where it never answered that far."""

    device: str | None
    precision: str | None
    memory_format: str | None
    code_digest: str | None = Field(
        description="digest of the code the hospital ran; equal to the run's if all is well"
    )
    any_release: bool = Field(description="the hospital's node had given up comparing releases, for development")
    versions: dict[str, str]


class CurvePoint(Strict):
    """One training round at one hospital."""

    round: int
    train_loss: list[float] = Field(description="mean training loss, by local epoch")
    train_accuracy: list[float] = Field(description="training accuracy, by local epoch")
    validation_loss: float | None = Field(
        description="loss of the incoming global model (the one of the round before) on the hospital's validation part"
    )
    validation_accuracy: float | None
    validation_auc: float | None
    validation_dice: float | None = Field(
        default=None, description="mean over the images; null unless it is a segmentation study"
    )
    validation_images: Count | None
    train_images: Count | None
    train_patients: Count | None
    weight: float | None = Field(description="the update's weight in the mean; the weights of a round add up to 1")
    update_norm: float = Field(description="Euclidean norm of the update")


class SiteRoundTiming(Strict):
    """Seconds of one training round at one hospital, first question to last answer."""

    round: int
    load: Seconds = Field(description="at the hospital: taking in the global model")
    validate_: Seconds = Field(
        alias="validate", description="at the hospital: the incoming model on the validation part"
    )
    train: Seconds = Field(description="at the hospital: training")
    reply: Seconds = Field(description="at the hospital: building the answer")
    transfer: Seconds = Field(
        description="answered_after less the hospital's own total: transport, queues, and the start of processes"
    )
    wait: Seconds = Field(description="from the hospital's answer to the last hospital's answer in the same round")


class SiteReport(Strict):
    """Everything about one hospital. Heads and masks are null where it sent no final evaluation, or none of that kind."""

    data: DataReport | None = Field(description="null where its answer to PREPARE is not in the records")
    machine: Machine
    network: HeadReport | None
    svm: HeadReport | None = Field(description="the SVM with the grid's choice, or as given where no grid was searched")
    svm_paper: HeadReport | None = Field(
        description="the SVM with the study's C and gamma as given, where a grid was searched"
    )
    svm_choice: SvmChoice | None
    masks: MaskReport | None = Field(default=None, description="null unless it is a segmentation study")
    baseline: Baseline | None = Field(description="the round-0 model; null where the study has no baseline")
    curve: list[CurvePoint]
    timing: list[SiteRoundTiming]
    prepare_seconds: dict[str, Seconds] = Field(description="round 0 by phase")
    evaluation_seconds: dict[str, Seconds] = Field(description="the final evaluation by phase")


class RoundReport(Strict):
    """One round as the coordinator saw it."""

    round: int
    started: str
    model_in: str | None
    model_out: str
    answered: list[str]
    missing: list[Miss] = Field(description="who was asked and is not part of it, and why")
    late: list[str] = Field(description="whose answer to an earlier round came in this one, and was ignored")
    timing: RoundTiming = Field(
        description="seconds by the coordinator's clock; wait is the time in which it only waited for hospitals"
    )


class RunReport(Strict):
    """Which run this is and how it ended."""

    name: str
    state: State
    reason: str | None = Field(description="a sentence, where the state is stopped or failed")
    code: str | None = Field(description="code of docs/errors.md, where the state is failed")
    started: str
    ended: str | None
    study_digest: str = Field(description="SHA-256 over the RFC 8785 form of the study")
    code_digest: str
    final_model: str | None = Field(description="digest of the model that was evaluated; null without an evaluation")
    versions: dict[str, str]
    parameters: int
    trained_parameters: int
    bytes_down: int = Field(description="array bytes to each hospital in each round")
    bytes_up: int = Field(
        description="array bytes from each hospital in each round; in stages, of the stage that sends most"
    )
    bytes_up_by_stage: list[int] = Field(
        default_factory=list,
        description="array bytes from each hospital in a round of each stage of training; empty without stages",
    )
    rounds_planned: int
    rounds_done: int
    resolved: dict[str, str] = Field(description="what every `auto` of the study became, by site or key")


class Report(Strict):
    """`report.json`: one run, whole."""

    format: Literal["consilium/report/1"] = Field(default="consilium/report/1", alias="schema")
    run: RunReport
    kind: Kind = Field(default="classification", description="what the network answers with")
    classes: list[str] = Field(description="the study's classes, in the order of every list by class")
    positive_class: str = Field(description="the class that sensitivity, specificity, precision, F1 and ROC are about")
    confidence: float = Field(description="confidence of every interval")
    evaluated: bool = Field(description="whether there is a final evaluation; without one there are no test figures")
    not_evaluated: list[Miss] = Field(description="hospitals missing from the final evaluation, and why")
    unit: Literal["finding", "view", "image"] = Field(
        description="what one label belongs to; the reports' `images` count these"
    )
    synthetic: bool = Field(
        description="whether any hospital's data is synthetic: then no figure says anything about patients"
    )
    synthetic_sites: list[str]
    stand_ins: dict[str, str] = Field(description="by site, the id that stands in for the patient")
    external_sites: list[str] = Field(
        default_factory=list,
        description="hospitals of the external test: they never trained, and are in no pooled figure",
    )
    artificial_sites: list[str] = Field(
        default_factory=list, description="sites whose data is a part of a set that was divided artificially"
    )
    sites: dict[str, SiteReport]
    pooled: Pooled = Field(description="all hospitals that trained, together")
    descriptors: dict[str, DescriptorReport] = Field(
        default_factory=dict,
        description="by name, of the final model; none in a study without descriptors, and where only noised counts left",
    )
    rounds: list[RoundReport]
    shared_images: list[SharedImages] | None = Field(
        default=None, description="by two hospitals; null where the study does not ask (data.duplicates.across)"
    )
    privacy: PrivacyReport | None = Field(
        description="null for a plain study: nothing bounds what it says of a patient"
    )
    study: dict[str, Any] = Field(description="the study as it ran, defaults filled in")
