"""Did a run learn? Two questions, each answered by an interval and not by a point.

Every hospital's SVM must be above chance (the AUC's interval above 0.5), and the final global model must beat the round-0 model on
the same test patients at the pooled level (the paired interval of the AUC's gain above 0), for the network and for the SVM.

Of a segmentation study there is no chance to be above: there the masks must be better than the round-0 model's, by the paired interval of
the gain in IoU, at every hospital and over all.

Where only noised counts have left there is no AUC, and no figure of round 0: then balanced accuracy must be above chance over all
hospitals, its interval the noise included. A single hospital's counts may be too few under their noise, so it is not asked. Of noised
figures of masks nothing is known that they would have to be better than, so the question is answered with no.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from server.run_folder import RunFolder
from shared.errors import RunFolderError
from shared.metrics.mask_pooling import pool_masks
from shared.metrics.pooling import HeadKey, PooledHead, pool
from shared.results import Difference, Evaluated, MaskGain
from shared.study import Study


@dataclass(frozen=True, slots=True)
class Question:
    """One question with its answer; `figure` is what the answer rests on."""

    text: str
    figure: str
    yes: bool


def questions(study: Study, sites: Mapping[str, Evaluated], external: Collection[str] = ()) -> list[Question]:
    """Every question that the run's evaluation can answer; a figure that is missing is answered with no.

    What is asked of all hospitals is asked of those that trained, without the `external` ones.
    """
    trained = {site: one for site, one in sites.items() if site not in external}
    if study.task.kind == "segmentation":
        return _of_masks(study, sites, trained)
    if any(one.network is not None and one.network.noise is not None for one in sites.values()):
        return _of_noised_counts(study, trained)
    asked: list[Question] = []
    for site, result in sorted(sites.items()):
        head = result.svm or result.network
        if head is None:
            continue
        low = head.auc.low
        asked.append(
            Question(
                f"{site}: its {'SVM' if result.svm else 'network'} is above chance",
                _interval("AUC", head.auc.value, low, head.auc.high),
                low is not None and low > 0.5,
            )
        )
    heads: tuple[HeadKey, ...] = ("network", "svm") if study.head is not None else ("network",)
    if study.federation.rounds == 0:  # nothing was to be learned
        heads = ()
    for name in heads:
        pooled = _pooled(trained, name, study)
        gain = pooled.gain["auc"] if pooled is not None and pooled.gain is not None else None
        asked.append(
            Question(
                f"all hospitals: the {'SVM' if name == 'svm' else 'network'} on the final model beats that on the round-0 model",
                "no paired figure" if gain is None else _interval("gain in AUC", gain.value, gain.low, gain.high),
                gain is not None and gain.low > 0,
            )
        )
    return asked


def _pooled(sites: Mapping[str, Evaluated], head: HeadKey, study: Study) -> PooledHead | None:
    every = [sites[site] for site in sorted(sites)]
    return pool(every, head, positive=study.task.positive_index, confidence=study.evaluation.confidence)


def _of_masks(study: Study, sites: Mapping[str, Evaluated], trained: Mapping[str, Evaluated]) -> list[Question]:
    asked = [
        _of_gain(f"{site}: the final model's masks are better than the round-0 model's", one.masks.gain)
        for site, one in sorted(sites.items())
        if one.masks is not None
    ]
    pooled = pool_masks([trained[site] for site in sorted(trained)], confidence=study.evaluation.confidence)
    text = "all hospitals: the final model's masks are better than the round-0 model's"
    if pooled is not None and pooled.counts is not None:
        iou = pooled.figures["iou"]
        return [Question(text, f"not known; {_interval('mean IoU', iou.value, iou.low, iou.high)}", False)]
    return [*asked, _of_gain(text, pooled.gain if pooled is not None else None)]


def _of_gain(text: str, gain: Mapping[MaskGain, Difference] | None) -> Question:
    one = gain.get("iou") if gain is not None else None
    told = "no paired figure" if one is None else _interval("gain in IoU", one.value, one.low, one.high)
    return Question(text, told, one is not None and one.low > 0)


def without_baseline(study: Study) -> str | None:
    """Why nothing can be compared with round 0, in a sentence; None where it can."""
    if study.evaluation.release is None:
        return None
    if study.task.kind == "segmentation":
        return (
            "Counts of test patients by IoU left once, with noise, of the final model: there is no round 0 to compare with, and masks have "
            "no chance level"
        )
    return (
        "Counts left once, with noise, of the final model: there is no round 0 to compare with, and no AUC. Chance is what always giving "
        "one answer reaches"
    )


def _of_noised_counts(study: Study, sites: Mapping[str, Evaluated]) -> list[Question]:
    chance = 1.0 / len(study.task.classes)
    heads: tuple[HeadKey, ...] = ("network", "svm")
    asked: list[Question] = []
    for name in heads:
        pooled = _pooled(sites, name, study)
        if pooled is not None:
            found = pooled.balanced_accuracy
            asked.append(
                Question(
                    f"all hospitals: the {'private SVM' if name == 'svm' and study.privacy else 'SVM' if name == 'svm' else 'network'} "
                    "is above chance",
                    f"{_interval('balanced accuracy', found.value, found.low, found.high)}, chance {chance:.3f}",
                    found.low is not None and found.low > chance,
                )
            )
    return asked


def questions_of_run(folder: RunFolder) -> list[Question]:
    """The questions of a finished run. Raises RunFolderError where it has no evaluation."""
    final = folder.final()
    if final is None:
        raise RunFolderError(
            f"{folder.path}: this run has no final evaluation, so nothing can be said of what it learned"
        )
    external = {site for record in folder.rounds() for site, one in record.prepared.items() if one.external}
    return questions(folder.study(), final.sites, external)


def _interval(name: str, value: float | None, low: float | None, high: float | None) -> str:
    if value is None or low is None or high is None:
        return f"{name} undefined"
    return f"{name} {value:.3f} ({low:.3f} to {high:.3f})"
