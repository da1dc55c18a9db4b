"""`consilium-site conformance`: whether the mechanism does what the accountants assume. It measures what is sampled and what is released.

A `Mechanism` is a black box here: what it draws, and what it gives the optimiser for given rows. Un-noised sums are measured as releases
with a noise multiplier of 1e-7. Every bound is set so that a correct mechanism fails any check of a whole report with probability below
1e-7, the intervals of one report sharing that among them (Bonferroni). What can't be measured so is in docs/threat-model.md.
"""

from __future__ import annotations

import math
import os
import random
import select
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from client.private.dp_sgd import DpSgd, PrivateConstants
from client.private.gradients import Mode
from client.private.sampling import PatientSampler
from client.training import losses_of
from shared.models.attention import CBAM, group_norm
from shared.schema import Strict

_FAILURE = 1e-7
#: Intervals of a report, rounded up: two a patient, some for each parameter and check.
_INTERVALS = 400
_LEVEL = _FAILURE / _INTERVALS
#: Standard deviations of a normal approximation with that level on both sides.
_DEVIATIONS = float(stats.norm.isf(_LEVEL / 2))
_NEARLY_SILENT = 1e-7
#: Rounding, and the nearly silent noise: relative to C.
_SLACK = 1e-3
_FORK_TIMEOUT_S = 60.0


class Mechanism(Protocol):
    """What is measured."""

    def sample(self) -> NDArray[np.int64]:
        """Rows of one step."""

    def release(self, rows: NDArray[np.int64]) -> Mapping[str, Tensor]:
        """What the optimiser is given for these rows, by parameter."""


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """What a mechanism is built on: a network, rows of images (N, C, H, W) with labels and patients (N,), and the public constants."""

    network: nn.Module
    images: Tensor
    labels: Tensor
    patients: NDArray[np.int64]
    constants: PrivateConstants


Build = Callable[[Trial], Mechanism]


class Measurement(Strict):
    """One figure with the interval in which it must lie; an end that is None is open. A value that is None was not a number."""

    what: str
    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the value lies in the interval, its ends included."""
        return (
            self.value is not None
            and (self.low is None or self.value >= self.low)
            and (self.high is None or self.value <= self.high)
        )


class Check(Strict):
    """One property of the mechanism: passed where all measurements lie in their intervals."""

    name: str
    title: str
    measurements: tuple[Measurement, ...]
    passed: bool


class Conformance(Strict):
    """All checks of one mechanism."""

    mode: Mode
    checks: tuple[Check, ...]
    passed: bool


def built(mode: Mode = "hooks") -> Build:
    """Builds this release's own mechanism."""

    def build(trial: Trial) -> DpSgd:
        trial.network.train()
        rows = np.arange(len(trial.patients))
        return DpSgd(
            trial.network, PatientSampler(rows, trial.patients, rate=trial.constants.sampling_rate),
            lambda some: (trial.images[some], trial.labels[some]), constants=trial.constants, mode=mode,
            losses=lambda logits, labels: losses_of(logits, labels, positive_index=1),
            image_shape=(trial.images.shape[1], trial.images.shape[2], trial.images.shape[3]), physical_batch=4,
        )  # fmt: skip

    return build


def measure(
    build: Build,
    *,
    mode: Mode = "hooks",
    only: Sequence[str] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Conformance:
    """All checks (or those named in `only`) on mechanisms that `build` makes. `progress(done, total, title)` comes before each."""
    chosen = [entry for entry in CHECKS if only is None or entry[0] in only]
    checks = []
    for done, (name, title, check) in enumerate(chosen):
        if progress is not None:
            progress(done, len(chosen), title)
        found = tuple(check(build))
        checks.append(Check(name=name, title=title, measurements=found, passed=all(one.passed for one in found)))
    return Conformance(mode=mode, checks=tuple(checks), passed=all(check.passed for check in checks))


def _network(scale: float = 1.0) -> nn.Module:
    """A small network of every kind of layer that is trained: convolution, group norm, CBAM, linear. Weights are multiplied by `scale`."""
    generator = torch.Generator().manual_seed(7)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), group_norm(8), nn.ReLU(), CBAM(8, norm_layer=group_norm, reduction=4),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 1),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.3 * scale))
    return network


def _trial(
    patients: Sequence[int],
    *,
    scale: float = 1.0,
    rate: float = 0.1,
    noise_multiplier: float = 1.0,
    normaliser: float = 5.0,
) -> Trial:
    """Random images of 3 x 12 x 12; `patients` is the patient of each row. Labels alternate."""
    generator = torch.Generator().manual_seed(11)
    return Trial(
        _network(scale),
        torch.rand((len(patients), 3, 12, 12), generator=generator),
        torch.arange(len(patients)) % 2,
        np.asarray(patients, dtype=np.int64),
        PrivateConstants(
            sampling_rate=rate, clipping_norm=0.5, noise_multiplier=noise_multiplier, normaliser=normaliser
        ),
    )


def _flat(released: Mapping[str, Tensor], trial: Trial) -> NDArray[np.float64]:
    """A release times the normaliser: clipped sum and noise. Zeros for a trained parameter that was not released."""
    parts = []
    for name, parameter in trial.network.named_parameters():
        found = released.get(name)
        parts.append(torch.zeros_like(parameter).flatten() if found is None else found.detach().flatten())
    return torch.cat(parts).double().cpu().numpy() * trial.constants.normaliser


def _nobody() -> NDArray[np.int64]:
    return np.empty(0, np.int64)


def _measured(what: str, value: float, low: float | None = None, high: float | None = None) -> Measurement:
    return Measurement(what=what, value=float(value) if math.isfinite(value) else None, low=low, high=high)


def _deviation(what: str, values: NDArray[np.float64], expected: float) -> Measurement:
    """Standard deviation about a known mean of 0, relative to what is expected, in its chi-squared interval."""
    low, high = stats.chi2.ppf([_LEVEL / 2, 1 - _LEVEL / 2], len(values))
    found = math.sqrt(float(np.mean(np.square(values)))) / expected
    return _measured(what, found, math.sqrt(low / len(values)), math.sqrt(high / len(values)))


def _frequency(what: str, hits: int, trials: int, probability: float) -> Measurement:
    low, high = stats.binom.ppf([_LEVEL / 2, 1 - _LEVEL / 2], trials, probability) / trials
    return _measured(what, hits / trials, float(low), float(high))


def _noise(build: Build) -> list[Measurement]:
    trial = _trial([0, 1])
    mechanism, expected = build(trial), trial.constants.noise_standard_deviation
    drawn = [_flat(mechanism.release(_nobody()), trial) for _ in range(40)]
    values = np.concatenate(drawn) / expected
    beyond = int(np.count_nonzero(np.abs(values) > 3.0))
    return [
        _deviation(f"standard deviation over sigma * C, {len(values)} coordinates of empty steps", values, 1.0),
        _measured("p of Kolmogorov's and Smirnov's test against the normal distribution",
                  float(stats.kstest(values, "norm").pvalue), _LEVEL),
        _frequency("share beyond three standard deviations", beyond, len(values), 2 * float(stats.norm.sf(3.0))),
        _correlation("correlation of consecutive steps' noise", np.concatenate(drawn[:-1]), np.concatenate(drawn[1:])),
    ]  # fmt: skip


def _correlation(what: str, one: NDArray[np.float64], other: NDArray[np.float64]) -> Measurement:
    size = float(np.linalg.norm(one) * np.linalg.norm(other))
    bound = _DEVIATIONS / math.sqrt(len(one))
    return _measured(what, float(one @ other) / size if size > 0 else math.inf, -bound, bound)


def _every_parameter(build: Build) -> list[Measurement]:
    trial = _trial([0, 1])
    mechanism, expected = build(trial), trial.constants.noise_standard_deviation
    released = [mechanism.release(_nobody()) for _ in range(60)]
    found = []
    for name, parameter in trial.network.named_parameters():
        values = [one[name] if name in one else torch.zeros_like(parameter) for one in released]
        noise = torch.stack(values).double().flatten().cpu().numpy() * trial.constants.normaliser
        found.append(_deviation(f"'{name}': standard deviation of its noise over sigma * C", noise, expected))
    return found


def _empty_step(build: Build) -> list[Measurement]:
    trial = _trial(range(4))
    mechanism, expected = build(trial), trial.constants.noise_standard_deviation
    rows = np.arange(4)
    empty = np.concatenate([_flat(mechanism.release(_nobody()), trial) for _ in range(4)])
    twice = np.concatenate(
        [_flat(mechanism.release(rows), trial) - _flat(mechanism.release(rows), trial) for _ in range(4)]
    )
    return [
        _deviation("standard deviation of what a step without patients releases, over sigma * C", empty, expected),
        _deviation("standard deviation of the same patients' noise over sigma * C", twice / math.sqrt(2.0), expected),
    ]


def _clipping(build: Build) -> list[Measurement]:
    """Weights that a hostile coordinator could send: gradients of 1e4 to 1e30 times C, some not finite."""
    found = []
    for what, scale in (("weights of usual size", 1.0), ("weights 30 times as large", 30.0)):
        trial = _trial([*range(8)], scale=scale, noise_multiplier=_NEARLY_SILENT)
        trial.images[2] *= 1e6
        trial.images[3] = 0.0
        trial.images[4, 0, 0, 0] = math.nan
        trial.images[5, 1] = math.inf
        mechanism, bound = build(trial), trial.constants.clipping_norm
        rows = np.arange(8)
        alone = np.stack([_flat(mechanism.release(rows[i : i + 1]), trial) for i in rows])
        growing = np.stack([_flat(mechanism.release(rows[:i]), trial) for i in range(9)])
        steps = np.diff(growing, axis=0)
        apart = float(np.linalg.norm(growing[-1] - alone.sum(0)))
        found += [
            _measured(f"{what}: largest norm that one patient gives, over C", np.linalg.norm(alone, axis=1).max() / bound, 0.0, 1 + _SLACK),
            _measured(f"{what}: largest change by one more patient, over C", np.linalg.norm(steps, axis=1).max() / bound, 0.0, 1 + _SLACK),
            _measured(f"{what}: sum of all less the sum of each alone, over C", apart / bound, 0.0, _SLACK),
        ]  # fmt: skip
    return found


def _normaliser(build: Build) -> list[Measurement]:
    trial = _trial([*range(6)], scale=30.0, noise_multiplier=_NEARLY_SILENT, normaliser=7.0)
    mechanism, declared = build(trial), trial.constants.normaliser
    # What the sums would be, were `declared` the divisor: with these weights every patient's norm is C.
    alone = [_flat(mechanism.release(np.array([row])), trial) for row in range(6)]
    found = [
        _measured("norm that one clipped patient gives, over C", float(np.linalg.norm(alone[0])) / trial.constants.clipping_norm,
                  1 - _SLACK, 1 + _SLACK)
    ]  # fmt: skip
    for count in (5, 6):
        together = float(np.linalg.norm(_flat(mechanism.release(np.arange(count)), trial)))
        expected = float(np.linalg.norm(np.sum(alone[:count], axis=0)))
        divisor = declared * expected / together if together > 0 else math.inf
        found.append(
            _measured(
                f"divisor with {count} patients, over the public constant", divisor / declared, 1 - _SLACK, 1 + _SLACK
            )
        )
    return found


#: Images of each patient in the trials of the sampler: some have one, some eight.
_IMAGES = (1, 1, 1, 2, 2, 3, 4, 5, 8, 8)
_PATIENTS, _STEPS, _RATE = 40, 20_000, 0.15


def _drawn(build: Build) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    counts = [_IMAGES[i % len(_IMAGES)] for i in range(_PATIENTS)]
    patients = np.repeat(np.arange(_PATIENTS), counts)
    mechanism = build(_trial(patients.tolist(), rate=_RATE))
    return patients, [mechanism.sample() for _ in range(_STEPS)]


def _sampling(build: Build) -> list[Measurement]:
    patients, steps = _drawn(build)
    present = np.zeros((_STEPS, _PATIENTS), bool)
    for index, rows in enumerate(steps):
        present[index, patients[rows]] = True
    sizes = np.array([len(rows) for rows in steps])
    each = present.sum(0)
    mean, variance = _PATIENTS * _RATE, _PATIENTS * _RATE * (1 - _RATE)
    excess = (1 - 6 * _RATE * (1 - _RATE)) / variance
    spread = _DEVIATIONS * math.sqrt(2 / (_STEPS - 1) + excess / _STEPS)
    again = int((present[1:] & present[:-1]).sum())
    # Of a patient's presence in two steps running; pairs of pairs share a step.
    square, cube = _RATE**2, _RATE**3
    wander = math.sqrt(_PATIENTS * ((_STEPS - 1) * (square - square**2) + 2 * (_STEPS - 2) * (cube - square**2)))
    expected = _PATIENTS * (_STEPS - 1) * square
    return [
        _frequency(f"how often a patient takes part, all patients together (q = {_RATE})", int(each.sum()),
                   _PATIENTS * _STEPS, _RATE),
        _frequency("the patient who takes part most seldom", int(each.min()), _STEPS, _RATE),
        _frequency("the patient who takes part most often", int(each.max()), _STEPS, _RATE),
        _measured("mean number of rows of a step over that of Poisson sampling", float(sizes.mean()) / mean,
                  1 - _DEVIATIONS * math.sqrt(variance / _STEPS) / mean, 1 + _DEVIATIONS * math.sqrt(variance / _STEPS) / mean),
        _measured("variance of the number of rows over that of Poisson sampling", float(sizes.var(ddof=1)) / variance,
                  1 - spread, 1 + spread),
        _measured("how often a patient takes part twice running, over q squared", again / expected,
                  1 - _DEVIATIONS * wander / expected, 1 + _DEVIATIONS * wander / expected),
    ]  # fmt: skip


def _one_image(build: Build) -> list[Measurement]:
    patients, steps = _drawn(build)
    twice = sum(len(rows) - len(np.unique(patients[rows])) for rows in steps)
    found = [_measured(f"rows of a patient who has another in the same step, in {_STEPS} steps", twice, 0.0, 0.0)]
    times = np.bincount(np.concatenate(steps), minlength=len(patients))
    counts = np.bincount(patients)
    for count in sorted(set(counts[counts > 1].tolist())):
        rows = np.flatnonzero(counts[patients] == count)
        owners = np.array([times[patients == patients[row]].sum() for row in rows])
        shares = times[rows] / np.maximum(owners, 1)
        for word, row in (("least", rows[shares.argmin()]), ("most", rows[shares.argmax()])):
            total = int(times[patients == patients[row]].sum())
            found.append(
                _frequency(
                    f"share of the {word} drawn image of patients with {count}",
                    int(times[row]),
                    max(total, 1),
                    1 / count,
                )
            )
    return found


def _fresh(build: Build) -> list[Measurement]:
    """Every seedable generator set alike before each release: another round, another site, two forks of one process."""

    def seeded() -> None:
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)

    trial, other = _trial([0, 1]), _trial([0, 1])
    seeded()
    mechanism = build(trial)
    seeded()
    first = _flat(mechanism.release(_nobody()), trial)
    seeded()
    second = _flat(mechanism.release(_nobody()), trial)
    seeded()
    elsewhere = build(other)
    seeded()
    site = _flat(elsewhere.release(_nobody()), other)
    found = [
        _correlation("two rounds after the same seed", first, second),
        _correlation("two sites after the same seed", first, site),
    ]
    forks = [_in_a_fork(lambda: _flat(mechanism.release(_nobody()), trial)) for _ in range(2)]
    if forks[0] is None or forks[1] is None:
        return [*found, _measured("two forks of one process: they gave no answer", math.nan, 0.0, 0.0)]
    return [
        *found,
        _correlation("two forks of one process", forks[0], forks[1]),
        _correlation("a process and its fork", forks[0], second),
    ]


def _in_a_fork(release: Callable[[], NDArray[np.float64]]) -> NDArray[np.float64] | None:
    """What `release` gives in a forked child, as a node's executor forks one for each message; None after a minute."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            with os.fdopen(writing, "wb") as stream:
                stream.write(release().tobytes())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        ready = bool(select.select([stream], [], [], _FORK_TIMEOUT_S)[0])
        content = stream.read() if ready else b""
    if not ready:
        os.kill(child, 9)
    os.waitpid(child, 0)
    return np.frombuffer(content, np.float64) if content else None


#: Name, what is checked, and what measures it.
CHECKS: tuple[tuple[str, str, Callable[[Build], list[Measurement]]], ...] = (
    ("noise", "Noise is Gaussian, of standard deviation sigma * C", _noise),
    ("every_parameter", "No trained parameter goes without noise", _every_parameter),
    ("fresh_noise", "Noise comes from no seed: it differs between rounds, sites and processes", _fresh),
    ("empty_step", "A step that draws nobody is a step of noise, and noise does not depend on patients", _empty_step),
    ("clipping", "Each patient changes a sum by at most C, whatever the weights and images", _clipping),
    ("normaliser", "Sums are divided by the public constant, whoever was drawn", _normaliser),
    ("poisson", "Patients are drawn by Poisson sampling", _sampling),
    ("one_image", "One image of each patient in a step, all equally likely", _one_image),
)
