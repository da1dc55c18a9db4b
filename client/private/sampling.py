"""Poisson sampling of patients, one image of each sampled patient.

The amplification by sampling that the accountants compute holds for this and no other way of making batches: every patient takes part in
every step with the same probability, independently of all others and of all other steps (Abadi et al., "Deep Learning with Differential
Privacy", CCS 2016, section 3; Mironov, Talwar, Zhang, "Renyi Differential Privacy of the Sampled Gaussian Mechanism", 2019). Shuffling,
batches of a fixed size, or two images of one patient in a step would invalidate it. So would telling anybody who was sampled, or how many.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from client.private.noise import uniforms
from shared.errors import PrivacyError


class PatientSampler:
    """Draws the rows of one step: each patient with probability `rate`, and one uniformly drawn image of each drawn patient.

    `rows` are the images to draw from (indices into the cohort), `patients` the patient of each of them, both `(N,)` integers. `rate`
    is a public constant. The probabilities are exact within 2**-53 times the number of a patient's images. Raises PrivacyError where
    `rate` is not in (0, 1], ValueError where the two arrays differ in length or a row stands twice.
    """

    def __init__(self, rows: ArrayLike, patients: ArrayLike, *, rate: float) -> None:
        images, owners = np.asarray(rows, dtype=np.int64), np.asarray(patients, dtype=np.int64)
        if images.shape != owners.shape or images.ndim != 1:
            raise ValueError(f"expected one patient for each row, but got shapes {images.shape} and {owners.shape}")
        if len(np.unique(images)) != len(images):
            raise ValueError("expected each row once")
        if not (math.isfinite(rate) and 0.0 < rate <= 1.0):
            raise PrivacyError(f"sampling rate: expected a number above 0 and at most 1, but got {rate}")
        self.rate = rate
        self._images = images[np.argsort(owners, kind="stable")]
        # How many images each patient has, and where they begin.
        self._counts: NDArray[np.int64] = np.unique(owners, return_counts=True)[1].astype(np.int64)
        self._starts = np.cumsum(self._counts) - self._counts

    def draw(self) -> NDArray[np.int64]:
        """The rows of one step, `(B,)` with B from 0 to the number of patients; an empty draw is a step like any other."""
        count = len(self._counts)
        drawn = uniforms(2 * count)
        chosen = drawn[:count] < self.rate
        which = (drawn[count:] * self._counts).astype(np.int64)
        rows: NDArray[np.int64] = self._images[(self._starts + which)[chosen]]
        return rows
