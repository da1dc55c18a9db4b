"""What the hospital's page draws: curves, a map of the features, and the errors worth looking at. Numbers only, no
markup.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.preprocessing import StandardScaler

from client.features import PartFeatures
from shared.metrics.classification import Floats, Predictions, roc_curve

Point = tuple[float, float]
#: Gives the prepared pixels of test image i: (H, W) or (C, H, W) in [0, 1], C of 1 or 3.
ImageOf = Callable[[int], NDArray[Any]]

#: t-SNE's time grows with the points; above this the training images are thinned out at random.
_MOST_POINTS = 1200
_LEAST_POINTS = 10


def roc_points(head: Predictions) -> list[Point] | None:
    """Exact ROC curve of the positive class; None where the test part has only one kind of image."""
    is_positive = head.truth == head.positive
    if is_positive.all() or not is_positive.any():
        return None
    false_rate, true_rate = roc_curve(head.scores[:, head.positive], is_positive)
    return [(float(x), float(y)) for x, y in zip(false_rate, true_rate, strict=True)]


@dataclass(frozen=True, slots=True)
class CalibrationGroup:
    """Images of similar score: their mean score, the share that is positive, its Wilson interval, and their number."""

    predicted: float
    observed: float
    low: float
    high: float
    images: int


def calibration(
    head: Predictions, *, confidence: float, most: int = 8, least_images: int = 8
) -> list[CalibrationGroup]:
    """Images in order of the positive class's score, cut into at most `most` groups of about equal size.

    The interval is Wilson's (J. Am. Stat. Assoc. 22, 1927); it counts images, not patients.
    """
    scores = head.scores[:, head.positive]
    order = np.argsort(scores, kind="stable")
    z = NormalDist().inv_cdf(0.5 + confidence / 2.0)
    groups = []
    for rows in np.array_split(order, max(1, min(most, order.size // least_images))):
        n = rows.size
        share = float((head.truth[rows] == head.positive).mean())
        centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z / (1 + z**2 / n) * float(np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)))
        low, high = max(0.0, centre - half), min(1.0, centre + half)
        groups.append(CalibrationGroup(float(scores[rows].mean()), share, low, high, n))
    return groups


def brier_score(head: Predictions) -> float:
    """Mean squared distance of the positive class's probability from 1 or 0 (Brier 1950): 0 is perfect."""
    return float(((head.scores[:, head.positive] - (head.truth == head.positive)) ** 2).mean())


@dataclass(frozen=True, slots=True)
class MapPoint:
    """One image on the map, `x` and `y` in [0, 1]."""

    x: float
    y: float
    label: int
    is_test: bool
    is_wrong: bool


def feature_map(train: PartFeatures, test: PartFeatures, wrong: NDArray[np.bool_], *, seed: int) -> list[MapPoint]:
    """t-SNE (van der Maaten & Hinton 2008) of standardised train and test features; empty below ten images.

    Perplexity is 30, or a third of the images where that is less. `wrong` (N test,) marks the errors to be ringed.
    """
    rng = np.random.default_rng(seed)
    room = max(0, _MOST_POINTS - test.images)
    kept = np.sort(rng.permutation(train.images)[:room])
    features = np.concatenate((train.features[kept], test.features)).astype(np.float64)
    number = len(features)
    if number < _LEAST_POINTS:
        return []
    scaled = StandardScaler().fit_transform(features)
    components = min(30, *scaled.shape)
    if components < scaled.shape[1]:
        scaled = PCA(components, random_state=seed % 2**32).fit_transform(scaled)
    perplexity = min(30.0, (number - 1) / 3.0)
    places = TSNE(perplexity=perplexity, init="random", random_state=seed % 2**32).fit_transform(scaled)
    low, span = places.min(0), np.ptp(places, axis=0)
    places = (places - low) / np.where(span > 0, span, 1.0)
    labels = np.concatenate((train.labels[kept], test.labels))
    marks = np.concatenate((np.zeros(kept.size, dtype=bool), wrong))
    return [
        MapPoint(float(x), float(y), int(label), index >= kept.size, bool(mark))
        for index, ((x, y), label, mark) in enumerate(zip(places, labels, marks, strict=True))
    ]


@dataclass(frozen=True, slots=True)
class ErrorCard:
    """One wrong test image: `index` in the test part, the class it is, the class said, and the probability of that."""

    index: int
    truth: int
    said: int
    probability: float


def confident_errors(head: Predictions, *, most: int) -> list[tuple[str, list[ErrorCard]]]:
    """Wrong images by kind, the most confident first: missed positives, false alarms, and (of more classes) other
    mix-ups.
    """
    wrong = np.flatnonzero(head.truth != head.predicted)
    probability = head.scores[wrong, head.predicted[wrong]]
    ranked = wrong[np.argsort(-probability, kind="stable")]
    cards = [
        ErrorCard(int(i), int(head.truth[i]), int(head.predicted[i]), float(head.scores[i, head.predicted[i]]))
        for i in ranked
    ]
    kinds = {
        "missed": [card for card in cards if card.truth == head.positive],
        "false alarm": [card for card in cards if card.said == head.positive],
        "mixed up": [card for card in cards if head.positive not in (card.truth, card.said)],
    }
    if head.classes == 2:
        del kinds["mixed up"]
    return [(kind, found[:most]) for kind, found in kinds.items()]


def png_data_uri(pixels: NDArray[Any]) -> str:
    """PNG of (H, W) or (C, H, W) pixels in [0, 1] as a data: URI. Raises ValueError for another shape."""
    array = np.asarray(pixels, dtype=np.float64)
    if array.ndim == 3 and array.shape[0] in (1, 3):
        array = array[0] if array.shape[0] == 1 else np.moveaxis(array, 0, -1)
    elif array.ndim != 2:
        raise ValueError(f"Expected pixels (H, W) or (C, H, W) with C of 1 or 3, but got {array.shape}")
    buffer = io.BytesIO()
    Image.fromarray(np.rint(np.clip(array, 0.0, 1.0) * 255).astype(np.uint8)).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def polyline(points: Sequence[Point] | Floats, side: float) -> str:
    """SVG points of a curve in the unit square drawn `side` units wide, the y axis upwards."""
    return " ".join(f"{x * side:.1f},{(1 - y) * side:.1f}" for x, y in points)
