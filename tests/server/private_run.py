"""The record of a private run with invented counts: what a coordinator keeps of it, signed ledger entries of the hospitals included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from example_run import VERSIONS, digest_of, example_study

from benchmarks.bare_run import new_key
from server.run_folder import RunFolder
from shared.exact import as_float, exact
from shared.ledger.entries import (
    ENTRY,
    Claim,
    Close,
    Cohort,
    Entry,
    Genesis,
    Lifetime,
    Release,
    Reserve,
    Settle,
    Start,
)
from shared.messages import Answer, sign_answer
from shared.metrics.noised import figures_from_noised
from shared.metrics.noised_masks import figures_from_noised_masks
from shared.results import Evaluated, HeadResult, NoisedMasks, Prepared, SiteHello, Trained
from shared.run_records import FinalRecord, RoundRecord, RoundTiming, RunRecord
from shared.signing import SigningKey, payload_digest, seal, unseal
from shared.study import Study
from shared.study_cost import evaluation_mechanism, other_mechanisms, round_mechanism, run_epsilon

SITES = ("harbour", "north")
#: Noised counts of each hospital's test patients, [true class][predicted class]; the second class is the positive one.
COUNTS = {"harbour": [[31, 4], [6, 22]], "north": [[52, 9], [-1, 40]]}
#: Noised counts of each hospital's test patients by IoU, of a study of masks.
BY_IOU = {
    "harbour": [0, 1, -1, 0, 0, 2, -2, 1, 3, 0, 4, 5, 8, 12, 14, 9, 6, 2, 0, 1],
    "north": [1, 0, 2, -1, 1, 0, 0, 3, 1, 6, 7, 9, 16, 18, 21, 17, 12, 4, -1, 0],
}
STARTED = "2026-03-02T08:00:00+00:00"
TIMING = RoundTiming(push=0.4, wait=21.0, aggregate=0.1, checkpoint=0.1, total=21.6)


def private_study(*, svm: bool = False, rounds: int = 2, masks: bool = False, **privacy: Any) -> Study:
    """A private study without any file, of `masks` or of classes."""
    of_masks: dict[str, Any] = {
        "task": {"kind": "segmentation", "classes": {"benign": [], "malignant": []}, "positive_class": "malignant", "unit": "image"},
        "preprocessing": {"region": "whole", "size": 64, "channels": 3, "mask": {"from": "annotated"}},
        "model": {"name": "split_attention_unet", "norm": "group"},
        "training": {"optimiser": "sgd", "learning_rate": 0.1, "loss": "cross_entropy_dice"},
    }  # fmt: skip
    values: dict[str, Any] = {
        "rounds": rounds,
        "model": {"name": "resnet18", "norm": "group"},
        "head": None,
        "training": {"optimiser": "sgd", "learning_rate": 0.1, "loss": "binary_cross_entropy"},
        "federation": {"rounds": rounds, "quorum": 2, "weighting": "uniform"},
        "evaluation": {"baseline": False, "release": {"epsilon": "1"}},
        "privacy": {
            "sampling_rate": "1/20",
            "steps_per_round": 10,
            "clipping_norm": "1.0",
            "normaliser": "16",
            "noise_multiplier": "1.0",
            "delta": "1e-5",
            "svm": {"steps": 5, "noise_multiplier": "4.0"} if svm else None,
            **privacy,
        },
    }
    return example_study(**{**values, **(of_masks if masks else {})})


def write_private_run(
    path: Path,
    *,
    study: Study | None = None,
    signed: bool = True,
    begun_again: int = 0,
    synthetic: bool = True,
    external: tuple[str, ...] = (),
) -> RunFolder:
    """Write a finished run. `signed`: with signed answers that carry ledger entries; `begun_again`: rounds that harbour did twice."""
    study = study or private_study()
    folder = RunFolder(path)
    folder.path.mkdir(parents=True)
    (path / "study.json").write_text(study.model_dump_json(by_alias=True))
    keys = {site: new_key() for site in SITES}
    rounds = study.federation.rounds
    prepared = {
        site: Prepared(
            parts={}, left_out=None, unreadable=None, synthetic=synthetic, patient_stand_in=None, device="cpu", precision="fp32",
            memory_format="contiguous", frozen_digest=digest_of("frozen"), seconds={}, external=site in external,
        )
        for site in SITES
    }  # fmt: skip
    training = [site for site in SITES if site not in external]
    for number in range(rounds + 1):
        record = RoundRecord(
            round=number, started=STARTED, model_in=digest_of(f"model{max(0, number - 1)}"), model_out=digest_of(f"model{number}"),
            weights=dict.fromkeys(training, 1 / len(training)) if number else {}, prepared={} if number else prepared,
            trained={site: _trained(number) for site in training} if number else {}, timing=TIMING,
        )  # fmt: skip
        folder.round_path(number).mkdir(parents=True)
        folder.write(f"rounds/{number:04d}/round.json", record)
    final = FinalRecord(
        model=digest_of(f"model{rounds}"), sites={site: _evaluated(site, study) for site in SITES}, timing=TIMING
    )
    folder.write("evaluation.json", final)
    run = RunRecord(
        name=path.name, study_digest=study.digest(), started=STARTED, ended=STARTED, state="finished", versions=VERSIONS,
        code_digest=digest_of("code"), parameters=11_177_025, trained_parameters=11_177_025, expected=sorted(SITES),
        bytes_down=44_708_100, bytes_up=44_708_100, sites={site: _hello(site) for site in SITES},
        coordinator_key=str(new_key().public), site_keys={site: str(key.public) for site, key in keys.items()},
    )  # fmt: skip
    folder.write("run.json", run)
    if signed:
        (path / "evaluation-signed").mkdir()
        for site, key in keys.items():
            again = begun_again if site == "harbour" else 0
            answer = Answer(
                hello=_hello(site),
                round=rounds,
                evaluated=final.sites[site],
                entries=_ledger(site, study, run.id, key, again, external=site in external),
            )
            (path / "evaluation-signed" / f"{site}.evaluate.answer.json").write_text(sign_answer(answer, key))
    return folder


def _hello(site: str) -> SiteHello:
    return SiteHello(site=site, code_digest=digest_of("code"), versions=VERSIONS)  # type: ignore[arg-type]


def _trained(number: int) -> Trained:
    return Trained(
        images=None, patients=None, steps=10, epochs=[], validation=None, update_norm=90.0 + number, seconds={}
    )


def _evaluated(site: str, study: Study) -> Evaluated:
    release = study.evaluation.release
    assert release is not None
    if study.task.kind == "segmentation":
        figures = figures_from_noised_masks(BY_IOU[site], epsilon=as_float(release.epsilon), confidence=0.95)
        masks = NoisedMasks.model_validate({**figures, "counts": BY_IOU[site], "noise": release.epsilon})
        return Evaluated(
            patients=None, images=None, train_patients=None, train_images=None, noised_masks=masks, seconds={}
        )
    heads = ["network", *(["svm"] if study.privacy is not None and study.privacy.svm is not None else [])]
    share = exact(as_float(release.epsilon) / len(heads))
    overall, classes = figures_from_noised(COUNTS[site], positive=1, epsilon=as_float(share), confidence=0.95)
    head = HeadResult.model_validate({**overall, "confusion": COUNTS[site], "classes": classes, "noise": share})
    return Evaluated(
        patients=None, images=None, train_patients=None, train_images=None, network=head,
        svm=head if "svm" in heads else None, seconds={},
    )  # fmt: skip


def _ledger(
    site: str, study: Study, run: str, key: SigningKey, begun_again: int, *, external: bool = False
) -> list[str]:
    lines: list[str] = []
    digest: str | None = None

    def add(entry: Entry) -> None:
        nonlocal digest
        lines.append(seal(ENTRY, entry.model_dump(mode="json"), key))
        digest = payload_digest(unseal(lines[-1], ENTRY, key.public))

    def place() -> dict[str, Any]:
        return {"seq": len(lines), "prev": digest, "at": STARTED}

    assert study.privacy is not None
    cohort, model = digest_of(f"cohort of {site}"), digest_of("model0")
    add(
        Genesis(
            **place(), site=site, key=str(key.public), tag_key_digest=digest_of("tags"),
            lifetime=Lifetime(epsilon="20", delta="1e-6"),
        )
    )  # fmt: skip
    add(Cohort(**place(), cohort=cohort))
    add(
        Reserve(
            **place(), run=run, coordinator=digest_of("key"), study_name=study.name, study_digest=study.digest(), cohort=cohort,
            rounds=study.federation.rounds, mechanism=round_mechanism(study), releases=other_mechanisms(study),
            claim=Claim(epsilon=exact(run_epsilon(study)[0]), delta=study.privacy.delta), charged="7.25",
        )
    )  # fmt: skip
    for number in range(1, 1 if external else study.federation.rounds + 1):
        for attempt in range(1, 2 + (number <= begun_again)):
            charged = "8.5" if attempt > 1 else None
            add(Start(**place(), run=run, round=number, attempt=attempt, model=model, charged=charged))
        add(
            Settle(
                **place(),
                run=run,
                round=number,
                attempt=1 + (number <= begun_again),
                update=digest_of("u"),
                figures=digest_of("f"),
            )
        )
    add(
        Release(
            **place(), run=run, round=study.federation.rounds, what="evaluation", model=model, figures=digest_of("e"),
            mechanism=evaluation_mechanism(study),
        )
    )  # fmt: skip
    add(Close(**place(), run=run))
    return lines
