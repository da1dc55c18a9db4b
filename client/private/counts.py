"""Test counts under pure differential privacy: one vote a patient, two-sided geometric noise on every cell.

The mechanism adds to each count an integer X with P(X = k) proportional to exp(-epsilon * |k|) (Ghosh, Roughgarden, Sundararajan,
"Universally Utility-Maximizing Privacy Mechanisms", STOC 2009). X is drawn without any floating-point number, after Canonne, Kamath,
Steinke, "The Discrete Gaussian for Differential Privacy", NeurIPS 2020, section 5: epsilon is a fraction, every decision is a comparison
of whole numbers, and the whole numbers are uniform ones of the operating system's cryptographic generator (`secrets`), which keeps no
state in the process that a fork or a seed could repeat. So the noise has the very distribution that the guarantee is computed for,
tails included; what `client.private.noise` says of time and of systems without entropy holds here too.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.privacy.mechanisms import Geometric


def two_sided_geometric(epsilon: Fraction) -> int:
    """One whole number X with P(X = k) = (1 - a) / (1 + a) * a**|k|, a = exp(-epsilon), exactly; fresh at each call.

    Raises MechanismError where epsilon is out of the range that accountants answer for.
    """
    Geometric(float(epsilon))
    while True:
        size, negative = _geometric(epsilon), bool(secrets.randbelow(2))
        # 0 comes with two signs: one of them is drawn again.
        if size or not negative:
            return -size if negative else size


def one_vote(patients: NDArray[Any], keys: Sequence[str]) -> NDArray[np.int64]:
    """The row of each patient's vote, `(P,)` ascending: the image whose record key has the smallest SHA-256.

    `patients` `(N,)` says whose image each is, `keys` (N) are the records' keys. The choice looks at the patient's own keys and nothing
    else. Raises ValueError where the lengths differ or a key stands twice.
    """
    if patients.ndim != 1 or len(patients) != len(keys):
        raise ValueError(f"expected one patient for each key, but got {patients.shape} and {len(keys)} keys")
    if len(set(keys)) != len(keys):
        raise ValueError("expected each record key once")
    first: dict[Any, tuple[bytes, int]] = {}
    for row, (patient, key) in enumerate(zip(patients.tolist(), keys, strict=True)):
        mine = hashlib.sha256(key.encode()).digest(), row
        first[patient] = min(mine, first.get(patient, mine))
    return np.array(sorted(row for _, row in first.values()), dtype=np.int64)


def noised_votes(
    cells: NDArray[np.integer], patients: NDArray[Any], keys: Sequence[str], *, size: int, epsilon: Fraction
) -> list[int]:
    """Counts `(size,)` of one vote a patient by cell, each with noise of its own: an epsilon-DP release, may be below 0.

    `cells` and `patients` are `(N,)`, the former indices below `size`, public in number and meaning. No test image at all gives noise
    alone.

    Sensitivity. Each patient votes with exactly one image, chosen by `one_vote`. So adding or removing one patient, with all their
    images, changes one cell by 1 and no other. The noise of that cell changes the probability of any outcome by a factor of at most
    exp(epsilon), the noise of all other cells is the same: the table as a whole is epsilon-DP under the relation of
    `shared.privacy.mechanisms`, to be charged as `Geometric(epsilon)`. (Giving one patient's image another cell moves a vote from one
    cell to another: 2 * epsilon.)

    What would invalidate this:

    - a cell of one patient that depends on the other test patients: batch statistics, a threshold, calibration or bins from the test
      part, a model that was trained or selected on it. The release protects test patients only; that the model may be shown at all is a
      matter of how it was trained.
    - a split, a deduplication or a choice of classes in which one patient decides about another; one person under two patient ids.
    - leaving out, rounding up or merging cells by looking at the counts before the noise, or telling N or the number of patients.
    - a second table of the same patients (another head, another round, a redone answer) that is not charged for itself.

    Raises ValueError where the arguments don't fit together, MechanismError as `two_sided_geometric` does.
    """
    rows = one_vote(patients, keys)
    _require_indices("cells", cells, patients, size)
    counts = np.bincount(cells[rows], minlength=size)
    return [int(count) + two_sided_geometric(epsilon) for count in counts]


def noised_confusion(
    truth: NDArray[np.integer],
    predicted: NDArray[np.integer],
    patients: NDArray[Any],
    keys: Sequence[str],
    *,
    classes: int,
    epsilon: Fraction,
) -> list[list[int]]:
    """Counts [true class][predicted class] of one vote a patient: `noised_votes`, with what is said there of sensitivity and limits.

    `truth`, `predicted` and `patients` are `(N,)`, the first two class indices below `classes`. Raises as `noised_votes`.
    """
    for name, values in (("truth", truth), ("predicted", predicted)):
        _require_indices(name, values, patients, classes)
    cells = truth.astype(np.int64) * classes + predicted
    flat = noised_votes(cells, patients, keys, size=classes**2, epsilon=epsilon)
    return [flat[start : start + classes] for start in range(0, len(flat), classes)]


def _require_indices(name: str, values: NDArray[np.integer], patients: NDArray[Any], size: int) -> None:
    if values.shape != patients.shape:
        raise ValueError(f"expected `{name}` to have shape {patients.shape}, but got {values.shape}")
    if values.size and not (values.min() >= 0 and values.max() < size):
        raise ValueError(f"expected `{name}` to hold indices from 0 to {size - 1}, but got others")


def _geometric(epsilon: Fraction) -> int:
    """K >= 0 with P(K = k) proportional to exp(-epsilon * k).

    With epsilon = a / b: K = floor(J / a) for a J of rate 1 / b, and J = U + b * V with U below b of rate 1 / b and V of rate 1.
    """
    a, b = epsilon.numerator, epsilon.denominator
    while True:
        low = secrets.randbelow(b)
        if _happens(low, b):
            break
    high = 0
    while _happens(1, 1):
        high += 1
    return (low + b * high) // a


def _happens(numerator: int, denominator: int) -> bool:
    """True with probability exp(-x), x = numerator / denominator in [0, 1].

    Von Neumann's race: x, x/2, x/3, ... happen in turn until one does not; the k-th is the first that does not with probability
    x**(k-1)/(k-1)! - x**k/k!, which adds up to exp(-x) over odd k.
    """
    k = 1
    while secrets.randbelow(k * denominator) < numerator:
        k += 1
    return k % 2 == 1
