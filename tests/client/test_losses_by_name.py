"""Losses by name: focal loss as in its paper, alpha from public constants or class counts, and nothing of the data in private training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from client.losses import descriptor_losses, image_losses, losses_of
from client.private.requirements import require_private_training
from client.training import optimiser_of
from shared.errors import PrivacyError
from shared.study import Study
from shared.study_descriptors import ABSENT
from shared.study_training import Restarts, Training


def recipe(**changes: Any) -> Training:
    values: dict[str, Any] = {
        "local_epochs": 1, "batch_size": 4, "optimiser": "adamw", "learning_rate": 0.1, "loss": "focal", "focal": {"gamma": 2.0},
    }  # fmt: skip
    return Training.model_validate({**values, **changes})


def batch(classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(9, classes, generator=generator), torch.randint(classes, (9,), generator=generator)


def by_hand(logits: torch.Tensor, labels: torch.Tensor, gamma: float, alpha: list[float]) -> torch.Tensor:
    p = logits.double().softmax(1)[torch.arange(len(labels)), labels]
    return -torch.tensor(alpha).double()[labels] * (1 - p) ** gamma * p.log()


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        ("none", [1.0, 1.0, 1.0]),
        ({"c": 0.5, "a": 0.2, "b": 0.3}, [0.2, 0.3, 0.5]),
        ("balanced", [100 / (3 * 70), 100 / (3 * 20), 100 / (3 * 10)]),
    ],
)
def test_focal_loss_is_the_papers_with_alpha_by_class(alpha: Any, expected: list[float]) -> None:
    logits, labels = batch()
    losses = image_losses(recipe(focal={"gamma": 1.5, "alpha": alpha}), positive_index=0, class_counts=[70, 20, 10])
    found = losses(logits, labels)
    assert found.shape == (9,)
    torch.testing.assert_close(found.double(), by_hand(logits, labels, 1.5, expected), atol=1e-5, rtol=1e-5)


def test_gamma_of_nought_is_cross_entropy_and_half_precision_is_widened() -> None:
    logits, labels = batch()
    losses = image_losses(recipe(focal={"gamma": 0.0}), positive_index=0, class_counts=None)
    torch.testing.assert_close(losses(logits, labels), losses_of(logits, labels, positive_index=0))
    assert losses(logits.bfloat16(), labels).dtype == torch.float32


def test_each_loss_is_its_own_images_alone() -> None:
    logits, labels = batch()
    losses = image_losses(recipe(focal={"alpha": {"a": 1, "b": 2, "c": 3}}), positive_index=0, class_counts=None)
    together = losses(logits, labels)
    alone = torch.cat([losses(logits[i : i + 1], labels[i : i + 1]) for i in range(9)])
    torch.testing.assert_close(together, alone)


def test_what_an_image_lacks_changes_no_other_images_loss_of_descriptors() -> None:
    """Private training clips each patient's gradient, so that none may depend on another patient's descriptors."""
    logits, values, sizes = batch(5)[0], torch.tensor([[0, 2], [1, ABSENT], [ABSENT, ABSENT]]), (2, 3)
    together = descriptor_losses(logits[:3], values, sizes)
    alone = torch.cat([descriptor_losses(logits[i : i + 1], values[i : i + 1], sizes) for i in range(3)])
    torch.testing.assert_close(together, alone)
    of_first = -(logits[0, :2].log_softmax(0)[0] + logits[0, 2:].log_softmax(0)[2]) / 2
    of_second = -logits[1, :2].log_softmax(0)[1] / 2
    torch.testing.assert_close(together, torch.stack([of_first, of_second, torch.tensor(0.0)]))


@pytest.mark.parametrize(
    "changes",
    [
        {"focal": {"alpha": "balanced"}},
        {"loss": "cross_entropy", "focal": None, "class_weights": "balanced"},
    ],
)
def test_private_training_takes_no_weights_from_class_counts(changes: dict[str, Any]) -> None:
    with pytest.raises(PrivacyError, match="class counts"):
        image_losses(recipe(**changes), positive_index=0, class_counts=None)
    with pytest.raises(PrivacyError, match="class counts"):
        require_private_training(recipe(**changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"focal": None}, "focal must be given with loss: focal"),
        ({"loss": "cross_entropy"}, "focal must be given with loss: focal, and only then"),
        ({"class_weights": "balanced"}, "a second time"),
        ({"schedule": "cosine_restarts"}, "restarts must be given with schedule: cosine_restarts"),
        ({"restarts": {"first": 2}}, "restarts must be given with schedule: cosine_restarts, and only then"),
        ({"optimiser": "sgd", "nesterov": True}, "momentum is 0"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        recipe(**changes)


def study(**training: Any) -> dict[str, Any]:
    return {
        "schema": "consilium/study/1", "name": "focal", "title": "Focal", "seed": 1,
        "governance": {"purpose": "tests", "ethics": "none", "retention": "none"},
        "task": {"classes": {"c": [], "a": [], "b": []}, "positive_class": "a", "unit": "image"},
        "preprocessing": {"region": "whole", "size": 32, "channels": 3}, "model": {"name": "resnet18", "norm": "group"},
        "training": recipe(**training).model_dump(mode="json"),
        "federation": {"rounds": 1, "quorum": 1, "weighting": "uniform"},
    }  # fmt: skip


def test_alpha_names_every_class_and_the_order_of_writing_is_no_matter() -> None:
    first = Study.model_validate(study(focal={"alpha": {"c": 3, "a": 1, "b": 2}}))
    second = Study.model_validate(study(focal={"alpha": {"a": 1, "b": 2, "c": 3}}))
    assert first.digest() == second.digest() and first.outputs == 3
    with pytest.raises(ValidationError, match="a weight for each of the classes a, b, c"):
        Study.model_validate(study(focal={"alpha": {"a": 1, "b": 2}}))


def test_a_private_study_takes_public_alpha_only() -> None:
    private = {
        "privacy": {
            "sampling_rate": "1/10", "steps_per_round": 5, "clipping_norm": "1.0", "normaliser": "8",
            "noise_multiplier": "1.0", "delta": "1e-5"
        },
        "evaluation": {"baseline": False, "release": {"epsilon": "1"}},
    }  # fmt: skip
    plain = {"local_epochs": None, "batch_size": None}
    with pytest.raises(ValidationError, match=r"training\.focal\.alpha: balanced"):
        Study.model_validate({**study(**plain, focal={"alpha": "balanced"}), **private})
    assert Study.model_validate({**study(**plain, focal={"alpha": {"a": 1, "b": 2, "c": 3}}), **private}).privacy


@pytest.mark.parametrize(("first", "factor"), [(1, 1), (3, 1), (2, 2), (10, 2), (4, 3)])
def test_restarts_are_torchs_by_round(first: int, factor: int) -> None:
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    reference = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimiser, T_0=first, T_mult=factor)
    training = recipe(schedule="cosine_restarts", learning_rate=0.3, restarts={"first": first, "factor": factor})
    for number in range(1, 40):
        assert training.in_round(number, 39).learning_rate == pytest.approx(optimiser.param_groups[0]["lr"], abs=1e-12)
        optimiser.step()
        reference.step()
    assert Restarts(first=first, factor=factor).share(0) == 1.0


def test_nesterov_reaches_the_optimiser() -> None:
    training = recipe(optimiser="sgd", momentum=0.9, nesterov=True)
    group = optimiser_of(torch.nn.Linear(2, 2), training).param_groups[0]
    assert group["nesterov"] and group["momentum"] == 0.9
