"""Descriptors of lesions: what is learnt of them, with and without noise, and what of them leaves a hospital."""

from __future__ import annotations

import csv
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score
from torch import Tensor, nn

from benchmarks.bare_run import study_values
from client import gate, work
from client.descriptors import Described, confusions, described, said_of
from client.gate import Result, Task
from client.losses import image_losses
from client.own_runs import OwnFigures
from client.policy import clamped
from client.private.dp_sgd import DpSgd, PrivateConstants, train_private_round
from client.private.sampling import PatientSampler
from client.roll import load_roll
from client.site_folder import SiteFolder
from client.status import metric_lines
from client.training import train_round
from shared.errors import EgressError, WeightsError
from shared.messages import Instruction, Kind
from shared.metrics.classification import confusion_counts
from shared.metrics.descriptors import descriptor_figures, descriptor_result
from shared.models import build_network
from shared.models.attention import group_norm
from shared.models.network import EveryHead, Network
from shared.models.state import travelling_arrays
from shared.models.weights import fit_weights
from shared.noised_answers import exact_in_evaluation
from shared.profile import Policy, Profile
from shared.release import Release
from shared.results import Evaluated
from shared.study import Study
from shared.study_descriptors import ABSENT
from shared.study_training import Training
from shared.wire import Manifest, encode, flat_digest, flatten

CPU = torch.device("cpu")
DESCRIPTORS: dict[str, Any] = {
    "stripes": {"attributes": ["direction", "lines"], "values": {"upright": ["UP"], "flat": ["Flat", "level"]}},
    "corner": {"values": {"left": [], "none": [], "right": []}},
}
SIZES = (3, 2)


def study_of(**changes: Any) -> Study:
    values = study_values(rounds=1)
    values["task"] = {**values["task"], "descriptors": DESCRIPTORS}
    values["training"] = {**values["training"], "descriptor_weight": 0.5}
    values["evaluation"] = {"resamples": 100, "minimum_cell": 2, "baseline": False}
    values["model"] = {"name": "resnet18"}
    return Study.model_validate({**values, **changes})


# -- what a record has -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"direction": "up", "corner": "right"}, (2, 1)),
        ({"lines": " LEVEL ", "corner": "None"}, (1, 0)),
        ({"direction": "up", "lines": "flat"}, (ABSENT, 1)),  # the first that the record has
        ({"direction": "up-flat", "stripes": "up", "corner": ""}, (ABSENT, ABSENT)),
    ],
)
def test_a_record_has_the_value_whose_words_it_says(attributes: dict[str, str], expected: tuple[int, ...]) -> None:
    task = study_of().task
    assert (tuple(task.descriptors), task.descriptor_sizes) == (("corner", "stripes"), SIZES)
    assert task.described(attributes) == expected


def test_the_order_in_a_file_changes_neither_digest_nor_outputs() -> None:
    turned = {
        name: {**one, "values": dict(reversed(one["values"].items()))} for name, one in reversed(DESCRIPTORS.items())
    }
    one, other = study_of(), study_of(task={**study_values()["task"], "descriptors": turned})
    assert one.digest() == other.digest()
    assert one.task.descriptors["corner"].value_names == other.task.descriptors["corner"].value_names


def test_what_can_not_be_meant_is_refused() -> None:
    with pytest.raises(ValidationError, match="the word 'Up' stands in two values, a and b"):
        study_of(task={**study_values()["task"], "descriptors": {"x": {"values": {"a": ["up"], "b": ["Up"]}}}})
    with pytest.raises(ValidationError, match=r"descriptor_weight must be given with task\.descriptors, and only then"):
        study_of(training=study_values()["training"])


# -- the network -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_the_other_layers_are_those_without_descriptors_and_weights_without_them_fit(name: str) -> None:
    plain_values = study_values(rounds=1) | {"model": {"name": name}}
    plain = build_network(Study.model_validate(plain_values))
    network = build_network(study_of(model={"name": name}))
    state, bare = network.state_dict(), plain.state_dict()
    assert list(state)[: len(bare)] == list(bare)
    assert list(state)[len(bare) :] == ["descriptors.weight", "descriptors.bias"]
    assert all(torch.equal(state[key], bare[key]) for key in bare)
    drawn = state["descriptors.weight"].clone()
    assert fit_weights(network, {key: value * 0.5 for key, value in bare.items()}) == frozenset(bare)
    assert torch.equal(network.state_dict()["descriptors.weight"], drawn)
    with pytest.raises(WeightsError, match=r"trained with task\.descriptors: give the study the same, or export"):
        fit_weights(plain, state)
    images = torch.rand((2, 3, 32, 32))
    network.eval()
    with torch.no_grad():
        every = network.every_head(images)
        assert every.shape == (2, 1 + sum(SIZES))
        assert torch.equal(every[:, :1], network(images))
        assert torch.equal(every[:, 1:], network.describe(network.features(images)))


# -- the loss ----------------------------------------------------------------------------------------------------------


def training_of(**changes: Any) -> Training:
    return Training.model_validate(
        {"local_epochs": 1, "batch_size": 8, "optimiser": "sgd", "learning_rate": 0.5, "loss": "cross_entropy"}
        | {"descriptor_weight": 0.7}
        | changes
    )


def test_an_images_loss_is_its_own_sum_over_the_heads() -> None:
    """Against a loop over images and heads, with log-sum-exp written out."""
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(9, 2 + sum(SIZES)))
    values = np.stack([rng.integers(-1, size, 9) for size in SIZES], axis=1)
    values[0] = ABSENT
    targets = np.column_stack((rng.integers(0, 2, 9), values))
    expected = []
    for row, (label, *said) in zip(logits, targets, strict=True):
        blocks = np.split(row, [2, 2 + SIZES[0]])
        own = [
            float(np.log(np.exp(block).sum()) - block[is_]) if is_ >= 0 else 0.0
            for block, is_ in zip(blocks, [label, *said], strict=True)
        ]
        expected.append(own[0] + 0.7 * (own[1] + own[2]) / 2)
    found = image_losses(training_of(), positive_index=1, class_counts=None, descriptor_sizes=SIZES)
    x = torch.tensor(logits, requires_grad=True)
    losses = found(x, torch.tensor(targets))
    np.testing.assert_allclose(losses.detach().numpy(), expected, rtol=1e-12)
    torch.autograd.backward(losses.sum())
    assert x.grad is not None
    assert not x.grad[0, 2:].any()  # an image without descriptors teaches them nothing


class Small(Network):
    """Convolution, group norm and two linear heads."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), group_norm(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        )
        self.feature_dim, self.dropout, self.fc = 32, nn.Dropout(0.0), nn.Linear(32, 2)
        self.add_descriptors(sum(SIZES))

    def features(self, x: Tensor) -> Tensor:
        return self.body(x)


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
def test_with_noise_the_gradient_of_all_heads_together_is_clipped(mode: Any) -> None:
    """Against one backward pass for each image, over every parameter of both heads and the body."""
    torch.manual_seed(3)
    network = Small().double().train()
    x = torch.rand((6, 3, 8, 8), dtype=torch.float64)
    targets = torch.tensor([[0, 2, 1], [1, -1, -1], [1, 0, -1], [0, -1, 0], [1, 1, 1], [0, 2, 0]])
    losses = image_losses(training_of(), positive_index=1, class_counts=None, descriptor_sizes=SIZES)
    expected = [torch.zeros_like(one) for one in network.parameters()]
    for row in range(6):
        features = network.body(x[row : row + 1])
        loss = nn.functional.cross_entropy(network.fc(features), targets[row, :1])
        corner, stripes = network.get_submodule("descriptors")(features).split(list(SIZES), 1)
        for block, value in ((corner, targets[row, 1:2]), (stripes, targets[row, 2:3])):
            if value >= 0:
                loss = loss + 0.7 / 2 * nn.functional.cross_entropy(block, value)
        gradients = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
        whole = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, network.parameters(), strict=True)]
        norm = float(torch.cat([one.flatten() for one in whole]).norm())
        for total, one in zip(expected, whole, strict=True):
            total += one * min(1.0, 0.3 / norm)
    rows = np.arange(6)
    public = PrivateConstants(sampling_rate=0.5, clipping_norm=0.3, noise_multiplier=1.0, normaliser=3.0)
    mechanism = DpSgd(
        EveryHead(network), PatientSampler(rows, rows, rate=0.5), lambda some: (x[some], targets[some]), constants=public,
        losses=losses, image_shape=(3, 8, 8), mode=mode, physical_batch=4, target_shape=(3,),
    )  # fmt: skip
    found = mechanism.clipped_sum(rows)
    mechanism.close()
    for (name, one), total in zip(found.items(), expected, strict=True):
        torch.testing.assert_close(one, total, rtol=0.0, atol=1e-10, msg=lambda text, n=name: f"{n}: {text}")


def test_a_private_round_trains_every_head_with_noise() -> None:
    network, rows = Small(), np.arange(4)
    before = {name: one.detach().clone() for name, one in network.named_parameters()}
    targets = torch.full((4, 3), -1)  # nobody has a descriptor: what moves their head is the noise
    targets[:, 0] = 1
    train_private_round(
        network, PatientSampler(rows, rows, rate=1.0), lambda some: (torch.rand((len(some), 3, 8, 8)), targets[some]), steps=1,
        constants=PrivateConstants(sampling_rate=1.0, clipping_norm=0.3, noise_multiplier=1.0, normaliser=4.0),
        training=training_of(), positive_index=1, image_shape=(3, 8, 8), seed=1, device=CPU, descriptor_sizes=SIZES,
    )  # fmt: skip
    assert all(bool((one != before[name]).all()) for name, one in network.named_parameters())


def test_a_descriptor_is_learnt_although_half_of_the_images_lack_it() -> None:
    torch.manual_seed(4)
    network = Small()
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 2, 96)
    bright = rng.integers(0, 2, 96)
    wave = np.sign(np.sin(np.arange(16) * 1.6))
    pictures = np.stack([np.broadcast_to(wave if up else wave[:, None], (16, 16)) for up in truth]) * 0.3
    pictures = (pictures + bright[:, None, None])[:, None].repeat(3, 1) + rng.normal(0, 0.05, (96, 3, 16, 16))
    known = np.where(np.arange(96) % 2 == 0, truth, ABSENT)
    x, y = torch.tensor(pictures, dtype=torch.float32), torch.tensor(np.column_stack((bright, known * 0 - 1, known)))
    batches = [(x[start : start + 16], y[start : start + 16]) for start in range(0, 96, 16)]
    result = train_round(
        network, batches, training=training_of(learning_rate=0.01, optimiser="adam", descriptor_weight=2), class_counts=[48, 48],
        positive_index=1, seed=1, device=CPU, epochs=25, descriptor_sizes=SIZES,
    )  # fmt: skip
    assert result.epochs[-1].accuracy > 0.95  # of the class, whatever the descriptors' logits are
    with torch.no_grad():
        features = network.eval().features(x).numpy()
    found = described(network.train(), features, y.numpy()[:, 1:], device=CPU)
    assert found is not None and network.training
    said = found.probabilities(SIZES)[1].argmax(1)
    assert (said == truth)[1::2].mean() > 0.9  # images whose descriptor it was never told
    assert described(network, features, np.empty((96, 0), np.int64), device=CPU) is None


# -- figures -----------------------------------------------------------------------------------------------------------


def test_figures_are_scikit_learns() -> None:
    rng = np.random.default_rng(8)
    for truth, said in (
        (rng.integers(0, 4, 60), rng.integers(0, 4, 60)),
        (
            np.array([0, 0, 2, 2, 2, 1]),
            np.array([0, 3, 2, 2, 0, 0]),
        ),  # a value that only occurs, one only said, one neither
    ):
        found = descriptor_figures(confusion_counts(truth, said, 5))
        assert found["accuracy"][0] == pytest.approx(accuracy_score(truth, said))
        assert found["macro_f1"][0] == pytest.approx(f1_score(truth, said, average="macro"))
        with warnings.catch_warnings():  # that a value is said and does not occur
            warnings.simplefilter("ignore")
            assert found["balanced_accuracy"][0] == pytest.approx(balanced_accuracy_score(truth, said))


def test_small_cells_do_not_leave() -> None:
    def result(truth: list[int]) -> Any:
        return descriptor_result(
            np.array(truth), np.array(truth), np.arange(len(truth)), values=3, resamples=100, confidence=0.95, minimum_cell=3, seed=1
        )  # fmt: skip

    assert result([0, 1]) is None
    assert result([0, 0, 0, 1]).by_value is None
    assert result([0, 0, 0, 2, 2, 2]).by_value == [3, 0, 3]
    assert result([0, 0, 0, 2, 2, 2]).accuracy.low == pytest.approx(0.025 ** (1 / 6))


def test_what_is_said_of_an_image_names_values_and_what_the_data_says() -> None:
    found = Described(np.array([[2, ABSENT], [0, 1]]), np.log(np.array([[1, 1, 2, 3, 1], [4, 2, 2, 1, 4]], np.float32)))
    one, other = said_of(found, study_of())
    assert [(said.value, round(said.probability, 6), said.truth) for said in one] == [
        ("right", 0.5, "right"), ("flat", 0.75, None),
    ]  # fmt: skip
    assert [(said.value, round(said.probability, 6), said.truth) for said in other] == [
        ("left", 0.5, "left"), ("upright", 0.8, "upright"),
    ]  # fmt: skip
    assert confusions(found, study_of()) == {"corner": [[1, 0, 0], [0, 0, 0], [0, 0, 1]], "stripes": [[0, 0], [0, 1]]}


# -- a hospital --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> SiteFolder:
    """40 patients with a picture each; every third has no word for its stripes."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    with (root / "index.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["file", "label", "patient", "lines", "corner"])
        for number in range(40):
            Image.fromarray(rng.integers(0, 255, (32, 32), dtype=np.uint8)).save(root / f"{number}.png")
            lines = "" if number % 3 == 0 else ("UP", "level")[number // 2 % 2]
            table.writerow([f"{number}.png", ("benign", "malignant")[number % 2], f"p{number}", lines, "left"])
    profile = Profile.model_validate(
        {
            "schema": "consilium/profile/1", "site": "anna", "title": "Anna", "device": "cpu",
            "data": {"layout": "image_folder", "root": str(root), "synthetic": True}, "policy": Policy(minimum_cell=2),
        }
    )  # fmt: skip
    return SiteFolder.create(tmp_path_factory.mktemp("site") / "anna", profile)


def task_of(folder: SiteFolder, study: Study, kind: Kind, number: int) -> Task:
    arrays = travelling_arrays(build_network(study))
    manifest = Manifest.of(arrays)
    model = flatten(arrays, manifest)
    instruction = Instruction(
        kind=kind, run="run-1", site="anna", round=number, issued=number, expires=1 << 50, study=study.to_data(),
        study_digest=study.digest(), model_digest=flat_digest(encode(model, "fp32")), manifest_digest=manifest.digest(),
        previous=None, compare_with=None, release=Release.installed(),
    )  # fmt: skip
    return Task(instruction, study, folder.profile(), folder, model, "0" * 64)


@pytest.fixture(scope="module")
def results(hospital: SiteFolder) -> list[Result]:
    study = study_of()
    kinds: tuple[Kind, ...] = ("train", "evaluate")
    return [work.do(task_of(hospital, study, kind, 1)) for kind in kinds]


def test_a_hospital_trains_all_heads_and_reports_each(hospital: SiteFolder, results: list[Result]) -> None:
    roll = load_roll(hospital.run_folder("run-1"))
    assert roll is not None
    numbers = [int(key.removesuffix(".png")) for key in roll.keys]
    expected = [ABSENT if number % 3 == 0 else (1, 0)[number // 2 % 2] for number in numbers]
    assert roll.descriptors.tolist() == [[0, value] for value in expected]
    trained, evaluated = results[0], results[1].evaluated
    assert trained.update is not None and evaluated is not None and evaluated.descriptors is not None
    manifest = Manifest.of(travelling_arrays(build_network(study_of())))
    assert np.abs(trained.update[-5:]).min() > 0  # the bias of every value has moved
    assert manifest.tensors[-1].name == "descriptors.bias"
    test = roll.parts["test"]
    has = int((roll.descriptors[test, 1] != ABSENT).sum())
    assert 2 <= has < len(test)
    assert {name: one.images for name, one in evaluated.descriptors.items()} == {"corner": len(test), "stripes": has}
    assert evaluated.descriptors["corner"].balanced_accuracy.value is None  # only one value occurs
    page = (hospital.run_folder("run-1") / "evaluation.html").read_text()
    assert "Descriptors of the lesions" in page and f"{has} images: accuracy" in page
    lines = metric_lines(OwnFigures(round=1, at="", evaluated=evaluated))
    assert lines[-1].startswith(f"descriptor stripes, {has} images: accuracy 0.")


def test_a_withdrawn_patients_descriptors_are_gone(hospital: SiteFolder, results: list[Result]) -> None:
    roll = load_roll(hospital.run_folder("run-1"))
    assert roll is not None
    less = roll.without([roll.tags[4]])
    assert less.descriptors[4].tolist() == [ABSENT, ABSENT]
    assert np.array_equal(np.delete(less.descriptors, 4, 0), np.delete(roll.descriptors, 4, 0))


def test_only_what_the_contract_names_leaves(hospital: SiteFolder, results: list[Result]) -> None:
    evaluated = results[1].evaluated
    assert evaluated is not None and evaluated.descriptors is not None
    task = task_of(hospital, study_of(), "evaluate", 2)
    gate._check_cells(evaluated, task)
    corner = evaluated.descriptors["corner"]
    for odd in ({"p7": corner}, {"stripes": corner.model_copy(update={"by_value": [1, 2, 3]})}):
        with pytest.raises(EgressError, match="none of the study's, or has other values"):
            gate._check_cells(evaluated.model_copy(update={"descriptors": odd}), task)
    with pytest.raises(EgressError, match="cells count from 1, not from 2"):
        small = {"corner": corner.model_copy(update={"minimum_cell": 1})}
        gate._check_cells(evaluated.model_copy(update={"descriptors": small}), task)
    without = [one for one in Policy().allowed_outputs if one != "descriptors"]
    assert clamped(evaluated, Policy(allowed_outputs=without)).descriptors is None
    assert clamped(evaluated, Policy()).descriptors == evaluated.descriptors


def test_where_only_noised_counts_leave_no_descriptor_does(results: list[Result]) -> None:
    evaluated = results[1].evaluated
    assert evaluated is not None
    study = study_of(evaluation={"resamples": 100, "baseline": False, "release": {"epsilon": 1}})
    auc = evaluated.network.auc.model_copy(update={"value": None})
    bare = Evaluated(
        patients=None, images=None, train_patients=None, train_images=None, seconds={},
        network=evaluated.network.model_copy(update={"noise": "1", "histogram": None, "auc": auc}),
    )  # fmt: skip
    assert exact_in_evaluation(bare, study) == []
    assert exact_in_evaluation(bare.model_copy(update={"descriptors": evaluated.descriptors}), study) == ["descriptors"]
