"""A support vector machine that is private in the training patients: linear, on random features of the RBF kernel, trained by DP-SGD.

The machine's input is the backbone's features of one image, scaled to length 1, and mapped to D cosines and D sines of random frequencies
(Rahimi, Recht, "Random Features for Large-Scale Kernel Machines", NIPS 2007): inner products of mapped images approximate
exp(-gamma * |x - y|^2), and every mapped image has length 1. One output for two classes, one against the rest for more; hinge loss
(Cortes, Vapnik, 1995); steps of DP-SGD by patient as in `client.private.dp_sgd`; the mean of the last half of the steps' weights is kept
(Rakhlin, Shamir, Sridharan, "Making Gradient Descent Optimal for Strongly Convex Stochastic Optimization", ICML 2012), which costs no
privacy: every step's weights are made of released sums alone.

There is no intercept: among images of length 1 a kernel with a gamma near 1 can come close to a constant. No class weights, no
standardisation and no choice of gamma by cross-validation: each would be taken from the patients. The backbone must be public or released
already; else its features carry these patients into the machine along a way that is not noised. What else would invalidate the guarantee
is in `client.private.dp_sgd` and `client.private.noise`; time to fit is not hidden either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.private.noise import standard_normals
from client.private.sampling import PatientSampler
from shared.errors import PrivacyError
from shared.privacy.mechanisms import SubsampledGaussian

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

#: Clipped shares stay this far below C, so that rounding can't carry them over it.
_ROUNDING = 1e-14
_WHOLE = ("components", "steps", "seed")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearSvmConstants:
    """The machine's public constants, of the study or the profile, never of the data.

    components: D, pairs of a cosine and a sine. gamma: of the kernel, for features of length 1. steps: of DP-SGD. sampling_rate: q, a
    patient's probability to take part in a step, in (0, 1]. clipping_norm: C, the largest L2 norm of one patient's share of a sum; a
    hinge loss' gradient has at most 1 for two classes, sqrt(K) for K. noise_multiplier: sigma; the noise has standard deviation
    sigma * C. normaliser: what a noised sum is divided by. learning_rate: of each step. weight_decay: share of the weights that each
    step takes off, times the learning rate; 0 for none. seed: of the frequencies, public.

    Raises PrivacyError, naming the constant, for a value outside its range.
    """

    components: int
    gamma: float
    steps: int
    sampling_rate: float
    clipping_norm: float
    noise_multiplier: float
    normaliser: float
    learning_rate: float
    weight_decay: float
    seed: int

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if name in _WHOLE:
                least = 0 if name == "seed" else 1
                if isinstance(value, bool) or not isinstance(value, int) or value < least:
                    raise PrivacyError(f"{name}: expected a whole number of at least {least}, but got {value!r}")
            elif isinstance(value, bool) or not math.isfinite(value) or value < 0.0:
                raise PrivacyError(f"{name}: expected a finite number, not below 0, but got {value!r}")
            elif value == 0.0 and name != "weight_decay":
                raise PrivacyError(f"{name}: expected a number above 0, but got {value!r}")
        if self.sampling_rate > 1.0:
            raise PrivacyError(f"sampling_rate: expected at most 1, but got {self.sampling_rate}")
        if self.learning_rate * self.weight_decay >= 1.0:
            raise PrivacyError(
                f"weight_decay: expected less than 1 / learning_rate = {1.0 / self.learning_rate:g}, but got {self.weight_decay}"
            )

    @property
    def event(self) -> SubsampledGaussian:
        """What fitting costs, for the accountants. Raises MechanismError where they don't answer for these constants."""
        return SubsampledGaussian(self.sampling_rate, self.noise_multiplier, self.steps)


@dataclass(frozen=True, slots=True, eq=False)
class PrivateLinearSvm:
    """A fitted machine: `frequencies` (F, D) and `weights` (outputs, 2 * D), one output for two classes, K for K. All of it may leave."""

    frequencies: Floats
    weights: Floats

    def decision(self, features: NDArray[Any]) -> Floats:
        """Decision values (N, K), larger for likelier classes, of features (N, F). For two classes the first is minus the second."""
        values: Floats = mapped(features, self.frequencies) @ self.weights.T
        return np.concatenate((-values, values), axis=1) if values.shape[1] == 1 else values

    def predict(self, features: NDArray[Any]) -> Integers:
        """Class indices (N,) of features (N, F); of equal decisions the lower index."""
        found: Integers = self.decision(features).argmax(axis=1).astype(np.int64)
        return found


def fit(
    features: NDArray[Any],
    labels: NDArray[np.integer],
    patients: NDArray[Any],
    *,
    classes: int,
    constants: LinearSvmConstants,
) -> PrivateLinearSvm:
    """Fit on features (N, F), labels (N,) below `classes` and patients (N,): one release of `constants.event`, fresh at each call.

    A class, or a hospital, without any image is no error: what would be learnt of it is noise. Mapped images take N * 2 * D * 8 bytes.
    Raises ValueError where the shapes don't fit together or a label is not below `classes`.
    """
    if features.ndim != 2 or labels.shape != (len(features),) or patients.shape != labels.shape:
        raise ValueError(
            f"expected features (N, F), labels (N,) and patients (N,), but got {features.shape}, {labels.shape}, {patients.shape}"
        )
    if classes < 2 or (labels.size and not (labels.min() >= 0 and labels.max() < classes)):
        raise ValueError(f"expected at least 2 classes and labels below their number, {classes}")
    frequencies = frequencies_of(features.shape[1], constants)
    rows, signs = mapped(features, frequencies), _signs(labels, classes)
    owners = np.unique(patients, return_inverse=True)[1]
    sampler = PatientSampler(np.arange(len(rows)), owners, rate=constants.sampling_rate)
    weights = np.zeros((signs.shape[1], rows.shape[1]))
    total, first = np.zeros_like(weights), constants.steps // 2
    for step in range(constants.steps):
        drawn = sampler.draw()
        gradient = released(rows[drawn], signs[drawn], weights, constants)
        weights = (
            weights * (1.0 - constants.learning_rate * constants.weight_decay) - constants.learning_rate * gradient
        )
        if step >= first:
            total += weights
    return PrivateLinearSvm(frequencies, total / (constants.steps - first))


def frequencies_of(width: int, constants: LinearSvmConstants) -> Floats:
    """Frequencies (width, D) of the kernel: independent normals of variance 2 * gamma, from the public seed."""
    drawn = np.random.default_rng(constants.seed).standard_normal((width, constants.components))
    return drawn * math.sqrt(2.0 * constants.gamma)


def mapped(features: NDArray[Any], frequencies: Floats) -> Floats:
    """Features (N, F) scaled to length 1 row by row, as cosines and sines (N, 2 * D) of length 1. Each row depends on its own image alone.

    A row of zeros stays zero before it is mapped; one that holds a number that is not finite is taken for a row of zeros.
    """
    rows = np.asarray(features, dtype=np.float64)
    rows = np.where(np.isfinite(rows).all(axis=1, keepdims=True), rows, 0.0)
    # Twice, since squares of very large or small numbers are infinite or 0.
    rows = _divided(rows, np.abs(rows).max(axis=1, keepdims=True, initial=0.0))
    rows = _divided(rows, np.linalg.norm(rows, axis=1, keepdims=True))
    angles = rows @ frequencies
    return np.concatenate((np.cos(angles), np.sin(angles)), axis=1) / math.sqrt(frequencies.shape[1])


def clipped_sum(rows: Floats, signs: Floats, weights: Floats, clipping_norm: float) -> Floats:
    """Sum (outputs, 2 * D) of the hinge losses' gradients of mapped images (B, 2 * D), each clipped over all outputs together.

    `signs` (B, outputs) are 1 for images of the output's class and -1 for others. NOT private: it must not leave the mechanism.
    """
    coefficients = np.where(signs * (rows @ weights.T) < 1.0, -signs, 0.0)
    norms = np.linalg.norm(coefficients, axis=1) * np.linalg.norm(rows, axis=1)
    coefficients *= (clipping_norm * (1.0 - _ROUNDING) / np.maximum(norms, clipping_norm))[:, None]
    total: Floats = coefficients.T @ rows
    return total


def released(rows: Floats, signs: Floats, weights: Floats, constants: LinearSvmConstants) -> Floats:
    """(Clipped sum + noise) / normaliser, (outputs, 2 * D), of one step's images; of none at all it is noise."""
    noise = standard_normals(weights.size).numpy().reshape(weights.shape)
    total = clipped_sum(rows, signs, weights, constants.clipping_norm)
    return (total + noise * (constants.noise_multiplier * constants.clipping_norm)) / constants.normaliser


def _signs(labels: NDArray[np.integer], classes: int) -> Floats:
    """(N, outputs) of 1 and -1: for two classes whether it is the second."""
    wanted = np.arange(1, 2) if classes == 2 else np.arange(classes)
    return np.where(labels[:, None] == wanted, 1.0, -1.0)


def _divided(rows: Floats, sizes: Floats) -> Floats:
    """Rows over their sizes (N, 1); a row of size 0 as it is."""
    return np.divide(rows, sizes, out=rows.copy(), where=sizes > 0.0)
