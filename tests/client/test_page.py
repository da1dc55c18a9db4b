"""The hospital's own page: complete, self-contained, for the owner only, and honest about what it shows."""

from __future__ import annotations

import base64
import io
import re
import stat
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest
from sklearn.manifold import trustworthiness
from sklearn.metrics import auc, brier_score_loss, roc_auc_score

from client.data.records import Part
from client.evaluation import evaluate
from client.features import PartFeatures
from client.kept_scores import KeptScores, load_scores
from client.lesion_heat import HeatMaps, OnLesions
from client.page import write_page
from client.page_figures import brier_score, calibration, confident_errors, feature_map, png_data_uri, roc_points
from shared.errors import StorageError
from shared.metrics.classification import Predictions
from shared.profile import Profile
from shared.study import Study
from shared.study_evaluation import NoisedCounts
from shared.study_privacy import Privacy


def study_of(classes: int) -> Study:
    names = ["benign", "malignant", "other", "rare"][:classes]
    return Study.model_validate(
        {
            "schema": "consilium/study/1",
            "name": "page",
            "title": "Benign or <malignant>",
            "governance": {"purpose": "tests", "ethics": "none: synthetic", "retention": "none"},
            "seed": 1,
            "task": {"classes": {name: [] for name in names}, "positive_class": "malignant", "unit": "image"},
            "preprocessing": {"region": "whole", "size": 32, "channels": 3},
            "model": {"name": "resnet34"},
            "head": {"grid": {"C": [1.0], "gamma": [0.001]}},
            "training": {
                "local_epochs": 1,
                "batch_size": 8,
                "optimiser": "adam",
                "learning_rate": 0.001,
                "loss": "binary_cross_entropy" if classes == 2 else "cross_entropy",
            },
            "federation": {"rounds": 1, "quorum": 1, "weighting": "counts"},
            "evaluation": {"resamples": 100},
        }
    )


def profile_of(**data: Any) -> Profile:
    data = {"layout": "cbis_ddsm", "root": "/data", "synthetic": False, **data}
    return Profile.model_validate(
        {"schema": "consilium/profile/1", "site": "north", "title": "North & <South> Hospital", "data": data}
    )


def part_of(name: str, images: int, classes: int) -> PartFeatures:
    rng = np.random.default_rng([images, classes])
    labels = rng.integers(0, classes, images)
    features = rng.normal(size=(images, 12))
    features[np.arange(images), labels] += 1.5
    logits = rng.normal(size=(images, classes)) + 1.2 * np.eye(classes)[labels]
    if classes == 2:
        logits = logits[:, [1]] - logits[:, [0]]
    keys = tuple(f"{name}-record-{i}" for i in range(images))
    patients = np.array([f"{name}-patient-{i // 2}" for i in range(images)])
    return PartFeatures(keys, features.astype(np.float32), logits.astype(np.float32), labels, patients)


class FakeHeat:
    """Heat in the upper half of every image, in place of a network's."""

    def __init__(self, masked: int = 50, on: OnLesions | None = None) -> None:
        self.layer, self.cells, self.on = "layer4", (7, 7), on
        self.files = [(Path("image"), Path("mask"))] * masked + [(Path("image"),)] * (60 - masked)

    def heat(self, rows: Sequence[int]) -> np.ndarray:
        heat = np.zeros((len(rows), 8, 8), np.float32)
        heat[:, :4] = 1
        return heat

    def on_lesions(self, *, seed: int) -> OnLesions | None:
        return self.on


class Written:
    """A page and what it was made of."""

    def __init__(
        self,
        folder: Path,
        *,
        classes: int = 2,
        profile: Profile | None = None,
        test_images: int = 60,
        heat: FakeHeat | None = None,
    ) -> None:
        self.heat = heat
        self.study = study_of(classes)
        self.parts: dict[Part, PartFeatures] = {
            "train": part_of("train", 90, classes),
            "validation": part_of("validation", 20, classes),
            "test": part_of("test", test_images, classes),
        }
        self.asked: list[int] = []
        for name, baseline in (("first.npz", None), ("scores.npz", folder / "first.npz")):
            self.evaluated = evaluate(
                self.parts, self.study, minimum_cell=5, seed=2, baseline=baseline, keep_scores=folder / name
            )
        self.scores = load_scores(folder / "scores.npz")
        self.profile = profile or profile_of()
        self.path = self.write(folder)
        self.text = self.path.read_text(encoding="utf-8")

    def write(self, folder: Path, scores: KeptScores | None = None) -> Path:
        return write_page(
            folder,
            run="run-1",
            profile=self.profile,
            study=self.study,
            evaluated=self.evaluated,
            parts=self.parts,
            scores=scores or self.scores,
            seed=4,
            image_of=self.image,
            heat=cast(HeatMaps | None, self.heat),
        )

    def image(self, index: int) -> np.ndarray:
        self.asked.append(index)
        return np.full((3, 8, 8), (index % 10) / 10)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return Written(tmp_path_factory.mktemp("page"))


def test_it_says_that_it_stays_and_only_the_owner_may_read_it(page: Written) -> None:
    assert "This page stays in North &amp; &lt;South&gt; Hospital" in page.text
    assert stat.S_IMODE(page.path.stat().st_mode) == 0o600
    assert not [path for path in page.path.parent.iterdir() if path.name.startswith(".")]


def test_where_only_noised_counts_leave_it_says_that_its_figures_are_exact(page: Written, tmp_path: Path) -> None:
    assert "are exact, without noise" not in page.text
    evaluation = {"evaluation": page.study.evaluation.model_copy(update={"release": NoisedCounts(epsilon="1")})}
    noised = write_again(page, tmp_path / "noised", **evaluation)
    assert "are exact, without noise" in noised and "confusion counts with noise only" in noised
    assert "fitted without noise" not in noised
    privacy = Privacy(
        sampling_rate="1/20",
        steps_per_round=1,
        clipping_norm="1",
        normaliser="1",
        noise_multiplier="1",
        delta="1e-5",
    )
    private = write_again(page, tmp_path / "private", privacy=privacy, **evaluation)
    assert "The SVM here is fitted without noise; it and its figures stay in the house." in private


def write_again(page: Written, folder: Path, **study: Any) -> str:
    """The page's text where its study had these sections, which no schema looks at here."""
    folder.mkdir()
    path = write_page(
        folder,
        run="run-1",
        profile=page.profile,
        study=page.study.model_copy(update=study),
        evaluated=page.evaluated,
        parts=page.parts,
        scores=page.scores,
        seed=4,
    )
    return path.read_text(encoding="utf-8")


def test_synthetic_data_and_stand_ins_are_named_only_where_they_are(page: Written, tmp_path: Path) -> None:
    assert "Synthetic data" not in page.text and "stands in" not in page.text
    other = Written(tmp_path, profile=profile_of(synthetic=True, patient_stand_in="lesion_id"))
    assert "<strong>Synthetic data.</strong>" in other.text
    assert "<code>lesion_id</code> stands in for the patient" in other.text


def test_it_is_well_formed_and_loads_nothing_from_elsewhere(page: Written) -> None:
    open_tags: list[str] = []
    addresses: list[str] = []

    class Checker(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            addresses.extend(value or "" for name, value in attrs if name in ("src", "href", "srcset"))
            if tag not in ("meta", "img", "br"):
                open_tags.append(tag)

        def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            pass

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Checker().feed(page.text)
    assert not open_tags
    assert addresses and all(address.startswith("data:image/png;base64,") for address in addresses)
    assert "<script" not in page.text and "url(" not in page.text and "@import" not in page.text
    assert "Benign or &lt;malignant&gt;" in page.text


def test_its_figures_are_those_of_the_result(page: Written) -> None:
    for name in ("network", "svm", "svm_paper"):
        result = getattr(page.evaluated, name)
        for metric in ("accuracy", "auc", "sensitivity"):
            estimate = getattr(result, metric)
            assert f"{estimate.value:.3f} <small>{estimate.low:.3f} to {estimate.high:.3f}</small>" in page.text
    assert "Gain in AUC over round 0" in page.text
    assert "prefers-color-scheme: dark" in page.text and "@media print" in page.text
    wrong = (page.scores.heads["svm"].truth != page.scores.heads["svm"].predicted).sum()
    assert f"twice the wrong images</th><td>{2 * wrong} <small>" in page.text
    assert page.text.count('class="ring"') == wrong + 1  # one in the legend


def test_error_images_are_the_most_confident_wrong_ones_and_no_other_image_is_opened(page: Written) -> None:
    head = page.scores.heads["svm"]
    wrong = np.flatnonzero(head.truth != head.predicted)
    expected = []
    for truth in (1, 0):
        found = [int(i) for i in wrong if head.truth[i] == truth]
        expected += sorted(found, key=lambda i: -head.scores[i, 1 - truth])[:6]
    assert expected and page.asked == expected
    shown = re.findall(r"<code>(test-record-\d+)</code>", page.text)
    assert shown == [f"test-record-{i}" for i in expected]
    assert "train-record" not in page.text


def test_the_same_input_gives_the_same_bytes(page: Written, tmp_path: Path) -> None:
    assert page.write(tmp_path).read_bytes() == page.path.read_bytes()


def test_scores_of_other_images_are_refused_and_a_missing_folder_is_named(page: Written, tmp_path: Path) -> None:
    other = KeptScores(tuple(reversed(page.scores.keys)), page.scores.heads)
    with pytest.raises(ValueError, match="of the test part's images"):
        page.write(tmp_path, other)
    with pytest.raises(StorageError, match="can't be written"):
        page.write(tmp_path / "missing")


def test_more_classes_have_their_rows_and_mix_ups(tmp_path: Path) -> None:
    written = Written(tmp_path, classes=4)
    assert "Mixed up among the other classes" in written.text
    assert all(f"<th>{name}</th>" in written.text for name in written.study.task.class_names)
    assert "against all other classes" in written.text


def test_a_test_part_of_one_class_still_has_a_page(tmp_path: Path) -> None:
    written = Written(tmp_path)
    test = written.parts["test"]
    keep = np.flatnonzero(test.labels == 0)
    written.parts["test"] = PartFeatures(
        tuple(test.keys[i] for i in keep),
        test.features[keep],
        test.logits[keep],
        test.labels[keep],
        test.patients[keep],
    )
    written.evaluated = evaluate(
        written.parts, written.study, minimum_cell=5, seed=2, baseline=None, keep_scores=tmp_path / "one.npz"
    )
    text = written.write(tmp_path, load_scores(tmp_path / "one.npz")).read_text(encoding="utf-8")
    assert "the test part lacks a class" in text and "No ROC curve" in text
    assert not re.search(r"\b(nan|inf)\b", text)


def head_of(seed: int, images: int = 200) -> Predictions:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, images)
    score = 1 / (1 + np.exp(-(rng.normal(size=images) + truth - 0.5)))
    return Predictions(truth, (score > 0.5).astype(int), np.stack([1 - score, score], 1), np.arange(images), 1)


def test_the_curve_and_the_brier_score_are_scikit_learns() -> None:
    head = head_of(1)
    points = roc_points(head)
    assert points is not None
    x, y = zip(*points, strict=True)
    assert auc(x, y) == pytest.approx(roc_auc_score(head.truth, head.scores[:, 1]))
    assert brier_score(head) == pytest.approx(brier_score_loss(head.truth, head.scores[:, 1]))


def test_calibration_groups_cover_all_images_with_wilson_intervals() -> None:
    head = head_of(2)
    groups = calibration(head, confidence=0.95)
    assert sum(group.images for group in groups) == 200 and len(groups) == 8
    assert [group.predicted for group in groups] == sorted(group.predicted for group in groups)
    for group in groups:
        reference = binomtest(round(group.observed * group.images), group.images).proportion_ci(0.95, method="wilson")
        assert (group.low, group.high) == pytest.approx((reference.low, reference.high))
    assert np.dot([g.observed for g in groups], [g.images for g in groups]) == pytest.approx(head.truth.sum())
    assert len(calibration(head_of(3, images=9), confidence=0.95)) == 1


def test_errors_are_sorted_by_kind_and_confidence() -> None:
    scores = np.array([[0.1, 0.9, 0], [0.6, 0.4, 0], [0.9, 0.1, 0], [0, 0.3, 0.7], [0, 1, 0], [0.8, 0, 0.2]])
    truth = np.array([0, 1, 1, 0, 1, 2])
    head = Predictions(truth, scores.argmax(1), scores, np.arange(6), 1)
    kinds = {kind: [card.index for card in cards] for kind, cards in confident_errors(head, most=3)}
    assert kinds == {"missed": [2, 1], "false alarm": [0], "mixed up": [5, 3]}
    assert [card.index for card in confident_errors(head, most=1)[0][1]] == [2]


def test_the_map_keeps_neighbours_together_holds_all_test_images_and_needs_ten() -> None:
    train, test = part_of("train", 90, 3), part_of("test", 30, 3)
    wrong = np.arange(30) % 7 == 0
    points = feature_map(train, test, wrong, seed=1)
    assert [point.is_test for point in points] == [False] * 90 + [True] * 30
    assert [point.is_wrong for point in points] == [False] * 90 + wrong.tolist()
    assert [point.label for point in points] == [*train.labels, *test.labels]
    places = np.array([(point.x, point.y) for point in points])
    assert places.min() == 0 and places.max() == 1
    assert trustworthiness(np.concatenate((train.features, test.features)), places, n_neighbors=10) > 0.75
    assert feature_map(part_of("train", 4, 2), part_of("test", 3, 2), np.zeros(3, dtype=bool), seed=1) == []


def test_many_training_images_are_thinned_but_no_test_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.page_figures._MOST_POINTS", 50)
    points = feature_map(part_of("train", 90, 2), part_of("test", 30, 2), np.zeros(30, dtype=bool), seed=1)
    assert [point.is_test for point in points] == [False] * 20 + [True] * 30


def test_pixels_come_back_from_the_page_as_they_went_in() -> None:
    rng = np.random.default_rng(0)
    for shape in ((8, 6), (1, 8, 6), (3, 8, 6)):
        pixels = rng.integers(0, 256, shape) / 255
        content = base64.b64decode(png_data_uri(pixels).removeprefix("data:image/png;base64,"))
        back = np.asarray(Image.open(io.BytesIO(content))) / 255
        expected = np.moveaxis(pixels, 0, -1) if shape[0] == 3 else pixels.reshape(8, 6)
        np.testing.assert_allclose(back, expected, atol=1e-9)
    with pytest.raises(ValueError, match=r"but got \(2, 8, 6\)"):
        png_data_uri(np.zeros((2, 8, 6)))


def test_heat_maps_stand_beside_the_errors_and_some_right_images(page: Written, tmp_path: Path) -> None:
    heated = Written(tmp_path, heat=FakeHeat(on=OnLesions(images=40, without_heat=3, inside=0.62, area=0.2)))
    errors = confident_errors(heated.scores.heads["svm"], most=6)
    shown = sum(len(cards) for _, cards in errors) + 6
    pictures = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="([^"]+)"', heated.text)
    assert len(pictures) == 2 * shown and len(heated.asked) == shown
    assert [alt for _, alt in pictures[1::2]] == ["the same with its heat map"] * shown
    for (plain, _), (warm, _) in zip(pictures[::2], pictures[1::2], strict=True):
        image, heat = (
            np.asarray(Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB")) for one in (plain, warm)
        )
        np.testing.assert_array_equal(heat[4:], image[4:])
        assert (heat[:4, :, 0].astype(int) > heat[:4, :, 2]).any()
    head = heated.scores.heads["network"]
    for title, positive in (("Found: is malignant, and said so", True), ("Right, and not malignant", False)):
        section = heated.text.split(f"<h3>{title}</h3>")[1].split("<h3>")[0].split("</section>")[0]
        rows = [heated.parts["test"].keys.index(key) for key in re.findall(r"<code>(test-record-\d+)</code>", section)]
        assert len(rows) == 3
        assert all(head.truth[row] == head.predicted[row] and bool(head.truth[row] == 1) == positive for row in rows)
    assert "<b>62 %</b>" in heated.text and "<b>20 %</b>" in heated.text and "<b>3.1</b>" in heated.text
    assert "mean over 40 test images with masks" in heated.text
    assert "3 more have" in heated.text and "drawn at random from 50 images" in heated.text
    assert "layer <code>layer4</code>: a map of 7 x 7 positions" in heated.text


def test_it_says_why_heat_or_its_share_on_lesions_is_missing(page: Written, tmp_path: Path) -> None:
    assert "No heat maps: resnet34 mixes all places" in page.text and "card pair" not in page.text
    for name, masked, sentence in (
        ("none", 0, "No test image has a mask"),
        ("cold", 50, "None of the test images with masks has any heat"),
    ):
        (tmp_path / name).mkdir()
        assert sentence in Written(tmp_path / name, heat=FakeHeat(masked=masked)).text
