"""From a run folder to a `Report`: arranges and pools what the hospitals sent. Works for a run that never got to its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from server.report.build_masks import mask_report, pooled_masks
from server.report.descriptors import descriptor_reports
from server.report.how import HOW, how
from server.report.privacy import privacy_report
from server.report.schema import (
    Baseline,
    ClassFigures,
    CurvePoint,
    DataReport,
    ErrorCount,
    Figure,
    GainMetric,
    HeadReport,
    Machine,
    OverClasses,
    Pooled,
    PooledDifference,
    PooledFigure,
    PooledHead,
    PooledRoc,
    Report,
    RocPoint,
    RoundReport,
    RunReport,
    SiteReport,
    SiteRoundTiming,
    WeightedFigures,
)
from server.report.shared_images import shared_images
from server.run_folder import RunFolder
from server.site_ledgers import ledgers_of
from shared.metrics import pooling
from shared.metrics.histograms import histogram_roc
from shared.metrics.over_classes import Counted, over_classes
from shared.results import METRICS, ClassRow, Difference, Evaluated, HeadResult, Prepared
from shared.run_records import FinalRecord, RoundRecord, RunRecord
from shared.study import Study

HeadKey = Literal["network", "svm", "svm_paper"]


def build_report(folder: RunFolder) -> Report:
    """The report of the run in `folder`, finished or not. Raises RunFolderError, StudyError where its records can't be read."""
    study, run, rounds, final = folder.study(), folder.run(), folder.rounds(), folder.final()
    prepared = {site: answer for record in rounds for site, answer in record.prepared.items()}
    names = sorted({*run.expected, *prepared, *(final.sites if final else ()), *(s for r in rounds for s in r.trained)})
    external = sorted(site for site, answer in prepared.items() if answer.external)
    return Report(
        run=_run(run, study, rounds, final),
        kind=study.task.kind,
        classes=list(study.task.class_names),
        positive_class=study.task.positive_class,
        unit=study.task.unit,
        confidence=study.evaluation.confidence,
        evaluated=final is not None and bool(final.sites),
        not_evaluated=list(final.missing) if final else [],
        synthetic=any(answer.synthetic for answer in prepared.values()),
        synthetic_sites=sorted(site for site, answer in prepared.items() if answer.synthetic),
        stand_ins={s: answer.patient_stand_in for s, answer in sorted(prepared.items()) if answer.patient_stand_in},
        sites={site: _site(site, study, run, rounds, prepared.get(site), final) for site in names},
        external_sites=external,
        artificial_sites=sorted(site for site, answer in prepared.items() if answer.artificial_part),
        pooled=_pooled({site: one for site, one in final.sites.items() if site not in external}, study)
        if final
        else Pooled(),
        descriptors=descriptor_reports(final.sites, study, external=external)
        if final and study.evaluation.release is None
        else {},
        rounds=[_round(record) for record in rounds],
        shared_images=shared_images(prepared, minimum_cell=study.evaluation.minimum_cell)
        if study.counts_shared_images
        else None,
        privacy=privacy_report(study, names, rounds, ledgers_of(folder)) if study.privacy is not None else None,
        study=study.to_data(),
    )


def _run(run: RunRecord, study: Study, rounds: Sequence[RoundRecord], final: FinalRecord | None) -> RunReport:
    return RunReport(
        name=run.name,
        state=run.state,
        reason=run.reason,
        code=run.code,
        started=run.started,
        ended=run.ended,
        study_digest=run.study_digest,
        code_digest=run.code_digest,
        final_model=final.model if final else None,
        versions=run.versions,
        parameters=run.parameters,
        trained_parameters=run.trained_parameters,
        bytes_down=run.bytes_down,
        bytes_up=run.bytes_up,
        bytes_up_by_stage=run.bytes_up_by_stage,
        rounds_planned=study.federation.rounds,
        rounds_done=max((record.round for record in rounds), default=0),
        resolved=dict(sorted(run.resolved.items())),
    )


def _round(record: RoundRecord) -> RoundReport:
    return RoundReport(
        round=record.round,
        started=record.started,
        model_in=record.model_in,
        model_out=record.model_out,
        answered=sorted({*record.prepared, *record.trained}),
        missing=record.missing,
        late=record.late,
        timing=record.timing,
    )


def _site(
    site: str,
    study: Study,
    run: RunRecord,
    rounds: Sequence[RoundRecord],
    prepared: Prepared | None,
    final: FinalRecord | None,
) -> SiteReport:
    evaluated = final.sites.get(site) if final else None
    hello = run.sites.get(site)
    baseline = prepared.baseline if prepared else None
    return SiteReport(
        data=_data(prepared) if prepared else None,
        machine=Machine(
            device=prepared.device if prepared else None,
            precision=prepared.precision if prepared else None,
            memory_format=prepared.memory_format if prepared else None,
            code_digest=hello.code_digest if hello else None,
            any_release=hello.any_release if hello else False,
            versions={str(key): value for key, value in hello.versions.items()} if hello else {},
        ),
        network=_head(evaluated, "network", study),
        svm=_head(evaluated, "svm", study),
        svm_paper=_head(evaluated, "svm_paper", study),
        svm_choice=evaluated.svm_choice if evaluated else None,
        masks=mask_report(evaluated, study) if evaluated else None,
        baseline=_baseline(baseline, study),
        curve=[_curve_point(site, record) for record in rounds if site in record.trained],
        timing=[_timing(site, record) for record in rounds if site in record.trained and site in record.sites],
        prepare_seconds={str(key): value for key, value in prepared.seconds.items()} if prepared else {},
        evaluation_seconds={str(key): value for key, value in evaluated.seconds.items()} if evaluated else {},
    )


def _data(prepared: Prepared) -> DataReport:
    return DataReport(
        parts=dict(prepared.parts),
        left_out=prepared.left_out,
        unreadable=prepared.unreadable,
        copies=prepared.copies,
        synthetic=prepared.synthetic,
        patient_stand_in=prepared.patient_stand_in,
        external=prepared.external,
        artificial_part=prepared.artificial_part,
    )


def _baseline(evaluated: Evaluated | None, study: Study) -> Baseline | None:
    if evaluated is None:
        return None
    return Baseline(
        network=_head(evaluated, "network", study),
        svm=_head(evaluated, "svm", study),
        masks=mask_report(evaluated, study),
    )


def _curve_point(site: str, record: RoundRecord) -> CurvePoint:
    trained = record.trained[site]
    return CurvePoint(
        round=record.round,
        train_loss=[epoch.loss for epoch in trained.epochs],
        train_accuracy=[epoch.accuracy for epoch in trained.epochs],
        validation_loss=trained.validation.loss if trained.validation else None,
        validation_accuracy=trained.validation.accuracy if trained.validation else None,
        validation_auc=trained.validation.auc if trained.validation else None,
        validation_dice=trained.validation.dice if trained.validation else None,
        validation_images=trained.validation.images if trained.validation else None,
        train_images=trained.images,
        train_patients=trained.patients,
        weight=record.weights.get(site),
        update_norm=trained.update_norm,
    )


def _timing(site: str, record: RoundRecord) -> SiteRoundTiming:
    seconds = record.trained[site].seconds
    own = record.sites[site].answered_after
    last = max(record.sites[other].answered_after for other in record.trained if other in record.sites)
    total = seconds.get("total", 0.0)
    phases = {phase: seconds.get(phase, 0.0) for phase in ("load", "validate", "train", "reply")}
    return SiteRoundTiming.model_validate(
        {"round": record.round, **phases, "transfer": max(0.0, own - total), "wait": last - own}
    )


# -- figures -----------------------------------------------------------------------------------------------------------


def figure_images(confusion: Sequence[Sequence[int]], index: int) -> dict[str, int]:
    """Test images behind each figure of class `index` against the rest, by the names of `METRICS` and of a class row.

    Of noised counts what they add up to, 0 where that is below.
    """
    of_class = sum(confusion[index])
    said = sum(row[index] for row in confusion)
    every = sum(sum(row) for row in confusion)
    found = {
        "accuracy": every,
        "balanced_accuracy": every,
        "auc": every,
        "sensitivity": of_class,
        "recall": of_class,
        "specificity": every - of_class,
        "precision": said,
        "f1": of_class + said - confusion[index][index],
    }
    return {name: max(0, count) for name, count in found.items()}


def _class_rows(
    rows: Sequence[ClassRow], confusion: Sequence[Sequence[int]], names: Sequence[str]
) -> list[ClassFigures]:
    return [
        ClassFigures(
            name=names[index],
            images=row.images,
            **{
                key: Figure.of(getattr(row, key), figure_images(confusion, index)[key])
                for key in ("precision", "recall", "specificity", "f1", "auc")
            },
        )
        for index, row in enumerate(rows)
    ]


def _over_classes(hospitals: Sequence[tuple[HeadResult, int | None]], study: Study) -> OverClasses | None:
    exact = [(head.confusion, patients) for head, patients in hospitals if head.noise is None and patients is not None]
    if len(exact) < len(hospitals):
        return None
    found = over_classes(
        exact,
        study.task.rare_indices,
        confidence=study.evaluation.confidence,
        resamples=study.evaluation.resamples,
        seed=study.seed,
    )
    images = sum(sum(row) for confusion, _ in exact for row in confusion)
    return OverClasses(
        weighted=WeightedFigures(**{name: Figure.of(one, images) for name, one in found.weighted.items()}),
        errors=_errors(found.errors),
        rare_errors=_errors(found.rare_errors) if found.rare_errors is not None else None,
    )


def _errors(found: Counted) -> ErrorCount:
    return ErrorCount(value=found.value, low=found.low, high=found.high)


def _head(evaluated: Evaluated | None, key: HeadKey, study: Study) -> HeadReport | None:
    result: HeadResult | None = getattr(evaluated, key) if evaluated else None
    if evaluated is None or result is None:
        return None
    images = figure_images(result.confusion, study.task.positive_index)
    curve = histogram_roc([result.histogram]) if result.histogram else None
    return HeadReport(
        patients=evaluated.patients,
        images=evaluated.images,
        noise=result.noise,
        **{name: Figure.of(getattr(result, name), images[name]) for name in METRICS},
        confusion=result.confusion,
        classes=_class_rows(result.classes, result.confusion, study.task.class_names),
        over_classes=_over_classes([(result, evaluated.patients)], study),
        roc=_points(curve.false_positive_rate.tolist(), curve.true_positive_rate.tolist()) if curve else None,
        gain=dict(result.gain.items()) if result.gain else None,
    )


def _points(false_positive: Sequence[float], true_positive: Sequence[float]) -> list[RocPoint]:
    return [
        RocPoint(false_positive_rate=min(1.0, alarm), true_positive_rate=min(1.0, hit))  # sums of shares round up
        for alarm, hit in zip(false_positive, true_positive, strict=True)
    ]


def _pooled(sites: Mapping[str, Evaluated], study: Study) -> Pooled:
    return Pooled(
        network=pooled_head(sites, "network", study),
        svm=pooled_head(sites, "svm", study),
        svm_paper=pooled_head(sites, "svm_paper", study),
        masks=pooled_masks(sites, study),
    )


def pooled_head(sites: Mapping[str, Evaluated], key: HeadKey, study: Study) -> PooledHead | None:
    """One head over the evaluations in `sites`, by name; None where none has it."""
    present = {site: one for site, one in sorted(sites.items()) if getattr(one, key) is not None}
    pooled = pooling.pool(
        list(present.values()),
        key,
        positive=study.task.positive_index,
        confidence=study.evaluation.confidence,
        resamples=study.evaluation.resamples,
        seed=study.seed,
    )
    if pooled is None:
        return None
    images = figure_images(pooled.confusion, study.task.positive_index)
    return PooledHead(
        patients=pooled.patients,
        images=pooled.images,
        sites=list(present),
        **{
            name: PooledFigure.pooled(getattr(pooled, name), images[name], how(name, noised=pooled.patients is None))
            for name in METRICS
        },
        confusion=pooled.confusion,
        classes=_class_rows(pooled.classes, pooled.confusion, study.task.class_names),
        over_classes=_over_classes([(getattr(one, key), one.patients) for one in present.values()], study),
        roc=_pooled_roc(pooled.histogram_roc, pooled.images),
        gain=_pooled_gain(pooled.gain),
    )


def _pooled_roc(roc: pooling.PooledRoc | None, images: int | None) -> PooledRoc | None:
    if roc is None:
        return None
    return PooledRoc(
        points=_points(roc.false_positive_rate, roc.true_positive_rate),
        auc=PooledFigure.pooled(roc.auc, images or 0, HOW["roc"]),
        auc_least=roc.auc_least,
        auc_most=roc.auc_most,
    )


def _pooled_gain(gain: Mapping[GainMetric, Difference] | None) -> dict[GainMetric, PooledDifference] | None:
    if gain is None:
        return None
    return {name: PooledDifference.of(one, HOW["gain"]) for name, one in gain.items()}
