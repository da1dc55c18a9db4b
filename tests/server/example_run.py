"""A run folder with invented, plausible figures: drawn scores, evaluated by the project's own metrics."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from server.run_folder import RunFolder
from shared.metrics.bootstrap import head_result
from shared.metrics.classification import Predictions
from shared.metrics.mask_result import mask_result
from shared.metrics.segmentation import MaskCounts
from shared.profile import ArtificialPart
from shared.results import (
    Epoch,
    Evaluated,
    HeadResult,
    PartCounts,
    Prepared,
    SiteHello,
    SvmChoice,
    Trained,
    Validation,
)
from shared.run_records import Event, FinalRecord, Miss, RoundRecord, RoundTiming, RunRecord, SiteTiming, State
from shared.study import Study, study_from_data

SITES = ("north", "harbour", "hill")
PATIENTS = {"north": 60, "harbour": 45, "hill": 36}
PREVALENCE = {"north": 0.5, "harbour": 0.35, "hill": 0.6}
BASE_TRAINING_LOSS = {"north": 0.70, "harbour": 0.66, "hill": 0.74}
VERSIONS = {"consilium": "0.1.0", "flwr": "1.41.0", "torch": "2.13.0", "python": "3.11.9"}
SKIN = ("nevus", "melanoma", "keratosis", "basal_cell")


def example_study(*, rounds: int = 8, classes: tuple[str, ...] = ("benign", "malignant"), **changes: Any) -> Study:
    """A study without any file; the second class is the positive one."""
    two = len(classes) == 2
    return study_from_data(
        {
            "schema": "consilium/study/1",
            "name": "example",
            "title": "Benign or malignant calcifications, on synthetic mammograms" if two else "Skin lesions",
            "governance": {"purpose": "example", "ethics": "none needed", "retention": "a day"},
            "seed": 7,
            "task": {
                "classes": {name: [] for name in classes},
                "positive_class": classes[1],
                "unit": "finding" if two else "image",
            },
            "preprocessing": {"region": "finding", "size": 64, "channels": 3},
            "model": {"name": "resnet34", "attention": "cbam", "cbam_at": "before_add"},
            "head": {"grid": {"C": [1, 10], "gamma": [0.0001, 0.001]}},
            "training": {
                "local_epochs": 2,
                "batch_size": 16,
                "optimiser": "adam",
                "learning_rate": 0.0005,
                "loss": "binary_cross_entropy" if two else "cross_entropy",
            },
            "federation": {"rounds": rounds, "quorum": 2, "weighting": "counts"},
            "evaluation": {"resamples": 100},
            **changes,
        }
    )


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def write_example_run(
    path: Path,
    *,
    study: Study | None = None,
    finished_rounds: int | None = None,
    state: State = "finished",
    reason: str | None = None,
    synthetic: bool = True,
    stand_in: str | None = None,
    separation: float = 0.9,
    sites: tuple[str, ...] = SITES,
    external: tuple[str, ...] = (),
    artificial: bool = False,
) -> RunFolder:
    """Write a whole run (or its beginning, where `state` is not finished). `separation` is how well the final model tells
    the classes apart, in standard deviations; 0 gives a model that learned nothing. `external` sites never train."""
    study = study or example_study()
    folder = RunFolder(path)
    folder.path.mkdir(parents=True)
    rounds = study.federation.rounds if finished_rounds is None else finished_rounds
    truths = {site: _test_part(site, study) for site in sites}
    baselines = {site: _evaluated(site, study, truths[site], 0.1, None) for site in sites}
    (path / "study.json").write_text(study.model_dump_json(by_alias=True))
    training = tuple(site for site in sites if site not in external)
    for number in range(rounds + 1):
        if number == 0:
            record = _prepare_round(sites, study, baselines, synthetic, stand_in, external, artificial)
        else:
            record = _round(number, training, study)
        folder.round_path(number).mkdir(parents=True)
        folder.write(f"rounds/{number:04d}/round.json", record)
    if state == "finished":
        folder.write(
            "evaluation.json",
            FinalRecord(
                model=digest_of(f"model{rounds}"),
                sites={
                    site: _network_only(one) if site in external else one
                    for site in sites
                    for one in [_evaluated(site, study, truths[site], separation, 0.1)]
                },
                timing=RoundTiming(push=0.4, wait=21.0, aggregate=0, checkpoint=0, total=21.6),
            ),
        )
    folder.write(
        "run.json",
        RunRecord(
            name=path.name, study_digest=study.digest(), started="2026-03-02T08:00:00+00:00",
            ended=None if state == "running" else "2026-03-02T08:04:10+00:00", state=state, reason=reason,
            versions=VERSIONS, code_digest=digest_of("code"), parameters=21_441_345, trained_parameters=21_441_345,
            expected=sorted(sites), bytes_down=85_765_380, bytes_up=85_765_380,
            resolved={f"{site}.device": "cpu" for site in sites} | {f"{site}.precision": "bf16" for site in sites},
            sites={
                site: SiteHello(site=site, code_digest=digest_of("code"), versions=VERSIONS)  # type: ignore[arg-type]
                for site in sites
            },
        ),
    )  # fmt: skip
    folder.note(Event(at=1772438400.0, kind="run", phase="waiting"))
    return folder


def _seed(*parts: object) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big"))


def _test_part(site: str, study: Study) -> tuple[np.ndarray, np.ndarray]:
    """Truth (N,) and patient (N,) of the test images: one or two images a patient."""
    rng = _seed(site, "test")
    classes = len(study.task.classes)
    patients = np.repeat(np.arange(PATIENTS.get(site, 40)), rng.integers(1, 3, PATIENTS.get(site, 40)))
    positive = PREVALENCE.get(site, 0.5)
    chances = np.full(classes, (1 - positive) / (classes - 1))
    chances[study.task.positive_index] = positive
    return rng.choice(classes, patients.size, p=chances), patients


def _head(
    site: str, head: str, study: Study, part: tuple[np.ndarray, np.ndarray], separation: float, before: float | None
) -> HeadResult:
    truth, patients = part

    def predicted(distance: float, model: str) -> Predictions:
        rng = _seed(site, head, model)
        logits = rng.normal(size=(truth.size, len(study.task.classes)))
        logits[np.arange(truth.size), truth] += distance
        scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        return Predictions(truth, scores.argmax(1), scores, patients, study.task.positive_index)

    return head_result(
        predicted(separation, "final" if before is not None else "start"),
        resamples=study.evaluation.resamples, confidence=study.evaluation.confidence, bins=study.evaluation.histogram_bins,
        minimum_cell=study.evaluation.minimum_cell, seed=1,
        baseline=None if before is None else predicted(before, "start"),
    )  # fmt: skip


def _evaluated(
    site: str, study: Study, part: tuple[np.ndarray, np.ndarray], separation: float, before: float | None
) -> Evaluated:
    if study.task.kind == "segmentation":
        return _evaluated_masks(site, study, part, separation, before)
    heads = {
        name: _head(site, name, study, part, separation + more, before)
        for name, more in (("network", 0.0), ("svm", 0.2), ("svm_paper", 0.1))
    }
    final = before is not None
    return Evaluated(
        patients=int(np.unique(part[1]).size), images=int(part[0].size), train_patients=140, train_images=210,
        network=heads["network"], svm=heads["svm"], svm_paper=heads["svm_paper"] if final else None,
        svm_choice=SvmChoice(C=10.0, gamma=0.0001, cross_validation_score=0.79, support_vectors=143),
        seconds={"features": 6.1, "svm": 9.2, "metrics": 1.9, "total": 17.4},
    )  # fmt: skip


def _evaluated_masks(
    site: str, study: Study, part: tuple[np.ndarray, np.ndarray], separation: float, before: float | None
) -> Evaluated:
    labels, patients = part
    lesions = _seed(site, "lesions").integers(200, 900, labels.size)

    def counts(quality: float, model: str) -> MaskCounts:
        """A `quality` of 0 finds a third of each lesion, of 1 nearly all."""
        rng = _seed(site, "masks", model)
        found = np.rint(lesions * np.clip(rng.normal(0.33 + 0.6 * quality, 0.06, labels.size), 0, 1)).astype(np.int64)
        extra = np.rint(lesions * rng.uniform(0.05, 0.25, labels.size)).astype(np.int64)
        return MaskCounts(found, extra, lesions - found, 4096 - lesions - extra, patients)

    masks = mask_result(
        counts(separation, "final" if before is not None else "start"), labels, classes=len(study.task.classes),
        resamples=study.evaluation.resamples, confidence=study.evaluation.confidence, bins=study.evaluation.histogram_bins,
        minimum_cell=study.evaluation.minimum_cell, seed=1, baseline=None if before is None else counts(before, "start"),
    )  # fmt: skip
    return Evaluated(
        patients=int(np.unique(patients).size), images=labels.size, train_patients=140, train_images=210, masks=masks,
        seconds={"features": 6.1, "metrics": 1.9, "total": 8.0},
    )  # fmt: skip


def _network_only(evaluated: Evaluated) -> Evaluated:
    return evaluated.model_copy(
        update={"svm": None, "svm_paper": None, "svm_choice": None, "train_patients": 0, "train_images": 0}
    )


def _prepare_round(
    sites: tuple[str, ...],
    study: Study,
    baselines: dict[str, Evaluated],
    synthetic: bool,
    stand_in: str | None,
    external: tuple[str, ...],
    artificial: bool,
) -> RoundRecord:
    classes = len(study.task.classes)
    prepared = {
        site: Prepared(
            parts={
                part: PartCounts(patients=count, images=count * classes, by_class=[count] * classes)
                for part, count in (
                    (("train", 0), ("validation", 0), ("test", baselines[site].patients))
                    if site in external
                    else (("train", 140), ("validation", 24), ("test", baselines[site].patients))
                )
            },
            external=site in external,
            artificial_part=ArtificialPart(index=sites.index(site), of=len(sites)) if artificial else None,
            left_out=3, unreadable=1 if site == "hill" else 0, synthetic=synthetic, patient_stand_in=stand_in, device="cpu",
            precision="bf16", memory_format="channels_last", frozen_digest=digest_of("frozen"), baseline=baselines[site],
            seconds={"read": 3.1, "cache": 8.4, "baseline": 9.9, "total": 21.4},
        )
        for site in sites
    }  # fmt: skip
    return RoundRecord(
        round=0, started="2026-03-02T08:00:08+00:00", model_in=digest_of("model0"), model_out=digest_of("model0"),
        prepared=prepared, sites={site: SiteTiming(answered_after=23.0, bytes_down=85_765_380, bytes_up=0) for site in sites},
        timing=RoundTiming(push=0.5, wait=22.5, aggregate=0.0, checkpoint=0.0, total=23.1),
    )  # fmt: skip


def _round(number: int, sites: tuple[str, ...], study: Study) -> RoundRecord:
    """Round 3 misses the last site (it refused a broken update); round 4 counts its late answer."""
    present = sites[:-1] if number == 3 and len(sites) > 2 else sites
    missing = [Miss(site=sites[-1], reason="invalid", code="CONS-250")] if present != sites else []
    trained, timing = {}, {}
    kind = "dice" if study.task.kind == "segmentation" else "auc"
    for place, site in enumerate(present):
        rng = _seed(site, number)
        loss = BASE_TRAINING_LOSS.get(site, 0.7) * 0.87 ** (number - 1)
        seconds = 11.0 + 2.5 * place + float(rng.uniform(0, 1))
        trained[site] = Trained(
            images=210 - 30 * place, patients=140, steps=28,
            epochs=[
                Epoch(loss=loss + float(rng.normal(0, 0.02)), accuracy=min(0.99, 0.52 + 0.05 * number)),
                Epoch(loss=loss * 0.94 + float(rng.normal(0, 0.02)), accuracy=min(0.99, 0.55 + 0.05 * number)),
            ],
            validation=Validation(
                loss=0.69 * 0.92 ** (number - 1) + float(rng.normal(0, 0.03)), accuracy=min(0.9, 0.5 + 0.045 * number),
                images=48, **{"auc": None, kind: min(0.92, 0.5 + 0.06 * (number - 1) + float(rng.normal(0, 0.02)))},
            ),
            update_norm=3.2 * 0.9**number,
            seconds={"load": 0.3, "validate": 1.6, "train": seconds, "reply": 0.2, "total": seconds + 2.1},
        )  # fmt: skip
        timing[site] = SiteTiming(answered_after=seconds + 3.4, bytes_down=85_765_380, bytes_up=85_765_380)
    slowest = max(one.answered_after for one in timing.values())
    images = sum(one.images for one in trained.values())
    return RoundRecord(
        round=number, started=f"2026-03-02T08:{number:02d}:30+00:00", model_in=digest_of(f"model{number - 1}"),
        model_out=digest_of(f"model{number}"), weights={site: one.images / images for site, one in trained.items()},
        update_digests={site: digest_of(f"{site}{number}") for site in present}, trained=trained, missing=missing,
        late=[sites[-1]] if number == 4 and len(sites) > 2 else [], sites=timing,
        timing=RoundTiming(push=0.4, wait=slowest - 0.5, aggregate=0.6, checkpoint=0.3, total=slowest + 0.9),
    )  # fmt: skip
