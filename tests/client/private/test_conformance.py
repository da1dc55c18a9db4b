"""The conformance measurement passes the real mechanism, and each deliberately broken one fails the check that is there for it."""

import json
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from typer.testing import CliRunner

from client import conformance
from client.cli import app
from client.conformance import CHECKS, Build, Measurement, Trial, built, measure
from client.losses import losses_of
from client.private.dp_sgd import DpSgd
from client.private.sampling import PatientSampler


def broken(kind: type[DpSgd]) -> Build:
    def build(trial: Trial) -> DpSgd:
        trial.network.train()
        rows = np.arange(len(trial.patients))
        one = kind(
            trial.network, PatientSampler(rows, trial.patients, rate=trial.constants.sampling_rate),
            lambda some: (trial.images[some], trial.labels[some]), constants=trial.constants,
            losses=lambda logits, labels: losses_of(logits, labels, positive_index=1), image_shape=(3, 12, 12),
        )  # fmt: skip
        one.trial = trial
        return one

    return build


class Silent(DpSgd):
    def noise(self, count: int) -> Tensor:
        return torch.zeros(count, dtype=torch.float64)


class Weak(DpSgd):
    """Five per cent too little."""

    def noise(self, count: int) -> Tensor:
        return super().noise(count) * 0.95


class Uniform(DpSgd):
    """The right standard deviation, the wrong distribution."""

    def noise(self, count: int) -> Tensor:
        drawn = torch.from_numpy(np.random.default_rng().uniform(-1, 1, count) * 3**0.5)
        return drawn * self.constants.noise_standard_deviation


class Seeded(DpSgd):
    def noise(self, count: int) -> Tensor:
        return torch.randn(count, dtype=torch.float64) * self.constants.noise_standard_deviation


class OnceDrawn(DpSgd):
    """The generator is good, but what it gave is used again in each step."""

    def noise(self, count: int) -> Tensor:
        kept = self.__dict__.setdefault("kept", {})
        if count not in kept:
            kept[count] = super().noise(count)
        return kept[count].clone()


class ForkedState(DpSgd):
    """A generator seeded well, once, that its forks inherit."""

    def noise(self, count: int) -> Tensor:
        generator = self.__dict__.setdefault("generator", np.random.default_rng())
        return torch.from_numpy(generator.standard_normal(count)) * self.constants.noise_standard_deviation


class ByBatch(DpSgd):
    """Clips the sum of the batch instead of each patient's gradient."""

    def clipped_sum(self, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        found = super().clipped_sum(rows)
        norm = float(torch.cat([one.flatten() for one in found.values()]).norm())
        return {name: one * min(1.0, self.constants.clipping_norm / max(norm, 1e-12)) for name, one in found.items()}


class Unclipped(DpSgd):
    def clipped_sum(self, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        return {name: one * 3.0 for name, one in super().clipped_sum(rows).items()}


class Spreading(DpSgd):
    """A gradient that is not finite is passed on."""

    def clipped_sum(self, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        poisoned = not bool(torch.isfinite(self.trial.images[rows]).all())
        return {name: one + (float("nan") if poisoned else 0.0) for name, one in super().clipped_sum(rows).items()}


class ByCount(DpSgd):
    """Divides by how many were drawn."""

    def release(self, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        factor = self.constants.normaliser / max(1, len(rows))
        return {name: one * factor for name, one in super().release(rows).items()}


class SkipsEmpty(DpSgd):
    def release(self, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        if len(rows) == 0:
            return {name: torch.zeros_like(one) for name, one in self.parameters.items()}
        return super().release(rows)


class LeavesOut(DpSgd):
    """One small parameter is not released."""

    def release(self, rows: NDArray[np.int64]) -> Mapping[str, Tensor]:  # type: ignore[override]
        return {name: one for name, one in super().release(rows).items() if name != "3.spatial.norm.bias"}


class NoNoiseOnOne(DpSgd):
    def release(self, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        released = super().release(rows)
        released["8.bias"] = self.clipped_sum(rows)["8.bias"] / self.constants.normaliser
        return released


class Shuffling(DpSgd):
    """Batches of a fixed size out of a shuffled list, one image of each patient."""

    def sample(self) -> NDArray[np.int64]:
        patients = self.trial.patients
        firsts = np.unique(patients, return_index=True)[1]
        size = round(len(firsts) * self.constants.sampling_rate)
        queue = self.__dict__.setdefault("queue", [])
        if len(queue) < size:
            queue[:] = np.random.default_rng().permutation(firsts).tolist()
        return np.array([queue.pop() for _ in range(size)], dtype=np.int64)


class Sticky(DpSgd):
    """Sizes and frequencies are right, but whoever was drawn is drawn again in the next step."""

    def sample(self) -> NDArray[np.int64]:
        turn = self.__dict__.setdefault("turn", [0, None])
        turn[0] += 1
        if turn[0] % 2:
            turn[1] = super().sample()
        return turn[1]


class ByImage(DpSgd):
    """Samples images, not patients."""

    def sample(self) -> NDArray[np.int64]:
        count = len(self.trial.patients)
        return PatientSampler(range(count), range(count), rate=self.constants.sampling_rate).draw()


class FirstImage(DpSgd):
    """Always the first image of a patient."""

    def sample(self) -> NDArray[np.int64]:
        patients = self.trial.patients
        return np.unique(patients, return_index=True)[1][np.unique(patients[super().sample()])]


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        (Silent, "noise"),
        (Silent, "every_parameter"),
        (Silent, "empty_step"),
        (Weak, "noise"),
        (Uniform, "noise"),
        (OnceDrawn, "noise"),
        (Seeded, "fresh_noise"),
        (OnceDrawn, "fresh_noise"),
        (ForkedState, "fresh_noise"),
        (ByBatch, "clipping"),
        (Unclipped, "clipping"),
        (Spreading, "clipping"),
        (ByCount, "normaliser"),
        (ByCount, "empty_step"),
        (SkipsEmpty, "empty_step"),
        (LeavesOut, "every_parameter"),
        (NoNoiseOnOne, "every_parameter"),
        (Shuffling, "poisson"),
        (Sticky, "poisson"),
        (ByImage, "one_image"),
        (ByImage, "poisson"),
        (FirstImage, "one_image"),
    ],
)
def test_a_broken_mechanism_fails_the_check_that_is_there_for_it(kind: type[DpSgd], check: str) -> None:
    found = measure(broken(kind), only=[check])
    assert not found.passed and not found.checks[0].passed


def test_the_real_mechanism_passes_every_check_in_ghost_mode_too() -> None:
    found = measure(built("ghost"), mode="ghost", only=["clipping", "normaliser", "empty_step"])
    assert found.passed, [one for check in found.checks for one in check.measurements if not one.passed]


def test_the_command_measures_everything_and_the_real_mechanism_passes() -> None:
    answer = CliRunner().invoke(app, ["conformance", "--json"])
    assert answer.exit_code == 0, answer.output
    found = json.loads(answer.stdout)
    assert found["passed"] and [check["name"] for check in found["checks"]] == [name for name, _, _ in CHECKS]
    assert all(check["measurements"] for check in found["checks"])


def test_the_command_ends_with_1_and_marks_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conformance, "built", lambda mode: broken(ByCount))
    monkeypatch.setattr(conformance, "CHECKS", [entry for entry in CHECKS if entry[0] == "normaliser"])
    answer = CliRunner().invoke(app, ["conformance"])
    assert answer.exit_code == 1
    assert "FAILED" in answer.output and "<- outside" in answer.output and "does NOT conform" in answer.output


@pytest.mark.parametrize(
    ("value", "low", "high", "passed"),
    [(1.0, 1.0, 1.0, True), (1.0, None, 0.5, False), (1.0, 2.0, None, False), (None, None, None, False)],
)
def test_a_measurement_passes_in_its_interval(
    value: float | None, low: float | None, high: float | None, passed: bool
) -> None:
    assert Measurement(what="x", value=value, low=low, high=high).passed is passed


def test_a_fork_that_gives_no_answer_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conformance, "_in_a_fork", lambda release: None)
    assert not measure(built(), only=["fresh_noise"]).passed
