"""A hospital's side of a segmentation study: masks are learned, counted, kept and shown, and only figures leave."""

from __future__ import annotations

import dataclasses
import stat
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from client.data.batches import Batches
from client.data.cache import prepare_store
from client.data.mask_targets import MaskTargets
from client.data.records import Record
from client.kept_masks import KeptMasks, load_masks, save_masks
from client.kept_rows import forget_rows
from client.losses import image_losses
from client.mask_evaluation import evaluate_masks, validation_of
from client.masks import PartMasks, found_masks, mask_of
from client.noised_evaluation import noised_mask_evaluation
from client.outlines import FOUND_COLOUR, TRUE_COLOUR, outlined
from client.page_masks import write_mask_page
from client.policy import clamped
from client.private import counts
from client.private.counts import one_vote
from client.training import train_round
from shared.errors import DataError, NonFiniteUpdateError
from shared.metrics.noised_masks import figures_from_noised_masks
from shared.metrics.segmentation import mask_figures
from shared.models import build_network
from shared.models.network import FederatedNetwork
from shared.noised_answers import exact_in_evaluation
from shared.profile import Policy, Profile
from shared.results import Estimate, Evaluated, NoisedMasks, PartCounts
from shared.study import Study, study_from_data

CPU = torch.device("cpu")
IMAGES = 24


@pytest.fixture(scope="module")
def study() -> Study:
    return study_from_data(
        {
            "schema": "consilium/study/1", "name": "discs", "title": "Bright discs", "seed": 1,
            "governance": {"purpose": "tests", "ethics": "none: synthetic", "retention": "none"},
            "task": {"kind": "segmentation", "classes": {"large": [], "small": []}, "positive_class": "large", "unit": "image"},
            "preprocessing": {"region": "whole", "size": 32, "channels": 3, "mask": {"from": "annotated"}},
            "augmentation": {"horizontal_flip": 0.5, "quarter_turns": True, "brightness": 0.2},
            "model": {"name": "split_attention_unet", "widths": [8, 8]},
            "training": {"local_epochs": 6, "batch_size": 6, "optimiser": "adam", "learning_rate": 0.02, "loss": "cross_entropy_dice"},
            "federation": {"rounds": 1, "quorum": 1, "weighting": "counts"},
            "evaluation": {"resamples": 100},
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Discs on noise, and their masks."""
    folder, rng = tmp_path_factory.mktemp("discs"), np.random.default_rng(1)
    rows, columns = np.indices((40, 40))
    found = []
    for index in range(IMAGES):
        radius = 5 if index % 2 else 11
        y, x = rng.integers(12, 28, 2)
        disc = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
        grey = np.clip(80 + 90 * disc + rng.normal(0, 15, disc.shape), 0, 255)
        Image.fromarray(np.repeat(grey[..., None], 3, 2).astype(np.uint8)).save(folder / f"{index}.png")
        Image.fromarray((disc * 255).astype(np.uint8)).save(folder / f"{index}_mask.png")
        found.append(
            Record(
                key=f"disc{index}",
                image=folder / f"{index}.png",
                masks=(folder / f"{index}_mask.png",),
                label="small" if index % 2 else "large",
                patient=f"p{index // 2}",
            )
        )
    return found


@pytest.fixture(scope="module")
def batches(study: Study, records: list[Record], tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Batches]:
    """Shuffled and augmented for training (True), and in order (False)."""
    store = prepare_store(records, study.preprocessing, tmp_path_factory.mktemp("cache"), unreadable="stop")
    labels = np.arange(IMAGES) % 2
    return {
        training: Batches(
            store, labels, np.arange(IMAGES), recipe=study.preprocessing, batch_size=6,
            generator=torch.Generator().manual_seed(1) if training else None,
            augmentation=study.augmentation if training else None,
        )
        for training in (True, False)
    }  # fmt: skip


def part(network: FederatedNetwork, study: Study, batches: Batches, *, finite: bool = True) -> PartMasks:
    return found_masks(
        network,
        MaskTargets(batches),
        keys=tuple(f"disc{index}" for index in range(IMAGES)),
        labels=np.arange(IMAGES) % 2,
        patients=np.arange(IMAGES) // 2,
        losses=image_losses(study.training, positive_index=0, class_counts=None),
        device=CPU,
        finite=finite,
    )


def evaluated(test: PartMasks, study: Study, folder: Path, name: str, baseline: Path | None = None) -> Evaluated:
    return evaluate_masks(
        test, study, train_patients=5, train_images=9, minimum_cell=4, seed=1, baseline=baseline, keep=folder / name
    )


def test_the_mask_leaves_the_planes_and_moves_with_its_image(batches: dict[bool, Batches], study: Study) -> None:
    for images, masks in MaskTargets(batches[True]):
        assert images.shape == (6, 3, 32, 32) and masks.shape == (6, 1, 32, 32)
        assert set(masks.unique().tolist()) == {0.0, 1.0}
        inside = (images * masks).sum((1, 2, 3)) / (3 * masks.sum((1, 2, 3)))
        outside = (images * (1 - masks)).sum((1, 2, 3)) / (3 * (1 - masks).sum((1, 2, 3)))
        assert bool((inside > outside + 0.2).all())
    assert len(MaskTargets(batches[True])) == 4


def test_training_finds_the_discs_and_a_round_says_how_many_pixels_were_right(
    batches: dict[bool, Batches], study: Study, tmp_path: Path
) -> None:
    network = build_network(study)
    start = part(network, study, batches[False])
    before = evaluated(start, study, tmp_path, "masks-start.npz")
    trained = train_round(
        network, MaskTargets(batches[True]), training=study.training, class_counts=[12, 12], positive_index=0, seed=1, device=CPU
    )  # fmt: skip
    assert trained.epochs[-1].loss < 0.6 * trained.epochs[0].loss
    assert 0.0 <= trained.epochs[0].accuracy < trained.epochs[-1].accuracy <= 1.0
    end = part(network, study, batches[False])
    said = validation_of(end)
    assert said.dice is not None and said.accuracy is not None and said.loss is not None
    assert said.dice > 0.8 and said.accuracy > 0.9 and said.loss < validation_of(start).loss  # type: ignore[operator]

    final = evaluated(end, study, tmp_path, "masks-end.npz", baseline=tmp_path / "masks-start.npz")
    assert final.masks is not None and final.network is None and before.masks is not None
    gain = final.masks.gain
    assert gain is not None and gain["iou"].low > 0
    assert gain["iou"].value == pytest.approx(final.masks.iou.value - before.masks.iou.value)  # type: ignore[operator]
    assert [row.images for row in final.masks.classes] == [12, 12]

    mask = mask_of(network, next(iter(MaskTargets(batches[False])))[0][:1], precision="fp32")
    assert mask.sum() == end.counts.true_positive[0] + end.counts.false_positive[0]
    page = write_page(tmp_path, study, final, end)
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    text = page.read_text()
    worst = int(
        np.argmin(
            2 * end.counts.true_positive / (end.counts.lesions + end.counts.true_positive + end.counts.false_positive)
        )
    )
    assert f"<code>disc{worst}</code>" in text and "The worst" in text and "src=" in text and "://" not in text


def write_page(folder: Path, study: Study, final: Evaluated, test: PartMasks) -> Path:
    data = {"layout": "ham10000", "root": str(folder), "synthetic": True}
    profile = Profile.model_validate({"schema": "consilium/profile/1", "site": "north", "title": "North", "data": data})
    truth = np.zeros((32, 32), dtype=np.bool_)
    truth[8:20, 8:20] = True
    return write_mask_page(
        folder, run="run-1", profile=profile, study=study, evaluated=final, test=test,
        parts={"test": PartCounts(patients=12, images=24, by_class=[12, 12])},
        image_of=lambda index: np.full((3, 32, 32), 0.5, dtype=np.float32), masks_of=lambda index: (truth, ~truth),
    )  # fmt: skip


def released(study: Study) -> Study:
    data = study.to_data()
    data["evaluation"] = {**data["evaluation"], "baseline": False, "release": {"epsilon": "1/2"}}
    return study_from_data(data)


def test_where_noise_is_asked_for_patients_by_iou_leave_and_no_exact_figure(
    batches: dict[bool, Batches], study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    test, asked = part(build_network(study), study, batches[False]), released(study)
    monkeypatch.setattr(counts, "two_sided_geometric", lambda epsilon: 0 if epsilon == Fraction(1, 2) else 99)
    found = noised_mask_evaluation(test, asked)
    votes = one_vote(test.counts.patients, test.keys)
    iou = mask_figures(test.counts)["iou"][votes]
    masks = found.noised_masks
    assert masks is not None and found.masks is None and masks.noise == "1/2"
    assert masks.counts == np.histogram(iou, bins=np.arange(21) / 20)[0].tolist() and sum(masks.counts) == IMAGES // 2
    assert masks.iou.value == pytest.approx(float(iou.mean()), abs=0.025)
    assert (found.patients, found.images, found.seconds) == (None, None, {})
    assert exact_in_evaluation(found, asked) == [] and clamped(found, Policy()) == found


def test_an_exact_figure_of_masks_and_one_that_the_counts_do_not_give_may_not_leave(
    batches: dict[bool, Batches], study: Study, tmp_path: Path
) -> None:
    test, asked = part(build_network(study), study, batches[False]), released(study)
    exact = evaluated(test, study, tmp_path, "masks-exact.npz")
    assert exact_in_evaluation(exact, asked) == [
        "patients", "images", "train_patients", "train_images", "seconds", "masks",
    ]  # fmt: skip
    noised = noised_mask_evaluation(test, asked)
    assert exact_in_evaluation(noised, asked) == [] and noised.noised_masks is not None
    # Counts that say something, whatever the noise was.
    counts = [0] * 12 + [5, 9, 20, 40, 60, 50, 30, 10]
    figures = figures_from_noised_masks(counts, epsilon=0.5, confidence=0.95)
    masks = NoisedMasks(counts=counts, noise="1/2", **figures)
    found = noised.model_copy(update={"noised_masks": masks})
    assert exact_in_evaluation(found, asked) == []
    for changed in (
        {"counts": [count + (index == 4) for index, count in enumerate(masks.counts)]},
        {"dice": masks.iou},
        {"thresholded_iou": Estimate(value=0.5)},
        {"noise": "1"},
        {"noise": "1/10000000"},
    ):
        other = found.model_copy(update={"noised_masks": masks.model_copy(update=changed)})
        assert exact_in_evaluation(other, asked) == ["noised_masks"], changed
    assert exact_in_evaluation(found, study) == ["noised_masks"], "the study allows no noise"


def test_an_evaluation_is_of_one_kind(batches: dict[bool, Batches], study: Study, tmp_path: Path) -> None:
    test = part(build_network(study), study, batches[False])
    exact = evaluated(test, study, tmp_path, "masks-kind.npz")
    noised = noised_mask_evaluation(test, released(study))
    assert exact.of_masks and noised.of_masks
    for both in ({**dict(exact), "noised_masks": noised.noised_masks}, {**dict(exact), "masks": None}):
        with pytest.raises(ValidationError, match="one of the three must be given"):
            Evaluated.model_validate(both)


def test_the_page_of_a_study_with_noise_says_that_its_figures_are_exact(
    batches: dict[bool, Batches], study: Study, tmp_path: Path
) -> None:
    test, asked = part(build_network(study), study, batches[False]), released(study)
    text = write_page(tmp_path, asked, evaluated(test, asked, tmp_path, "masks-page.npz"), test).read_text()
    assert "counts of test patients by IoU with noise only, never this page" in text
    assert "The figures on this page are exact, without noise." in text


def test_kept_counts_lose_a_patients_rows_and_others_are_no_baseline(
    batches: dict[bool, Batches], study: Study, tmp_path: Path
) -> None:
    test = part(build_network(study), study, batches[False])
    evaluated(test, study, tmp_path, "masks-a.npz")
    path = tmp_path / "masks-a.npz"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    forget_rows(path, {"disc0", "disc1"})
    kept = load_masks(path)
    assert kept.keys == test.keys[2:] and kept.counts.lesions.tolist() == test.counts.lesions[2:].tolist()
    again = evaluated(test, study, tmp_path, "masks-b.npz", baseline=path)
    assert again.masks is not None and again.masks.gain is None
    forget_rows(path, set(test.keys))
    assert not path.exists()
    with pytest.raises(DataError, match="can't be read as a file of counted masks"):
        load_masks(path)


def test_counts_of_other_test_images_give_no_gain(
    batches: dict[bool, Batches], study: Study, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    test, path = part(build_network(study), study, batches[False]), tmp_path / "before.npz"
    same = KeptMasks(test.keys, test.counts)
    others = [
        KeptMasks(tuple(f"other{index}" for index in range(IMAGES)), test.counts),
        KeptMasks(test.keys, replace(test.counts, patients=test.counts.patients[::-1])),
        KeptMasks(test.keys, replace(test.counts, false_negative=test.counts.false_negative + 1)),
    ]
    for kept in (same, *others):
        save_masks(path, kept)
        found = evaluated(test, study, tmp_path, "after.npz", baseline=path).masks
        assert found is not None and (found.gain is not None) == (kept is same)
    assert caplog.text.count("is of other test images") == len(others)


def test_the_shown_mask_is_the_counted_one_in_bf16_too(batches: dict[bool, Batches], study: Study) -> None:
    network = build_network(study)
    image, truth = MaskTargets(batches[False]).of_rows(np.array([0]))
    exact = network.eval()(image)
    with torch.no_grad():  # half of the image is near the threshold, where the two precisions differ
        network.get_parameter("head.bias").sub_(exact.median())
    counts = found_masks(
        network, [(image, truth)], keys=("disc0",), labels=np.array([0]), patients=np.array([0]),
        losses=image_losses(study.training, positive_index=0, class_counts=None), device=CPU, precision="bf16",
    ).counts  # fmt: skip
    mask = mask_of(network, image, precision="bf16")
    assert mask.sum() == counts.true_positive[0] + counts.false_positive[0]
    assert not np.array_equal(mask, mask_of(network, image, precision="fp32"))


def test_logits_that_are_not_finite_are_refused(batches: dict[bool, Batches], study: Study) -> None:
    network = build_network(study)
    with torch.no_grad():
        network.get_parameter("head.bias").fill_(torch.nan)
    with pytest.raises(NonFiniteUpdateError, match="logits that are not finite"):
        part(network, study, batches[False])
    blind = part(network, study, batches[False], finite=False)
    assert not blind.counts.true_positive.any() and not blind.counts.false_positive.any(), "nothing is found there"
    assert noised_mask_evaluation(blind, released(study)).noised_masks is not None


def test_the_hospitals_policy_takes_what_may_not_leave(
    batches: dict[bool, Batches], study: Study, tmp_path: Path
) -> None:
    whole = evaluated(part(build_network(study), study, batches[False]), study, tmp_path, "masks-a.npz")
    assert clamped(whole, Policy()) == whole
    left = clamped(whole, Policy(allowed_outputs=["network"])).masks
    assert left is not None and whole.masks is not None and whole.masks.histogram is not None
    assert left.histogram is None and left.gain is None and left.iou == whole.masks.iou
    assert [(row.images, row.dice.value) for row in left.classes] == [(12, None), (12, None)]


def test_a_small_class_is_told_on_the_hospitals_own_page_only(
    batches: dict[bool, Batches], study: Study, tmp_path: Path
) -> None:
    test = part(build_network(study), study, batches[False])
    test = dataclasses.replace(test, labels=np.repeat([0, 1], [21, 3]))
    final = evaluated(test, study, tmp_path, "masks-a.npz")
    assert final.masks is not None and [row.withheld for row in final.masks.classes] == [True, True]
    assert final.masks.iou.value is not None and final.masks.minimum_cell == 5
    page = write_page(tmp_path, study, final, test).read_text()
    iou = mask_figures(test.counts)["iou"]
    assert "stand on this page only" in page
    assert all(f"<td>{iou[test.labels == index].mean():.3f} <small>" in page for index in (0, 1))


def test_both_outlines_are_drawn_on_the_enlarged_image() -> None:
    truth, found = np.zeros((2, 64, 64), dtype=np.bool_)
    truth[10:30, 10:30], found[40:60, 40:60] = True, True
    picture = outlined(np.zeros((1, 64, 64), dtype=np.float32), truth, found)
    assert picture.shape == (3, 256, 256)
    for mask, colour in ((truth, TRUE_COLOUR), (found, FOUND_COLOUR)):
        drawn = np.isclose(picture, np.array(colour, dtype=np.float32)[:, None, None]).all(0)
        large = np.kron(mask, np.ones((4, 4), dtype=np.bool_))
        assert drawn.any() and not (drawn & ~large).any() and not drawn[80:81, 80:81].any()
    with pytest.raises(ValueError, match="masks of the image's sides"):
        outlined(np.zeros((1, 32, 32), dtype=np.float32), truth, found)
