"""Clipped sums against a loop over the patients, parts of a step, out of memory, the step itself, and a round."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from private_network import assert_equal, constants, images, looped, mechanism, small
from torch import Tensor

from client.private import dp_sgd
from client.private.dp_sgd import DpSgd, train_private_round
from client.private.gradients import Mode, clip_factors
from client.private.sampling import PatientSampler
from client.training import TrainingStopped
from shared.errors import PrivacyError
from shared.models.resnet import BasicBlock, ResNet
from shared.study_training import Training

MODES: list[Mode] = ["hooks", "ghost"]
ALL = np.arange(7)


def test_resnet_with_cbam_and_group_norm_gives_what_a_loop_over_the_patients_gives() -> None:
    torch.manual_seed(1)
    network = ResNet(
        BasicBlock, (1, 1, 1, 1), outputs=2, norm="group", attention="cbam", place="stage_outputs", dropout=0.0
    )
    network.double().train()
    network.freeze(["layer4"])  # 4 of its 5 million weights, which only take time
    x, y = images(3, 32)
    expected = looped(network, x, y, 0.5)
    for mode in MODES:
        one = mechanism(network, x, y, mode=mode, public=constants(clipping_norm=0.5), physical_batch=2)
        found = one.clipped_sum(np.arange(3))
        assert_equal(found, expected)
        one.close()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("clipping_norm", [0.4, 3.0, 1e6])
def test_the_clipped_sum_is_that_of_a_loop_however_it_is_divided(mode: Mode, clipping_norm: float) -> None:
    network, (x, y) = small(), images(7)
    x[1] *= 100.0
    expected = looped(network, x, y, clipping_norm)
    for size in (1, 3, 7, 20):
        one = mechanism(network, x, y, mode=mode, public=constants(clipping_norm=clipping_norm), physical_batch=size)
        assert_equal(one.clipped_sum(ALL), expected)
        one.close()


def test_augmentations_of_one_image_are_averaged_before_clipping() -> None:
    network, (x, y) = small(), images(8)
    y = y.repeat_interleave(2)[:8]
    one = mechanism(network, x, y, augmentations=2, physical_batch=3)
    assert_equal(one.clipped_sum(np.arange(4)), looped(network, x, y, 0.4, repeated=2))


@pytest.mark.parametrize("mode", MODES)
def test_a_patient_whose_gradient_is_not_finite_counts_as_zero(mode: Mode) -> None:
    network, (x, y) = small(), images(7)
    x[3, 0, 0, 0] = float("nan")
    x[5, 1] = float("inf")
    one = mechanism(network, x, y, mode=mode)
    finite = np.array([0, 1, 2, 4, 6])
    assert_equal(one.clipped_sum(ALL), looped(network, x[finite], y[finite], 0.4))


def test_clipping_never_leaves_a_norm_above_c_in_single_precision() -> None:
    norms = torch.tensor([0.0, 0.1, 1.0, 1e10, 1e37, 1e45, float("inf"), float("nan")], dtype=torch.float64)
    factors = clip_factors(norms, 1.0, torch.float32).double()
    assert factors[0] > 0.999999
    assert bool((norms[:6] * factors[:6] <= 1.0).all())
    assert factors[5:].tolist() == [0.0, 0.0, 0.0]


def failing(one: DpSgd, largest: int, error: type[Exception] = torch.OutOfMemoryError) -> list[int]:
    """Parts of more than `largest` patients end in out of memory after the forward pass; the sizes tried are noted."""
    tried: list[int] = []
    inner: Any = one._gradients
    losses = inner._losses

    def short_of_memory(logits: Tensor, labels: Tensor) -> Tensor:
        tried.append(len(labels))
        if len(labels) > largest:
            raise error("DefaultCPUAllocator: can't allocate memory")
        return losses(logits, labels)

    inner._losses = short_of_memory
    return tried


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_out_of_memory_repeats_the_unfinished_part_only_and_draws_noise_once(
    mode: Mode, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, (x, y) = small(), images(7)
    expected = looped(network, x, y, 0.4)
    one = mechanism(network, x, y, mode=mode, physical_batch=5)
    drawn: list[int] = []
    monkeypatch.setattr(one, "noise", lambda count: drawn.append(count) or torch.zeros(count, dtype=torch.float64))
    samples = iter([ALL])
    monkeypatch.setattr(one, "sample", lambda: next(samples))
    tried = failing(one, 2, error)
    one.step(torch.optim.SGD(network.parameters(), lr=1.0))
    assert tried == [5, 2, 2, 2, 1]
    assert one.physical_batch == 2
    assert drawn == [parameter.numel() for parameter in network.parameters()]
    after = dict(network.named_parameters())
    before = dict(small().named_parameters())
    assert_equal({n: (before[n] - after[n]).detach() * 3.0 for n in after}, expected)


def test_out_of_memory_of_a_single_patient_and_other_errors_are_not_swallowed() -> None:
    network, (x, y) = small(), images(7)
    one = mechanism(network, x, y)
    failing(one, 0)
    with pytest.raises(torch.OutOfMemoryError):
        one.clipped_sum(ALL)
    other = mechanism(small(), x, y)
    other._load = lambda rows: (_ for _ in ()).throw(RuntimeError("disk"))
    with pytest.raises(RuntimeError, match="disk"):
        other.clipped_sum(ALL)


def test_a_release_is_sum_and_noise_over_the_public_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    network, (x, y) = small(), images(7)
    expected = looped(network, x, y, 0.4)
    one = mechanism(network, x, y, public=constants(normaliser=3.0))
    monkeypatch.setattr(one, "noise", lambda count: torch.full((count,), 0.25, dtype=torch.float64))
    assert_equal(one.release(ALL), {name: (value + 0.25) / 3.0 for name, value in expected.items()})
    nobody = one.release(np.empty(0, np.int64))
    assert_equal(nobody, {name: torch.full_like(value, 0.25 / 3.0) for name, value in expected.items()})


def test_a_parameter_that_the_loss_does_not_use_gets_noise_like_all_others() -> None:
    network, (x, y) = small(), images(3)
    network.spare = torch.nn.Linear(3, 3).double()
    for mode in MODES:
        one = mechanism(network, x, y, mode=mode)
        released = one.release(np.arange(3))
        assert bool((released["spare.weight"] != 0).all())
        one.close()


def test_a_closed_mechanism_leaves_an_ordinary_network() -> None:
    network, (x, y) = small(), images(3)
    one = mechanism(network, x, y)
    one.clipped_sum(np.arange(3))
    one.close()
    assert not any(hasattr(parameter, "grad_sample") for parameter in network.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in network.modules())
    assert_equal(looped(network, x, y, 1.0), looped(small(), x, y, 1.0))


RECIPE = Training(
    local_epochs=1,
    batch_size=2,
    optimiser="sgd",
    momentum=0.9,
    learning_rate=0.1,
    loss="cross_entropy",
    optimiser_state="keep",
)


def round_of(network: Any, **changes: Any) -> dp_sgd.PrivateTrainingResult:
    x, y = images(6)
    options: dict[str, Any] = {
        "steps": 3, "constants": constants(), "training": RECIPE, "positive_index": 1,
        "image_shape": (3, 8, 8), "seed": 1, "device": torch.device("cpu"),
    } | changes  # fmt: skip
    return train_private_round(
        network, PatientSampler(range(6), range(6), rate=0.5), lambda rows: (x[rows], y[rows]), **options
    )


def test_a_round_done_again_with_the_same_seed_is_another_release(tmp_path: Path) -> None:
    one, other, passed = small(), small(), []
    result = round_of(one, optimiser_state=tmp_path / "state", progress=lambda *at: passed.append(at))
    round_of(other)
    assert result.steps == 3 and passed == [(1, 3), (2, 3), (3, 3)]
    assert (tmp_path / "state").exists()
    for (name, a), b, begun in zip(one.named_parameters(), other.parameters(), small().parameters(), strict=True):
        assert bool((a != begun).all()), name
        assert bool((a != b).any()), name


def test_a_round_without_noise_and_with_certain_sampling_is_plain_clipped_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dp_sgd, "standard_normals", lambda count: torch.zeros(count, dtype=torch.float64))
    x, y = images(6)
    public = constants(sampling_rate=1.0)
    network, expected = small(), small()
    train_private_round(
        network, PatientSampler(range(6), range(6), rate=1.0), lambda rows: (x[rows], y[rows]), steps=3,
        constants=public, training=RECIPE, positive_index=1, image_shape=(3, 8, 8), seed=1, device=torch.device("cpu"),
    )  # fmt: skip
    optimiser = torch.optim.SGD(expected.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        gradients = looped(expected, x, y, public.clipping_norm)
        for name, parameter in expected.named_parameters():
            parameter.grad = gradients[name] / public.normaliser
        optimiser.step()
    assert_equal(dict(network.named_parameters()), dict(expected.named_parameters()))


def test_a_stopped_round_says_so_and_takes_its_hooks_off() -> None:
    network = small()
    with pytest.raises(TrainingStopped):
        round_of(network, stop=lambda: True)
    assert not any(module._forward_hooks for module in network.modules())


def test_the_wrong_rate_is_refused() -> None:
    with pytest.raises(PrivacyError, match=r"sampled at 0\.5"):
        round_of(small(), constants=constants(sampling_rate=0.1))
