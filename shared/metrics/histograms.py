"""Score histograms that may leave a hospital, and the ROC curve and AUC that can be had from them.

What is guaranteed: in every published histogram each cell counts either no image or at least `minimum_cell` images,
separately for the positive class and the rest. What is not: this is no differential privacy; which edges remain
depends on the data; the confusion counts are published beside it without a minimum, so that they can divide the cell
in which the decision threshold lies; and histograms of two models on the same images can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.metrics.classification import Floats
from shared.results import ScoreHistogram


def score_histogram(
    scores: Floats, is_positive: NDArray[np.bool_], *, bins: int, minimum_cell: int
) -> ScoreHistogram | None:
    """Counts of scores (N,) in [0, 1] over `bins` equal public bins [a, b) (the last one closed), neighbours merged.

    Of all mergings that leave no cell in 1..minimum_cell-1 the one with the fewest positive-negative pairs inside one
    cell is taken (these pairs are what an AUC from the histogram has to guess), with the most cells where several
    have. None where no merging will do, because a class has fewer than `minimum_cell` images altogether.
    """
    place = np.clip(np.searchsorted(np.arange(bins + 1) / bins, scores, side="right") - 1, 0, bins - 1)
    # Positions before each edge: cell (i, j] holds up[j] - up[i] positives and down[j] - down[i] negatives.
    up = np.concatenate(([0], np.cumsum(np.bincount(place[is_positive], minlength=bins))))
    down = np.concatenate(([0], np.cumsum(np.bincount(place[~is_positive], minlength=bins))))

    # Shortest path over edges; cost counts tied pairs first, then (as a fraction below 1) few cells.
    cost = np.full(bins + 1, np.inf)
    cost[0] = 0.0
    previous = np.zeros(bins + 1, dtype=np.int64)
    for edge in range(1, bins + 1):
        positives, negatives = up[edge] - up[:edge], down[edge] - down[:edge]
        allowed = ((positives == 0) | (positives >= minimum_cell)) & ((negatives == 0) | (negatives >= minimum_cell))
        candidates = np.where(allowed, cost[:edge] + positives * negatives - 1.0 / (bins + 1), np.inf)
        previous[edge] = int(np.argmin(candidates))
        cost[edge] = candidates[previous[edge]]
    if not np.isfinite(cost[bins]):
        return None
    path = [bins]
    while path[-1] > 0:
        path.append(int(previous[path[-1]]))
    kept = np.array(path[::-1])
    # Neighbours that are both empty say as much as one empty cell.
    empty = (np.diff(up[kept]) == 0) & (np.diff(down[kept]) == 0)
    kept = kept[np.concatenate(([True], ~(empty[1:] & empty[:-1]), [True]))]
    return ScoreHistogram(
        edges=[edge / bins for edge in kept.tolist()],
        positive=np.diff(up[kept]).tolist(),
        negative=np.diff(down[kept]).tolist(),
        minimum_cell=minimum_cell,
    )


@dataclass(frozen=True, slots=True)
class HistogramRoc:
    """ROC curve from histograms: points from (0, 0) to (1, 1), the area under them, and what the area can be at the
    least and most.
    """

    false_positive_rate: Floats
    true_positive_rate: Floats
    auc: float
    auc_least: float
    auc_most: float


def histogram_roc(histograms: Sequence[ScoreHistogram]) -> HistogramRoc | None:
    """ROC of the pooled images of one or more histograms whose edges may differ. None without positives or negatives.

    Each cell's images are taken to be spread evenly between its edges, so that the curve is piecewise linear between
    the edges of all histograms; for one histogram (or equal edges) that is the trapezoidal rule, i.e. ties within a
    cell count half. (Pooling over the edges common to all hospitals would need no such assumption, but merged edges
    rarely coincide, and one cell would be left.) `auc_least` and `auc_most` hold whatever the images' true scores
    inside their cells.
    """
    edges = common_edges(histograms)
    up = np.sum([np.array(one.positive) @ spreading(one, edges) for one in histograms], axis=0)
    down = np.sum([np.array(one.negative) @ spreading(one, edges) for one in histograms], axis=0)
    if not (np.sum(up) > 0 and np.sum(down) > 0):
        return None
    hits, alarms = (np.concatenate(([0.0], np.cumsum(one[::-1]))) for one in (up, down))
    least, most = _auc_bounds(histograms)
    auc = float(spread_auc(up[None], down[None])[0])
    # Divided by their own last sums, so that rounding leaves no step downwards.
    return HistogramRoc(alarms / alarms[-1], hits / hits[-1], min(max(auc, least), most), least, most)


def common_edges(histograms: Sequence[ScoreHistogram]) -> Floats:
    """All edges of all histograms, sorted."""
    return np.unique(np.concatenate([np.asarray(one.edges, dtype=np.float64) for one in histograms] or [np.zeros(0)]))


def spreading(histogram: ScoreHistogram, edges: Floats) -> Floats:
    """Matrix (cells, len(edges) - 1): the share of each cell that lies between two neighbours of `edges` (rows add up
    to 1).
    """
    low, high = np.asarray(histogram.edges[:-1])[:, None], np.asarray(histogram.edges[1:])[:, None]
    overlap = np.minimum(high, edges[None, 1:]) - np.maximum(low, edges[None, :-1])
    return np.asarray(np.clip(overlap, 0.0, None) / (high - low), dtype=np.float64)


def spread_auc(positive: Floats, negative: Floats) -> Floats:
    """AUC (R,) of counts (R, bins) in ascending bins, ties as half. Every row needs positives and negatives."""
    below = np.cumsum(negative, axis=1) - negative
    pairs = positive.sum(1) * negative.sum(1)
    return np.asarray((positive * (below + 0.5 * negative)).sum(1) / pairs, dtype=np.float64)


def _auc_bounds(histograms: Sequence[ScoreHistogram]) -> tuple[float, float]:
    low = np.concatenate([one.edges[:-1] for one in histograms])
    high = np.concatenate([one.edges[1:] for one in histograms])
    positive = np.concatenate([one.positive for one in histograms]).astype(np.float64)
    negative = np.concatenate([one.negative for one in histograms]).astype(np.float64)
    pairs = positive.sum() * negative.sum()
    # Cells are [low, high), so a positive cell that starts where a negative one ends is above it for certain.
    won = positive @ (low[:, None] >= high[None, :]) @ negative
    lost = positive @ (high[:, None] <= low[None, :]) @ negative
    return float(won / pairs), float((pairs - lost) / pairs)
