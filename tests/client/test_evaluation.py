"""A hospital's evaluation: right on features whose answer is known, paired with round 0, and nothing but the contract
in it.
"""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.metrics import confusion_matrix, roc_auc_score

from client.data.records import Part
from client.evaluation import evaluate, network_predictions
from client.features import PartFeatures
from client.kept_scores import load_scores
from shared.errors import DataError, NonFiniteUpdateError, StorageError
from shared.results import Evaluated
from shared.study import Study

Parts = dict[Part, PartFeatures]


def study_of(classes: int = 2, *, positive: int = 1, **changes: Any) -> Study:
    names = [f"class{c}" for c in range(classes)]
    data: dict[str, Any] = {
        "schema": "consilium/study/1",
        "name": "synthetic",
        "title": "Synthetic features",
        "governance": {"purpose": "tests", "ethics": "none: synthetic", "retention": "none"},
        "seed": 1,
        "task": {"classes": {name: [] for name in names}, "positive_class": names[positive], "unit": "image"},
        "preprocessing": {"region": "whole", "size": 32, "channels": 3},
        "model": {"name": "resnet34"},
        "head": {"grid": {"C": [1.0, 10.0], "gamma": [0.0001, 0.01]}},
        "training": {
            "local_epochs": 1,
            "batch_size": 8,
            "optimiser": "adam",
            "learning_rate": 0.001,
            "loss": "binary_cross_entropy" if classes == 2 else "cross_entropy",
        },
        "federation": {"rounds": 1, "quorum": 1, "weighting": "counts"},
        "evaluation": {"resamples": 300},
    }
    return Study.model_validate({**data, **changes})


def part_of(
    name: str, images: int, *, classes: int = 2, shift: float = 1.5, positive: int = 1, seed: int = 0
) -> PartFeatures:
    rng = np.random.default_rng([seed, len(name)])
    labels = rng.integers(0, classes, images)
    features = rng.normal(size=(images, 24))
    features[np.arange(images), labels] += shift
    logits = rng.normal(size=(images, classes)) + shift * np.eye(classes)[labels]
    if classes == 2:
        logits = logits[:, [positive]] - logits[:, [1 - positive]]
    return PartFeatures(
        keys=tuple(f"secret-{name}-{i}" for i in range(images)),
        features=features.astype(np.float32),
        logits=logits.astype(np.float32),
        labels=labels,
        patients=np.array([f"{name}-patient-{i // 2}" for i in range(images)]),
    )


def parts_of(**options: Any) -> Parts:
    return {
        "train": part_of("train", 160, **options),
        "validation": part_of("validation", 30, **options),
        "test": part_of("test", 80, **options),
    }


def run(parts: Parts, study: Study, baseline: Path | None = None, keep: Path | None = None, cell: int = 5) -> Evaluated:
    return evaluate(parts, study, minimum_cell=cell, seed=3, baseline=baseline, keep_scores=keep)


def test_separable_features_give_a_high_auc_and_chance_an_interval_around_one_half() -> None:
    good = run(parts_of(shift=5.0), study_of())
    chance = run(parts_of(shift=0.0), study_of())
    for head in ("network", "svm", "svm_paper"):
        high, none = getattr(good, head).auc, getattr(chance, head).auc
        assert high.low > 0.8
        assert none.low < 0.5 < none.high


@pytest.mark.parametrize("positive", [0, 1])
def test_the_networks_figures_are_scikit_learns_whichever_class_is_positive(positive: int) -> None:
    parts = parts_of(positive=positive)
    test = parts["test"]
    network = run(parts, study_of(positive=positive)).network
    score = expit(test.logits[:, 0].astype(np.float64))
    said = np.where(score >= 0.5, positive, 1 - positive)
    assert network.auc.value == pytest.approx(roc_auc_score(test.labels == positive, score))
    assert network.auc.value > 0.7
    assert network.confusion == confusion_matrix(test.labels, said).tolist()
    assert network.sensitivity == network.classes[positive].recall


def test_more_than_two_classes_use_softmax_and_the_mean_auc() -> None:
    parts = parts_of(classes=4)
    result = run(parts, study_of(4))
    chances = softmax(parts["test"].logits.astype(np.float64), axis=1)
    truth = parts["test"].labels
    assert result.network.auc.value == pytest.approx(roc_auc_score(truth, chances, multi_class="ovr"))
    assert result.network.confusion == confusion_matrix(truth, chances.argmax(1)).tolist()
    assert result.svm is not None
    assert [row.images for row in result.svm.classes] == np.bincount(truth).tolist()


def test_extreme_logits_stay_probabilities() -> None:
    part = part_of("test", 4)
    extreme = PartFeatures(
        part.keys, part.features, np.array([[-1e30], [1e30], [-800], [0]], "f4"), part.labels, part.patients
    )
    predictions = network_predictions(extreme, study_of())
    assert predictions.scores[:, 1].tolist() == [0.0, 1.0, 0.0, 0.5]
    assert predictions.predicted.tolist() == [0, 1, 0, 1]


def test_counts_choice_and_seconds_are_filled() -> None:
    result = evaluate(
        parts_of(), study_of(), minimum_cell=5, seed=3, baseline=None, keep_scores=None, features_seconds=2.5
    )
    assert (result.patients, result.images, result.train_patients, result.train_images) == (40, 80, 80, 160)
    assert result.svm_choice is not None
    assert result.svm_choice.cross_validation_score is not None
    assert 2 <= result.svm_choice.support_vectors <= 160
    assert result.seconds["total"] == pytest.approx(2.5 + result.seconds["svm"] + result.seconds["metrics"])


def test_only_what_the_study_asks_for_is_there() -> None:
    without_grid = run(parts_of(), study_of(head={"C": 10.0, "gamma": 0.001}))
    assert without_grid.svm is not None and without_grid.svm_paper is None
    assert without_grid.svm_choice is not None and without_grid.svm_choice.C == 10.0
    without_head = run(parts_of(), study_of(head=None))
    assert (without_head.svm, without_head.svm_paper, without_head.svm_choice) == (None, None, None)


def test_the_papers_setting_is_reported_beside_the_searched_one() -> None:
    parts = parts_of()
    searched = run(parts, study_of(head={"C": 0.01, "gamma": 1e-6, "grid": {"C": [10.0], "gamma": [0.01]}}))
    given = run(parts, study_of(head={"C": 0.01, "gamma": 1e-6}))
    assert searched.svm_choice is not None and (searched.svm_choice.C, searched.svm_choice.gamma) == (10.0, 0.01)
    assert searched.svm_paper == given.svm
    assert searched.svm_paper != searched.svm


def test_the_validation_part_touches_nothing() -> None:
    parts = parts_of()
    other: Parts = {**parts, "validation": part_of("validation", 12, shift=0.0)}
    assert run(parts, study_of()).svm == run(other, study_of()).svm


def test_the_result_is_the_same_every_time() -> None:
    first, second = run(parts_of(), study_of()), run(parts_of(), study_of())
    assert first.model_dump(exclude={"seconds"}) == second.model_dump(exclude={"seconds"})


def test_nothing_of_a_single_patient_is_in_the_result(tmp_path: Path) -> None:
    parts = parts_of()
    sent = run(parts, study_of(), keep=tmp_path / "scores.npz").model_dump_json()
    assert "secret" not in sent and "patient-" not in sent
    numbers: list[float] = []

    def collect(value: Any) -> None:
        if isinstance(value, dict | list):
            for item in value.values() if isinstance(value, dict) else value:
                collect(item)
        elif isinstance(value, float):
            numbers.append(value)

    collect(json.loads(sent))
    exact = np.concatenate([head.scores.ravel() for head in load_scores(tmp_path / "scores.npz").heads.values()])
    assert not set(numbers) & set(exact.tolist())
    assert Evaluated.model_validate_json(sent)


@pytest.mark.parametrize(("own", "studys"), [(12, 5), (5, 12)])
def test_the_larger_minimum_cell_counts(own: int, studys: int) -> None:
    study = study_of(evaluation={"resamples": 100, "minimum_cell": studys})
    result = run(parts_of(), study, cell=own)
    for head in (result.network, result.svm):
        assert head is not None and head.histogram is not None
        assert head.histogram.minimum_cell == 12
        cells = (*head.histogram.positive, *head.histogram.negative)
        assert all(count == 0 or count >= 12 for count in cells)
        assert sum(cells) == 80
    assert run(parts_of(), study, cell=60).network.histogram is None


def test_the_final_model_is_compared_with_round_0_on_the_same_images(tmp_path: Path) -> None:
    before, after = parts_of(shift=0.5), parts_of(shift=3.0)
    start = run(before, study_of(), keep=tmp_path / "round-0.npz")
    assert start.network.gain is None
    end = run(after, study_of(), baseline=tmp_path / "round-0.npz", keep=tmp_path / "final.npz")
    for name in ("network", "svm", "svm_paper"):
        first, last = getattr(start, name), getattr(end, name)
        assert last.gain["auc"].value == pytest.approx(last.auc.value - first.auc.value)
        assert last.gain["balanced_accuracy"].low > 0
        assert 0 < last.gain["auc"].low <= last.gain["auc"].value <= last.gain["auc"].high
    same = run(before, study_of(), baseline=tmp_path / "round-0.npz")
    assert same.network.gain is not None and same.network.gain["auc"].standard_error == 0


def test_patients_that_are_numbers_pair_too(tmp_path: Path) -> None:
    def numbered(part: PartFeatures) -> PartFeatures:
        return PartFeatures(part.keys, part.features, part.logits, part.labels, np.arange(part.images) // 2)

    parts: Parts = {name: numbered(part) for name, part in parts_of().items()}
    run(parts, study_of(), keep=tmp_path / "round-0.npz")
    gain = run(parts, study_of(), baseline=tmp_path / "round-0.npz").network.gain
    assert gain is not None and gain["auc"].standard_error == 0


def test_a_baseline_of_other_images_or_no_file_gives_no_gain(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = tmp_path / "round-0.npz"
    run({**parts_of(), "test": part_of("test", 60)}, study_of(), keep=kept)
    assert run(parts_of(), study_of(), baseline=kept).network.gain is None
    assert "of other test images" in caplog.text
    assert run(parts_of(), study_of(), baseline=tmp_path / "missing.npz").network.gain is None
    kept.write_bytes(b"PK\x03\x04 torn")
    assert run(parts_of(), study_of(), baseline=kept).network.gain is None
    assert "can't be read as a file of test scores" in caplog.text


def test_the_kept_scores_are_exact_and_for_the_owner_only(tmp_path: Path) -> None:
    parts = parts_of()
    result = run(parts, study_of(), keep=tmp_path / "scores.npz")
    assert stat.S_IMODE((tmp_path / "scores.npz").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["scores.npz"]
    kept = load_scores(tmp_path / "scores.npz")
    assert kept.keys == parts["test"].keys
    assert set(kept.heads) == {"network", "svm", "svm_paper"}
    svm = kept.heads["svm"]
    assert result.svm is not None
    assert result.svm.auc.value == pytest.approx(roc_auc_score(svm.truth, svm.scores[:, 1]))
    with pytest.raises(StorageError, match="can't be written"):
        run(parts, study_of(), keep=tmp_path / "no" / "folder.npz")


def test_what_can_not_be_evaluated_ends_in_a_sentence() -> None:
    parts = parts_of()
    with pytest.raises(DataError, match="test part holds no image"):
        run({**parts, "test": part_of("test", 0)}, study_of())
    bad = part_of("train", 160)
    bad.features[3, 2] = np.nan
    with pytest.raises(NonFiniteUpdateError, match="train part that are not finite"):
        run({**parts, "train": bad}, study_of())
    with pytest.raises(ValueError, match=r"Expected logits \(N, 3\)"):
        run(parts, study_of(3))
    with pytest.raises(ValueError, match="as many rows"):
        PartFeatures(("a",), bad.features, bad.logits, bad.labels, bad.patients)


def test_an_external_test_is_of_the_network_alone() -> None:
    parts = parts_of()
    whole = run(parts, study_of())
    outside: Parts = {**parts, "train": empty(parts["train"]), "validation": empty(parts["validation"])}
    found = evaluate(outside, study_of(), minimum_cell=5, seed=3, baseline=None, keep_scores=None, external=True)
    assert found.network == whole.network
    assert (found.svm, found.svm_paper, found.svm_choice) == (None, None, None)
    assert (found.train_patients, found.train_images, found.images) == (0, 0, 80)


def empty(part: PartFeatures) -> PartFeatures:
    return PartFeatures((), part.features[:0], part.logits[:0], part.labels[:0], part.patients[:0])
