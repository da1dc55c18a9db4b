"""Local training against hand-written loops, and what it says of images."""

import hashlib
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from client import optimiser_file
from client.losses import balanced_weights, image_losses
from client.training import (
    TrainingStopped,
    extract_features,
    optimiser_of,
    predict,
    resolve_auto,
    train_round,
)
from shared.errors import DataError, NonFiniteUpdateError, WeightsError
from shared.models.network import Network
from shared.models.resnet import BasicBlock, ResNet
from shared.models.state import travelling_arrays
from shared.study_training import Training

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


class Tiny(Network):
    """Two small convolutions with batch norm: quick, and with every kind of tensor."""

    def __init__(self, outputs: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.layer2 = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.feature_dim = 16
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(16, outputs)

    def features(self, x: Tensor) -> Tensor:
        return self.layer2(self.layer1(x)).mean((2, 3))


def tiny(outputs: int = 1, dropout: float = 0.0, seed: int = 1) -> Tiny:
    torch.manual_seed(seed)
    return Tiny(outputs, dropout)


def setting(**changes: Any) -> Training:
    standard: dict[str, Any] = {
        "local_epochs": 2,
        "batch_size": 8,
        "optimiser": "adam",
        "learning_rate": 1e-3,
        "loss": "binary_cross_entropy",
    }
    return Training.model_validate({**standard, **changes})


def toy(count: int = 24, classes: int = 2, seed: int = 0, batch: int = 8) -> list[tuple[Tensor, Tensor]]:
    """Noise, with one channel brighter by class: separable by a mean."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % classes
    x = 0.3 * torch.rand((count, 3, 8, 8), generator=generator)
    x[torch.arange(count), y % 3] += 0.7
    return list(zip(x.split(batch), y.split(batch), strict=True))


def run(network: Network, batches: Any, training: Training, **options: Any) -> Any:
    standard: dict[str, Any] = {"class_counts": [12, 12], "positive_index": 1, "seed": 5, "device": CPU}
    return train_round(network, batches, training=training, **{**standard, **options})


@pytest.mark.parametrize(
    ("optimiser", "build"),
    [
        (
            {"optimiser": "adam", "weight_decay": 0.01},
            lambda p: torch.optim.Adam(p, lr=1e-3, weight_decay=0.01, foreach=False, fused=False),
        ),
        (
            {"optimiser": "adamw", "weight_decay": 0.1},
            lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1, foreach=False, fused=False),
        ),
        (
            {"optimiser": "sgd", "momentum": 0.9},
            lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, foreach=False, fused=False),
        ),
    ],
    ids=["adam", "adamw", "sgd"],
)
@pytest.mark.parametrize("outputs", [1, 3])
def test_a_round_is_the_loop_one_would_write(
    optimiser: dict[str, Any], build: Callable[..., torch.optim.Optimizer], outputs: int
) -> None:
    ours, theirs = tiny(outputs), tiny(outputs)
    batches = toy(classes=max(2, outputs))
    loss_name = "binary_cross_entropy" if outputs == 1 else "cross_entropy"
    result = run(ours, batches, setting(loss=loss_name, **optimiser))
    loop = build(theirs.parameters())
    losses, right = [], []
    for _ in range(2):
        total, correct = 0.0, 0
        for x, y in batches:
            loop.zero_grad()
            logits = theirs(x)
            if outputs == 1:
                chance = torch.sigmoid(logits[:, 0])
                loss = -(y * chance.log() + (1 - y) * (1 - chance).log()).mean()
                correct += int(((chance > 0.5).long() == y).sum())
            else:
                loss = -torch.log_softmax(logits, 1)[torch.arange(len(y)), y].mean()
                correct += int((logits.argmax(1) == y).sum())
            loss.backward()
            loop.step()
            total += loss.item() * len(y)
        losses.append(total / 24)
        right.append(correct / 24)
    np.testing.assert_allclose([epoch.loss for epoch in result.epochs], losses, rtol=1e-5)
    np.testing.assert_allclose([epoch.accuracy for epoch in result.epochs], right)
    assert (result.steps, result.images) == (6, 48)
    for name, array in travelling_arrays(ours).items():
        np.testing.assert_allclose(array, travelling_arrays(theirs)[name], rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_it_learns_what_is_separable(precision: str, memory_format: str) -> None:
    network = tiny()
    result = run(
        network,
        toy(48),
        setting(learning_rate=0.02, local_epochs=12),
        precision=precision,
        memory_format=memory_format,
    )
    assert result.epochs[-1].accuracy == 1.0
    assert result.epochs[-1].loss < 0.3 * result.epochs[0].loss
    unseen = toy(48, seed=9)
    logits = predict(network, unseen, device=CPU)
    truth = torch.cat([y for _, y in unseen]).numpy()
    assert (((logits[:, 0] > 0) == (truth == 1)).mean()) > 0.95


def test_the_positive_class_is_the_one_named() -> None:
    network = tiny()
    run(network, toy(48), setting(learning_rate=0.02, local_epochs=12), positive_index=0)
    truth = torch.cat([y for _, y in toy(48)]).numpy()
    assert ((predict(network, toy(48), device=CPU)[:, 0] > 0) == (truth == 0)).all()


def test_balanced_weights_are_sklearns() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.repeat([0, 1, 2], [5, 20, 75])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(balanced_weights([5, 20, 75]), expected)
    assert balanced_weights([5, 0, 15]) == [2.0, 0.0, 20 / 30]


@pytest.mark.parametrize("outputs", [1, 2])
def test_balanced_training_weighs_each_image_by_its_class(outputs: int) -> None:
    logits = torch.randn((6, outputs), generator=torch.Generator().manual_seed(2))
    y = torch.tensor([0, 0, 0, 0, 1, 1])
    loss = "binary_cross_entropy" if outputs == 1 else "cross_entropy"
    recipe = setting(loss=loss, class_weights="balanced")
    found = image_losses(recipe, positive_index=1, class_counts=[4, 2])(logits, y).mean()
    chance = torch.sigmoid(logits[:, 0]) if outputs == 1 else torch.softmax(logits, 1)[:, 1]
    each = -torch.where(y == 1, chance, 1 - chance).log()
    expected = 0.5 * each[:4].mean() + 0.5 * each[4:].mean()  # both classes count the same
    torch.testing.assert_close(found, expected)
    plain, balanced = tiny(), tiny()
    if outputs == 1:
        uneven = [(x, torch.zeros_like(y).index_fill(0, torch.tensor([0]), 1)) for x, y in toy()]
        run(plain, uneven, setting(), class_counts=[21, 3])
        run(balanced, uneven, setting(class_weights="balanced"), class_counts=[21, 3])
        assert not torch.equal(plain.fc.bias, balanced.fc.bias)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_seed_gives_the_same_bytes_whatever_the_global_generator(precision: str) -> None:
    def trained(seed: int, global_seed: int) -> list[bytes]:
        network = tiny(dropout=0.5)
        torch.manual_seed(global_seed)
        run(network, toy(), setting(), seed=seed, precision=precision, memory_format="channels_last")
        return [array.tobytes() for array in travelling_arrays(network).values()]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        first = trained(5, global_seed=1)
        assert trained(5, global_seed=2) == first
        assert trained(6, global_seed=1) != first
    finally:
        torch.set_num_threads(threads)


def trained_digest() -> str:
    """SHA-256 of what travels after a round with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.manual_seed(0)
        network = ResNet(BasicBlock, (1, 1, 1, 1), outputs=1, attention="cbam", place="after_block", dropout=0.2)
        batches = [(nn.functional.interpolate(x, size=32), y) for x, y in toy()]
        run(network, batches, setting(), precision="bf16", memory_format="channels_last")
    finally:
        torch.set_num_threads(threads)
    return hashlib.sha256(b"".join(array.tobytes() for array in travelling_arrays(network).values())).hexdigest()


def test_another_process_gives_the_same_bytes() -> None:
    folders = [str(ROOT), str(Path(__file__).parent)]
    code = f"import sys; sys.path[:0] = {folders!r}; import test_training; print(test_training.trained_digest())"
    other = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=300, check=True)
    assert other.stdout.strip() == trained_digest()


def test_the_global_generator_is_left_as_it_was() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    network = tiny(dropout=0.5)
    torch.set_rng_state(before)
    run(network, toy(), setting())
    assert torch.equal(torch.get_rng_state(), before)


def test_each_epoch_iterates_the_batches_anew_and_progress_counts_steps() -> None:
    class Counted:
        passes = 0

        def __len__(self) -> int:
            return 3

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            self.passes += 1
            return iter(toy())

    batches, said = Counted(), []
    run(tiny(), batches, setting(), epochs=3, progress=lambda *values: said.append(values))
    assert batches.passes == 3
    assert [(done, total) for done, total, _ in said] == [(step, 9) for step in range(1, 10)]
    assert all(math.isfinite(loss) for _, _, loss in said)


def test_frozen_layers_stay_and_are_in_eval() -> None:
    network = tiny()
    network.freeze(["layer1"])
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    run(network, toy(), setting())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith("layer1."), name


def test_a_loss_that_is_not_finite_ends_in_a_named_error() -> None:
    with pytest.raises(NonFiniteUpdateError, match="not finite in epoch 1"):
        run(tiny(), [(torch.full((2, 3, 8, 8), float("nan")), torch.tensor([0, 1]))], setting())


def test_weights_that_overflow_in_the_last_step_are_noticed(tmp_path: Path) -> None:
    training = setting(optimiser="sgd", learning_rate=1e38, weight_decay=1e3, optimiser_state="keep")
    with pytest.raises(NonFiniteUpdateError, match="is not finite after training"):
        run(tiny(), toy(8), training, epochs=1, optimiser_state=tmp_path / "o.pt")
    assert list(tmp_path.iterdir()) == []


def test_stop_ends_in_the_middle() -> None:
    steps: list[int] = []
    with pytest.raises(TrainingStopped):
        run(tiny(), toy(), setting(), progress=lambda done, *_: steps.append(done), stop=lambda: len(steps) >= 2)
    assert steps == [1, 2]


def test_a_single_image_is_left_out_only_where_batch_norm_is_trained() -> None:
    batches = [*toy(8), (torch.rand(1, 3, 8, 8), torch.tensor([1]))]
    assert run(tiny(), batches, setting(), epochs=1).images == 8
    torch.manual_seed(1)
    group = ResNet(BasicBlock, (1, 1, 1, 1), outputs=1, norm="group")
    assert run(group, batches, setting(), epochs=1).images == 9
    with pytest.raises(DataError, match="at least two images"):
        run(tiny(), batches[-1:], setting())
    with pytest.raises(DataError, match="at least two images"):
        run(tiny(), [], setting())


def test_a_kept_optimiser_goes_on_as_if_there_had_been_no_break(tmp_path: Path) -> None:
    path = tmp_path / "optimiser.pt"
    keep = setting(optimiser_state="keep")
    whole, parts, anew = tiny(), tiny(), tiny()
    run(whole, toy(), keep, epochs=4)
    for network, training in ((parts, keep), (anew, setting())):
        for _ in range(2):
            run(network, toy(), training, epochs=2, optimiser_state=path)
    assert path.stat().st_mode & 0o777 == 0o600
    for name, array in travelling_arrays(whole).items():
        np.testing.assert_array_equal(array, travelling_arrays(parts)[name])
    assert not np.array_equal(whole.fc.weight.detach().numpy(), anew.fc.weight.detach().numpy())


def test_reset_writes_no_optimiser(tmp_path: Path) -> None:
    run(tiny(), toy(), setting(), optimiser_state=tmp_path / "optimiser.pt")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_or_foreign_optimiser_is_refused(tmp_path: Path) -> None:
    path, keep = tmp_path / "optimiser.pt", setting(optimiser_state="keep")
    path.write_bytes(b"damaged")
    with pytest.raises(WeightsError, match="remove the file"):
        run(tiny(), toy(), keep, optimiser_state=path)
    for other, network in (
        (setting(weight_decay=0.5), tiny()),
        (setting(optimiser="sgd"), tiny()),
        (setting(), tiny(outputs=3)),
    ):
        optimiser = optimiser_of(network, other)
        network(torch.rand(2, 3, 8, 8)).sum().backward()
        optimiser.step()
        optimiser_file.save(optimiser, path)
        with pytest.raises(WeightsError, match="can't be used"):
            run(tiny(), toy(), keep, optimiser_state=path)


def test_features_and_logits_come_in_one_pass_in_order_and_in_eval_mode() -> None:
    network, batches = tiny(outputs=3, dropout=0.5), toy(20, classes=3)
    network.train()
    before = network.layer1[1].running_mean.clone()
    features, logits = extract_features(network, batches, device=CPU)
    assert network.training
    assert torch.equal(network.layer1[1].running_mean, before)
    assert (features.dtype, logits.dtype) == (np.float32, np.float32)
    network.eval()
    with torch.no_grad():
        x = torch.cat([x for x, _ in batches])
        np.testing.assert_allclose(features, network.features(x).numpy(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(logits, network(x).numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(predict(network, batches, device=CPU), logits)


def test_of_no_images_nothing_is_said() -> None:
    features, logits = extract_features(tiny(outputs=3), [], device=CPU)
    assert (features.shape, logits.shape) == ((0, 16), (0, 3))


def test_auto_follows_the_hardware_and_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    depthwise = nn.Conv2d(8, 8, 3, groups=8)
    for supported, network, expected in (
        (True, tiny(), ("bf16", "channels_last")),
        (False, tiny(), ("fp32", "contiguous")),
        (True, depthwise, ("fp32", "channels_last")),
    ):
        monkeypatch.setattr("client.training._cpu_multiplies_bf16", lambda supported=supported: supported)
        assert resolve_auto(setting(), CPU, network) == expected


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_what_a_study_asks_for_is_never_changed(precision: str, memory_format: str) -> None:
    asked = setting(precision=precision, memory_format=memory_format)
    assert resolve_auto(asked, CPU, tiny()) == (precision, memory_format)


def test_an_optimiser_goes_on_with_the_rate_that_the_schedule_sets(tmp_path: Path) -> None:
    path, keep = tmp_path / "optimiser.pt", setting(optimiser_state="keep", learning_rate=0.5, schedule="linear")
    network = tiny()
    first = optimiser_of(network, keep.in_round(1, 4))
    network(torch.rand(2, 3, 8, 8)).sum().backward()
    first.step()
    optimiser_file.save(first, path)
    second = optimiser_of(network, keep.in_round(3, 4))
    optimiser_file.load(second, path)
    assert [group["lr"] for group in second.param_groups] == [0.25]
    assert second.state_dict()["state"][0]["step"] == 1


@pytest.mark.parametrize(
    ("schedule", "rates"), [("constant", [1, 1, 1]), ("linear", [1, 2 / 3, 1 / 3]), ("cosine", [1, 0.75, 0.25])]
)
def test_schedules_fall_from_round_to_round(schedule: str, rates: list[float]) -> None:
    training = setting(learning_rate=1.0, schedule=schedule)
    assert [training.in_round(number, 3).learning_rate for number in (1, 2, 3)] == pytest.approx(rates)
